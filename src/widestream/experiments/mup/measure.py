"""`widestream mup check`: does a recipe behave alike at every width? (Coordinate check, arXiv 2203.03466, app. D.1.)

The recipe is built at several widths, under muP with the smallest width as the base and under the standard
parametrization. Under muP, sizes of activations, and how far a few steps of training move them, do not depend on width:
the slope of log size against log width is 0. Exponents of a wrong parametrization are multiples of 1/2.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import product
from statistics import fmean
from typing import Any

from widestream.bench.record import require_counts
from widestream.errors import UserError, unknown_name
from widestream.experiments.mup.section import positive, slope
from widestream.recipe import RunConfig, build, load_recipe, to_dict
from widestream.report.stats.intervals import Interval, mean_interval
from widestream.streams import stream_class

AXES = ("num_heads", "head_dim", "mlp_dim", "key_dim")
BOUNDS = {"size": (-0.15, 0.15), "change": (-0.4, 0.15)}
"""Slopes that count as flat. Changes may shrink by almost a half: Adam's updates are sums of signs, whose random part
falls as 1/sqrt(fan-in) and lies above the lasting part at small widths; longer in RMT, whose keys act on all D_v
columns alike and have a fan-in of only D_k or R."""
WAYS = ("mup", "standard")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What can be said about a check."""

    recipe: str
    """Model and optimizer."""
    changes: tuple[str, ...] = ()
    """Changes to the recipe."""
    widths: tuple[int, ...] | None = None
    """Sizes of the model; default: 1, 2, 4 and 8 times the recipe's. The width H * D_h (RMT: R * D_v) if heads or their
    width grow, else the axis that grows."""
    grow: tuple[str, ...] | None = None
    """Axes that grow; default: heads, neurons and, where the stream has one, the key axis."""
    rate: float = 0.1
    """Learning rate of all steps, as a part of the recipe's peak. A run's first steps are taken at such rates, while it
    warms up; at the peak at once a few steps can throw a model off at any width."""
    steps: int = 5
    """Optimizer steps."""
    seeds: int = 6
    """Initialisations at each width; with three, the intervals of slopes that are zero reach beyond the bounds."""
    windows: int = 4
    """Windows of the batch."""
    length: int = 64
    """Tokens of a window, at most the recipe's context."""
    data: str = "random"
    """`random` tokens, or those of the `recipe`'s prepared data."""

    def __post_init__(self):
        require_counts(self, steps=1, seeds=1, windows=1, length=1)
        if not 0 < self.rate < math.inf:
            raise UserError(f"--rate is {self.rate:g}; it must be above 0, such as 0.1.")
        for axis in self.grow or ():
            if axis not in AXES:
                raise unknown_name(f"axis {axis} of --grow", axis, AXES)
        if self.widths is not None and (len(set(self.widths)) < 2 or min(self.widths) < 1):
            raise UserError("--widths needs at least two different sizes, for example --widths 64,128,256.")
        if self.data not in ("random", "recipe"):
            raise UserError(f"--data is {self.data}; it must be random or recipe.")


def run_check(options: CheckOptions) -> dict[str, Any]:
    """Carry out the check.

    Returns:
        The record: what was asked for, model sizes by width, sizes and changes by parametrization, quantity, step,
        width and seed, slopes at the last step with 95 % intervals over seeds, for `section.outcome` to judge.

    Raises:
        UserError: the recipe cannot be grown so.
    """
    from widestream.experiments.mup.coordinates import measure, random_tokens, recipe_tokens

    base = load_recipe(options.recipe, options.changes)
    base = replace(base, optimizer=replace(base.optimizer, lr=options.rate * base.optimizer.lr))
    grow = options.grow or default_axes(base)
    widths = sorted(set(options.widths or (k * recipe_width(base, grow) for k in (1, 2, 4, 8))))
    configs = {way: [at_width(base, grow, width, widths[0], way) for width in widths] for way in WAYS}
    length = min(options.length, base.model.context)
    if options.data == "recipe":
        tokens = recipe_tokens(base, options.windows, length)
    else:
        tokens = random_tokens(base.model.vocab_size, options.windows, length)
    results = {}
    for way in WAYS:
        seeds = range(options.seeds)
        measured = [[measure(config, tokens, options.steps, seed) for seed in seeds] for config in configs[way]]
        results[way] = summarize(widths, measured)
    return {
        "recipe": options.recipe,
        "command": command(options),
        "settings": asdict(options),
        "lr": base.optimizer.lr,
        "grow": list(grow),
        "widths": widths,
        "models": [_sizes(config) for config in configs["mup"]],
        "bounds": BOUNDS,
        "results": results,
    }


def default_axes(config: RunConfig) -> tuple[str, ...]:
    """Heads of a fixed width, neurons, and the stream's key axis where muP knows one."""
    keys = ("key_dim",) if "base_key_dim" in stream_class(config.model.stream.kind).own_bases else ()
    return ("num_heads", "mlp_dim", *keys)


def recipe_width(config: RunConfig, grow: Sequence[str]) -> int:
    """The recipe's size along what widths are counted in.

    Raises:
        UserError: the model has no such axis.
    """
    sizes = _sizes(config)
    for axis in grow:
        if axis not in sizes:
            raise UserError(f"The model has no {axis} that could grow; --grow takes {', '.join(sizes)}.")
    if {"num_heads", "head_dim"} & {*grow}:
        return config.model.embed_dim
    return sizes[grow[0]]


