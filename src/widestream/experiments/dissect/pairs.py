"""Two models item by item: the difference on every task, tested over items and told apart from chance over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from widestream.errors import UserError
from widestream.experiments.dissect.frequency import Frequencies, training_frequencies
from widestream.experiments.dissect.slices import Slices, slice_measure, slice_places
from widestream.report.downstream import Side, Task, compare_tasks
from widestream.report.formats import listing
from widestream.report.stats.groups import group_runs
from widestream.report.stats.intervals import SIGNIFICANT, Interval, difference, holm
from widestream.report.stats.items import accuracy_difference, bootstrap, mean_over_items
from widestream.report.stats.labels import is_reference
from widestream.runs.read import Run, find_runs, load_run

SAME = ("byte_perplexity", "bits_per_byte")
"""Metrics that tell no more of a difference than `word_perplexity` does: the same nats in other units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemPair:
    """One metric of one task for both models. Every difference is other minus reference, before `form`: of shares, or
    of nats (by word, by token, by answer).
    """

    task: Task
    """The task, the reference's side first."""
    metric: str
    """The metric."""
    over_items: Interval
    """Difference, with an interval over items: these weights on other items of the kind."""
    bootstrap: tuple[float, float] | None
    """The same interval by resampling items."""
    over_seeds: Interval
    """Difference, with an interval over seeds: other seeds on these items; none where a model has one."""
    alone: tuple[int, int] | None
    """Items that the reference alone has right, and the other alone; None where several seeds are averaged."""
    slices: tuple[Slices, ...]
    """The difference by what the items are like."""
    corrected: float | None = None
    """p-value over items, corrected for all rows (Holm)."""

    @property
    def sides(self) -> tuple[Side, Side]:
        """Reference and other."""
        return self.task.sides[0], self.task.sides[1]

    @property
    def higher_is_better(self) -> bool:
        """Whether a positive difference is the other's gain."""
        return self.task.form(self.metric) == "mean" and self.task.first.measures[self.metric].higher_is_better

    @property
    def seen(self) -> bool:
        """Whether the items show a difference at the 5 % level, the number of rows counted in."""
        return self.corrected is not None and self.corrected < SIGNIFICANT

    @property
    def winner(self) -> str:
        """Label of the model that is better in the mean."""
        return self.sides[(self.over_items.mean > 0) == self.higher_is_better].label


@dataclass(frozen=True, kw_only=True, slots=True)
class Dissection:
    """Two models on the tasks that both were evaluated on."""

    models: tuple[tuple[str, tuple[Run, ...]], tuple[str, tuple[Run, ...]]]
    """Label and runs, the reference first."""
    pairs: tuple[ItemPair, ...]
    """By task and metric."""
    frequencies: Frequencies | None
    """How often every token stands in the training data; None where that is gone."""
    notes: tuple[str, ...]
    """What was not compared, and what else is to be known."""

    @property
    def labels(self) -> tuple[str, str]:
        """Reference and other."""
        return self.models[0][0], self.models[1][0]


def dissect(run_dirs: Iterable[str | Path], reference: str | None = None) -> Dissection:
    """Compare two models item by item.

    Args:
        run_dirs: runs of two models, or folders that hold them.
        reference: label or run folder of the model that the other is compared with; None: the plain transformer, or the
            first.

    Raises:
        UserError: the runs are not of two models, or these share no task.
    """
    models = group_runs([load_run(path) for path in find_runs(run_dirs)])
    if len(models) != 2:
        raise UserError(
            f"These are runs of {len(models)} model{'s' if len(models) != 1 else ''} "
            f"({listing([label for label, _ in models])}); give runs of two, `widestream compare` takes more."
        )
    if reference is not None:
        at = [i for i, (label, runs) in enumerate(models) if is_reference(reference, label, runs)]
        if not at:
            raise UserError(f"{reference} is neither {models[0][0]} nor {models[1][0]}, nor a run of theirs.")
        models = models if at[0] == 0 else models[::-1]
    tasks, notes = compare_tasks(models)
    both = [task for task in tasks if len(task.sides) == 2]
    shared = {task.name for task in both}
    notes += [
        f"{task.name} was evaluated for {task.sides[0].label} alone." for task in tasks if task.name not in shared
    ]
    if not both:
        reasons = " ".join(notes) or "Neither was evaluated on any (widestream eval RUN --tasks)."
        raise UserError(f"{models[0][0]} and {models[1][0]} have no task in common. {reasons}")
    frequencies, of_frequencies = training_frequencies(models)
    notes += of_frequencies
    pairs = [_pair(task, metric, frequencies) for task in both for metric in task.metrics if metric not in SAME]
    corrected = holm([pair.over_items for pair in pairs])
    return Dissection(
        models=((models[0][0], tuple(models[0][1])), (models[1][0], tuple(models[1][1]))),
        pairs=tuple(replace(pair, corrected=p) for pair, p in zip(pairs, corrected, strict=True)),
        frequencies=frequencies,
        notes=tuple(notes),
    )


def _pair(task: Task, metric: str, frequencies: Frequencies | None) -> ItemPair:
    first, second = task.sides
    values, measure = (first.values(metric), second.values(metric)), task.first.measures[metric]
    gaps = [b - a for a, b in zip(*values, strict=True)]
    single = measure.binary and len(first.results) == len(second.results) == 1
    slices = list(slice_measure(task, gaps, frequencies)) if measure.weights is None else []
    if metric == "token_perplexity":
        slices += slice_places(first, second)
    return ItemPair(
        task=task,
        metric=metric,
        over_items=accuracy_difference(*values)
        if measure.binary
        else mean_over_items(gaps, measure.weights, paired=True),
        bootstrap=bootstrap(gaps, measure.weights),
        over_seeds=difference(_by_seed(first, metric), _by_seed(second, metric)),
        alone=_alone(gaps) if single else None,
        slices=tuple(slices),
    )


def _by_seed(side: Side, metric: str) -> dict[tuple[object, ...], float]:
    return {run.batches: measure.mean for run, measure in zip(side.runs, side.measures(metric), strict=True)}


def _alone(gaps: Sequence[float]) -> tuple[int, int]:
    return sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
