"""A run's wiring on one prompt at each of its checkpoints: a few numbers over training."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from widestream.errors import UserError
from widestream.experiments.lens.prompt import Inspection, see_prompt
from widestream.lens import flow
from widestream.lens.summary import Summary, summarize
from widestream.report.figures.chart import Chart, Series, Switched, with_room
from widestream.runs.checkpoint import complete
from widestream.runs.metrics import finite

LINES = 6
"""Most distances that are drawn."""


@dataclass(frozen=True)
class OverTraining:
    """Summaries of a wiring by step."""

    run: str
    """What the run is called."""
    summaries: dict[int, Summary]
    """Of every complete checkpoint, the oldest first."""

    def to_dict(self) -> list[dict[str, Any]]:
        """As plain values, a checkpoint each."""
        return [
            {"step": step, **asdict(one), "by_distance": [finite(size) for size in one.by_distance]}
            for step, one in self.summaries.items()
        ]

    def sentence(self) -> str:
        """How the wiring has changed from the first checkpoint to the last."""
        (first, a), (last, b) = (list(self.summaries.items())[at] for at in (0, -1))
        if first == last:
            return (
                f"Over training: there is one complete checkpoint, of step {first:,} (train.keep says how many stay)."
            )
        return (
            f"Over training: from step {first:,} to {last:,} the largest 1 % of {b.wires:,} wires went from "
            f"{a.largest:.1%} to {b.largest:.1%} of all weight, and the evenness of a reader's weight over its writers "
            f"from {a.evenness:.2f} to {b.evenness:.2f}."
        )

    def chart(self) -> Switched:
        """The numbers over steps."""
        distances = _few(len(next(iter(self.summaries.values())).by_distance))
        return Switched(
            charts={
                "largest wires": self._chart("Share of all weight in the largest 1 % of wires", {self.run: "largest"}),
                "entropy": self._chart("Entropy of a reader's weight over its writers (nats)", {self.run: "entropy"}),
                "evenness": self._chart("The same over the most that it could be", {self.run: "evenness"}),
                "by distance": self._chart(
                    "Mean size of wires by distance in depth", {_distance(at): at for at in distances}
                ),
            }
        )

    def _chart(self, what: str, lines: dict[str, str | int]) -> Chart:
        series = []
        for number, (label, of) in enumerate(lines.items()):
            points = tuple((float(step), _value(one, of)) for step, one in self.summaries.items())
            points = tuple((step, value) for step, value in points if math.isfinite(value))
            series.append(Series(points=points, colour=number, label=label))
        return Chart(
            title=f"{what}, over steps of training",
            x_label="steps of training",
            y_label=what,
            series=tuple(series),
            y_range=with_room([y for line in series for _, y in line.points], 0.1, 0.1),
        )


def follow(found: Inspection, device: str | None = None) -> OverTraining:
    """Look at a prompt at every complete checkpoint of a run.

    Args:
        found: the run at one of them.
        device: where to compute; None: where the run was trained.

    Raises:
        UserError: the stream's shares are not exact.
    """
    if found.wiring is None:
        raise UserError(f"{found.run} has no wiring to follow over training: {found.refusal}")
    skip = min(1, len(found.tokens) - 1)
    summaries = {}
    for saved in complete(found.run):
        same = saved.step == found.step
        wiring = found.wiring if same else flow(see_prompt(found.run, found.prompt, saved.step, device).seen, skip=skip)
        summaries[saved.step] = summarize(wiring)
    return OverTraining(found.run.name, summaries)


def _value(summary: Summary, of: str | int) -> float:
    return summary.by_distance[of] if isinstance(of, int) else getattr(summary, of)


def _few(number: int) -> list[int]:
    """Distances to draw: the nearest, then ever farther ones, and the farthest."""
    chosen = [0, *(2**power for power in range(LINES - 2)), number - 1]
    return sorted({distance for distance in chosen if distance < number})


def _distance(sites: int) -> str:
    return "written last" if sites == 0 else f"{sites} before"
