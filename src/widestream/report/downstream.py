"""Downstream tasks of some models side by side: figures with intervals, over items and over seeds apart.

What chance there is in the items of a data set and what there is in a model's seeds are two things, and each has its
own interval. Results that are not of the same measurement (other items, prompts, examples in front, versions,
tokenizer) are named and not compared.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from widestream.errors import UserError
from widestream.report.formats import listing, perplexity, three
from widestream.report.stats.intervals import Interval, mean_interval
from widestream.report.stats.items import averaged, mean_over_items, proportion
from widestream.report.table import NONE, Table
from widestream.runs.read import Run
from widestream.runs.tasks import Form, Measure, TaskResult, figure, read_results, unlike


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One model's results on one task."""

    label: str
    """The model."""
    runs: tuple[Run, ...]
    """Its runs that were evaluated."""
    results: tuple[TaskResult, ...]
    """One a run."""

    def measures(self, metric: str) -> list[Measure]:
        """A metric of every run."""
        return [result.measures[metric] for result in self.results]

    def values(self, metric: str) -> list[float]:
        """What every item came to, mean over runs."""
        return averaged([measure.values for measure in self.measures(metric)])

    def over_items(self, metric: str) -> Interval:
        """The metric's mean, mean over runs, with an interval over items: these weights on other items."""
        measures = self.measures(metric)
        if len(measures) == 1 and measures[0].binary:
            return proportion(measures[0].values)
        return _possible(mean_over_items(self.values(metric), measures[0].weights), measures)

    def over_seeds(self, metric: str) -> Interval:
        """The same mean with an interval over runs: other seeds on these items."""
        measures = self.measures(metric)
        return _possible(mean_interval([measure.mean for measure in measures]), measures)


def _possible(interval: Interval, measures: Sequence[Measure]) -> Interval:
    """The part of an interval of shares that lies between none and all."""
    if interval.low is None or interval.high is None or not all(measure.binary for measure in measures):
        return interval
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task of some models, whose results may be compared."""

    name: str
    """The task's, and how many items it was cut to."""
    sides: tuple[Side, ...]
    """The models that have results."""

    @property
    def first(self) -> TaskResult:
        """Any of its results; they agree in what they are of."""
        return self.sides[0].results[0]

    @property
    def metrics(self) -> list[str]:
        """Those that all results have."""
        results = [result for side in self.sides for result in side.results]
        return [name for name in self.first.measures if all(name in result.measures for result in results)]

    def form(self, metric: str) -> Form:
        """How a metric's figure follows from its mean."""
        return self.first.measures[metric].form

    def chance(self, metric: str) -> float | None:
        """What guessing comes to, of a metric that counts right choices."""
        choices = self.first.of_items.choices
        counts = self.first.measures[metric].binary and min(choices) > 1
        return fmean([1 / count for count in choices]) if counts else None


def compare_tasks(models: Sequence[tuple[str, Sequence[Run]]]) -> tuple[list[Task], list[str]]:
    """Results on tasks, brought together.

    Args:
        models: label and runs of each.

    Returns:
        Tasks that at least one model has, by name, and notes: what was not compared and why.
    """
    found: dict[str, dict[str, list[tuple[Run, TaskResult]]]] = {}
    notes: list[str] = []
    for label, runs in models:
        for run in runs:
            try:
                results = read_results(run.path)
            except UserError as error:
                notes.append(f"Tasks of {run.path} are left out: {error}")
                continue
            for result in results:
                found.setdefault(result.name, {}).setdefault(label, []).append((run, result))
    tasks = []
    for name, by_model in sorted(found.items()):
        sides = [
            Side(label=label, runs=runs, results=results)
            for label, _ in models
            if label in by_model
            for runs, results in [zip(*by_model[label], strict=True)]
        ]
        results = [result for side in sides for result in side.results]
        if (why := unlike(results)) is not None:
            notes.append(f"{name} is not compared: {why}; evaluate all runs in the same way.")
            continue
        tasks.append(Task(name=name, sides=tuple(sides)))
        notes += _notes(name, dict(models), sides)
    return tasks, notes


def _notes(name: str, models: dict[str, Sequence[Run]], sides: Sequence[Side]) -> list[str]:
    """What is to be known of results that are compared."""
    notes = []
    results = [(run, result) for side in sides for run, result in zip(side.runs, side.results, strict=True)]
    if len({result.precision for _, result in results}) > 1:
        told = [f"{run.path} {result.precision}" for run, result in results]
        notes.append(f"{name} was computed in different precisions: {listing(told)}.")
    old = [f"{run.path} at step {result.step:,} of {run.steps:,}" for run, result in results if result.step < run.steps]
    if old:
        notes.append(f"{name} was evaluated before the end of training: {listing(old)}.")
    for side in sides:
        evaluated = {run.path for run in side.runs}
        missing = [str(run.path) for run in models[side.label] if run.path not in evaluated]
        if missing:
            notes.append(f"{name} was not evaluated for {listing(missing)}: {side.label}'s figures are without it.")
    return notes


def task_table(tasks: Sequence[Task]) -> Table | None:
    """Every task's figures by model; None without tasks."""
    rows = [_row(task, metric, side) for task in tasks for metric in task.metrics for side in task.sides]
    if not rows:
        return None
    return Table(
        title="Downstream tasks",
        caption="By lm-evaluation-harness (`widestream eval --tasks`); shares of right answers in percent. Each "
        "interval is of one kind of chance: over items, these weights on other items of the kind; over seeds, other "
        "seeds on these items. `widestream dissect` compares two models item by item.",
        columns=("task", "metric", "model", "figure", "95 % over items", "95 % over seeds", "seeds", "chance", "items"),
        rows=tuple(rows),
        words=3,
    )


def _row(task: Task, metric: str, side: Side) -> tuple[str, ...]:
    form, items, seeds = task.form(metric), side.over_items(metric), side.over_seeds(metric)
    chance = task.chance(metric)
    return (
        task.name,
        metric,
        side.label,
        told(form, items.mean),
        _ends(form, items),
        _ends(form, seeds),
        str(len(side.results)),
        NONE if chance is None else told("mean", chance),
        f"{task.first.items:,}",
    )


def told(form: Form, mean: float) -> str:
    """A figure in words: a share as a percentage with one decimal, a perplexity, or bits in three digits."""
    if form == "mean":
        return f"{100 * mean:.1f}"
    return perplexity(mean) if form == "perplexity" else three(figure(form, mean))


def _ends(form: Form, interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return NONE
    return f"{told(form, interval.low)} to {told(form, interval.high)}"


def tasks_dict(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The same as plain JSON values. Means are those before `form`: shares, or nats."""
    return [
        {
            "task": task.name,
            "items": task.first.items,
            "shots": task.first.shots,
            "harness": task.first.harness,
            "fingerprint": task.first.fingerprint,
            "metrics": {
                metric: {
                    "form": task.form(metric),
                    "chance": task.chance(metric),
                    "models": {
                        side.label: {
                            "runs": [str(run.path) for run in side.runs],
                            "by_run": [result.metrics[metric] for result in side.results],
                            "over_items": asdict(side.over_items(metric)),
                            "over_seeds": asdict(side.over_seeds(metric)),
                        }
                        for side in task.sides
                    },
                }
                for metric in task.metrics
            },
        }
        for task in tasks
    ]
