"""Every kind of stream on today's blocks: it trains with Muon, states rebuilt, and goes on bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from widestream.recipe import RunConfig, load_recipe
from widestream.recipe.load import recipe_names
from widestream.streams import stream_class
from widestream.train.loop import train

KINDS = {
    load_recipe(name).model.stream.kind: name
    for name in reversed(recipe_names())
    if name.startswith("zoo/") and name.count("/") == 1
}
"""A recipe of every kind."""
SMALL = (
    *("model.num_layers=4", "model.num_heads=4", "model.num_kv_heads=2", "model.head_dim=8", "model.mlp_dim=48"),
    *("model.vocab_size=257", "model.context=16", "optimizer.kind=muon", "train.device=cpu", "train.precision=float32"),
    *("train.threads=1", "train.batch_size=4", "train.steps=4", "train.save_every=2", "train.eval_every=4"),
    *("train.keep=2", "schedule.warmup=1"),
)


def rows(run: Path) -> list[dict]:
    return [{**json.loads(line), "clock": None} for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")


def own_recipe(kind: str, data: Path, folder: Path) -> RunConfig:
    """A recipe of the zoo on the preset's blocks, as a user would write it; states are rebuilt where they can be."""
    name = KINDS[kind]
    file = folder / "own.yaml"
    file.write_text(f"extends: [{name}, preset/modern]\nname: own\n")
    changes = [*SMALL, f"data.path={data}"]
    if kind == "matrix_keys":  # all of its matrices are keys
        changes.append("optimizer.muon.keys=true")
    model = load_recipe(name).model
    if stream_class(kind).spec(model).undo != "no":
        changes.append("train.stream_memory=writes")
    return load_recipe(file, changes)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_with_muon_and_goes_on_bit_for_bit(kind, data, tmp_path):
    config = own_recipe(kind, data, tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole).step == 4
    losses = [row["loss"] for row in rows(whole) if row["kind"] == "train"]
    assert losses[-1] < losses[0]

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000004")
    (parts / "done.json").unlink()
    assert train(config, parts).step == 4
    assert rows(parts) == rows(whole)
    expected, found = weights(whole), weights(parts)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
