"""Groups of runs: the same configuration but for the seeds. A group is what the report calls a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from widestream.report.formats import count
from widestream.report.stats.intervals import Interval, mean_interval
from widestream.report.stats.labels import labels, same_model, stream_kind
from widestream.report.stats.matched import Curve, mean_curve, smooth
from widestream.runs.read import Evaluation, Run

Metric = Literal["loss", "bits_per_byte"]

LEAST = 1e-12
"""Curves are smoothed and read in log space; a loss of zero is taken for this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """A model of which no run counts, so that it has no figures: what it is, and why."""

    label: str
    """Short name, unique in a comparison."""
    runs: tuple[Run, ...]
    """Its runs, by seeds."""
    reason: str
    """What became of them, in words that may follow the label."""
    diverged: bool
    """Whether it is that every seed diverged, which is a result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One model: the runs that differ in their seeds only, and what was measured over them."""

    label: str
    """Short name, unique in a comparison."""
    runs: tuple[Run, ...]
    """The runs that count, by seeds: evaluated, not diverged, and as far as the others."""
    diverged: tuple[Run, ...]
    """Those that diverged. Their curve may be drawn up to there; their figures count nowhere."""
    behind: tuple[Run, ...]
    """Those that are unfinished where others of the model are further, or have no evaluation yet. They do not count."""
    curves: tuple[Curve, ...]
    """Smoothed held-out curve of each run that counts."""
    curve: Curve
    """Smoothed mean curve, over the evaluations that these runs have in common."""
    ends: tuple[Evaluation, ...]
    """Last evaluation of each of these runs; the last that they have in common where their ends differ."""
    final: Interval
    """Mean over `ends`."""
    finals: tuple[float, ...]
    """Loss (or bits per byte) of `ends`."""

    @property
    def tokens(self) -> int:
        """Training tokens after which it was evaluated last, all its runs alike."""
        return self.ends[0].tokens

    @property
    def members(self) -> tuple[Run, ...]:
        """All runs, those too that do not count, by seeds."""
        return tuple(sorted((*self.runs, *self.diverged, *self.behind), key=lambda run: run.seeds))

    @property
    def seeds(self) -> str:
        """How many seeds count, in words: `3 seeds`, or `2 of 3 seeds`."""
        return seed_count(len(self.runs), len(self.members))

    @property
    def claimable(self) -> bool:
        """Whether a difference may be claimed: never from the survivors of a model of which a seed diverged."""
        return not self.diverged

    @property
    def skipped(self) -> str:
        """Steps of its runs that moved nothing, in words: `39 of 40 steps`; empty where there are none."""
        skipped = sum(run.skipped for run in self.runs)
        return f"{skipped:,} of {sum(run.steps for run in self.runs):,} steps" if skipped else ""

    @property
    def trained(self) -> str:
        """`tokens` in words, and how many of the steps behind them moved nothing: `5.12k, 39 of 40 steps skipped`."""
        return count(self.tokens) + (f", {self.skipped} skipped" if self.skipped else "")

    @property
    def non_embedding(self) -> int:
        """Parameters without embeddings, unembedding and positions."""
        return self.runs[0].parameters["non_embedding"]

    def by_seed(self) -> dict[tuple[Any, ...], int]:
        """Index of each run by its seeds and batches, which it may share with a run of another model."""
        return {run.batches: i for i, run in enumerate(self.runs)}


