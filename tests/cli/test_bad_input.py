"""What a person gets wrong at the command line: one sentence with the fix, exit code 2, no existing file changes."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tiny_runs import RECIPE
from widestream.cli import main
from widestream.train import begin

LONG = "x" * 300
"""A name that no file system takes."""


def call(*arguments):
    """Run the command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["widestream", *map(str, arguments)])
        patch.setattr(begin, "matmul_peak", lambda device, precision: 1e11)
        with pytest.raises(SystemExit) as stop:
            main()
    return stop.value.code or 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with text, a recipe, prepared data and a finished run."""
    place = tmp_path_factory.mktemp("made")
    rows = [json.dumps({"text": f"document {number} tells of streams and keys. " * 3}) for number in range(20)]
    (place / "text.jsonl").write_text("\n".join(rows))
    (place / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert call("data", "prepare", "text.jsonl", "--out", "data", "--heldout", 0.1, "--workers", 1) == 0
        assert call("train", "tiny.yaml") == 0
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it to spoil, as the working directory."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def refused(place, capfd):
    """Checks that a command is refused in one sentence that has all these parts, and touches no file."""

    def check(arguments, *parts):
        before = files(place)
        capfd.readouterr()
        assert call(*arguments.split()) == 2
        said = capfd.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("widestream: ")]
        assert "Traceback" not in said
        assert said.endswith(f"{lines[0]}\n")
        for part in parts:
            assert part in lines[0]
        assert files(place) == before

    return check


def files(place):
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def spoil(path, position, value, manifest=None):
    """Change a byte of a shard; with a manifest, give it the new hash."""
    content = bytearray(path.read_bytes())
    old = hashlib.sha256(content).hexdigest()
    content[position] = value
    path.write_bytes(content)
    if manifest is not None:
        manifest.write_text(manifest.read_text().replace(old, hashlib.sha256(content).hexdigest()))


def test_wrong_key_in_a_recipe(place, refused):
    refused("train tiny.yaml model.numlayers=2", "Unknown key model.numlayers; did you mean num_layers?")
    refused("summary tiny.yaml model.stream.keydim=2", "Unknown key model.stream.keydim; did you mean key_dim?")
    (place / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"optimiser": {"lr": 1}}))
    refused("train tiny.yaml", "Unknown key optimiser; did you mean optimizer?")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ("optimizer.kind=moun", "did you mean muon?"),
        ("optimizer.muon.keys=true", "optimizer.muon is set, but optimizer.kind is adamw; set optimizer.kind=muon"),
        ("optimizer.kind=muon optimizer.muon.nsteps=5", "Unknown key optimizer.muon.nsteps; did you mean ns_steps?"),
        ("optimizer.kind=muon optimizer.muon.momentum_start=0.8", "momentum_warmup go together"),
        ("optimizer.kind=muon model.stream.kind=matrix_keys", "set optimizer.muon.keys=true"),
        ("optimizer.kind=muon model.init.scheme=mup model.mup.base_mlp_dim=8", "use optimizer.muon.adjust_lr=original"),
    ],
)
def test_muon_that_cannot_be(refused, changes, part):
    refused(f"train tiny.yaml {changes} --out new", part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("train tiny.yaml --out text.jsonl/new", "text.jsonl/new"),
        ("train tiny.yaml --out /proc/x/new", "/proc/x/new cannot be made"),
        (f"train tiny.yaml --out {LONG}", "too long"),
        (f"train {LONG}", "Unknown recipe"),
        ("data prepare text.jsonl --out text.jsonl/new", "The folder text.jsonl cannot be made"),
        ("data prepare text.jsonl --out /proc/x/new", "/proc/x cannot be made"),
        (f"data prepare text.jsonl --out {LONG}", "too long"),
        (f"data prepare {LONG} --out new", "too long"),
        ("data train-tokenizer text.jsonl --vocab-size 300 --out text.jsonl/new.json", "text.jsonl"),
        ("convert runs/tiny --stream laurel --to text.jsonl/new", "text.jsonl/new is no place for a file"),
        (f"convert {LONG} --stream laurel --to new", "is no run folder"),
        ("convert runs/tiny --stream laurel --to new --seed 1000000000000000000000", "The seed is 10000000000000"),
        (f"import hf {LONG} --to new", "too long"),
        (f"summary {LONG}", "Unknown recipe"),
        (f"sample {LONG}", "is no run folder"),
        (f"compare {LONG} runs/tiny", "too long"),
    ],
)
def test_a_path_that_nothing_can_have(refused, arguments, part):
    refused(arguments, part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("train tinny.yaml", "recipe 'tinny.yaml': no such file"),
        ("train tiny.yaml data.path=nowhere --out new", "widestream data prepare"),
        ("data prepare nowhere.txt --out new", "There is no file or folder nowhere.txt: check the path."),
        ("data prepare text.jsonl --out new --tokenizer nowhere.json", "nowhere.json"),
        ("data inspect nowhere", "nowhere holds no prepared data"),
        ("sample nowhere", "give a folder that training wrote"),
        ("eval nowhere", "give a folder that training wrote"),
        ("compare runs/tiny nowhere", "give folders that training wrote"),
    ],
)
def test_missing_file(refused, arguments, part):
    refused(arguments, part)


def test_shard_that_is_missing_or_cut(place, refused):
    shard = place / "data" / "train_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    refused("train tiny.yaml --out new", "train_00000.bin has", "prepare the data again with --overwrite")
    shard.unlink()
    refused("train tiny.yaml --out new", "train_00000.bin is missing", "prepare the data again with --overwrite")


@pytest.mark.parametrize(("name", "text"), [("empty.txt", ""), ("empty.jsonl", '{"text": ""}')])
def test_empty_corpus(place, refused, name, text):
    (place / name).write_text(text)
    refused(f"data prepare {name} --out data --workers 1 --overwrite", "The corpus is empty")
    refused(f"data train-tokenizer {name} --out new.json --vocab-size 300", "no text")


def test_corpus_shorter_than_a_window(refused):
    refused("train tiny.yaml model.context=9000 --out new", "one window needs 9001: prepare more text")


def test_flex_attention_on_a_cpu(refused):
    refused("train tiny.yaml train.attention=flex --out new", "no backward pass there); use auto or sdpa")


def test_token_outside_the_vocabulary(place, refused):
    for split in ("train", "heldout"):
        spoil(place / "data" / f"{split}_00000.bin", 41, 0xFF, place / "data" / "manifest.json")
        refused("train tiny.yaml --out new", f"{split}_00000.bin holds token 65", "the vocabulary has 257 ids")
        spoil(place / "data" / f"{split}_00000.bin", 41, 0, place / "data" / "manifest.json")
    refused("train tiny.yaml model.vocab_size=200 --out new", "set model.vocab_size to at least 257")


def test_shard_whose_hash_is_wrong(place, refused):
    spoil(place / "data" / "heldout_00000.bin", 40, 1)
    for command in ("train tiny.yaml --out new", "train tiny.yaml", "eval runs/tiny", "data inspect data --verify"):
        refused(command, "heldout_00000.bin was altered", "prepare the data again with --overwrite")


def test_checkpoint_of_another_model(place, refused):
    assert call("train", "tiny.yaml", "model.norm=rmsnorm", "train.steps=6", "--out", "other") == 0
    shutil.move("other/checkpoints/step_00000006", "runs/tiny/checkpoints/step_00000006")
    for command in ("train tiny.yaml", "eval runs/tiny", "sample runs/tiny"):
        refused(command, "step_00000006 is of another model: model.norm is rmsnorm there and layernorm here; remove")


def test_prompt_longer_than_the_context(refused):
    for option in ("", "--no-cache"):
        refused(f"sample runs/tiny --prompt {'a' * 40} {option}", "The prompt has 41 tokens", "shorten the prompt")


def test_prompt_that_is_no_text(refused):
    refused("sample runs/tiny --prompt \udcff\udcfe", "The prompt is not valid text")


def no_space(descriptor):
    """Stands for `os.fsync` when nothing can be brought to the disk any more."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "arguments",
    [
        "train tiny.yaml --out new",
        "data prepare text.jsonl --out new --workers 1",
        "data prepare text.jsonl --out data --workers 1 --heldout 0.3 --overwrite",
        "data train-tokenizer text.jsonl --out new.json --vocab-size 300",
        "compare runs/tiny --out new.html",
    ],
)
def test_full_disk(place, monkeypatch, capfd, arguments):
    before = files(place)
    monkeypatch.setattr(os, "fsync", no_space)
    assert call(*arguments.split()) == 2
    said = capfd.readouterr().err
    assert "No space left on the disk" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert files(place).items() >= before.items()


