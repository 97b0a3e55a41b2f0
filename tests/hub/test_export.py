"""`widestream export hf`: a folder that holds all of a run, or none at all."""

import ast
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import widestream.hub  # noqa: F401
from tiny_runs import tiny_config
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.hub import bundle, export
from widestream.hub.bundle import BundleError, modeling_file
from widestream.hub.export import export_run
from widestream.recipe.kinds import OWN_KINDS
from widestream.runs.model import load_run_tokenizer
from widestream.train.loop import train

TEXTS = ("the matrix keeps", "", " ä\n\n\t<|endoftext|> 😀", "<|endoftext|>")


@pytest.fixture(scope="module", name="run")
def _run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(
        tiny_config(data, model={"norm": "rmsnorm"}, train={"steps": 4, "eval_every": 2, "save_every": 2, "keep": 2}),
        folder,
    )
    return folder


def test_a_run_becomes_a_folder_that_gives_its_logits_and_ids(run, tmp_path):
    out = tmp_path / "folder"
    done = CliRunner().invoke(build_app(), ["export", "hf", str(run), str(out), "--license", "mit", "--step", "2"])
    assert done.exit_code == 0, done.output
    assert "loaded by transformers" in done.output
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_widestream.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert not [path for path in tmp_path.iterdir() if path != out]
    tokenizer, own = AutoTokenizer.from_pretrained(out), load_run_tokenizer(run)
    for text, ids in zip(TEXTS, own.encode_batch(list(TEXTS)), strict=True):
        assert tokenizer(text)["input_ids"] == [own.boundary_id, *ids]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    card = (out / "README.md").read_text()
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    loss = next(row["loss"] for row in rows if row["kind"] == "eval" and row["step"] == 2)
    assert "license: mit" in card
    assert f"{loss:.4f}" in card
    assert "kind: matrix" in card
    assert "in 2 steps" in card
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__module__ == "widestream.hub.modeling"
    text = tokenizer.decode(model.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=4)[0])
    assert text.startswith("<|endoftext|>the")


def test_a_folder_that_does_not_load_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LOADER", "raise SystemExit('out of luck')")
    with pytest.raises(UserError, match="cannot load the folder: out of luck"):
        export_run(run, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "{here}"], "is there already"),
        (["{run}", "{here}/no/such"], "does not exist"),
        (["{run}", "{here}/new", "--step", "3"], "step 3"),
        (["{here}", "{here}/new"], "run"),
        (["{open}", "{here}/new"], "is not finished"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(
    run, data, tmp_path, capsys, monkeypatch, arguments, said
):
    from widestream.cli import main

    opened = tmp_path / "open"
    train(tiny_config(data, train={"steps": 4, "save_every": 2}), opened)
    (opened / "done.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(run=run, here=tmp_path, open=opened) for word in arguments]
    monkeypatch.setattr("sys.argv", ["widestream", "export", "hf", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("right_ids", "said"), [(True, "other logits"), (False, "other ids")])
def test_what_transformers_finds_otherwise_is_not_written(run, tmp_path, monkeypatch, right_ids, said):
    own = load_run_tokenizer(run)
    ids = [[own.boundary_id, *map(int, row)] for row in own.encode_batch(list(export.TEXTS))]

    def find(folder, work):
        tokens = load_file(work / "tokens.safetensors")["tokens"]
        assert (folder / "model.safetensors").is_file()
        save_file(
            {"whole": torch.zeros(*tokens.shape, 257), "stepped": torch.zeros(2, 257)}, work / "logits.safetensors"
        )
        (work / "ids.json").write_text(json.dumps(ids if right_ids else ids[::-1]))

    monkeypatch.setattr(export, "_load_elsewhere", find)
    with pytest.raises(UserError, match=said):
        export_run(run, tmp_path / "folder", step=2)
    assert not list(tmp_path.iterdir())


def test_a_widened_run_is_exported_too(run, tmp_path):
    from widestream.convert.widen import widen_run

    widen_run(run, 8, tmp_path / "wide")
    export_run(tmp_path / "wide", tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "`widestream widen` from weights" in card
    assert "not measured" in card


def test_a_stream_of_the_users_own_is_refused():
    with pytest.raises(UserError, match="my_streams:Mine is not one of this package"):
        modeling_file("my_streams:Mine")


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_a_modelling_file_needs_torch_and_transformers_alone(kind):
    text = modeling_file(kind)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = node.names[0].name if isinstance(node, ast.Import) else node.module
            assert name.partition(".")[0] in {"torch", "transformers", *sys.stdlib_module_names}, name
    assert "widestream::" not in text, "an operator of this name is there where the package is"


def test_two_names_that_clash_are_noticed(monkeypatch):
    found = bundle._Bundle("vector")
    twice = bundle._take_apart("def rotate():\n    pass\n", "x")
    source = found._source
    monkeypatch.setattr(found, "_source", lambda name: twice if name == "x" else source(name))
    found.wanted["x"] = {0}
    with pytest.raises(BundleError, match="rotate is bound by"):
        found.text()
