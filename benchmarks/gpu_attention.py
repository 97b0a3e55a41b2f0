"""FlexAttention on a GPU: against float64, beside SDPA with the same mask. Parts of gpu_suite.py use it."""

from typing import Any

import torch

from gpu_run import Suite
from widestream.blocks.attention import BareAttention
from widestream.blocks.attention_kind import Attention
from widestream.blocks.context import make_context
from widestream.blocks.flex import FlexMask
from widestream.recipe import load_recipe
from widestream.recipe.model import ModelConfig

CASES = (("none", 512, torch.bfloat16), ("alibi", 509, torch.bfloat16), ("alibi", 509, torch.float32))
"""Positions, tokens (a multiple of 128 or not), precision."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
"""Largest error against the largest value; FlexAttention may also be twice as far off as SDPA."""


def documents(rows: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Segments of documents of 200 tokens on average."""
    return (torch.rand(rows, tokens, device=device) < 1 / 200).cumsum(1, dtype=torch.int32)


def check_attention(suite: Suite) -> None:
    """Forward and, on a GPU, backward, at the head width of the paper's largest model, in its fourth layer."""
    for positions, tokens, dtype in CASES[:1] if suite.quick else CASES:

        def measure(positions: str = positions, tokens: int = tokens, dtype: torch.dtype = dtype) -> dict[str, Any]:
            return check_case(suite, positions, 20 if suite.quick else tokens, dtype)

        suite.attempt(f"flex attention, {positions}, {tokens} tokens, {dtype}", measure)


def check_case(suite: Suite, positions: str, tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of both ways, output and gradients, each against the largest value of the same in float64."""
    changes = ["upcast_attention=false", "document_mask=true", f"positions={positions}"]
    config = load_recipe("paper/rmt-305m", [f"model.{change}" for change in changes]).model
    segments = documents(2, tokens, suite.device)
    shape = (4, 2, tokens, config.num_heads, config.head_dim)
    given = torch.randn(shape, device=suite.device).to(dtype)
    exact = attend(config, "sdpa", segments, given.double())
    errors: dict[Attention, dict[str, float]] = {}
    kinds: tuple[Attention, ...] = ("sdpa", "flex")
    for kind in kinds:
        results = attend(config, kind, segments, given)
        pairs = zip(("out", "q", "k", "v"), results, exact, strict=False)
        errors[kind] = {name: ((a.double() - b).abs().max() / b.abs().max()).item() for name, a, b in pairs}
    worst = {kind: max(each.values()) for kind, each in errors.items()}
    case = {"what": "flex attention", "positions": positions, "tokens": tokens, "dtype": str(dtype)[6:]}
    return {
        "case": case, "errors": errors["flex"], "errors_of_sdpa": errors["sdpa"],
        "ok": worst["flex"] < max(TOLERANCE[dtype], 2 * worst["sdpa"]),
    }  # fmt: skip


def attend(config: ModelConfig, kind: Attention, segments: torch.Tensor, given: torch.Tensor) -> list[torch.Tensor]:
    """Output and, on a GPU, the gradients of q, k, v; `given` is these three and the output's gradient."""
    on_gpu = given.device.type == "cuda"  # torch has no backward pass of FlexAttention on a CPU
    q, k, v = (x.detach().requires_grad_(on_gpu) for x in given[:3])
    positions = torch.arange(given.shape[2], device=given.device)
    context = make_context(config, positions, segments, attention=kind)
    assert isinstance(context.masks[None], FlexMask) == (kind == "flex")
    out = BareAttention(config, layer=3)({"q": q, "k": k, "v": v}, context)
    return [out.detach(), *(torch.autograd.grad(out, (q, k, v), given[3]) if on_gpu else ())]
