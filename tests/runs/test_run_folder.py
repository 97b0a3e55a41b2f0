"""A run folder stands on its own: it can be sampled after its data is gone, from anywhere, on another device."""

import json

import pytest
import yaml

from tiny_runs import RECIPE
from widestream.cli import main


def widestream(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["widestream", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code, arguments


def test_a_run_is_sampled_without_its_data(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "text.jsonl").write_text("\n".join(json.dumps({"text": f"words and numbers {i} " * 30}) for i in range(20)))
    changes = {"model": RECIPE["model"] | {"vocab_size": 300}, "train": RECIPE["train"] | {"steps": 2, "tokens": None}}
    (home / "run.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    widestream(monkeypatch, "data", "train-tokenizer", "text.jsonl", "--out", "bpe.json", "--vocab-size", "270")
    widestream(monkeypatch, "data", "prepare", "text.jsonl", "--out", "data", "--tokenizer", "bpe.json")
    widestream(monkeypatch, "train", "run.yaml", "--out", "run")
    (home / "data").rename(home / "elsewhere")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    arguments = ("--prompt", "words", "--tokens", "5", "--temperature", "1e-40", "--device", "cpu", "--json")
    widestream(monkeypatch, "sample", str(home / "run"), *arguments)
    sample = json.loads(capsys.readouterr().out)
    assert sample["prompt"] == "words"
    assert sample["num_tokens"] >= 1
    widestream(monkeypatch, "sample", str(home / "run"), *arguments, "--precision", "bf16")
    assert json.loads(capsys.readouterr().out)["num_tokens"] >= 1
    widestream(monkeypatch, "eval", str(home / "run"), "--data", str(home / "elsewhere"), "--device", "cpu", "--json")
    assert json.loads(capsys.readouterr().out)["step"] == 2
