"""Where the branches of a transformers layer are, and which norms go with them.

A layer is  x + behind(block(norm(x)))  twice; a norm may be missing. All but the residual adds stays the layer's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from widestream.errors import UserError, shown


@dataclass(frozen=True)
class BranchPlace:
    """One branch of a layer, by the names of its modules."""

    kind: Literal["attention", "mlp"]
    """What it is."""
    block: str
    """The attention or the MLP."""
    norm: str | None = None
    """The norm in front of it."""
    behind: str | None = None
    """The norm behind it."""

    def __call__(self, layer: nn.Module, read: Any, arguments: dict[str, Any]) -> Tensor:
        """What the branch puts out [B, T, D].

        Args:
            layer: whose branch it is.
            read: x [B, T, D], or a vector each for q, k and v.
            arguments: of the layer's forward pass; attention gets them.
        """
        block, norm = getattr(layer, self.block), getattr(layer, self.norm) if self.norm else _same
        if isinstance(read, tuple):
            with _projecting(block, *map(norm, read)) as first:
                out = block(first, **arguments)
        else:
            out = block(norm(read), **(arguments if self.kind == "attention" else {}))
        out = out[0] if isinstance(out, tuple) else out
        return getattr(layer, self.behind)(out) if self.behind else out


Places = tuple[BranchPlace, BranchPlace]

_LLAMA: Places = (
    BranchPlace("attention", "self_attn", norm="input_layernorm"),
    BranchPlace("mlp", "mlp", norm="post_attention_layernorm"),
)
_OLMO: Places = (
    BranchPlace("attention", "self_attn", behind="post_attention_layernorm"),
    BranchPlace("mlp", "mlp", behind="post_feedforward_layernorm"),
)
_GEMMA: Places = (
    BranchPlace("attention", "self_attn", norm="input_layernorm", behind="post_attention_layernorm"),
    BranchPlace("mlp", "mlp", norm="pre_feedforward_layernorm", behind="post_feedforward_layernorm"),
)
_GPT2: Places = (BranchPlace("attention", "attn", norm="ln_1"), BranchPlace("mlp", "mlp", norm="ln_2"))

FAMILIES: dict[str, Places] = {
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _LLAMA,
    "GemmaDecoderLayer": _LLAMA,
    "Olmo2DecoderLayer": _OLMO,
    "Gemma2DecoderLayer": _GEMMA,
    "Gemma3DecoderLayer": _GEMMA,
    "GPT2Block": _GPT2,
}
"""By the class of the layers. A layer of another class may add something in between, however it looks."""

KNOWN = "Llama, Mistral, Qwen 2, Qwen 3, OLMo 2, Gemma 1 to 3 and GPT-2"


def find_layers(model: nn.Module) -> tuple[nn.Module, list[Any], Places]:
    """The module that holds the layers, the layers, and where their branches are.

    Raises:
        UserError: the model is of no known family, or has layers that take something more.
    """
    found = [
        (owner, list(children))
        for owner in model.modules()
        for children in owner.children()
        if isinstance(children, nn.ModuleList) and len(children) and family_of(children[0]) is not None
    ]
    if len(found) != 1 or len({type(layer) for layer in found[0][1]}) > 1:
        raise UserError(
            f"{shown(type(model).__name__)} is no model that a stream can be attached to; known are transformers' "
            f"{KNOWN}. For a model of your own there is widestream.residual."
        )
    ((owner, layers),) = found
    if any(hasattr(layer, "crossattention") for layer in layers):
        raise UserError("This model has cross-attention, for which an attached stream has no site.")
    places = family_of(layers[0])
    assert places is not None
    return owner, layers, places


def family_of(layer: nn.Module) -> Places | None:
    """Where a layer's branches are; None: unknown."""
    for cls in type(layer).__mro__:
        if cls.__module__.startswith("transformers.models."):
            return FAMILIES.get(cls.__name__)
    return None


def _same(x: Tensor) -> Tensor:
    return x


@contextmanager
def _projecting(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Tensor]:
    """Let attention project a vector of its own for each of q, k and v, while this lasts.

    Its projections, whatever stands in their place (LoRA), are applied here, and what they give is what attention then
    finds. One matrix for all three (GPT-2's) is applied three times, of which a third each is taken.

    Yields:
        What to call attention with.
    """
    if hasattr(attention, "c_attn"):
        parts = [attention.c_attn(x).chunk(3, dim=-1)[i] for i, x in enumerate((q, k, v))]
        given = {"c_attn": torch.cat(parts, dim=-1)}
    else:
        vectors = {"q_proj": q, "k_proj": k, "v_proj": v}
        given = {name: getattr(attention, name)(x) for name, x in vectors.items()}
    for name, projected in given.items():
        attention.__dict__[name] = lambda _, projected=projected: projected  # found before the module of that name
    try:
        yield q
    finally:
        for name in given:
            del attention.__dict__[name]
