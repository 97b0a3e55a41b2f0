"""The examples run: models that are not ours, with streams of different kinds."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(FOLDER))

import nano_gpt  # noqa: E402
import vit  # noqa: E402


@pytest.mark.parametrize(("kind", "settings"), [("mhc", {}), ("mudd", {}), ("matrix_dense", {"key_dim": 16})])
def test_nano_gpt_learns(kind, settings):
    losses = nano_gpt.train(kind, steps=12, layers=2, **settings)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("kind", "settings"), [("attn_res", {}), ("matrix", {"key_dim": 16})])
def test_a_vision_transformer_learns(kind, settings):
    losses = vit.train(kind, steps=30, layers=2, **settings)
    assert losses[-1] < 0.5 < losses[0]


def test_as_a_command():
    command = [sys.executable, str(FOLDER / "nano_gpt.py"), "mhc", "lanes=2", "steps=2", "layers=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("mhc: loss ")
