"""Groups of runs: the same configuration but for the seeds. A group is what the report calls a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from widestream.errors import UserError
from widestream.report.stats.intervals import Interval, mean_interval
from widestream.report.stats.matched import Curve, mean_curve, smooth
from widestream.runs.folder import flatten
from widestream.runs.read import Evaluation, Run

Metric = Literal["loss", "bits_per_byte"]

SEED_KEYS = ("train.seed", "data.seed")
"""What may differ between the runs of one group and is averaged over."""

BOOKKEEPING = frozenset(
    {
        "name",
        "description",
        "data.path",
        "train.log_every",
        "train.eval_every",
        "train.save_every",
        "train.keep",
        "train.tensorboard",
        *SEED_KEYS,
    }
)
"""Keys of a configuration that do not change what is learned (the data are told apart by their fingerprint)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One model: the runs that differ in their seeds only, and what was measured over them."""

    label: str
    """Short name, unique in a comparison."""
    runs: tuple[Run, ...]
    """The runs, by seeds."""
    curves: tuple[Curve, ...]
    """Smoothed held-out curve of each run."""
    curve: Curve
    """Smoothed mean curve, over the evaluations that all runs have."""
    final: Interval
    """Last evaluation: mean over runs."""
    finals: tuple[float, ...]
    """Last evaluation of each run."""

    @property
    def non_embedding(self) -> int:
        """Parameters without embeddings, unembedding and positions."""
        return self.runs[0].parameters["non_embedding"]

    def by_seed(self) -> dict[tuple[int, int], int]:
        """Index of each run by its seeds."""
        return {run.seeds: i for i, run in enumerate(self.runs)}


def group_runs(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Sort runs into models, with a label each; the plain transformer (`is_plain`) first, else as given.

    Raises:
        UserError: Two runs have the same configuration and the same seeds.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        twins = members.setdefault(_key(run), [])
        twin = next((other for other in twins if other.seeds == run.seeds), None)
        if twin:
            raise UserError(
                f"{twin.path} and {run.path} have the same configuration and seeds: they are one measurement; give one."
            )
        twins.append(run)
    groups = [sorted(group, key=lambda run: run.seeds) for group in members.values()]
    groups.sort(key=lambda group: not is_plain(group[0]))
    return list(zip(_labels(groups), groups, strict=True))


def measure(label: str, runs: Sequence[Run], metric: Metric) -> Group:
    """Smooth and average the held-out curves of one model's runs.

    Raises:
        UserError: The runs have no evaluation in common, or bits per byte are needed and were not counted.
    """
    curves = [_curve(run, metric) for run in runs]
    mean = mean_curve(curves)
    if mean is None:
        raise UserError(f"The runs of {label} have no evaluation at equal tokens; compare them one by one.")
    finals = tuple(value_of(run, run.final, metric) for run in runs)
    return Group(
        label=label,
        runs=tuple(runs),
        curves=tuple(smooth(curve) for curve in curves),
        curve=smooth(mean),
        final=mean_interval(finals),
        finals=finals,
    )


def value_of(run: Run, row: Evaluation, metric: Metric) -> float:
    """Loss or bits per byte of one evaluation.

    Raises:
        UserError: Bits per byte are asked for and were not counted.
    """
    value = row.loss if metric == "loss" else row.bits_per_byte
    if value is None:
        raise UserError(f"{run.path} has no bits per byte, which models with different tokenizers are compared by.")
    return value


def stream_kind(run: Run) -> str:
    """Kind of the residual stream in a run's configuration."""
    return str(run.config.get("model", {}).get("stream", {}).get("kind", "?"))


def is_plain(run: Run) -> bool:
    """Whether a run's model is the plain transformer: a vector stream, and none of the options that go beside it."""
    model = run.config.get("model", {})
    beside = model.get("value_residual", "none") != "none" or model.get("short_swa") is not None
    return stream_kind(run) == "vector" and not beside


def config_differences(configs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keys that differ between configurations, sorted, with their value by label; seeds and bookkeeping left out.

    Labels whose configuration has no such key are left out.
    """
    flat = {label: flatten(config) for label, config in configs.items()}
    differing = {}
    for key in sorted({key for config in flat.values() for key in config} - BOOKKEEPING):
        values = {label: config[key] for label, config in flat.items() if key in config}
        if len(values) < len(flat) or len({repr(value) for value in values.values()}) > 1:
            differing[key] = values
    return differing


def _key(run: Run) -> str:
    """What the runs of a group share: configuration and data, without seeds and bookkeeping."""
    config = {key: value for key, value in flatten(run.config).items() if key not in BOOKKEEPING}
    data = {key: value for key, value in run.data.items() if key != "seed"}
    return repr((sorted(config.items(), key=lambda item: item[0]), sorted(data.items())))


def _curve(run: Run, metric: Metric) -> Curve:
    rows = [row for row in run.curve if row.tokens > 0 and row.flops > 0 and row.wall_s > 0]
    if not rows:
        raise UserError(
            f"{run.path} has no held-out evaluation after its first step yet; let it train on, or leave it out."
        )
    return Curve(
        tokens=tuple(row.tokens for row in rows),
        flops=tuple(row.flops for row in rows),
        wall_s=tuple(row.wall_s for row in rows),
        loss=tuple(value_of(run, row, metric) for row in rows),
    )


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Recipe names without what the seeds add and without a shared folder; made unique by what differs."""
    names = [_common_name(group) for group in groups]
    short = [name.rsplit("/", 1)[-1] for name in names]
    labels = short if len(set(short)) == len(set(names)) else names
    result = list(labels)
    for i, label in enumerate(labels):
        same = [j for j, other in enumerate(labels) if other == label]
        if len(same) > 1:
            differing = config_differences({str(j): groups[j][0].config for j in same})
            details = [
                f"{key.rsplit('.', 1)[-1]} {values[str(i)]}" for key, values in differing.items() if str(i) in values
            ]
            result[i] = f"{label} ({', '.join(details)})" if 0 < len(details) <= 2 else f"{label} #{same.index(i) + 1}"
    return result


def _common_name(group: Sequence[Run]) -> str:
    names = {run.name for run in group}
    if len(names) == 1:
        return names.pop()
    first, last = min(names), max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", first[:shared]) or stream_kind(group[0])
