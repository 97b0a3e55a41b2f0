"""The report: one HTML file that loads nothing, light and dark, for a phone as for a desk."""

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from widestream.files import write_text
from widestream.report import tables, text
from widestream.report.comparison import Comparison, compare
from widestream.report.document import both_sizes, document, html_table
from widestream.report.figures.charts import gap_chart, loss_chart, search_chart
from widestream.report.figures.multiples import multiples
from widestream.report.figures.ranking import ranking
from widestream.report.league import MANY, is_league, league_table, league_verdict
from widestream.report.search import Search, load_search
from widestream.report.stats.groups import Group
from widestream.report.stats.matched import RESOURCES
from widestream.report.tables import Table
from widestream.report.verdict import Verdict


def write_report(
    run_dirs: Iterable[str | Path], out: str | Path, search: str | Path | None = None, title: str | None = None
) -> Comparison:
    """Compare runs and write the report.

    Args:
        run_dirs: run folders, or folders that hold several.
        out: the HTML file to write; an older one is replaced whole.
        search: JSON record of a learning-rate search to show.
        title: name of the report; default: the models' names.

    Returns:
        The comparison that the report shows.

    Raises:
        UserError: runs or search record cannot be read; the file cannot be written.
    """
    comparison = compare(run_dirs)
    record = load_search(search) if search is not None else None
    write_text(Path(out), page(comparison, record, title))
    return comparison


def page(comparison: Comparison, search: Search | None = None, title: str | None = None) -> str:
    """The report as one HTML document."""
    league = is_league(comparison)
    title = title or _listed([group.label for group in comparison.groups])
    parts = [
        *(_league(comparison, title) if league else _side_by_side(comparison, title)),
        _table(tables.parameters(comparison)),
        _table(tables.flops(comparison)),
        _samples(comparison.groups),
        _search(search, comparison.groups) if search else "",
        "" if league else _table(tables.configuration(comparison)),
        _table(tables.run_table(comparison)),
        _table(tables.machines(comparison)),
        _commands(comparison),
        _method(),
    ]
    return document(title, parts)


def _side_by_side(comparison: Comparison, title: str) -> list[str]:
    """Verdict, charts and tables of a few models."""
    return [
        _top(comparison, title, comparison.verdict),
        _charts(comparison),
        _table(tables.results(comparison), comparison.groups),
        _table(tables.differences(comparison)),
        _table(tables.resources(comparison)),
    ]


def _league(comparison: Comparison, title: str) -> list[str]:
    """Verdict, ranking, table and small charts of many models."""
    wide, _ = ranking(comparison, RESOURCES, 1072)
    narrow = "".join(ranking(comparison, (resource,), 358)[0] for resource in RESOURCES)
    words = {"tokens": "tokens", "flops": "training FLOPs", "wall_s": "wall time"}
    small = "\n".join(
        f"<details{' open' if resource == 'tokens' else ''}><summary>Held-out loss over {words[resource]}</summary>"
        f'<div class="small">{"".join(multiples(comparison, resource))}</div></details>'
        for resource in RESOURCES
    )
    grey = f"Blue is the model, grey is {escape(comparison.groups[0].label)}."
    return [
        _top(comparison, title, (league_verdict(comparison),)),
        f'<figure class="alone"><div class="wide">{wide}</div><div class="narrow">{narrow}</div></figure>',
        _table(league_table(comparison)),
        f'<section>\n<h2>Curves</h2>\n<p class="soft">{grey}</p>\n{small}\n</section>',
    ]


def _listed(labels: list[str]) -> str:
    return text.listing(labels if len(labels) <= MANY else [*labels[:3], f"{len(labels) - 3} others"])


def _top(comparison: Comparison, title: str, verdicts: Sequence[Verdict]) -> str:
    """Title, banner where the models are not comparable, verdict, cautions."""
    parts = [f"<header>\n<h1>{escape(title)}</h1>"]
    for verdict in verdicts:
        facts = "".join(f"<li>{escape(fact)}</li>" for fact in verdict.details)
        parts.append(f'<p class="headline">{escape(verdict.headline)}</p>\n<ul class="facts">{facts}</ul>')
    if comparison.mismatches:
        items = "".join(f"<li>{escape(mismatch.sentence)}</li>" for mismatch in comparison.mismatches)
        shown = " Bits per byte are shown in place of loss." if comparison.metric == "bits_per_byte" else ""
        parts.insert(
            1, f'<div class="banner" role="alert"><strong>Not comparable.</strong>{shown}<ul>{items}</ul></div>'
        )
    warnings = [*comparison.cautions, *comparison.notes]
    if warnings:
        parts.append(f'<ul class="cautions">{"".join(f"<li>{escape(line)}</li>" for line in warnings)}</ul>')
    return "\n".join([*parts, "</header>"])


