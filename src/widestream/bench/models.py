"""The models that are measured: GPT-2's sizes, or others, with any stream, and how they are set up."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from widestream.bench.record import require_counts
from widestream.blocks.attention_kind import AttentionSetting, choose_attention
from widestream.errors import UserError
from widestream.machine import choose_precision, find_device, keep_freed_memory
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import plan_depth
from widestream.recipe import build
from widestream.recipe.kinds import settings_class
from widestream.recipe.model import ModelConfig
from widestream.streams import OWN_KINDS, stream_class

PLAIN = "vector"
"""The plain transformer's stream, which others are compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the model and of a batch. The defaults are GPT-2 small's."""

    num_layers: int = 12
    """[L] Layers."""
    num_heads: int = 12
    """[H; RMT: R] Heads."""
    head_dim: int = 64
    """[D_h; RMT: D_v] Width of a head."""
    vocab_size: int = 50257
    """[V] Vocabulary."""
    context: int = 256
    """[T] Tokens of a window."""
    batch_size: int = 4
    """[B] Windows."""

    def __post_init__(self):
        require_counts(self, **{entry.name: 1 for entry in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which models are measured, and how they compute."""

    sizes: Sizes = field(default_factory=Sizes)
    """Sizes of all of them."""
    streams: tuple[str, ...] = ("vector", "matrix")
    """Kinds of stream; `all` stands for all. The first is what the others are compared with."""
    key_dims: tuple[int, ...] = (32,)
    """[D_k] Key dims at which every stream that has one is measured."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    precision: str = "auto"
    """bf16 (autocast), float32, or auto: what the machine multiplies faster."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    compile: bool = False
    """Compile the models."""
    stream_memory: Literal["auto", "states", "writes"] = "auto"
    """What streams keep for the backward pass, as `train.stream_memory`."""
    kernels: Literal["auto", "reference", "fused"] = "auto"
    """What computes exchanges, as `train.kernels`."""
    state_precision: Literal["float32", "bf16"] = "float32"
    """How a live state and its gradient are kept, as `train.state_precision`."""
    attention: AttentionSetting = "auto"
    """What computes attention, as `train.attention`; documents are not masked here."""

    def __post_init__(self):
        require_counts(self, key_dims=1)
        if self.threads is not None:
            require_counts(self, threads=1)

    def resolve(self) -> tuple[torch.device, str]:
        """Set the process up as training does, with these threads, and find device and precision.

        Raises:
            UserError: there is no such device.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = find_device(self.device)
        if device.type == "cpu":
            keep_freed_memory()
        return device, choose_precision(self.precision, device)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model to measure."""

    name: str
    """The kind of its stream, with the key dim behind it where it has one: matrix-32."""
    kind: str
    """Kind of its stream."""
    key_dim: int | None
    """[D_k] Its key dim."""
    config: ModelConfig
    """The model's configuration."""


def list_candidates(settings: ModelSettings) -> list[Candidate]:
    """All models that `settings` names, in their order.

    Raises:
        UserError: an unknown stream, or one that does not take these sizes.
    """
    kinds = [kind for name in settings.streams for kind in (OWN_KINDS if name == "all" else [name])]
    if not kinds:
        raise UserError("No stream is named; give --streams vector,matrix or the like.")
    candidates = []
    for kind in dict.fromkeys(kinds):
        keyed = any(entry.name == "key_dim" for entry in fields(settings_class(kind)))
        for key_dim in dict.fromkeys(settings.key_dims) if keyed else (None,):
            fixed = {} if key_dim is None else {"key_dim": key_dim}
            stream = {"kind": kind, **stream_class(kind).examples[0], **fixed}
            name = kind if key_dim is None else f"{kind}-{key_dim}"
            candidates.append(Candidate(name, kind, key_dim, model_config(settings.sizes, stream)))
    return candidates


def model_config(sizes: Sizes, stream: dict[str, Any], tied: bool = False) -> ModelConfig:
    """The transformer's sizes with any stream; attention as GPT-2 has it."""
    values = {
        "vocab_size": sizes.vocab_size, "context": sizes.context, "num_layers": sizes.num_layers,
        "num_heads": sizes.num_heads, "head_dim": sizes.head_dim, "mlp_dim": 4 * sizes.num_heads * sizes.head_dim,
        "stream": stream, "tied_head": tied, "upcast_attention": False, "inverse_layer_scaling": False,
        "init": {"scheme": "normal", "std": 0.02},
    }  # fmt: skip
    return build(ModelConfig, values, "model")


def build_measured(config: ModelConfig, settings: ModelSettings, device: torch.device) -> Decoder:
    """The model as `bench step` and `bench memory` measure it: the one place where it is set up for training."""
    chooses = stream_class(config.stream.kind).spec(config).undo != "no"  # others have nothing to choose
    depth = plan_depth(
        config,
        device,
        memory=settings.stream_memory if chooses else "auto",
        kernels=settings.kernels if chooses else "auto",
        state_precision=settings.state_precision if chooses else "float32",
        compiled=settings.compile,
    )
    attention = choose_attention(
        settings.attention, device, compiled=settings.compile, masked=False, head_dim=config.head_dim,
        upcast=config.upcast_attention,
    )  # fmt: skip
    return build_model(config, device=device, depth=depth, attention=attention)
