import json
import shutil

import pytest
import yaml

from tiny_runs import tiny_config, write_data
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.recipe import to_dict


@pytest.fixture
def widestream(monkeypatch, tmp_path):
    """Calls the command line in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    app = build_app()
    return lambda *arguments: app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def recipe(data, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_dict(tiny_config(data))))
    return path


def test_train_and_eval_agree_on_the_final_numbers(widestream, recipe, tmp_path, capsys):
    widestream("train", recipe, "train.steps=4", "optimizer.lr=0.02")
    done = json.loads((tmp_path / "runs" / "tiny" / "done.json").read_text())
    assert done["step"] == 4
    capsys.readouterr()
    widestream("eval", "runs/tiny", "--json")
    assert json.loads(capsys.readouterr().out) == {"step": 4, **done["heldout"]}
    widestream("eval", "runs/tiny")
    assert f"{done['heldout']['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_out_and_fresh_choose_the_folder(widestream, recipe, tmp_path):
    widestream("train", recipe, "--out", "a/b")
    widestream("train", recipe, "--out", "a/b", "--fresh")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "b.old-1"]


def test_eval_on_other_data_needs_the_same_tokenizer(widestream, recipe, tmp_path, capsys):
    widestream("train", recipe)
    other = write_data(tmp_path / "other", heldout_documents=3, seed=7)
    capsys.readouterr()
    widestream("eval", "runs/tiny", "--data", other, "--json")
    there = json.loads(capsys.readouterr().out)
    assert (
        there["target_tokens"] == json.loads((other / "manifest.json").read_text())["splits"]["heldout"]["tokens"] - 1
    )
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(UserError, match="another tokenizer"):
        widestream("eval", "runs/tiny", "--data", other)


def test_eval_of_what_is_no_run_says_so(widestream, recipe, tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        widestream("eval", tmp_path / "nothing")
    widestream("train", recipe)
    shutil.rmtree(tmp_path / "runs" / "tiny" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        widestream("eval", "runs/tiny")
