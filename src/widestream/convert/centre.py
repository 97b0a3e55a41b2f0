"""A plain model with LayerNorm as one with RMSNorm that computes the same.

LayerNorm takes the mean over the width away, so nothing changes where every write has none to begin with:

    LayerNorm(x) = RMSNorm(x - mean(x)) * g + b

Embeddings and the rows of every block's last map are centred. The bias of a norm goes through the map behind it,
W (g n + b) = W g n + W b, into that map's own bias; the head's stays a bias in front of the head (`head_bias`). A tied
head is parted from the embedding, which is centred now and the head is not.
"""

from dataclasses import replace

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.model.build import meta_model
from widestream.model.decoder import Decoder
from widestream.recipe.model import ModelConfig

Weights = dict[str, Tensor]


@torch.no_grad()
def with_rms_norm(model: Decoder) -> tuple[ModelConfig, Weights]:
    """The configuration and weights of a model with RMSNorm that computes what this one with LayerNorm does.

    Args:
        model: with the plain stream.

    Raises:
        UserError: it has a setting with which that cannot be done; names it.
    """
    config = model.config
    _require_centrable(config)
    new = replace(config, norm="rmsnorm", norm_bias=False, tied_head=False)
    if config.norm_bias:
        attention = "qkv" if config.attention_bias == "none" else config.attention_bias
        new = replace(new, attention_bias=attention, mlp_bias=True, head_bias=True)
    shell = meta_model(new)
    old = model.state_dict()
    weights: Weights = {
        name: old[name].clone() if name in old else torch.zeros(value.shape, device=model.embedding.token.device)
        for name, value in shell.state_dict().items()
    }
    if config.tied_head:
        weights["unembedding"] = old["embedding.token"] * (model.output_multiplier / shell.output_multiplier)
    for site, block in enumerate(model.layout):
        bias = old.get(f"stream.norms.{site}.bias")
        if bias is not None:
            _fold(weights, f"blocks.{site}.", block.kind, bias)
    if (bias := old.get(f"stream.norms.{len(model.layout)}.bias")) is not None:
        weights["head_bias"] += bias
    for name, value in weights.items():
        if (axis := _written_axis(name, value)) is not None:
            exact = value.double()
            weights[name] = (exact - exact.mean(axis, keepdim=True)).float()
    return new, weights


def _require_centrable(config: ModelConfig) -> None:
    if config.norm_place != "before":
        raise UserError(
            f"The run has norm: layernorm and norm_place: {config.norm_place}, and what a LayerNorm writes has a mean "
            "that no weights take away; only norm_place: before can be widened."
        )
    if config.token_before != "none":
        raise UserError(
            f"The run has norm: layernorm and token_before: {config.token_before}, which looks at embeddings, and "
            "these have to be centred; it cannot be widened."
        )
    if config.norm_bias and config.moe.num_experts:
        raise UserError(
            "The run has norm_bias and experts, whose router has no bias that could take the norm's; it cannot be "
            "widened."
        )


def _fold(weights: Weights, block: str, kind: str, bias: Tensor) -> None:
    """Put the bias of the norm in front of a block into the block's first biases."""
    if kind == "mlp":
        weights[f"{block}b1"] += weights[f"{block}w1"] @ bias
        return
    names = [name for name in (f"{block}core.bias_{role}" for role in "qkv") if name in weights]
    shifts = (weights[f"{block}qkv"] @ bias).split([len(weights[name]) for name in names])
    for name, shift in zip(names, shifts, strict=True):
        weights[name] += shift


def _written_axis(name: str, value: Tensor) -> int | None:
    """The axis of the width in what a block puts out or the embedding holds; None: the weight writes nothing."""
    if name.startswith("embedding."):
        return 1
    last = name.rpartition(".")[2]
    if name.startswith("blocks.") and last in ("out", "bias_out", "w2", "b2"):
        return value.ndim - 2 if last in ("out", "w2") else value.ndim - 1
    return None
