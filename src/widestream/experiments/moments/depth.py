"""Second moments over depth at initialisation, for any stream: does what it carries grow, fade or stay?"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from widestream.experiments.moments.estimate import geometric
from widestream.experiments.moments.sites import QUANTITIES, Moments, describe_sites, site_moments
from widestream.model.build import build_model, meta_model
from widestream.model.record import record_exchanges
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams import OWN_KINDS, stream_class

SCHEME = "lecun"
"""Initialisation, as in C.3 and C.4."""
SPANS = {"seen": 1, "state": 1, "written_gradient": -1, "state_gradient": -1}
"""What may grow over depth: from the first block on (1), or from the last one back (-1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSizes:
    """Sizes of the models of the depth study."""

    num_heads: int = 4
    """[H; RMT: R]."""
    head_dim: int = 16
    """[D_h; RMT: D_v]."""
    mlp_dim: int = 256
    """[F]."""
    vocab_size: int = 256
    """[V]."""
    windows: int = 2
    """[B]."""
    tokens: int = 32
    """[T] Tokens of a window, drawn evenly."""


def chosen_kinds(names: tuple[str, ...]) -> list[str]:
    """Kinds of stream from what a user names; `all` stands for all of this package.

    Raises:
        UserError: one is unknown.
    """
    kinds = dict.fromkeys(kind for name in names for kind in (OWN_KINDS if name == "all" else [name]))
    for kind in kinds:
        stream_class(kind)
    return list(kinds)


def measure_depth(kind: str, num_layers: int, depth_scale: bool, seeds: int, sizes: DepthSizes) -> dict[str, Any]:
    """Second moments at every site of one stream at one depth.

    The head's input receives a gradient of independent standard normal numbers, so that gradients are relative to it.

    Args:
        kind: of the stream, with the first of its example settings.
        num_layers: depth L.
        depth_scale: whether blocks' output maps start smaller by 1/sqrt(2 L).
        seeds: models, of the seeds 0, 1, ..., each with tokens and gradients of its own.
        sizes: of the models.

    Returns:
        Per quantity [mean, low, high] for every site, and what grows over depth, over seeds (`geometric`).
    """
    config = _config(kind, num_layers, depth_scale, sizes)
    runs = [_measure(config, seed, sizes) for seed in range(seeds)]
    model = meta_model(config)
    return {
        "stream": kind,
        "settings": {"kind": kind, **stream_class(kind).examples[0]},
        "state_shape": list(type(model.stream).spec(config).state_shape),
        "layers": num_layers,
        "depth_scale": depth_scale,
        "scheme": SCHEME,
        **describe_sites(model),
        "sites": {
            name: [geometric(values) for values in zip(*(run[name] for run in runs), strict=True)]
            for name in QUANTITIES
        },
        "growth": {name: geometric([growth(run[name], way) for run in runs]) for name, way in SPANS.items()},
    }


def growth(values: list[float], way: int) -> float:
    """How many times as large a quantity is behind the last block but one as behind the first; `way` -1: the reverse.

    The ends are left out: the embedding's scale is a choice of its own, and for the head some streams add up lanes. In
    streams of attention and MLP both of the sites lie between the two. nan where there are no values, or zero.
    """
    start, end = (values[1], values[-2])[::way]
    return end / start if start else math.nan


def _measure(config: ModelConfig, seed: int, sizes: DepthSizes) -> Moments:
    model = build_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(sizes.vocab_size, (sizes.windows, sizes.tokens), generator=generator)
    with record_exchanges(model) as exchanges:
        hidden = model(tokens)
    return site_moments(exchanges, hidden, torch.randn(hidden.shape, generator=generator))


def _config(kind: str, num_layers: int, depth_scale: bool, sizes: DepthSizes) -> ModelConfig:
    values = {
        "vocab_size": sizes.vocab_size, "context": sizes.tokens, "num_layers": num_layers,
        "num_heads": sizes.num_heads, "head_dim": sizes.head_dim, "mlp_dim": sizes.mlp_dim,
        "stream": {"kind": kind, **stream_class(kind).examples[0]},
        "init": {"scheme": SCHEME, "depth_scale": depth_scale},
    }  # fmt: skip
    return build(ModelConfig, values, "model")
