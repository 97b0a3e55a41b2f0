"""What computes attention on which device, and what is refused."""

import pytest
import torch

from widestream.blocks.attention_kind import choose_attention
from widestream.errors import UserError
from widestream.kernels import attention_cpu

SUITS = {"compiled": True, "masked": True, "head_dim": 64, "upcast": False}
"""Where `auto` takes FlexAttention on a CUDA device."""
CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("asked", "device", "changes", "expected"),
    [
        ("auto", CUDA, {}, "flex"),
        ("auto", CUDA, {"compiled": False}, "sdpa"),
        ("auto", CUDA, {"masked": False}, "sdpa"),
        ("auto", CUDA, {"head_dim": 8}, "sdpa"),
        ("auto", CUDA, {"head_dim": 16}, "flex"),
        ("auto", CUDA, {"upcast": True}, "sdpa"),
        ("auto", MPS, {}, "sdpa"),
        ("auto", CPU, {}, "fused"),
        ("auto", CPU, {"compiled": False, "masked": False, "head_dim": 8, "upcast": True}, "fused"),
        ("sdpa", CUDA, {}, "sdpa"),
        ("sdpa", CPU, {"head_dim": 8}, "sdpa"),
        ("flex", CUDA, {}, "flex"),
        ("flex", CUDA, {"compiled": False, "upcast": True}, "flex"),
        ("fused", CPU, {}, "fused"),
    ],
)
def test_the_choice(asked, device, changes, expected, monkeypatch):
    monkeypatch.setattr(attention_cpu, "available", lambda: None)
    assert choose_attention(asked, device, **(SUITS | changes)) == expected


@pytest.mark.parametrize(
    ("asked", "device", "changes", "message"),
    [
        ("flex", CPU, {}, "no backward pass"),
        ("flex", MPS, {}, "this is mps"),
        ("flex", CUDA, {"head_dim": 8}, "it is 8"),
        ("fused", CUDA, {}, "is for a CPU, and this is cuda; use auto, sdpa or flex"),
    ],
)
def test_what_a_device_cannot_do(asked, device, changes, message):
    with pytest.raises(UserError, match=message):
        choose_attention(asked, device, **(SUITS | changes))


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(attention_cpu, "available", lambda: "There is no C++ compiler.")
    assert choose_attention("auto", CPU, **SUITS) == "sdpa"
    with pytest.raises(UserError, match=r"fused cannot be had: There is no C\+\+ compiler; use auto or sdpa"):
        choose_attention("fused", CPU, **SUITS)
