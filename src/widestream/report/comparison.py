"""The comparison of models: what `compare` finds out, and what tables, verdict and report are made from."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from widestream.errors import UserError, unknown_name
from widestream.report import formats
from widestream.report.comparable import Mismatch, judge, tokenizers_differ
from widestream.report.downstream import Task, compare_tasks, tasks_dict
from widestream.report.stats.groups import Apart, Group, Metric, group_runs, measure
from widestream.report.stats.labels import is_reference
from widestream.report.stats.matched import RESOURCES
from widestream.report.stats.pairs import Pair, as_family, common_tokens, match
from widestream.report.verdict import Verdict, verdicts
from widestream.runs.metrics import finite
from widestream.runs.read import Run, find_runs, load_run
from widestream.runs.row import train_figures
from widestream.runs.settings import chosen, differing, settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a reader chooses among the runs that are given. Patterns are those of `runs.settings.chosen`."""

    reference: str | None = None
    """Label or run folder of the model that others are compared with; None: the plain transformer, or the first."""
    against: tuple[tuple[str, str], ...] = ()
    """(model, what it is compared with in place of the reference): labels or run folders, as for the reference."""
    only: tuple[str, ...] = ()
    """Runs that are like one of these; empty: all."""
    without: tuple[str, ...] = ()
    """Runs to leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything a comparison found."""

    choice: Choice
    """Reference and filters that it was made with."""
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
    """Every other model against its reference, all at that number of tokens."""
    unranked: tuple[Pair, ...]
    """The same for those that did not get there, each at the last tokens that both have seen, and for those from which
    nothing is claimed, because a seed diverged (`Pair.claimed`)."""
    tasks: tuple[Task, ...]
    """Downstream tasks that at least one model was evaluated on, and whose results may be compared."""
    verdict: tuple[Verdict, ...]
    """The result in words, one for each pair; a single one where nothing can be decided."""

    @property
    def comparable(self) -> bool:
        """Whether a verdict about loss may be given."""
        return not self.mismatches

    @property
    def unmatched(self) -> list[Group]:
        """Models whose evaluations share no stretch of training with the reference's, so that there is no pair."""
        matched = {pair.other.label for pair in (*self.pairs, *self.unranked)}
        return [group for group in self.groups[1:] if group.label not in matched]

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
            "pairs": [_pair_dict(pair, self.comparable) for pair in self.pairs],
            "unranked": [_pair_dict(pair, self.comparable) for pair in self.unranked],
            "tasks": tasks_dict(self.tasks),
            "config_differences": [
                {"key": key, "values": {label: finite(value) for label, value in values.items()}}
                for key, values in self.config_differences.items()
            ],
        }


def compare(run_dirs: Iterable[str | Path], choice: Choice | None = None) -> Comparison:
    """Compare runs, or all runs directly inside folders.

    What is damaged, diverged or not evaluated is named, and the rest compared.

    Args:
        run_dirs: run folders, or folders that hold several.
        choice: reference and filters.

    Raises:
        UserError: A path is no run and holds none; nothing is left to compare; the same measurement is given twice;
            nothing is called what was chosen.
    """
    choice = choice or Choice()
    runs, damaged = _read(run_dirs)
    models = _chosen(group_runs(runs), choice)
    _refuse_twins(models)
    runs = [run for _, members in models for run in members]
    metric: Metric = "bits_per_byte" if tokenizers_differ(runs) else "loss"
    measured = [measure(label, members, metric) for label, members in models]
    groups = tuple(one for one in measured if isinstance(one, Group))
    apart = tuple(one for one in measured if isinstance(one, Apart))
    if choice.reference is not None and apart and apart[0].label == models[0][0]:
        others = _listed([group.label for group in groups])
        raise UserError(f"{apart[0].label} cannot be the reference: {apart[0].reason}. Choose another of: {others}.")
    if not groups:
        why = "; ".join([*(f"{one.label}: {one.reason}" for one in apart), *damaged])
        raise UserError(f"There is nothing to compare. {why}")
    judgement = judge(groups)
    tokens = common_tokens(groups)
    pairs, unranked = _pairs(groups, tokens, _references(groups, choice))
    tasks, of_tasks = compare_tasks([(group.label, group.runs) for group in groups])
    return Comparison(
        choice=choice,
        groups=groups,
        apart=apart,
        metric=metric,
        mismatches=judgement.mismatches,
        cautions=judgement.cautions,
        notes=(*damaged, *(f"{run.path}: {note}." for run in runs for note in run.notes), *of_tasks),
        config_differences=differing({group.label: settings(group.runs[0].config) for group in groups}),
        tokens=tokens,
        pairs=pairs,
        unranked=unranked,
        tasks=tuple(tasks),
        verdict=tuple(verdicts(groups, apart, pairs, unranked, judgement.mismatches, metric)),
    )


