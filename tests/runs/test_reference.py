"""docs/reference/run-folder.md says what runs write: every key of every file, no more and no less, with its type."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from tiny_runs import tiny_config
from widestream.convert.stream import convert_run
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig
from widestream.model.decoder import Decoder
from widestream.recipe import to_dict
from widestream.runs.folder import flatten
from widestream.runs.sample import sample_run
from widestream.train import begin, loop
from widestream.train.loop import train

original = loop._upcoming
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md"
EVERYTHING = {"eval_windows": 2, "tensorboard": True, "selection": 0.3}
TYPES = {"integer": int, "number": (int, float), "text": str, "boolean": bool, "null": type(None), "any": object}


def table(heading):
    """Rows of the first table under a heading: key to its other cells."""
    section = PAGE.read_text().partition(f"# {heading}\n")[2]
    rows = [line for line in re.split(r"\n#+ ", section)[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells, heading
    return {row[0].strip("`"): row[1:] for row in cells}


def matching(key, keys):
    """The documented key that stands for this one."""
    return [name for name in keys if re.fullmatch(re.sub(r"<\w+>", ".+", re.escape(name)), key)]


def has_type(value, words):
    if words == "list":
        return isinstance(value, list)
    if words.startswith("list of integers"):
        return isinstance(value, list) and all(type(item) is int for item in value)
    kinds = [TYPES[word] for word in words.split(" or ")]
    return any(isinstance(value, kind) and (kind is not int or type(value) is int) for kind in kinds)


def check(heading, *contents):
    """These JSON objects together have all keys of the table, and no others."""
    documented = table(heading)
    used = set()
    for content in contents:
        for key, value in flatten(content).items():
            (name,) = matching(key, documented) or [None]
            assert name is not None, f"{key} is not in {PAGE.name}"
            assert has_type(value, documented[name][0]), (key, value)
            used.add(name)
    assert used == documented.keys()


EXPERTS = {"num_experts": 3, "top_k": 2}


@pytest.fixture
def poisoned(monkeypatch):
    """At the fourth batch of a run the loss is nan."""
    loss, calls = Decoder.loss, iter(range(1, 100))

    def poison(self, *arguments, **options):
        terms = loss(self, *arguments, **options)
        if self.training and next(calls) == 4:
            return replace(terms, total=terms.total * torch.nan, cross_entropy=terms.cross_entropy * torch.nan)
        return terms

    monkeypatch.setattr(Decoder, "loss", poison)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A small run with everything that a run can have."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(data, train=EVERYTHING), folder)
    sample_run(folder, "the", SamplingConfig(max_new_tokens=3), keep=True)
    return folder


def rows(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_every_file_is_listed(run):
    names = {path.name for path in run.iterdir()}
    listed = {name.rstrip("/").partition("/")[0] for name in table("The run folder")}
    assert names == listed - {"tokenizer.json", "nonfinite_step_<step>.safetensors", "tags.json", "tasks", "wandb"}
    (checkpoint, _) = sorted((run / "checkpoints").iterdir())
    assert {path.name for path in checkpoint.iterdir()} == table("`checkpoints/step_<step>/`").keys()


def test_config(run, data):
    recipe = tiny_config(data, train=EVERYTHING)
    assert yaml.safe_load((run / "config.yaml").read_text()) == to_dict(recipe)


def test_run_json(run, data, tmp_path):
    train(tiny_config(data, train={"init_from": str(run)}), tmp_path / "later")
    check("`run.json`", *(json.loads((folder / "run.json").read_text()) for folder in (run, tmp_path / "later")))


def test_the_entry_made(data, tmp_path):
    train(tiny_config(data, "vector"), tmp_path / "plain")
    convert_run(tmp_path / "plain", "laurel", tmp_path / "made")
    info = json.loads((tmp_path / "made" / "run.json").read_text())
    check("Entry `made`", {"made": info["made"]})
    others = table("`run.json`").keys() | {"made"}
    assert all(key in others or matching(key, others) for key in flatten(info) if not key.startswith("made."))
    assert not (tmp_path / "made" / "metrics.jsonl").exists()


def test_an_entry_of_resumed(data, tmp_path, monkeypatch):
    config = tiny_config(data)
    with monkeypatch.context() as killed:
        killed.setattr(loop, "_finish", lambda *_: None)
        killed.setattr(loop, "_upcoming", lambda run: itertools.islice(original(run), 4))
        train(config, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    assert before["resumed"] == []
    monkeypatch.setattr(begin, "describe_machine", lambda _: before["machine"] | {"cpu": "Another"})
    train(tiny_config(data, train={"keep": 1}), tmp_path / "run")
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    (part,) = after["resumed"]
    assert part["step"] == 4
    assert part["machine"]["cpu"] == "Another"
    assert after | {"resumed": [], "sha256": before["sha256"]} == before
    documented = {name: cells for key, cells in table("Entries of `resumed`").items() for name in key.split("`, `")}
    for key, value in flatten(part).items():
        (name,) = matching(key, documented)
        assert has_type(value, documented[name][0]), (key, value)
    assert {name for key in flatten(part) for name in matching(key, documented)} == documented.keys()


def test_metrics_of_experts(data, tmp_path):
    train(tiny_config(data, model={"moe": EXPERTS}), tmp_path / "run")
    keys = table("Rows of kind `train`").keys() | table("Rows of kind `train` of a model with experts").keys()
    for row in rows(tmp_path / "run", "train"):
        assert flatten(row).keys() == keys
        assert 0.9 < row["balance"] < 3.1
        assert 1 / 3 <= row["largest_load"] <= 0.5


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_metrics(run, kind):
    check(f"Rows of kind `{kind}`", *rows(run, kind))
    assert {frozenset(flatten(row)) for row in rows(run, kind)} == {frozenset(table(f"Rows of kind `{kind}`"))}


def test_done_and_samples(run):
    check("`done.json`", json.loads((run / "done.json").read_text()))
    check("`samples.jsonl`", json.loads((run / "samples.jsonl").read_text()))


def test_checkpoints(run):
    folder = max((run / "checkpoints").iterdir())
    check("`state.json`", json.loads((folder / "state.json").read_text()))
    check("`metrics.json`", json.loads((folder / "metrics.json").read_text()))
    check("`complete.json`", json.loads((folder / "complete.json").read_text()))


def test_moments(run, data, tmp_path):
    train(tiny_config(data, optimizer={"kind": "muon"}), tmp_path / "muon")
    documented = set(re.findall(r"`(\w+)/NAME`", PAGE.read_text())) - {"runs"}
    kinds = {}
    for optimizer, folder in {"adamw": run, "muon": tmp_path / "muon"}.items():
        newest = max((folder / "checkpoints").iterdir())
        weights, moments = (load_file(newest / f"{name}.safetensors").keys() for name in ("model", "optimizer"))
        pairs = [name.partition("/")[::2] for name in moments]
        kinds[optimizer] = {frozenset(kind for kind, of in pairs if of == name) for name in weights}
        assert {name for _, name in pairs} == set(weights)
    assert kinds["adamw"] < kinds["muon"]
    assert set().union(*kinds["muon"]) == documented


@pytest.mark.usefixtures("poisoned")
def test_an_event(data, tmp_path):
    train(tiny_config(data, train={"nonfinite": "skip"}), tmp_path / "run")
    check("Rows of kind `event`", *rows(tmp_path / "run", "event"))


@pytest.mark.usefixtures("poisoned")
def test_a_batch_that_was_not_finite(data, tmp_path):
    with pytest.raises(UserError, match="stopped at step 4"):
        train(tiny_config(data), tmp_path / "run")
    documented = table("`nonfinite_step_<step>.safetensors`")
    with safe_open(tmp_path / "run" / "nonfinite_step_4.safetensors", "pt") as batch:
        assert set(batch.keys()) == documented.keys()
        for name, (kind, *_) in documented.items():
            assert str(batch.get_tensor(name).dtype) == f"torch.{kind.split()[0]}"
            assert batch.get_tensor(name).ndim == len(re.findall(r"[\w-]+", kind)) - 1


def test_without_evaluations_the_last_one_is_null(data, tmp_path):
    train(tiny_config(data, data={"heldout_split": "none"}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "done.json").read_text())["heldout"] is None
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["data"]["heldout_tokens"] is None
