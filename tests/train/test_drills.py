"""Faults of machines, disks and clocks: a run ends with a sentence or not at all, and goes on bit for bit."""

import random
import re
from functools import partial

import pytest
import torch
from drills import jumping_clocks, no_number, no_room, only, outcome, read_only, refusals, train_through_kills, unhurt
from safetensors.torch import load_file

from ranks import rows
from tiny_runs import tiny_config, write_data
from widestream.runs.checkpoint import latest

DRILL = pytest.mark.drill
LAYOUTS = {
    "one": (1, {}),
    "replicate": (2, {"replicate": 2}),
    "shard": (2, {"shard": 2}),
    "both": (4, {"replicate": 2, "shard": 2}),
}
ROUNDS = {"one": 64, "replicate": 14, "shard": 14, "both": 8}
"""A hundred."""
QUICK = {("one", 0), ("one", 1), ("shard", 0)}
"""These are in the quick tests."""


def config_of(data, parallel=None, optimizer=None, **train):
    """Ten steps in two processes that share out weights."""
    settings = {
        "steps": 10,
        "save_every": 2,
        "keep": 3,
        "eval_windows": 5,
        "parallel": {"shard": 2} if parallel is None else parallel,
    }
    return tiny_config(data, train={**settings, **train}, optimizer={"grad_clip": 0.5, **(optimizer or {})})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What an uninterrupted run in this layout comes to; each is trained once."""
    known = {}

    def outcome_of(name, config, size):
        if name not in known:
            run = tmp_path_factory.mktemp("whole") / "run"
            assert refusals(config, run, unhurt, size) == [""] * size
            known[name] = outcome(run)
        return known[name]

    return outcome_of


@pytest.mark.parametrize(
    ("layout", "number"),
    [
        pytest.param(layout, number, marks=() if (layout, number) in QUICK else DRILL)
        for layout, rounds in ROUNDS.items()
        for number in range(rounds)
    ],
)
def test_killed_at_random_and_started_again_ends_bit_identical(data, tmp_path, whole, layout, number):
    size, parallel = LAYOUTS[layout]
    kind = ("adamw", "muon")[number % 2]
    config = config_of(data, parallel, {"kind": kind}, steps=24, save_every=3, eval_every=10, log_every=2)
    train_through_kills(config, tmp_path / "run", size, random.Random(f"{layout} {number}"))
    assert outcome(tmp_path / "run") == whole((layout, kind), config, size)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_loss_that_is_no_number_in_one_process_stops_all_alike(data, tmp_path, whole):
    config, run = config_of(data), tmp_path / "run"
    said = refusals(config, run, partial(no_number, where=1, at=5))
    assert said[0] == said[1]
    assert "Training stopped at step 5: the loss is nan" in said[0]
    batch = load_file(run / "nonfinite_step_5.safetensors")
    assert batch["tokens"].shape == (4, 16), "the windows of both processes"
    assert torch.isfinite(batch["losses"]).tolist() == [[True], [False]]
    (run / "nonfinite_step_5.safetensors").unlink()
    assert refusals(config, run, unhurt) == ["", ""]
    assert outcome(run) == whole("ten steps", config, 2)


def test_a_loss_that_is_no_number_in_one_process_is_passed_over_by_all_alike(data, tmp_path):
    """As one process passes over it that has the whole batch to itself."""
    several = config_of(data, nonfinite="skip")
    assert refusals(several, tmp_path / "several", partial(no_number, where=1, at=5)) == ["", ""]
    one = config_of(data, {"shard": 1}, nonfinite="skip")
    assert refusals(one, tmp_path / "one", partial(no_number, where=0, at=5), size=1) == [""]
    found, expected = rows(tmp_path / "several"), rows(tmp_path / "one")
    (skipped,) = [row for row in found if row["kind"] == "event"]
    assert (skipped["step"], skipped["event"], skipped["skipped"]) == (5, "nonfinite_skipped", 1)
    for a, b in zip(expected, found, strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        assert a == b == skipped or b["loss"] == pytest.approx(a["loss"], rel=1e-5)


CANNOT_BE_WRITTEN = r"step_00000006 could not be written .*{}.*older checkpoints are untouched"
LOST = "has lost another one of this run"


@pytest.mark.parametrize(
    ("hurt", "main", "other"),
    [
        (partial(no_room, file="optimizer", at=6), CANNOT_BE_WRITTEN.format("No space left"), None),
        pytest.param(
            partial(no_room, file="model", at=6),
            CANNOT_BE_WRITTEN.format("No space left"),
            None,
            marks=DRILL,
        ),
        pytest.param(
            partial(no_room, file="metrics.jsonl", at=5),
            "No space left on the disk of .*same command",
            LOST,
            marks=DRILL,
        ),
        pytest.param(partial(read_only, at=6), CANNOT_BE_WRITTEN.format("Read-only file system"), None, marks=DRILL),
    ],
    ids=["full", "full at weights", "full at rows", "read-only"],
)
def test_a_disk_that_takes_no_more_ends_all_processes_and_later_the_run_goes_on(
    data, tmp_path, whole, hurt, main, other
):
    config, run = config_of(data), tmp_path / "run"
    said = refusals(config, run, hurt)
    assert re.search(main, said[0])
    assert re.search(other or main, said[1])
    assert latest(run).step == 4
    assert not list((run / "checkpoints").glob(".*"))
    assert refusals(config, run, unhurt) == ["", ""]
    assert outcome(run) == whole("ten steps", config, 2)


def cut(content):
    return content[:-100]


def altered(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train_00000.bin", altered),
        pytest.param("train_00000.bin", cut, marks=DRILL),
        pytest.param("train_00000.idx", altered, marks=DRILL),
        pytest.param("heldout_00000.bin", altered, marks=DRILL),
    ],
)
def test_data_that_were_altered_between_two_starts_are_refused_by_all_processes(tmp_path, whole, file, change):
    """The last bit that a process has read through counts for all: only one of them reads a file that is not cut."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    config = config_of(data)
    assert refusals(config, run, partial(only, steps=5)) == ["", ""]
    content = (data / file).read_bytes()
    (data / file).write_bytes(change(content))
    before = (run / "metrics.jsonl").read_bytes()
    said = refusals(config, run, unhurt)
    assert said[0] == said[1]
    assert file in said[0]
    assert (run / "metrics.jsonl").read_bytes() == before
    (data / file).write_bytes(content)
    assert refusals(config, run, unhurt) == ["", ""]
    assert outcome(run) == whole("ten steps", config, 2)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=DRILL)])
