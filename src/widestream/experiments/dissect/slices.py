"""Where one model wins: the difference by length, frequency and place of the answer, and by place in the window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from widestream.report.downstream import Side, Task
from widestream.report.formats import three
from widestream.report.stats.intervals import Interval
from widestream.report.stats.items import averaged, mean_over_items
from widestream.runs.tasks import TaskResult

if TYPE_CHECKING:
    from widestream.experiments.dissect.frequency import Frequencies

PARTS = 4
"""Parts of about as many items that a feature is cut into."""
FEWEST = 20
"""Items without which a part would tell nothing; a feature is then cut into fewer."""


FEATURES = {
    "context": "tokens in front of the right answer",
    "answer": "tokens of the right answer",
    "frequency": "often the right answer's tokens occur in the training data",
    "echo": "tokens lie between the right answer and where it stood in front last",
    "place": "tokens in front in the window",
}
"""What items are told apart by, as words behind "the more"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slices:
    """The difference along one feature of the items."""

    feature: str
    """What items are told apart by: one of `FEATURES`."""
    parts: tuple[tuple[str, Interval], ...]
    """(range of the feature in words, difference among its items), in order."""
    correlation: float | None = None
    """Spearman's rank correlation of an item's difference with the feature; None where all are alike or of places."""
    p: float | None = None
    """Its two-sided p-value."""


def slice_measure(task: Task, gaps: Sequence[float], frequencies: "Frequencies | None") -> Iterator[Slices]:
    """The difference of a metric that counts every item once, along each feature that tells items apart.

    Args:
        task: the task.
        gaps: every item's difference.
        frequencies: of tokens in the training data, if known.
    """
    items = task.first.of_items
    features: dict[str, list[float | None]] = {
        "context": [float(length) for length in items.context],
        "answer": [float(len(ids)) or None for ids in items.answer],
        "frequency": [None if frequencies is None else frequencies.of(ids) for ids in items.answer],
        "echo": [None if back is None else float(back) for back in items.echo],
    }
    for name, values in features.items():
        if (found := _sliced(name, values, gaps)) is not None:
            yield found


def _sliced(name: str, values: Sequence[float | None], gaps: Sequence[float]) -> Slices | None:
    """Items in parts of about equal number, and those without a value in one of their own."""
    known = [(value, gap) for value, gap in zip(values, gaps, strict=True) if value is not None]
    rest = [gap for value, gap in zip(values, gaps, strict=True) if value is None]
    parts = [
        (_range([value for value, _ in part]), mean_over_items([gap for _, gap in part], paired=True))
        for part in _cut(known)
    ]
    if known and len(rest) >= FEWEST:
        parts.append(("nowhere", mean_over_items(rest, paired=True)))
    if len(parts) < 2:
        return None
    correlation, p = _correlation(known)
    return Slices(feature=name, parts=tuple(parts), correlation=correlation, p=p)


def _cut(known: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """(value, gap) by value in at most `PARTS` parts; equal values stay together."""
    ordered = sorted(known)
    size = max(FEWEST, -(-len(ordered) // PARTS))
    parts: list[list[tuple[float, float]]] = []
    for entry in ordered:
        if not parts or (len(parts[-1]) >= size and entry[0] != parts[-1][-1][0]):
            parts.append([])
        parts[-1].append(entry)
    if len(parts) > 1 and len(parts[-1]) < FEWEST:
        parts[-2] += parts.pop()
    return parts


def _range(values: Sequence[float]) -> str:
    low, high = three(min(values)), three(max(values))
    return low if low == high else f"{low} to {high}"


def _correlation(known: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    from scipy.stats import spearmanr

    values, gaps = [value for value, _ in known], [gap for _, gap in known]
    if len(known) < FEWEST or len({*values}) < 2 or len({*gaps}) < 2:
        return None, None
    correlation, p = spearmanr(values, gaps)
    return float(correlation), float(p)  # pyright: ignore[reportArgumentType]


def slice_places(reference: Side, other: Side) -> list[Slices]:
    """The difference in nats per token of whole texts, by how many tokens stand in front in the window."""
    results = (*reference.results, *other.results)
    places, parts = reference.results[0].of_items.positions, []
    if any([_lengths(result) != _lengths(results[0]) for result in results]):
        return []  # the models' windows are of different lengths
    for bucket in range(max(map(len, places), default=0)):
        nats = [averaged([_at(result, bucket, 0) for result in side.results]) for side in (reference, other)]
        texts = zip(*nats, _at(reference.results[0], bucket, 1), strict=True)
        gaps = [(b - a, tokens) for a, b, tokens in texts if tokens]
        if len(gaps) > 1:
            words = "1" if bucket == 0 else f"{1 << bucket} to {(2 << bucket) - 1}"
            parts.append((words, mean_over_items(*zip(*gaps, strict=True), paired=True)))
    return [Slices(feature="place", parts=tuple(parts))] if len(parts) > 1 else []


def _at(result: TaskResult, bucket: int, column: int) -> list[float]:
    """Nats (0) or tokens (1) of every text in one range of places; 0 in a text that does not get there."""
    return [places[bucket][column] if len(places) > bucket else 0.0 for places in result.of_items.positions]


def _lengths(result: TaskResult) -> list[list[float]]:
    return [[tokens for _, tokens in text] for text in result.of_items.positions]
