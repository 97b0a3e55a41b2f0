import json
import re
import subprocess
import sys

import pytest
from small_corpora import texts, write_jsonl
from typer.testing import CliRunner

from widestream.cli.app import build_app
from widestream.errors import UserError


def invoke(*arguments):
    return CliRunner().invoke(build_app(), ["data", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", texts(200))


def test_train_prepare_inspect(source, tmp_path):
    trained = invoke(
        "train-tokenizer", source, "--out", tmp_path / "bpe.json", "--vocab-size", "300", "--heldout", "0.1"
    )
    assert trained.exit_code == 0, trained.output
    assert "300 ids" in trained.stdout
    out = tmp_path / "out"
    prepared = invoke("prepare", source, "--out", out, "--tokenizer", tmp_path / "bpe.json", "--heldout", "0.1")
    assert prepared.exit_code == 0, prepared.output
    assert "heldout" in prepared.stdout
    assert "encoded by tiktoken" in prepared.stdout
    shown = invoke("inspect", out, "--documents", "2", "--verify")
    assert shown.exit_code == 0, shown.output
    assert "every hash, document start and token id is right" in shown.stdout
    assert shown.stdout.count("document 1:") == 2
    description = json.loads(invoke("inspect", out, "--json", "--documents", "1").stdout)
    train = description["splits"]["train"]
    assert train["documents"] + description["splits"]["heldout"]["documents"] == 200
    assert train["bytes_per_token"] == pytest.approx(train["bytes"] / train["tokens"])
    assert train["beginnings"][0][:20] in "".join(texts(200))
    assert description["tokenizer"]["vocab_size"] == 300
    assert description["verified"] is False


def test_cut(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(texts(100, seed=1)), encoding="utf-8")
    trained = invoke(
        "train-tokenizer", tmp_path / "a.txt", "--out", tmp_path / "b.json", "--vocab-size", 280, "--cut", 1000
    )
    assert trained.exit_code == 0, trained.output
    assert invoke("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--cut", 1000).exit_code == 0
    description = json.loads(invoke("inspect", tmp_path / "out", "--json").stdout)
    assert description["settings"]["cut"] == 1000
    assert description["splits"]["train"]["documents"] > 10
    assert description["splits"]["heldout"]["documents"] == 1


def test_fewer_ids_than_asked_for_is_said(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["ab"])
    result = invoke("train-tokenizer", source, "--out", tmp_path / "bpe.json", "--vocab-size", "400", "--heldout", "0")
    assert "258 ids (400 asked for" in result.stdout


def test_every_option_is_explained():
    for verb in ("prepare", "inspect", "train-tokenizer"):
        result = invoke(verb, "--help")
        assert result.exit_code == 0
        assert "widestream data" in result.stdout
    assert "0.005" in invoke("prepare", "--help").stdout
    assert "100000" in invoke("prepare", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "nowhere.txt", "--out", "out"), "There is no file"),
        (("prepare", "bundled:prose", "--out", "out", "--tokenizer", "nowhere.json"), "Cannot read the tokenizer"),
        (("prepare", "bundled:prose", "--out", "out", "--heldout", "2"), "--heldout is 2"),
        (("inspect", "nowhere"), "holds no prepared data"),
        (("train-tokenizer", "bundled:prose", "--out", "b.json", "--vocab-size", "5"), "at least 257"),
    ],
)
def test_user_errors_reach_main(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_altered_shard_is_named_by_inspect(source, tmp_path):
    assert invoke("prepare", source, "--out", tmp_path / "out", "--heldout", "0.1").exit_code == 0
    shard = tmp_path / "out" / "train_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"z\0")
    assert invoke("inspect", tmp_path / "out").exit_code == 0
    assert "was altered" in str(invoke("inspect", tmp_path / "out", "--verify").exception)


def test_reading_the_help_imports_nothing_heavy():
    heavy = "torch", "numpy", "tokenizers", "pyarrow", "tqdm"
    script = f"import sys, widestream.cli.data, widestream.recipe.data; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_files_read_and_passed_over_are_listed(tmp_path):
    folder = tmp_path / "[snapshot]"
    (folder / "data").mkdir(parents=True)
    write_jsonl(folder / "data" / "train-0.jsonl", texts(40))
    write_jsonl(folder / "data" / "test-0.jsonl", texts(10, seed=1))
    (folder / "README.md").write_text("# A card")
    result = CliRunner().invoke(
        build_app(), ["data", "prepare", str(folder), "--out", str(tmp_path / "out")], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"\[snapshot\]/data/test-0.jsonl +│ test ", result.stdout)
    assert re.search(r"\[snapshot\]/data/train-0.jsonl +│ train ", result.stdout)
    assert re.search(r"\[snapshot\]/README.md +│ passed over: about the data", result.stdout)
    assert "train with data.heldout_split=test" in result.stdout
    assert "by their names 1 test, 1 train" in result.stderr


def test_what_was_forgiven_is_said(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(40))
    source.write_text(source.read_text() + '{"text": null}\n')
    vocabulary = {"</s>": 0, "[UNK]": 1, "the": 2, "dog": 3}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    content = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (tmp_path / "words.json").write_text(json.dumps(content))
    arguments = "prepare", source, "--out", tmp_path / "out", "--tokenizer", tmp_path / "words.json", "--heldout", 0.2
    assert "--allow-lost-text" in str(invoke(*arguments, "--skip-bad").exception)
    assert "--skip-bad" in str(invoke(*arguments, "--allow-lost-text").exception)
    result = invoke(*arguments, "--skip-bad", "--allow-lost-text")
    assert "1 bad records passed over, the first: " in result.stdout
    assert re.search(r"train: [\d,]+ characters \([5-9]\d\.\d\d%\) are not in the tokens", result.stdout)
    assert "bits per byte are not given" in result.stdout
    description = json.loads(invoke("inspect", tmp_path / "out", "--json").stdout)
    assert description["skipped"]["records"] == 1
    assert description["settings"]["skip_bad"] is description["settings"]["allow_lost_text"] is True


@pytest.mark.parametrize(
    ("out", "message"),
    [("file/out", "cannot be made|is in the way"), ("x" * 300, "cannot be made"), ("blocked", "is in the way")],
)
def test_where_nothing_can_be_made(source, tmp_path, out, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "blocked.preparing").write_text("mine")
    result = invoke("prepare", source, "--out", tmp_path / out)
    assert isinstance(result.exception, UserError), result.exception
    assert re.search(message, str(result.exception))