def _charts(comparison: Comparison) -> str:
    charts = {"Over tokens": loss_chart(comparison, "tokens")}
    if (gap := gap_chart(comparison)) is not None:
        charts["The gap over tokens"] = gap
    charts["Over training FLOPs"] = loss_chart(comparison, "flops")
    charts["Over wall time"] = loss_chart(comparison, "wall_s")
    seeds = (
        "Thin lines are seeds, thick ones their mean, the band runs from the lowest to the highest seed. "
        if any(len(group.runs) > 1 for group in comparison.groups)
        else ""
    )
    figures = "\n".join(
        f"<figure><figcaption>{name}</figcaption>{both_sizes(chart)}</figure>" for name, chart in charts.items()
    )
    first = comparison.groups[0].runs[0]
    part, whole = first.curve[0].target_tokens, first.final.target_tokens
    partly = f"They are made on {part:,} held-out tokens; the last evaluation, on {whole:,}. " if part < whole else ""
    return (
        f'<div class="charts">\n{figures}\n</div>\n<p class="soft">{seeds}Curves are smoothed over neighbouring '
        f"evaluations. {partly}The first fall of the loss leaves the frame at the top.</p>"
    )


def _table(table: Table | None, groups: Sequence[Group] = ()) -> str:
    """A table whose rows carry the colours of the models that they are named after."""
    return html_table(table, {group.label: number for number, group in enumerate(groups)})


def _samples(groups: Sequence[Group]) -> str:
    """Texts of the first run of every model that has some, the same prompt side by side."""
    by_prompt: dict[str, list[str]] = {}
    for number, group in enumerate(groups):
        run = next((run for run in group.runs if run.samples), None)
        for sample in run.samples if run else ():
            card = _sample(sample, group.label, number, str(run.path) if run else "")
            by_prompt.setdefault(str(sample.get("prompt", "")), []).append(card)
    if not by_prompt:
        return ""
    rows = "\n".join(f'<div class="samples">{"".join(cards)}</div>' for cards in by_prompt.values())
    return f'<section>\n<h2>Samples</h2>\n<p class="soft">The prompt is in bold.</p>\n{rows}\n</section>'


def _sample(sample: dict[str, object], label: str, number: int, path: str) -> str:
    prompt, rest = str(sample.get("prompt", "")), str(sample.get("text", ""))
    settings = ", ".join(
        f"{name.replace('_', '-')} {sample[name]}"
        for name in ("temperature", "top_k", "top_p", "seed")
        if sample.get(name) is not None
    )
    return (
        f'<div class="sample" style="--c:var(--s{number % 6})"><h3>{escape(label)}</h3>'
        f"<p><b>{escape(prompt)}</b>{escape(rest)}</p><small>{escape(settings)} · {escape(path)}</small></div>"
    )


def _search(search: Search, groups: Sequence[Group]) -> str:
    """The record of the search, whether all models had the same grid, and whether the runs use what it found."""
    colours = {group.label: number for number, group in enumerate(groups)}
    for name in search.models:
        colours.setdefault(name, len(colours))
    chart = search_chart(search, colours) if len(search.models) <= MANY else None
    figure = f'<figure class="alone">{both_sizes(chart)}</figure>' if chart else ""
    used = {group.label: group.runs[0].config.get("optimizer", {}).get("lr") for group in groups}
    remarks = "".join(f'<p class="soft">{escape(remark)}</p>' for remark in search.remarks(used))
    return _table(tables.search_table(search), groups).replace("</section>", f"{remarks}{figure}\n</section>")


def _commands(comparison: Comparison) -> str:
    """Command lines that make the runs and this report again."""
    folders = [str(run.path) for run in comparison.runs]
    lines = [
        f"widestream train {shlex.quote(f'{folder}/config.yaml')} --out {shlex.quote(f'{folder}-again')}"
        for folder in folders
    ]
    lines.append(f"widestream compare {shlex.join(folders)} --out report.html")
    shown = escape("\n".join(lines))
    return (
        '<section>\n<h2>Do it again</h2>\n<p class="soft">Each run folder holds its resolved recipe.</p>\n'
        f'<pre tabindex="0">{shown}</pre>\n</section>'
    )


def _method() -> str:
    return (
        '<section>\n<h2>How the figures are made</h2>\n<p class="soft">Held-out curves are smoothed by local '
        "parabolas through log loss over log tokens, three evaluations to either side; the last one stays as measured. "
        "Losses between evaluations are interpolated in log-log. Intervals are 95 % t-intervals over seeds, "
        "of differences seed by seed where both models have the seed. The gap counts as growing or shrinking when its "
        "size changes by a tenth or more over the last half of training, the same way for every seed.</p>\n</section>"
    )
