"""Training with experts: micro-batches, the balance bias, and resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_training_step import WORLD, step, weighted

from processes import train_quickly
from tiny_runs import tiny_config
from widestream.data.batches import TrainBatches
from widestream.data.store import TokenStore
from widestream.model.build import build_model
from widestream.train.optim import build_optimizer
from widestream.train.step import optimizer_step

SETTINGS = {"num_experts": 4, "top_k": 2, "balance_weight": 0.3}
BIAS = {"num_experts": 4, "top_k": 2, "balance": "bias", "bias_rate": 0.05}


@pytest.fixture
def batch(data):
    return TrainBatches(TokenStore.open(data, "train"), 16, 8, seed=0).at(0)


@pytest.mark.parametrize("shape", [lambda batch: batch, weighted], ids=["whole", "weighted"])
def test_accumulation_equals_the_big_batch(data, batch, shape):
    config = tiny_config(data, model={"moe": SETTINGS})
    one, big = step(config, shape(batch))
    four, small = step(config, shape(batch), micro_batches=4)
    assert four.balance == pytest.approx(one.balance, rel=1e-6)
    assert four.largest_load == one.largest_load > 0.25
    assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for (name, a), b in zip(big.named_parameters(), small.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, rtol=1e-4, atol=1e-6 * a.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("place", ["after", "both"])
def test_with_norms_behind_them(data, batch, place):
    config = tiny_config(data, model={"moe": BIAS, "norm_place": place})
    result, model = step(config, batch)
    assert result.largest_load > 0.25
    assert model.experts[0].balance_bias.any()


def test_the_balance_loss_is_in_the_gradient(data, batch):
    norms = [
        step(tiny_config(data, model={"moe": SETTINGS | {"balance_weight": weight}}), batch)[0].grad_norm
        for weight in (0.0, 1.0)
    ]
    assert norms[0] != norms[1]


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_bias_moves_by_the_load_of_the_whole_batch(data, batch, micro_batches):
    config = tiny_config(data, model={"moe": BIAS})
    load = build_model(config.model, seed=3).loss(batch.tokens, batch.targets, batch.segments).load[0]
    _, model = step(config, batch, micro_batches=micro_batches)
    wanted = 0.05 * (load.float().mean() - load).sign()
    assert wanted.any()
    torch.testing.assert_close(model.experts[0].balance_bias, wanted)


def test_the_bias_evens_out_the_load(data, batch):
    """At first every token takes one expert; only the bias moves."""
    config = tiny_config(data, model={"moe": BIAS | {"bias_rate": 0.01}}, optimizer={"lr": 1e-12})
    model = build_model(config.model, seed=3)
    with torch.no_grad():
        model.experts[0].balance_bias[0] = 0.5
    optimizer = build_optimizer(model, config.optimizer)
    shares = [optimizer_step(model, optimizer, batch, world=WORLD).largest_load for _ in range(40)]
    assert shares[0] == 0.5
    assert max(shares[-5:]) < 0.28


def test_a_step_that_is_not_finite_leaves_the_bias(data, batch):
    config = tiny_config(data, model={"moe": BIAS})
    model = build_model(config.model, seed=3)
    with torch.no_grad():
        model.unembedding.fill_(torch.nan)
    assert not optimizer_step(model, build_optimizer(model, config.optimizer), batch, world=WORLD).applied
    assert not model.experts[0].balance_bias.any()


def test_resumed_it_ends_bit_identical(data, tmp_path):
    config = tiny_config(data, model={"moe": BIAS, "activation": "swiglu"})
    train_quickly(config, tmp_path / "run")
    first = tmp_path / "run" / "checkpoints" / "step_00000006"
    end, rows = load_file(first / "model.safetensors"), _rows(tmp_path / "run")
    assert end["blocks.1.balance_bias"].any()
    first.rename(tmp_path / "elsewhere")
    train_quickly(config, tmp_path / "run")
    again = load_file(first / "model.safetensors")
    assert again.keys() == end.keys()
    assert all(torch.equal(again[name], end[name]) for name in end)
    assert _rows(tmp_path / "run") == rows


def _rows(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "clock"} for row in rows]
