"""Where every weight of a model comes from in a checkpoint of transformers.

The maps are linear, so that they also take gradients over.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """What of a checkpoint makes one parameter here."""

    names: tuple[str, ...]
    """Tensors, one above the other."""
    transposed: bool = False
    """Whether they map from their first axis to their second (GPT-2)."""
    third: int | None = None
    """Only this third of it, from 0 (GPT-2's biases of q, k and v)."""
    experts: int | None = None
    """Into how many experts the rows are cut."""

    def gather(self, get: Callable[[str], Tensor]) -> Tensor:
        """The parameter."""
        parts = [get(name).T if self.transposed else get(name) for name in self.names]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.third is not None:
            whole = whole.chunk(3)[self.third]
        return whole if self.experts is None else whole.unflatten(0, (self.experts, -1))


BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""How the names of tensors end that older checkpoints hold and that are no weights."""


def prefix_of(kind: str) -> str:
    """What stands in front of all names but the head's, unless the head was left out when it was saved."""
    return "transformer." if kind == "gpt2" else "model."


def sources(kind: str, layers: int, experts: int, own: Iterable[str], there: Container[str]) -> dict[str, Source]:
    """Where each parameter of a model comes from.

    Args:
        kind: `model_type`.
        layers: number of layers.
        experts: number of experts; 0: none.
        own: names of the parameters here.
        there: names of the tensors, which says whether experts lie one by one.

    Raises:
        KeyError: a parameter that the family does not have.
    """
    table = _gpt2(layers) if kind == "gpt2" else _decoder(kind, layers, experts, there)
    return {name: table[name] for name in own}


def _gpt2(layers: int) -> dict[str, Source]:
    top = "transformer."
    table = {
        "embedding.token": Source((f"{top}wte.weight",)), "embedding.position": Source((f"{top}wpe.weight",)),
        "unembedding": Source(("lm_head.weight",)),
    } | _norm(f"{top}ln_f", f"stream.norms.{2 * layers}")  # fmt: skip
    for layer in range(layers):
        here, attention, mlp = f"{top}h.{layer}.", f"blocks.{2 * layer}.", f"blocks.{2 * layer + 1}."
        table |= _norm(f"{here}ln_1", f"stream.norms.{2 * layer}") | _norm(
            f"{here}ln_2", f"stream.norms.{2 * layer + 1}"
        )
        table[f"{attention}qkv"] = Source((f"{here}attn.c_attn.weight",), transposed=True)
        for third, name in enumerate("qkv"):
            table[f"{attention}core.bias_{name}"] = Source((f"{here}attn.c_attn.bias",), third=third)
        table[f"{attention}out"] = Source((f"{here}attn.c_proj.weight",), transposed=True)
        table[f"{attention}bias_out"] = Source((f"{here}attn.c_proj.bias",))
        for ours, name in (("1", "c_fc"), ("2", "c_proj")):
            table[f"{mlp}w{ours}"] = Source((f"{here}mlp.{name}.weight",), transposed=True)
            table[f"{mlp}b{ours}"] = Source((f"{here}mlp.{name}.bias",))
    return table


def _decoder(kind: str, layers: int, experts: int, there: Container[str]) -> dict[str, Source]:
    """The families that came after Llama. Gemma has norms on both sides of a block, OLMo 2 behind it."""
    table = {
        "embedding.token": Source(("model.embed_tokens.weight",)), "unembedding": Source(("lm_head.weight",)),
    } | _norm("model.norm", f"stream.norms.{2 * layers}")  # fmt: skip
    wrapped = "block." if kind in ("gemma2", "gemma3_text", "olmo2") else ""
    in_front = ("input_layernorm", "pre_feedforward_layernorm" if wrapped else "post_attention_layernorm")
    for layer in range(layers):
        here, sites = f"model.layers.{layer}.", (2 * layer, 2 * layer + 1)
        for site, name in zip(sites, in_front, strict=True):
            table |= _norm(here + name, f"stream.norms.{site}")
        for site, name in zip(sites, ("post_attention_layernorm", "post_feedforward_layernorm"), strict=True):
            table |= _norm(here + name, f"blocks.{site}.norm")
        table |= _attention(f"{here}self_attn.", f"blocks.{sites[0]}.{wrapped}")
        mlp = f"blocks.{sites[1]}.{wrapped}"
        table |= _experts(here, mlp, experts, there) if experts else _mlp(f"{here}mlp.", mlp)
    return table


def _norm(theirs: str, ours: str) -> dict[str, Source]:
    return {f"{ours}.gain": Source((f"{theirs}.weight",)), f"{ours}.bias": Source((f"{theirs}.bias",))}


def _attention(theirs: str, ours: str) -> dict[str, Source]:
    table = {
        f"{ours}qkv": Source(tuple(f"{theirs}{name}_proj.weight" for name in "qkv")),
        f"{ours}out": Source((f"{theirs}o_proj.weight",)),
        f"{ours}bias_out": Source((f"{theirs}o_proj.bias",)),
    }
    for name in "qkv":
        table[f"{ours}core.bias_{name}"] = Source((f"{theirs}{name}_proj.bias",))
    for name, own in (("q_norm", "queries"), ("k_norm", "keys")):
        table[f"{ours}core.norm_before.{own}.gain"] = Source((f"{theirs}{name}.weight",))
    return table


def _mlp(theirs: str, ours: str) -> dict[str, Source]:
    return {
        f"{ours}w1": Source(tuple(f"{theirs}{name}_proj.weight" for name in ("gate", "up"))),
        f"{ours}w2": Source((f"{theirs}down_proj.weight",)),
        f"{ours}b1": Source(tuple(f"{theirs}{name}_proj.bias" for name in ("gate", "up"))),
        f"{ours}b2": Source((f"{theirs}down_proj.bias",)),
    }


def _experts(here: str, ours: str, count: int, there: Container[str]) -> dict[str, Source]:
    """All experts in one tensor, as in memory, or one by one, as they are saved."""
    fused = f"{here}mlp.experts."
    if f"{fused}gate_up_proj" in there:
        return {
            f"{ours}router": Source((f"{here}mlp.gate.weight",)),
            f"{ours}w1": Source((f"{fused}gate_up_proj",)),
            f"{ours}w2": Source((f"{fused}down_proj",)),
        }
    mixtral = f"{here}block_sparse_moe.gate.weight" in there
    top = f"{here}{'block_sparse_moe' if mixtral else 'mlp'}."
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    first = tuple(f"{top}experts.{e}.{name}.weight" for e in range(count) for name in (gate, up))
    return {
        f"{ours}router": Source((f"{top}gate.weight",)),
        f"{ours}w1": Source(first, experts=count),
        f"{ours}w2": Source(tuple(f"{top}experts.{e}.{down}.weight" for e in range(count)), experts=count),
    }
