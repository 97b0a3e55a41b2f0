"""What several processes compute, held against what one does."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import ranks
from processes import documents_batch, shared_gradients, stir, train_quickly
from ranks import rows, train_on, weights
from widestream.model.build import build_model
from widestream.recipe import RunConfig
from widestream.recipe.train import ParallelConfig
from widestream.train.layout import Layout

MUON_LOSSES, MUON_WEIGHTS = 5e-5, 5e-3
"""Muon makes steps in bfloat16, which grow what rounding there is: one process that adds up four micro-batches in place
of one comes to weights that differ by 3e-4 of their norms after six steps, other layouts to 1.3e-3."""


def assert_gradients_of_one(layout: Layout, cases: Mapping[str, tuple[Any, Any, Any]], folder: Path) -> None:
    """Losses to 1e-6, gradients to 1e-5 of their norms, their norm to 1e-6.

    Of models, each with its depth and its form of attention, by name.
    """
    path, size = folder / "gradients.pt", layout.replicate * layout.parts
    assert ranks.run(shared_gradients, cases, layout, path, size=size) == [0] * size
    found = torch.load(path)
    for name, (config, depth, attention) in cases.items():
        model = build_model(config, 3, depth=depth, attention=attention)
        stir(model)
        loss = model.loss(*documents_batch(config))
        loss.total.backward()
        losses = torch.stack((loss.total.detach(), loss.cross_entropy, loss.balance))
        assert_close(found[name].pop("loss"), losses, rtol=1e-6, atol=0, msg=name)
        expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert_close(found[name].pop("norm"), norm, rtol=1e-6, atol=0, msg=name)
        assert found[name].keys() == expected.keys()
        for key, gradient in expected.items():  # 1e-7 of all: a bias whose gradients cancel is known no better
            assert (found[name][key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * norm, (name, key)


def assert_trains_as_one(parallel: dict[str, Any], alone: RunConfig, folder: Path) -> None:
    """Losses, gradient norms and evaluations to 1e-5, weights and moments to 1e-4 of their norms; run.json says who
    shared what."""
    muon = alone.optimizer.kind == "muon"
    shared = replace(alone, train=replace(alone.train, parallel=ParallelConfig(**parallel)))
    train_quickly(alone, folder / "alone")
    train_on(math.prod(parallel.values()), shared, folder / "shared")
    said = json.loads((folder / "shared" / "run.json").read_text())["layout"]
    assert said == {"replicate": 1, "shard": 1, **parallel, "gather": "float32"}
    assert_same_rows(folder / "alone", folder / "shared", MUON_LOSSES if muon else 1e-5)
    for what in ("model", "optimizer"):
        one, other = (weights(folder / name, 6, what) for name in ("alone", "shared"))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert (other[name] - value).norm() <= (MUON_WEIGHTS if muon else 1e-4) * value.norm() + 1e-9, name


def assert_same_rows(one: Path, other: Path, rel: float = 1e-5) -> None:
    """The same metrics in two run folders, but for rounding."""
    here, there = rows(one), rows(other)
    assert len(here) == len(there) > 6
    for a, b in zip(here, there, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        for name in {"loss", "grad_norm", "balance", "largest_load", "target_tokens", "state_rms"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=rel), (name, a["step"])