def test_full_disk_in_the_middle_of_a_run(place, monkeypatch, capfd):
    assert call("train", "tiny.yaml", "--out", "whole") == 0
    shutil.rmtree("runs/tiny/checkpoints/step_00000004")
    kept = files(place / "runs/tiny/checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        assert call("train", "tiny.yaml") == 2
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("widestream: No space left on the disk of runs/tiny: free some, then")
    assert "Traceback" not in said
    assert files(place / "runs/tiny/checkpoints") == kept
    assert call("train", "tiny.yaml") == 0
    ends = [place / run / "checkpoints/step_00000004/model.safetensors" for run in ("runs/tiny", "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("arguments", ["train tiny.yaml --out new", "data prepare text.jsonl --out new --workers 1"])
def test_no_permission(place, monkeypatch, capfd, arguments):
    def refuse(descriptor):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    before = files(place)
    monkeypatch.setattr(os, "fsync", refuse)
    assert call(*arguments.split()) == 2
    assert "get it or choose another place, then" in capfd.readouterr().err.splitlines()[-1]
    assert files(place).items() >= before.items()


@pytest.mark.parametrize(
    "arguments", ["streams", "summary tiny.yaml --json", "study list", "compare runs/tiny", "--help"]
)
def test_a_standard_output_that_is_full(place, arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(
            [sys.executable, "-m", "widestream", *arguments.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 2
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("widestream: The output cannot be written (No space left on device)")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    "arguments", ["study run ablations", "study pack new.tar.xz --runs runs", "zoo", "summary tiny.yaml"]
)
def test_a_disk_that_cannot_be_written_where_nothing_else_says_so(place, monkeypatch, capfd, arguments, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "runs/somewhere")

    before = files(place)
    for call_of in (
        "study.run.run_studies",
        "study.archive.pack_results",
        "study.zoo.run_zoo",
        "model.costs.summarize",
    ):
        monkeypatch.setattr(f"widestream.{call_of}", refuse)
    assert call(*arguments.split()) == 2
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith(f"widestream: runs/somewhere cannot be written ({os.strerror(number)})")
    assert "Traceback" not in said
    assert files(place) == before
