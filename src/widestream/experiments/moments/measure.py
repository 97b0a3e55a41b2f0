"""Study 2, moment propagation: Table 2 measured on the real modules, moments over depth of any stream, and in training.

One record holds what was measured: `ratios`, `depth` and `training`, each as far as it was asked for.
`experiments/moments/section.py` makes tables and charts of it.
"""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from widestream.bench.record import Outputs, make_record, require_counts
from widestream.errors import UserError
from widestream.experiments.moments.charts import moments_charts
from widestream.experiments.moments.depth import DepthSizes, chosen_kinds, measure_depth
from widestream.experiments.moments.ratios import measure_ratios
from widestream.experiments.moments.training import RunSettings, measure_run
from widestream.files import write_json
from widestream.paper.moments import GPT2_MEDIUM, Row, Scheme, Shape
from widestream.report.figures.pictures import write_pictures

SHAPES = {"gpt2-medium": GPT2_MEDIUM, "small": Shape(rank=8, key_dim=32, value_dim=16, mlp_dim=512)}
EQUAL_KEYS = (Row("feed-forward", "storage", "RMT"), Row("feed-forward", "retrieval", "RMT"))
"""Rows of Table 2 that need D_k = R; they are measured at that shape too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentsSettings:
    """What is measured, at initialisation."""

    shape: str = "gpt2-medium"
    """Sizes at which Table 2 is measured: a name of SHAPES."""
    draws: int = 64
    """Initialisations; 0: Table 2 is left out."""
    scheme: Literal["xavier", "lecun", "both"] = "both"
    """Initialisation for Table 2; over depth it is LeCun's, as in C.3 and C.4."""
    streams: tuple[str, ...] = ("all",)
    """Kinds whose depth is studied; empty: none."""
    depths: tuple[int, ...] = (6, 24, 48)
    """Numbers of layers."""
    seeds: int = 3
    """Models of each stream and depth."""
    sizes: DepthSizes = field(default_factory=DepthSizes)
    """Of the models of the depth study."""

    def __post_init__(self):
        require_counts(self, draws=0, depths=2, seeds=1)
        if self.draws == 1:
            raise UserError("--draws is 1, which gives no interval; use 2 or more, or 0 to leave Table 2 out.")
        if self.shape not in SHAPES:
            raise UserError(f"There is no shape {self.shape}; use {' or '.join(SHAPES)}.")


def study_initial(settings: MomentsSettings) -> dict[str, Any]:
    """Measure Table 2 and the depth study.

    Raises:
        UserError: an unknown stream, or one that does not take these sizes.
    """
    kinds = chosen_kinds(settings.streams)
    schemes: tuple[Scheme, ...] = ("xavier", "lecun") if settings.scheme == "both" else (settings.scheme,)
    shape, ratios = SHAPES[settings.shape], []
    for scheme in tqdm(schemes if settings.draws else (), desc="Table 2", unit="scheme", disable=None):
        ratios += measure_ratios(shape, scheme, settings.draws)
        ratios += measure_ratios(replace(shape, key_dim=shape.rank), scheme, settings.draws, EQUAL_KEYS)
    cases = list(itertools.product((False, True), settings.depths, kinds))
    depth = [
        measure_depth(kind, num_layers, depth_scale, settings.seeds, settings.sizes)
        for depth_scale, num_layers, kind in tqdm(cases, desc="depth", disable=None)
    ]
    options = {option.name: getattr(settings, option.name) for option in fields(settings) if option.name != "sizes"}
    asked = command(**options | {"streams": settings.streams or "none"})
    return make_record("study moments", settings, torch.device("cpu"), command=asked, ratios=ratios, depth=depth)


def study_runs(runs: Sequence[Path], settings: RunSettings) -> dict[str, Any]:
    """Measure runs at their beginning and at all of their checkpoints; see `measure_run`."""
    training = [measure_run(run, settings) for run in tqdm(runs, desc="runs", disable=None)]
    known: dict[tuple[str, int], Path] = {}
    for path, found in zip(runs, training, strict=True):
        twin = known.setdefault((found["name"], found["seed"]), path)
        if twin != path:
            raise UserError(
                f"{twin} and {path} are both called {found['name']} and have seed {found['seed']}: they would be "
                "taken for one model; measure them one by one."
            )
    plain = replace(settings, data=None if settings.data is None else str(settings.data))
    asked = command(*(word for run in runs for word in ("--run", str(run))), windows=settings.windows, data=plain.data)
    return make_record("study moments", plain, torch.device("cpu"), command=asked, training=training)


def command(*words: str, **options: Any) -> str:
    """The command line that measures this; options of None are left out, tuples joined."""
    shown = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in options.items()}
    given = (f"--{name}={value}" for name, value in shown.items() if value is not None)
    return shlex.join(["widestream", "study", "moments", *words, *given])


def write_outputs(record: dict[str, Any], outputs: Outputs) -> list[Path]:
    """Write the record and its charts, STEM-light.svg and STEM-dark.svg; returns the paths."""
    written = []
    if outputs.json is not None:
        write_json(outputs.json, record)
        written.append(outputs.json)
    charts = moments_charts(record)
    if outputs.stem is not None and charts:
        written += write_pictures(outputs.stem, charts, "Moment propagation")
    return written
