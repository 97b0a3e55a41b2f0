"""Two wirings side by side as a sentence, a table, JSON and maps."""

from typing import Any

from widestream.experiments.lens import packing
from widestream.experiments.lens.against import Beside
from widestream.experiments.lens.prompt import Inspection
from widestream.report.table import Table

TOP = 20
"""Wires in the table."""


def names(found: Inspection, beside: Beside) -> tuple[str, str]:
    """What the two are called: their folders' names, or their paths where these are the same."""
    own, other = found.run.name, beside.run.name
    return (own, other) if own != other else (str(found.run), str(beside.run))


def sentences(found: Inspection, beside: Beside) -> list[str]:
    """What was compared, and where the largest difference is."""
    own, other = names(found, beside)
    level = "block by block" if beside.whole else "vector by vector"
    writer, reader, here, there = beside.largest(1)[0]
    lines = [
        f"Beside {other} ({beside.stream}, step {beside.step}), {level}: the wire whose size differs most leads from "
        f"{writer} to {reader}, {here:.3f} in {own} and {there:.3f} in {other}."
    ]
    if beside.tokens != len(found.tokens):
        lines.append(f"The two cut the prompt into {len(found.tokens)} and {beside.tokens} tokens.")
    return lines


def table(found: Inspection, beside: Beside) -> Table:
    """The wires that differ most."""
    own, other = names(found, beside)
    rows = tuple(
        (writer, reader, f"{here:.3f}", f"{there:.3f}", f"{here - there:+.3f}")
        for writer, reader, here, there in beside.largest(TOP)
    )
    mean = " Of readers of several vectors it is the root mean square over these." if beside.whole else ""
    return Table(
        title="Where the wirings differ most",
        caption=f"Size: the writer's share over all that the reader gets.{mean}",
        columns=("writer", "reader", own, other, "difference"),
        rows=rows,
        words=2,
    )


def to_dict(beside: Beside) -> dict[str, Any]:
    """Both wirings and their difference, as plain values."""
    return {
        "run": beside.run,
        "step": beside.step,
        "stream": beside.stream,
        "by": "block" if beside.whole else "vector",
        **{
            view: {
                "own": beside.own.named(getattr(beside.own, view)),
                "other": beside.own.named(getattr(beside.other, view)),
                "difference": beside.own.named(beside.difference(view)),
            }
            for view in ("size", "part")
        },
    }


def page_data(found: Inspection, beside: Beside) -> dict[str, Any]:
    """What the page's script draws: two maps in one scale, and their difference, which it works out."""
    views = {}
    for view in ("size", "part"):
        own, other = getattr(beside.own, view), getattr(beside.other, view)
        top = packing.largest(own, other)
        views[view] = [packing.view(own, top), packing.view(other, top)]
    return {
        "names": names(found, beside),
        "writers": [one.name for one in beside.own.writers],
        "readers": [one.name for one in beside.own.readers],
        "views": views,
    }