def at_width(config: RunConfig, grow: Sequence[str], width: int, smallest: int, way: str) -> RunConfig:
    """The recipe grown to a width, under muP (`mup`) with the `smallest` width as base, or without (`standard`).

    Heads and head width share the factor of the width if both grow; the key axis grows as heads do.

    Raises:
        UserError: an axis would not be whole.
    """
    values = to_dict(config)
    model, mup = values["model"], values["model"]["mup"]
    sizes = _grown(config, grow, width)
    bases = _grown(config, grow, smallest)
    for axis, size in sizes.items():
        if axis != "width" or config.model.width is not None:
            (model["stream"] if axis == "key_dim" else model)[axis] = size
    mup |= {name: None for name in mup if name.startswith("base_")}
    if way == "mup":
        if model["init"]["scheme"] != "mup":
            model["init"] |= {"scheme": "mup", "std": 1.0}
        own = stream_class(config.model.stream.kind).own_bases
        known = {f"base_{axis}": size for axis, size in bases.items()}
        mup |= {name: known[name] for name in ("base_num_heads", "base_head_dim", "base_mlp_dim")}
        mup |= {name: known[name] for name in own if name in known}
    elif model["init"]["scheme"] == "mup":
        model["init"]["scheme"] = "lecun"
    return build(RunConfig, values, "")


def _grown(config: RunConfig, grow: Sequence[str], width: int) -> dict[str, int]:
    """Sizes of all axes at a width."""
    sizes = _sizes(config)
    factor = Fraction(width, recipe_width(config, grow))
    both = {"num_heads", "head_dim"} <= {*grow}
    root = _root(factor) if both else factor
    factors = dict.fromkeys(grow, factor) | {axis: root for axis in grow if axis in ("num_heads", "head_dim")}
    if "key_dim" in grow and "num_heads" in grow:
        factors["key_dim"] = root
    for axis, by in factors.items():
        grown = sizes[axis] * by
        if grown.denominator != 1:
            raise UserError(f"At width {width} the model's {axis} would be {float(grown):g}; choose other --widths.")
        sizes[axis] = int(grown)
    width = sizes["num_heads"] * sizes["head_dim"] if config.model.width is None else int(config.model.width * factor)
    return sizes | {"width": width}


def _root(factor: Fraction) -> Fraction:
    root = Fraction(math.isqrt(factor.numerator), math.isqrt(factor.denominator))
    if root * root != factor:
        raise UserError(
            f"If heads and head width both grow, widths must be square multiples of the recipe's; {factor} is none."
        )
    return root


def _sizes(config: RunConfig) -> dict[str, int]:
    """Sizes of the axes that may grow."""
    own = {axis: getattr(config.model, axis) for axis in AXES if hasattr(config.model, axis)}
    return own | {axis: getattr(config.model.stream, axis) for axis in AXES if hasattr(config.model.stream, axis)}


Measured = list[list[list[tuple[dict[str, float], dict[str, float]]]]]
"""By width, seed and step: size of every quantity at every place, and of its change."""


def summarize(widths: Sequence[int], measured: Measured) -> dict[str, Any]:
    """Sizes by quantity, and slopes.

    Returns:
        size, change: by quantity (geometric mean over places), [steps + 1][widths][seeds]; None: not finite.
        slopes: by quantity, of size and change at the last step: mean over seeds and 95 % interval, or None.
        places: the mean slopes of size and change at every single place, or None.
    """
    steps, seeds = len(measured[0][0]), len(measured[0])
    places = list(measured[0][0][0][0])
    quantities: dict[str, list[str]] = {}
    for place in places:
        quantities.setdefault(place.split()[0], []).append(place)

    def table(names: Sequence[str], which: int) -> list[list[list[float | None]]]:
        return [
            [[_geometric([seed[step][which][name] for name in names]) for seed in width] for width in measured]
            for step in range(steps)
        ]

    result: dict[str, Any] = {
        kind: {name: table(names, which) for name, names in quantities.items()}
        for which, kind in enumerate(("size", "change"))
    }
    slopes: dict[str, Any] = {}
    for name, kind in product(quantities, ("size", "change")):
        last = result[kind][name][-1]
        fitted = _over_seeds([slope(widths, [row[seed] for row in last]) for seed in range(seeds)])
        ends = {end: None if fitted is None else getattr(fitted, end) for end in ("mean", "low", "high")}
        slopes.setdefault(name, {})[kind] = ends
    single = {name: {} for name in places}
    for name, (which, kind) in product(places, enumerate(("size", "change"))):
        found = _over_seeds([slope(widths, [w[seed][-1][which][name] for w in measured]) for seed in range(seeds)])
        single[name][kind] = None if found is None else found.mean
    return {**result, "slopes": slopes, "places": single}


def _over_seeds(slopes: Sequence[float | None]) -> Interval | None:
    """Mean and interval; None where the training of some seed diverged."""
    known = [one for one in slopes if one is not None]
    return mean_interval(known) if len(known) == len(slopes) else None


def _geometric(values: Sequence[float]) -> float | None:
    if not all(map(math.isfinite, values)):
        return None
    return math.exp(fmean(math.log(positive(value)) for value in values))


def command(options: CheckOptions) -> str:
    """The command line of the check."""
    settings = asdict(options)
    words = ["widestream", "mup", "check", settings.pop("recipe"), *settings.pop("changes")]
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
