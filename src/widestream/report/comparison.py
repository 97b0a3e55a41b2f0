"""The comparison of models: what `compare` finds out, and what tables, verdict and report are made from."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from widestream.report.comparable import Mismatch, cautions, mismatches, tokenizers_differ
from widestream.report.stats.groups import Group, Metric, config_differences, group_runs, measure
from widestream.report.stats.matched import RESOURCES
from widestream.report.stats.pairs import Pair, match
from widestream.report.verdict import Verdict, verdicts
from widestream.runs.read import Run, find_runs, load_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything a comparison found."""

    groups: tuple[Group, ...]
    """The models, the reference first."""
    metric: Metric
    """What is compared: `loss`, or `bits_per_byte` where tokenizers differ."""
    mismatches: tuple[Mismatch, ...]
    """What makes the models not comparable; empty when they are."""
    cautions: tuple[str, ...]
    """What colours the verdict; empty where there is none."""
    notes: tuple[str, ...]
    """What is to be known of single runs."""
    config_differences: dict[str, dict[str, Any]]
    """Keys of the configuration that differ, with their value by label."""
    pairs: tuple[Pair, ...]
    """Every other model against the reference."""
    verdict: tuple[Verdict, ...]
    """The result in words, one for each pair; a single one where nothing can be decided."""

    @property
    def comparable(self) -> bool:
        """Whether a verdict about loss may be given."""
        return not self.mismatches

    @property
    def runs(self) -> list[Run]:
        """All runs, model by model."""
        return [run for group in self.groups for run in group.runs]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return {
            "metric": self.metric,
            "comparable": self.comparable,
            "verdict": [str(verdict) for verdict in self.verdict],
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches],
            "cautions": list(self.cautions),
            "notes": list(self.notes),
            "models": [_group_dict(group) for group in self.groups],
            "pairs": [_pair_dict(pair) for pair in self.pairs],
            "config_differences": [{"key": key, "values": values} for key, values in self.config_differences.items()],
        }


def compare(run_dirs: Iterable[str | Path]) -> Comparison:
    """Compare runs, or all runs directly inside folders.

    Raises:
        UserError: A folder is no run, is damaged or has nothing evaluated; the same measurement is given twice.
    """
    runs = [load_run(path) for path in find_runs(run_dirs)]
    models = group_runs(runs)
    metric: Metric = "bits_per_byte" if tokenizers_differ(models) else "loss"
    groups = tuple(measure(label, members, metric) for label, members in models)
    differing = tuple(mismatches(models))
    pairs = tuple(pair for other in groups[1:] if (pair := match(groups[0], other)))
    return Comparison(
        groups=groups,
        metric=metric,
        mismatches=differing,
        cautions=() if differing else tuple(cautions(models)),
        notes=tuple(f"{run.path}: {note}." for run in runs for note in run.notes),
        config_differences=config_differences({group.label: group.runs[0].config for group in groups}),
        pairs=pairs,
        verdict=tuple(verdicts(groups, pairs, differing, metric)),
    )


def train_figures(run: Run) -> dict[str, float | None]:
    """Median tokens per second and MFU, and peak memory in bytes, of the training rows; None where not logged."""
    clocks = [row["clock"] for row in run.train if "clock" in row]
    figures: dict[str, float | None] = {}
    for name, summary in (("tokens_per_s", median), ("mfu", median), ("memory_bytes", max)):
        values = [clock[name] for clock in clocks if clock.get(name) is not None]
        figures[name] = summary(values) if values else None
    return figures


def _group_dict(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "final": asdict(group.final),
        "best_smoothed": group.curve.best,
        "curve": asdict(group.curve),
        "parameters": group.runs[0].parameters,
        "flops_per_token": group.runs[0].flops_per_token,
        "stream_size": group.runs[0].info["summary"]["stream_size"],
        "runs": [_run_dict(run, final) for run, final in zip(group.runs, group.finals, strict=True)],
    }


def _run_dict(run: Run, final: float) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seeds": {"weights": run.seeds[0], "order": run.seeds[1]},
        "finished": run.done is not None,
        "final": final,
        **asdict(run.final),
        **train_figures(run),
    }


def _pair_dict(pair: Pair) -> dict[str, Any]:
    return {
        "reference": pair.reference.label,
        "other": pair.other.label,
        "tokens": pair.tokens,
        "by_seed": pair.by_seed,
        "at_equal": {resource: asdict(interval) for resource, interval in pair.at_equal.items()},
        "gaps": {resource: [list(point) for point in points] for resource, points in pair.gaps.items()},
        "trend": asdict(pair.trend) if pair.trend else None,
        "targets": [
            asdict(target) | {"ratio": {resource: target.ratio(resource) for resource in RESOURCES}}
            for target in pair.targets
        ],
    }
