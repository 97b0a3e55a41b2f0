"""All streams side by side at one model's size: state, history, parameters, FLOPs, bytes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from widestream.model.build import meta_model
from widestream.model.costs import count_flops, count_parameters
from widestream.model.decoder import Decoder
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams import OWN_KINDS, kinds, stream_class


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRow:
    """One stream at its first example's settings."""

    kind: str
    """Its name in recipes."""
    settings: dict[str, Any]
    """Fields beside the kind."""
    summary: str
    """First line of its docstring."""
    state_shape: tuple[int, ...]
    """One token's state."""
    history: str
    """What it keeps of earlier writes."""
    history_size: int
    """Numbers of it per token."""
    starts_plain: bool
    """Whether it starts as the plain transformer."""
    parameters: int
    """Of the whole model."""
    extra_parameters: int
    """More (or fewer) than the plain transformer's."""
    extra_flops: int
    """Forward FLOPs per token, more (or fewer) than the plain transformer's."""
    bytes_moved: int
    """Per token in a forward pass."""
    bytes_saved: int
    """Per token for the backward pass, where states are saved."""
    bytes_saved_writes: int | None
    """The same where states are rebuilt from writes; None where they cannot be."""
    papers: tuple[str, ...]
    """arXiv numbers or addresses."""
    limits: tuple[str, ...]
    """Where the design is known to fail, a sentence each."""
    models: dict[str, dict[str, Any]]
    """Released models that use it, by model_type, with the settings that give their stream."""


def list_streams(model: ModelConfig) -> list[StreamRow]:
    """Every stream, ours and those of installed packages, in a model of this size.

    Raises:
        UserError: a stream of an installed package cannot be loaded.
    """
    names = [*OWN_KINDS, *(name for name in kinds() if name not in OWN_KINDS)]
    plain_parameters, plain_flops = _count(meta_model(dataclasses.replace(model, stream=_config("vector", {}))))
    rows = []
    for kind in names:
        cls = stream_class(kind)
        settings = cls.examples[0]
        config = dataclasses.replace(model, stream=_config(kind, settings))
        decoder, spec = meta_model(config), cls.spec(config)
        cost = decoder.stream.cost()
        parameters, flops = _count(decoder)
        rows.append(
            StreamRow(
                kind=kind,
                settings=settings,
                summary=(cls.__doc__ or "").strip().split("\n")[0],
                state_shape=spec.state_shape,
                history=spec.history,
                history_size=spec.history_size,
                starts_plain=spec.starts_plain,
                parameters=parameters,
                extra_parameters=parameters - plain_parameters,
                extra_flops=flops - plain_flops,
                bytes_moved=cost.bytes_moved,
                bytes_saved=cost.bytes_saved,
                bytes_saved_writes=cost.bytes_saved_writes,
                papers=spec.papers,
                limits=cls.limits,
                models=cls.models,
            )
        )
    return rows


def _config(kind: str, settings: dict[str, Any]) -> StreamConfig:
    return build(StreamConfig, {"kind": kind, **settings}, "model.stream")


def _count(decoder: Decoder) -> tuple[int, int]:
    return sum(count_parameters(decoder).values()), sum(count_flops(decoder).values())
