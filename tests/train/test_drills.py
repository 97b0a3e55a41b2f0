"""Faults of machines, disks and clocks: a run ends with a sentence or not at all, and goes on as if nothing had been."""

import random
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from drills import outcome, refusals, train_through_kills, unhurt
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
ROUNDS = {"one": 50, "replicate": 18, "shard": 18, "both": 14}
"""A hundred."""
QUICK = {("one", 0), ("one", 1), ("shard", 0)}
"""These are in the quick tests."""


def config_of(data, parallel=None, optimizer=None, **train):
    """Ten steps in two processes that share out weights."""
    settings = {"steps": 10, "save_every": 2, "keep": 3, "eval_windows": 5, "parallel": parallel or {"shard": 2}}
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
    config = config_of(
        data, {**parallel, "timeout_s": 60}, {"kind": kind}, steps=48, save_every=3, eval_every=10, log_every=2
    )
    train_through_kills(config, tmp_path / "run", size, random.Random(f"{layout} {number}"))
    assert outcome(tmp_path / "run") == whole((layout, kind), config, size)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
