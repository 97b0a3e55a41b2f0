"""Sections of measurements that are no grid of runs: moments, coordinate checks, searches, each from its own record."""

from typing import Any

from widestream.errors import UserError
from widestream.experiments.moments.charts import moments_charts
from widestream.experiments.moments.section import moments_findings, moments_tables
from widestream.experiments.mup import section as mup
from widestream.experiments.tune import section as tuning
from widestream.report.figures.pictures import Figure
from widestream.study.page.sections import Section

_PARTS = {"ratios": "Table 2", "depth": "streams over depth", "training": "in training"}
"""What a record of moments may hold, in words."""


def record_section(name: str, record: dict[str, Any]) -> Section | None:
    """The section of a record by what it measured; None for a record of something else.

    Raises:
        UserError: the record lacks a part.
    """
    try:
        return _section(name, record)
    except KeyError as missing:
        raise UserError(f"The record {name} lacks {missing}; measure again, or remove it.") from missing


def _section(name: str, record: dict[str, Any]) -> Section | None:
    if record.get("bench") == "study moments":
        return _moments(name, record)
    if {"grow", "widths", "bounds"} <= record.keys():
        return _coordinates(name, record)
    if {"setup", "trials", "best"} <= record.keys():
        return _search(name, record)
    return None


def _moments(name: str, record: dict[str, Any]) -> Section:
    charts: list[tuple[str, Figure]] = [(chart.title.capitalize(), chart) for chart in moments_charts(record)]
    tables = moments_tables(record)
    parts = [part for part in _PARTS if record.get(part)]
    return Section(
        key="-".join(["moments", *(str(list(_PARTS).index(part)) for part in parts), name]),
        name="moments",
        title=f"Moment propagation: {', '.join(_PARTS[part] for part in parts)}",
        question="How do operations pass on mean and variance, of what goes forward and of gradients; which streams "
        "keep them over depth, and does what holds at initialisation survive training?",
        mirrors="Tables 1 and 2, appendix B",
        scale="Table 2 at its own shapes; streams over depth and in training at small widths; every row says which.",
        answers=moments_findings(record),
        charts=charts,
        tables=tables[:1],
        details=tables[1:],
        commands=[record["command"]],
    )


def _coordinates(name: str, record: dict[str, Any]) -> Section:
    fixed = [f"{axis} {value}" for axis, value in record["models"][0].items() if axis not in record["grow"]]
    return Section(
        key=f"tune-check-{name}",
        name="mup",
        title=f"Coordinate check of {record['recipe']}, {', '.join(record['grow'])} growing"
        + (f" at {', '.join(fixed)}" if fixed else ""),
        question="Do activations, and what training changes in them, stay of one size as the model grows?",
        mirrors="appendix C.2.1",
        scale=f"Scale cpu: widths {record['widths'][0]} to {record['widths'][-1]}.",
        answers=mup.sentences(record),
        charts=[(f"Change from initialisation, {way}", chart) for way, chart in mup.charts(record).items()],
        details=[mup.slopes_table(record), mup.step_table(record)],
        commands=[record["command"]],
    )


def _search(name: str, record: dict[str, Any]) -> Section:
    importance, settings = tuning.importance_chart(record), tuning.settings_table(record)
    return Section(
        key=f"tune-search-{name}",
        name="tune",
        title=f"muP search of {record['recipe']}",
        question="Which learning rate, initial scale and multipliers?",
        mirrors="appendix C.2.1",
        scale="Scale cpu: the paper's trial model made smaller; see the recipe.",
        answers=tuning.sentences(record),
        charts=[
            *([("Importance", importance)] if importance is not None else []),
            *((label.capitalize(), chart) for label, chart in tuning.slice_charts(record).items()),
        ],
        tables=[settings] if settings is not None else [],
        details=[tuning.trials_table(record)],
        commands=[record.get("command") or f"widestream tune {record['recipe']} --trials {len(record['trials'])}"],
    )