def group_runs(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Sort runs into models, with a label each; the plain transformer (`is_plain`) first, else as given."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(same_model(run), []).append(run)
    groups = [sorted(group, key=lambda run: run.seeds) for group in members.values()]
    groups.sort(key=lambda group: not is_plain(group[0]))
    return list(zip(labels(groups), groups, strict=True))


def measure(label: str, runs: Sequence[Run], metric: Metric) -> Group | Apart:
    """Smooth and average the held-out curves of one model's runs.

    A run that diverged is a result and counts in no figure. Where some seeds are finished, those that have not come as
    far are left out too, for a mean over them would be of losses after different numbers of tokens; where none is,
    those that have not come half as far as the first. What is left is read where all of it has been.

    Args:
        label: the model's name.
        runs: its runs, at least one.
        metric: what is compared.

    Returns:
        Its figures; or why it has none.
    """
    runs = sorted(runs, key=lambda run: run.seeds)
    diverged = tuple(run for run in runs if run.state == "diverged")
    sound = [run for run in runs if run.state != "diverged" and _points(run)]
    far = max((run.final.tokens for run in sound if run.state == "done"), default=0)
    far = far or max((run.final.tokens for run in sound), default=0) / 2
    counting = [run for run in sound if run.state == "done" or run.final.tokens >= far]
    behind = tuple(run for run in runs if run not in diverged and run not in counting)

    def apart(reason: str) -> Apart:
        return Apart(label=label, runs=tuple(runs), reason=reason, diverged=len(diverged) == len(runs))

    if not counting:
        return apart("; ".join(filter(None, (diverged_seeds(runs), unfinished_seeds(behind)))))
    if any(_value(row, metric) is None for run in counting for row in (*_points(run), run.final)):
        return apart("bits per byte were not counted, and models with different tokenizers are compared by them")
    curves = [_curve(run, metric) for run in counting]
    mean = mean_curve(curves)
    if mean is None:
        return apart("its runs have no evaluation at equal tokens; compare them one by one")
    ends = tuple(run.final for run in counting)
    if len({(row.tokens, row.target_tokens) for row in ends}) > 1:
        last = mean.tokens[-1]
        ends = tuple(next(row for row in _points(run) if row.tokens == last) for run in counting)
    finals = tuple(_known(row, metric) for row in ends)
    return Group(
        label=label,
        runs=tuple(counting),
        diverged=diverged,
        behind=behind,
        curves=tuple(smooth(curve) for curve in curves),
        curve=smooth(mean),
        ends=ends,
        final=mean_interval(finals),
        finals=finals,
    )


def seed_count(counting: int, of: int) -> str:
    """How many seeds count, of how many: `1 seed`, `3 seeds`, `2 of 3 seeds`."""
    return f"{counting} of {of} seeds" if counting < of else f"{of} seed{'s' if of > 1 else ''}"


def diverged_seeds(runs: Sequence[Run]) -> str:
    """How many of a model's seeds diverged, and where, in words: `1 of 3 seeds diverged (seed 2 at step 21)`."""
    lost = [run for run in runs if run.state == "diverged"]
    where = ", ".join(f"seed {run.seed_name} at step {run.diverged_at:,}" for run in lost)
    return (
        f"{'all ' if 1 < len(lost) == len(runs) else ''}{seed_count(len(lost), len(runs))} diverged ({where})"
        if lost
        else ""
    )


def unfinished_seeds(runs: Sequence[Run]) -> str:
    """Which runs do not count though they did not diverge, and how far they are, in words."""
    return ", ".join(
        f"seed {run.seed_name} "
        + ("has no evaluation after its first step" if not _points(run) else f"is unfinished at step {run.steps:,}")
        for run in runs
    )


def _value(row: Evaluation, metric: Metric) -> float | None:
    return row.loss if metric == "loss" else row.bits_per_byte


def _known(row: Evaluation, metric: Metric) -> float:
    value = _value(row, metric)
    assert value is not None, "checked before"
    return value


def _points(run: Run) -> list[Evaluation]:
    """The evaluations that a curve can be drawn through: those after the first step."""
    return [row for row in run.curve if row.tokens > 0 and row.flops > 0 and row.wall_s > 0]


def is_plain(run: Run) -> bool:
    """Whether a run's model is the plain transformer: a vector stream, and none of the options that go beside it."""
    model = run.config.get("model", {})
    beside = model.get("value_residual", "none") != "none" or model.get("short_swa") is not None
    return stream_kind(run) == "vector" and not beside


def _curve(run: Run, metric: Metric) -> Curve:
    rows = _points(run)
    return Curve(
        tokens=tuple(row.tokens for row in rows),
        flops=tuple(row.flops for row in rows),
        wall_s=tuple(row.wall_s for row in rows),
        loss=tuple(max(_known(row, metric), LEAST) for row in rows),
    )