def _chosen(models: Sequence[tuple[str, list[Run]]], choice: Choice) -> list[tuple[str, list[Run]]]:
    """The models and runs that were chosen, under the labels that they have among all, the reference first.

    Raises:
        UserError: A pattern is like none, or nothing is left.
    """
    used: set[str] = set()

    def like(pattern: str, label: str, run: Run) -> bool:
        found = chosen(pattern, (label, run.name), run.path, run.config)
        used.update([pattern] if found else [])
        return found

    kept: list[tuple[str, list[Run]]] = []
    for label, runs in models:
        wanted = [run for run in runs if not choice.only or any([like(one, label, run) for one in choice.only])]
        wanted = [run for run in wanted if not any([like(one, label, run) for one in choice.without])]
        kept += [(label, wanted)] if wanted else []
    unused = [pattern for pattern in (*choice.only, *choice.without) if pattern not in used]
    if unused or not kept:
        what = f"No run is like {formats.listing(unused)}" if unused else "Nothing is left to compare"
        raise UserError(f"{what}; there are: {_listed([label for label, _ in models])}.")
    if choice.reference is None:
        return kept
    at = [i for i, (label, runs) in enumerate(kept) if is_reference(choice.reference, label, runs)]
    if not at:
        raise unknown_name(f"reference {choice.reference}", choice.reference, [label for label, _ in kept])
    return [kept[at[0]], *kept[: at[0]], *kept[at[0] + 1 :]]


def _refuse_twins(models: Sequence[tuple[str, list[Run]]]) -> None:
    """Refuse one measurement that is given twice: as two seeds it would narrow every interval.

    Raises:
        UserError: two runs have the same configuration and the same seeds.
    """
    for _, runs in models:
        for one, other in pairwise(runs):  # by seeds
            if one.seeds == other.seeds:
                raise UserError(
                    f"{one.path} and {other.path} have the same configuration and seeds: they are one measurement; "
                    f"leave one out (--without {shlex.quote(other.path.name)})."
                )


def _references(groups: Sequence[Group], choice: Choice) -> dict[str, Group]:
    """What each model is compared with, by its label.

    Raises:
        UserError: a model or its reference is none of those that have figures, or is its own.
    """
    found = {group.label: groups[0] for group in groups[1:]}
    for pair in choice.against:
        other, reference = (_named(name, groups) for name in pair)
        if other is reference:
            raise UserError(f"{other.label} cannot be compared with itself; name another model behind the =.")
        if other is groups[0]:
            raise UserError(f"{other.label} is what all others are compared with; choose another --reference.")
        found[other.label] = reference
    return found


def _named(name: str, groups: Sequence[Group]) -> Group:
    group = next((group for group in groups if is_reference(name, group.label, group.members)), None)
    if group is None:
        raise unknown_name(f"model {name}", name, [group.label for group in groups])
    return group


def _pairs(
    groups: Sequence[Group], tokens: float, references: dict[str, Group]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Every model against its reference: those that may be put into an order at these tokens, and the others."""
    ranked: list[Pair] = []
    rest: list[Pair] = []
    for other in groups[1:]:
        reference = references[other.label]
        reaches = min(other.tokens, reference.tokens) >= tokens
        pair = match(reference, other, tokens) if reaches else None
        if pair is not None and pair.claimed:
            ranked.append(pair)
        elif (pair := pair or match(reference, other)) is not None:
            rest.append(pair)
    return tuple(as_family(ranked)), tuple(rest)


def _listed(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _read(run_dirs: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs, and why those that cannot be read are left out."""
    runs, damaged = [], []
    for path in find_runs(run_dirs):
        try:
            runs.append(load_run(path))
        except UserError as error:
            damaged.append(f"{path} is left out: {error}")
    return runs, damaged


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


def _pair_dict(pair: Pair, comparable: bool) -> dict[str, Any]:
    return {
        "reference": pair.reference.label,
        "other": pair.other.label,
        "tokens": pair.tokens,
        "claimed": comparable and pair.claimed,
        "corrected_p": pair.corrected if comparable else dict.fromkeys(pair.corrected),
        "by_seed": pair.by_seed,
        "at_equal": {resource: asdict(interval) for resource, interval in pair.at_equal.items()},
        "gaps": {resource: [list(point) for point in points] for resource, points in pair.gaps.items()},
        "trend": asdict(pair.trend) if pair.trend else None,
        "targets": [
            asdict(target) | {"ratio": {resource: target.ratio(resource) for resource in RESOURCES}}
            for target in pair.targets
        ],
    }
