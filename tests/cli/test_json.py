"""Every verb that shows figures prints them as one JSON document too, and nothing else on the standard output."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fake_runs import write_demo, write_task
from tiny_runs import tiny_config
from widestream.cli.app import COMMANDS, build_app
from widestream.cli.as_json import plain
from widestream.recipe import to_dict
from widestream.runs.tasks import Measure
from widestream.train.loop import train

SILENT = {
    "train", "demo", "zoo", "tune", "import hf", "convert", "widen", "data prepare", "data merge", "data tasks",
    "data train-tokenizer", "runs tag", "runs remove", "export hf", "study run", "study pack", "serve",
}  # fmt: skip
"""Verbs that make or change something, and say in a few lines what; what they found lies in files."""
TO_FILE = {"bench step", "bench memory", "bench decode", "bench kernels", "bench data", "mup check", "study moments"}
"""Verbs whose record is a file: `--json FILE`, and - for the standard output."""
SMALL = "--layers 1 --heads 2 --head-dim 8 --vocab 64 --context 16 --batch 1 --threads 1 --rounds 1 --warmup 0"


def command(name):
    found = typer.main.get_command(build_app())
    for word in name.split():
        found = found.commands[word]  # pyright: ignore[reportAttributeAccessIssue]
    return found


def json_option(name):
    return next((option for option in command(name).params if "--json" in option.opts), None)


def test_every_verb_has_the_option_or_is_known_to_need_none():
    with_option = {name for name in COMMANDS if json_option(name) is not None}
    assert with_option | SILENT == COMMANDS.keys()
    assert not with_option & SILENT
    assert {name for name in with_option if not json_option(name).is_flag} == TO_FILE


@pytest.fixture(scope="module")
def place(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("json")
    write_demo(folder / "demo", steps=50)
    for run in (folder / "demo").iterdir():
        right = Measure(form="mean", higher_is_better=True, values=[1.0, 0.0, 1.0])
        write_task(run, "piqa", {"acc": right})
    config = tiny_config(data)
    train(config, folder / "run")
    (folder / "recipe.yaml").write_text(json.dumps(to_dict(config)))
    (folder / "data").symlink_to(data)
    (folder / "study").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("eval run --json", dict),
        ("sample run --tokens 2 --json", dict),
        ("compare demo --json", dict),
        ("dissect demo --json", dict),
        ("lens run --prompt matrix --json", dict),
        ("summary recipe.yaml --json", dict),
        ("streams demo/transformer --json", list),
        ("data inspect data --json", dict),
        ("runs list demo --json", list),
        ("doctor --json", list),
        ("study list --json", list),
        ("paper errata --json", list),
        ("paper resources --json", dict),
        (f"bench step {SMALL} --json -", dict),
    ],
)
def test_one_document_and_nothing_else(place, monkeypatch, line, kind):
    monkeypatch.chdir(place)
    found = CliRunner().invoke(build_app(), line.split(), catch_exceptions=False)
    assert found.exit_code == 0
    assert isinstance(json.loads(found.stdout, parse_constant=lambda word: pytest.fail(word)), kind)
    assert not Path("-").exists()


@dataclass
class Row:
    place: Path
    loss: float


def test_values_are_what_json_holds():
    rows = [Row(Path("a/b"), math.nan), {"x": (math.inf, 1, None, True, "words")}]
    assert plain(rows) == [{"place": "a/b", "loss": None}, {"x": [None, 1, None, True, "words"]}]
