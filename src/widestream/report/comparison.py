"""The comparison of models: what `compare` finds out, and what tables, verdict and report are made from."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from widestream.errors import UserError
from widestream.report.comparable import Mismatch, judge, tokenizers_differ
from widestream.report.stats.groups import Apart, Group, Metric, group_runs, measure
from widestream.report.stats.labels import config_differences
from widestream.report.stats.matched import RESOURCES
from widestream.report.stats.pairs import Pair, as_family, common_tokens, match
from widestream.report.verdict import Verdict, verdicts
from widestream.runs.read import Run, find_runs, load_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything a comparison found."""

    groups: tuple[Group, ...]
    """The models that have figures, the reference first."""
    apart: tuple[Apart, ...]
    """Models of which no run counts: every seed diverged, or none was evaluated."""
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
    tokens: float
    """The one number of training tokens at which models are put into an order (`common_tokens`)."""
    pairs: tuple[Pair, ...]
    """Every other model against the reference, all at that number of tokens. Those of which nothing is claimed, because
    a seed diverged, are among them."""
    unranked: tuple[Pair, ...]
    """Models that did not get there against the reference, each at the last tokens that both have seen."""
    verdict: tuple[Verdict, ...]
    """The result in words, one for each pair; a single one where nothing can be decided."""

    @property
    def comparable(self) -> bool:
        """Whether a verdict about loss may be given."""
        return not self.mismatches

    @property
    def models(self) -> list[tuple[str, tuple[Run, ...]]]:
        """(label, all its runs) of every model, those without figures last."""
        return [
            *((group.label, group.members) for group in self.groups),
            *((one.label, one.runs) for one in self.apart),
        ]

    @property
    def runs(self) -> list[Run]:
        """All runs, model by model, those too that do not count."""
        return [run for _, runs in self.models for run in runs]

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
            "apart": [
                {
                    "label": one.label,
                    "reason": one.reason,
                    "diverged": one.diverged,
                    "runs": [*map(_run_dict, one.runs)],
                }
                for one in self.apart
            ],
            "tokens": self.tokens,
            "pairs": [_pair_dict(pair) for pair in self.pairs],
            "unranked": [_pair_dict(pair) for pair in self.unranked],
            "config_differences": [{"key": key, "values": values} for key, values in self.config_differences.items()],
        }


def compare(run_dirs: Iterable[str | Path]) -> Comparison:
    """Compare runs, or all runs directly inside folders.

    What is damaged, diverged or not evaluated is named, and the rest compared.

    Raises:
        UserError: A path is no run and holds none; nothing is left to compare; the same measurement is given twice.
    """
    runs, damaged = _read(run_dirs)
    models = group_runs(runs)
    metric: Metric = "bits_per_byte" if tokenizers_differ(runs) else "loss"
    measured = [measure(label, members, metric) for label, members in models]
    groups = tuple(one for one in measured if isinstance(one, Group))
    apart = tuple(one for one in measured if isinstance(one, Apart))
    if not groups:
        why = "; ".join([*(f"{one.label}: {one.reason}" for one in apart), *damaged])
        raise UserError(f"There is nothing to compare. {why}")
    judgement = judge(groups)
    tokens = common_tokens(groups)
    pairs, unranked = _pairs(groups, tokens)
    return Comparison(
        groups=groups,
        apart=apart,
        metric=metric,
        mismatches=judgement.mismatches,
        cautions=judgement.cautions,
        notes=(*damaged, *(f"{run.path}: {note}." for run in runs for note in run.notes)),
        config_differences=config_differences({group.label: group.runs[0].config for group in groups}),
        tokens=tokens,
        pairs=pairs,
        unranked=unranked,
        verdict=tuple(verdicts(groups, apart, (*pairs, *unranked), judgement.mismatches, metric)),
    )


def _pairs(groups: Sequence[Group], tokens: float) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Every model against the first: those that are compared at these tokens, and those that did not get there."""
    ranked = [pair for other in groups[1:] if other.tokens >= tokens and (pair := match(groups[0], other, tokens))]
    there = {pair.other.label for pair in ranked}
    rest = [pair for other in groups[1:] if other.label not in there and (pair := match(groups[0], other))]
    return tuple(as_family(ranked)), tuple(rest)


def _read(run_dirs: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs, and why those that cannot be read are left out."""
    runs, damaged = [], []
    for path in find_runs(run_dirs):
        try:
            runs.append(load_run(path))
        except UserError as error:
            damaged.append(f"{path} is left out: {error}")
    return runs, damaged


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
        "seeds": group.seeds,
        "final": asdict(group.final),
        "best_smoothed": group.curve.best,
        "curve": asdict(group.curve),
        "parameters": group.runs[0].parameters,
        "flops_per_token": group.runs[0].flops_per_token,
        "stream_size": group.runs[0].info["summary"]["stream_size"],
        "runs": [
            _run_dict(run) | {"final": final} | asdict(end)
            for run, end, final in zip(group.runs, group.ends, group.finals, strict=True)
        ],
        "not_counted": [_run_dict(run) for run in (*group.diverged, *group.behind)],
    }


def _run_dict(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seeds": {"weights": run.seeds[0], "order": run.seeds[1]},
        "state": run.state,
        "diverged_at": run.diverged_at,
        "steps": run.steps,
        "skipped": run.skipped,
        **train_figures(run),
    }


def _pair_dict(pair: Pair) -> dict[str, Any]:
    return {
        "reference": pair.reference.label,
        "other": pair.other.label,
        "tokens": pair.tokens,
        "claimed": pair.claimed,
        "corrected_p": pair.corrected,
        "by_seed": pair.by_seed,
        "at_equal": {resource: asdict(interval) for resource, interval in pair.at_equal.items()},
        "gaps": {resource: [list(point) for point in points] for resource, points in pair.gaps.items()},
        "trend": asdict(pair.trend) if pair.trend else None,
        "targets": [
            asdict(target) | {"ratio": {resource: target.ratio(resource) for resource in RESOURCES}}
            for target in pair.targets
        ],
    }
