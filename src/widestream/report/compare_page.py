"""The page of a comparison: verdict, charts, tables, samples, and how to do it again."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from widestream.files import write_page
from widestream.report import comparison_tables as tables
from widestream.report import formats
from widestream.report.comparison import Choice, Comparison, compare
from widestream.report.downstream import task_table
from widestream.report.figures.chart import Switched
from widestream.report.figures.comparison_charts import (
    gap_chart,
    loss_chart,
    over_resources,
    ranking,
    search_chart,
)
from widestream.report.figures.health_charts import health_charts
from widestream.report.figures.small_charts import small_charts
from widestream.report.league import MANY, is_league, league_table, league_verdict
from widestream.report.page import render_page
from widestream.report.search_record import Search, load_search
from widestream.report.stats.groups import Group

_SAMPLING = ("temperature", "top_k", "top_p", "seed")
"""Settings that a sample is shown with."""


def write_report(
    run_dirs: Iterable[str | Path],
    out: str | Path,
    search: str | Path | None = None,
    title: str | None = None,
    choice: Choice | None = None,
) -> Comparison:
    """Compare runs and write the report.

    Args:
        run_dirs: run folders, or folders that hold several.
        out: the HTML file to write; an older one is replaced whole.
        search: JSON record of a learning-rate search to show.
        title: name of the report; default: the models' names.
        choice: reference and filters.

    Returns:
        The comparison that the report shows.

    Raises:
        UserError: runs or search record cannot be read; the file cannot be written.
    """
    comparison = compare(run_dirs, choice)
    record = load_search(search) if search is not None else None
    write_page(Path(out), compare_page(comparison, record, title))
    return comparison


def compare_page(comparison: Comparison, search: Search | None = None, title: str | None = None) -> str:
    """The report as one HTML document."""
    labels = [group.label for group in comparison.groups]
    data = _league(comparison) if is_league(comparison) else _side_by_side(comparison)
    return render_page(
        title=title or formats.listing(labels if len(labels) <= MANY else [*labels[:3], f"{len(labels) - 3} others"]),
        comparison=comparison,
        colours={label: number for number, label in enumerate(labels)},
        parameters=tables.parameters(comparison),
        flops=tables.flops(comparison),
        health=health_charts(comparison),
        tasks=task_table(comparison.tasks),
        samples=_samples(comparison.groups),
        search=_search(search, comparison.groups) if search else None,
        runs=tables.run_table(comparison),
        machines=tables.machines(comparison),
        commands=_commands(comparison),
        **data,
    )


def _side_by_side(comparison: Comparison) -> dict[str, Any]:
    """Charts and tables of a few models."""
    first = comparison.groups[0].runs[0]
    return {
        "template": "compare_page.html",
        "verdicts": comparison.verdict,
        "charts": _charts(comparison),
        "several_seeds": any(len(group.runs) > 1 for group in comparison.groups),
        "curve_tokens": first.curve[0].target_tokens,
        "final_tokens": first.final.target_tokens,
        "results": tables.results(comparison),
        "differences": tables.differences(comparison),
        "resources": tables.resources(comparison),
        "configuration": tables.configuration(comparison),
    }


def _league(comparison: Comparison) -> dict[str, Any]:
    """Ranking, table and small charts of many models."""
    return {
        "template": "league_page.html",
        "verdicts": (league_verdict(comparison),),
        "ranking": ranking(comparison),
        "table": league_table(comparison),
        "curves": small_charts(comparison),
    }


def _charts(comparison: Comparison) -> dict[str, Switched]:
    """The charts of a few models, by caption."""
    loss = over_resources(lambda resource: loss_chart(comparison, resource))
    gap = over_resources(lambda resource: gap_chart(comparison, resource))
    return {caption: chart for caption, chart in (("Loss", loss), ("The gap", gap)) if chart is not None}


def _samples(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Texts of the first run of every model that has some, those of the same prompt together."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for colour, group in enumerate(groups):
        run = next((run for run in group.runs if run.samples), group.runs[0])
        for row in run.samples:
            settings = [f"{name.replace('_', '-')} {row[name]}" for name in _SAMPLING if row.get(name) is not None]
            sample = {"label": group.label, "colour": colour, "path": run.path, "settings": ", ".join(settings)}
            prompt, text = str(row.get("prompt", "")), str(row.get("text", ""))
            by_prompt.setdefault(prompt, []).append(sample | {"prompt": prompt, "text": text})
    return list(by_prompt.values())


def _search(search: Search, groups: Sequence[Group]) -> dict[str, Any]:
    """The record of the search, whether all models had the same grid, and whether the runs use what won in it."""
    labels = dict.fromkeys([*(group.label for group in groups), *search.models])
    rates = {group.label: group.runs[0].config.get("optimizer", {}).get("lr") for group in groups}
    return {
        "table": tables.search_table(search),
        "remarks": search.remarks(rates),
        "chart": search_chart(search, {label: number for number, label in enumerate(labels)})
        if len(search.models) <= MANY
        else None,
    }


def _commands(comparison: Comparison) -> list[str]:
    """Command lines that make the runs and this report again."""
    folders = [str(run.path) for run in comparison.runs]
    first = str(comparison.groups[0].runs[0].path)
    reference = [] if comparison.choice.reference is None else ["--reference", first]
    for pair in comparison.choice.against:
        reference += ["--against", "=".join(pair)]
    return [
        *(
            f"widestream train {shlex.quote(f'{folder}/config.yaml')} --out {shlex.quote(f'{folder}-again')}"
            for folder in folders
        ),
        f"widestream compare {shlex.join([*folders, *reference])} --out report.html",
    ]
