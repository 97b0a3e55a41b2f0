"""Processes that share the tokens of a window train as one process does."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from processes import train_quickly
from ranks import rows, train_on
from tiny_runs import tiny_config
from widestream.recipe.train import ParallelConfig

ROTARY = {"positions": "rotary"}
EXPERTS = {"moe": {"num_experts": 4, "top_k": 2, "balance": "loss"}}
CASES = {
    "matrix": ({}, {}, {}),
    "vector, rotary": ({"stream": {"kind": "vector"}, **ROTARY}, {}, {}),
}


@pytest.mark.parametrize(("model", "train", "optimizer"), [*CASES.values()], ids=[*CASES])
def test_two_processes_that_share_windows_train_as_one(data, tmp_path, model, train, optimizer):
    trains_as_one(2, {"context": 2}, data, tmp_path, model, train, optimizer)


def trains_as_one(size, parallel, data, tmp_path, model, train, optimizer):
    """Losses, gradient norms and evaluations to 1e-5, weights after some steps to 1e-5 of their size."""
    train = {"steps": 6, "eval_every": 3, "micro_batch_size": 1, **train}
    config = tiny_config(data, model=model, train=train, optimizer={"grad_clip": 0.5, **optimizer})
    shared = replace(config, train=replace(config.train, parallel=ParallelConfig(**parallel)))
    train_quickly(config, tmp_path / "one")
    train_on(size, shared, tmp_path / "shared")
    one, other = rows(tmp_path / "one"), rows(tmp_path / "shared")
    assert len(one) == len(other) == 8
    for a, b in zip(one, other, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        for name in ("loss", *(["grad_norm"] if a["kind"] == "train" else [])):
            assert b[name] == pytest.approx(a[name], rel=1e-5), (name, a["step"])
    weights = [
        load_file(tmp_path / name / "checkpoints" / "step_00000006" / "model.safetensors") for name in ("one", "shared")
    ]
    assert_close(*weights, rtol=1e-3, atol=1e-5)