def test_clocks_that_jump_change_nothing_but_times_which_stay_positive(data, tmp_path, whole, size):
    config, run = config_of(data, {"shard": size}), tmp_path / "run"
    assert refusals(config, run, partial(only, steps=5), size) == [""] * size
    assert refusals(config, run, jumping_clocks, size) == [""] * size
    assert outcome(run) == whole(f"{size} of ten steps", config, size)
    clocks = [row["clock"] for row in rows(run) if row["kind"] == "train"]
    assert all(value >= 0 for clock in clocks for value in clock.values())
    assert sorted(clock["wall_s"] for clock in clocks) == [clock["wall_s"] for clock in clocks]


@DRILL
def test_worlds_of_other_sizes_go_on_from_each_others_checkpoints(data, tmp_path):
    config = config_of(data, {"shard": 1}, steps=12, save_every=3)
    assert refusals(config, tmp_path / "whole", unhurt, size=1) == [""]
    run = tmp_path / "run"
    for size, parallel in ((2, {"shard": 2}), (1, {}), (4, {"replicate": 2, "shard": 2}), (2, {"replicate": 2})):
        config = config_of(data, parallel, steps=12, save_every=3)
        assert refusals(config, run, partial(only, steps=3), size) == [""] * size
    expected, found = rows(tmp_path / "whole"), rows(run)
    assert [row["step"] for row in found if row["kind"] == "train"] == list(range(1, 13))
    for a, b in zip(expected, found, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
