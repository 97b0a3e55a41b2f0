"""A dissection as sentences, tables, charts, rows and a page."""

import csv
import io
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.experiments.dissect.pairs import Dissection, ItemPair
from widestream.experiments.dissect.slices import FEATURES, Slices
from widestream.files import write_page, write_text
from widestream.paper.printed import TABLE_5, TABLE_6
from widestream.report import formats
from widestream.report.downstream import told
from widestream.report.figures.rows import Forest, span
from widestream.report.page import render_page
from widestream.report.stats.intervals import SIGNIFICANT, Interval, holm
from widestream.report.table import NONE, Table

SHORT = {
    "context": "in front", "answer": "of the answer", "frequency": "in a million", "echo": "back", "place": "in window",
}  # fmt: skip
"""Features in charts and tables."""


def sentences(found: Dissection) -> list[str]:
    """What the items say, and what they do not."""
    reference, other = found.labels
    wins = {label: [pair for pair in found.pairs if pair.seen and pair.winner == label] for label in found.labels}
    unseen = len(found.pairs) - sum(map(len, wins.values()))
    counts = [f"{label} is better on {len(pairs)}" for label, pairs in reversed(wins.items())]
    lines = [f"Of {len(found.pairs)} figures, {counts[0]} and {counts[1]}; on {unseen} the items show no difference."]
    lines += [_difference(pair) for pair in found.pairs if pair.seen]
    seeds = [len(runs) for _, runs in found.models]
    if min(seeds) < 2:
        lines.append(
            f"{other if seeds[1] < 2 else reference} has one run: what is seen is of these weights on other items of "
            "the kind. Whether other seeds of the designs differ alike, a single run cannot tell."
        )
    return [*lines, *_where(found)]


def _difference(pair: ItemPair) -> str:
    """A difference that the items show, and whether it stands above the seeds' chance too."""
    size = _told(pair, abs(pair.over_items.mean)).lstrip("+")
    text = (
        f"{pair.task.name}, {pair.metric}: {pair.winner} is better by {size} {_unit(pair)} "
        f"({pair.sides[1].label} − {pair.sides[0].label}: {_ends(pair, pair.over_items)})"
    )
    if pair.over_seeds.low is None:
        return f"{text}."
    holds = "which holds zero: other seeds may turn it round" if pair.over_seeds.holds_zero else "which leaves out zero"
    return f"{text}; over seeds the interval is {_ends(pair, pair.over_seeds)}, {holds}."


def _where(found: Dissection) -> list[str]:
    """Features that the difference goes along with, after Holm's correction over all that were looked at."""
    looked = [(pair, one) for pair in found.pairs for one in pair.slices if one.p is not None]
    tests = [Interval(mean=one.correlation or 0.0, low=None, high=None, n=0, p=one.p) for _, one in looked]
    lines = []
    for (pair, one), p in zip(looked, holm(tests), strict=True):
        if p is not None and p < SIGNIFICANT and one.correlation:
            gains = pair.sides[(one.correlation > 0) == pair.higher_is_better].label
            lines.append(
                f"{pair.task.name}, {pair.metric}: the more {FEATURES[one.feature]}, the better for {gains} "
                f"(rank correlation {formats.signed(one.correlation)}, p {formats.p_value(p)} after correction for "
                f"{len(looked)})."
            )
    return lines


def task_differences(found: Dissection) -> Table:
    """Every figure of both models and their difference."""
    reference, other = found.labels
    rows = []
    for pair in found.pairs:
        form, chance = pair.task.form(pair.metric), pair.task.chance(pair.metric)
        figures = [told(form, side.over_items(pair.metric).mean) for side in pair.sides]
        rows.append(
            (
                pair.task.name,
                pair.metric,
                *figures,
                NONE if chance is None else told("mean", chance),
                _told(pair, pair.over_items.mean),
                _ends(pair, pair.over_items),
                _ends(pair, _resampled(pair)),
                formats.p_value(pair.corrected),
                _ends(pair, pair.over_seeds),
                NONE if pair.alone is None else f"{pair.alone[0]:,}, {pair.alone[1]:,}",
                f"{pair.task.first.items:,}",
            )
        )
    return Table(
        title="Item by item",
        caption=f"{other} − {reference} on the same items: shares of right answers in percent, their difference in "
        "points; of perplexities the difference of logarithms in nats, below zero is better. Intervals over items are "
        "Student's, of right answers with one more item of either kind (Bonett and Price), so that they are never "
        "empty; p is McNemar's exact test for right answers of one run each, else Student's, corrected for all rows "
        "(Holm). Over seeds: seed by seed where both have a seed. Alone right: items that only the one, only the other "
        "has.",
        columns=(
            "task", "metric", reference, other, "chance", "difference", "95 % over items", "by bootstrap", "p",
            "95 % over seeds", "alone right", "items",
        ),
        rows=tuple(rows),
        words=2,
    )  # fmt: skip


def slice_tables(found: Dissection) -> list[tuple[Table, Forest]]:
    """Where one model wins, a table and a chart for every figure that can be cut."""
    return [(_slice_table(found, pair), _slice_chart(pair)) for pair in found.pairs if pair.slices]


def _slice_table(found: Dissection, pair: ItemPair) -> Table:
    rows = [
        (
            SHORT[one.feature] if at == 0 else "",
            words,
            _told(pair, gap.mean),
            _ends(pair, gap),
            f"{gap.n:,}",
            formats.signed(one.correlation) if at == 0 and one.correlation is not None else NONE,
            formats.p_value(one.p) if at == 0 else NONE,
        )
        for one in pair.slices
        for at, (words, gap) in enumerate(one.parts)
    ]
    reference, other = found.labels
    return Table(
        title=f"{pair.task.name}, {pair.metric}: where",
        caption=f"{other} − {reference} in {_unit(pair)}, among items told apart by one thing at a time: tokens in "
        "front of the right answer; tokens of the answer; occurrences of its tokens in a million tokens of training "
        "(geometric mean); tokens back to where it stood in front last; of whole texts, tokens in front in the window. "
        "Intervals are of each part by itself and p-values are not corrected here; the sentences above are. Features "
        "go together, so none of this says why.",
        columns=("items by", "range", "difference", "95 % interval", "items", "rank correlation", "p"),
        rows=tuple(rows),
        words=2,
    )


def _slice_chart(pair: ItemPair) -> Forest:
    rows = {f"{SHORT[one.feature]}: {words}": _scaled(pair, gap) for one in pair.slices for words, gap in one.parts}
    return Forest(
        title=f"{pair.task.name}, {pair.metric}: difference by what items are like, with 95 % intervals",
        x_label=f"{_unit(pair)}; {'above' if pair.higher_is_better else 'below'} zero {pair.sides[1].label} is better",
        names=tuple(rows),
        panels={"": rows},
        x_range=span([end for gap in rows.values() for end in (gap.mean, gap.low, gap.high)]),
        higher_is_better=pair.higher_is_better,
    )


def charts(found: Dissection) -> dict[str, Forest]:
    """Differences of all tasks: shares of right answers, and nats."""
    made = {}
    for caption, shares in (("Right answers", True), ("Nats", False)):
        pairs = [pair for pair in found.pairs if (pair.task.form(pair.metric) == "mean") == shares]
        rows = {f"{pair.task.name}, {pair.metric}": _scaled(pair, pair.over_items) for pair in pairs}
        if rows:
            made[caption] = Forest(
                title=f"{found.labels[1]} against {found.labels[0]}: {caption.lower()}, 95 % intervals over items",
                x_label="points; above zero is better" if shares else "nats; below zero is better",
                names=tuple(rows),
                panels={"": rows},
                x_range=span([end for gap in rows.values() for end in (gap.mean, gap.low, gap.high)]),
                unseen={"": frozenset(name for name, pair in zip(rows, pairs, strict=True) if not pair.seen)},
                higher_is_better=shares,
            )
    return made


def beside_paper(found: Dissection) -> Table | None:
    """The RMT paper's Tables 5 and 6 beside the same tasks here; None where there are none of them in full."""
    rows = []
    for pair in found.pairs:
        name, form = pair.task.name, pair.task.form(pair.metric)
        metrics = ("acc", "acc_norm") if name in TABLE_6 else ("perplexity", "token_perplexity")
        printed = (TABLE_5 | TABLE_6).get(name)
        if printed is None or pair.metric not in metrics:
            continue
        ours = [told(form, side.over_items(pair.metric).mean) for side in pair.sides]
        table = "Table 6" if name in TABLE_6 else "Table 5"
        rows.append((table, name, *(formats.three(figure) for figure in printed), pair.metric, *ours))
    if not rows:
        return None
    reference, other = found.labels
    sizes = [formats.count(runs[0].parameters["total"]) for _, runs in found.models]
    tokens = [formats.count(runs[0].final.tokens) if runs[0].evals else "?" for _, runs in found.models]
    return Table(
        title="Beside the RMT paper's Tables 5 and 6",
        caption="The paper's models have 405M and 305M parameters and saw 6B tokens, one run each, without intervals; "
        f"ours, {reference} and {other}, have {sizes[0]} and {sizes[1]} parameters and saw {tokens[0]} and {tokens[1]} "
        "tokens. So the figures are no attempt at the paper's: what can be read is whether the models stand in the "
        "same order, where the items show one at all. The paper does not say whether its accuracies are of plain or "
        "length-normalised likelihoods, nor whether all of its perplexities are by token.",
        columns=("paper", "task", "transformer, paper", "RMT, paper", "metric here", reference, other),
        rows=tuple(rows),
        words=2,
    )


def write_dissection(found: Dissection, out: Path) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written, or another file lies there.
    """
    reference, other = found.labels
    data = None if found.frequencies is None else found.frequencies.folder
    folders = [str(run.path) for _, runs in found.models for run in runs]
    page = render_page(
        "dissect_page.html",
        title=f"{other} against {reference}, item by item",
        sentences=sentences(found),
        notes=found.notes,
        charts=charts(found),
        differences=task_differences(found),
        paper=beside_paper(found),
        slices=slice_tables(found),
        data=data,
        commands=[f"widestream dissect {shlex.join(folders)} --out report.html"],
    )
    write_page(out, page)


def to_dict(found: Dissection) -> dict[str, Any]:
    """Plain JSON values; differences are of shares, or of nats."""
    return {
        "reference": found.labels[0],
        "other": found.labels[1],
        "runs": {label: [str(run.path) for run in runs] for label, runs in found.models},
        "notes": list(found.notes),
        "sentences": sentences(found),
        "pairs": [
            {
                "task": pair.task.name,
                "metric": pair.metric,
                "form": pair.task.form(pair.metric),
                "items": pair.task.first.items,
                "chance": pair.task.chance(pair.metric),
                "means": [side.over_items(pair.metric).mean for side in pair.sides],
                "over_items": asdict(pair.over_items),
                "bootstrap": pair.bootstrap,
                "corrected_p": pair.corrected,
                "over_seeds": asdict(pair.over_seeds),
                "alone_right": pair.alone,
                "slices": [_slices_dict(one) for one in pair.slices],
            }
            for pair in found.pairs
        ],
    }


def _slices_dict(one: Slices) -> dict[str, Any]:
    parts = [{"range": words, **asdict(gap)} for words, gap in one.parts]
    return {"feature": one.feature, "parts": parts, "rank_correlation": one.correlation, "p": one.p}


COLUMNS: tuple[str, ...] = (
    "task",
    "metric",
    "item",
    "reference",
    "other",
    "weight",
    "choices",
    "context",
    "answer",
    "frequency",
    "echo",
)
"""Of a row an item."""


def item_rows(found: Dissection) -> Iterator[dict[str, Any]]:
    """Every item of every figure: what both models came to, mean over seeds, and what it is like."""
    for pair in found.pairs:
        items, weights = pair.task.first.of_items, pair.task.first.measures[pair.metric].weights
        first, second = (side.values(pair.metric) for side in pair.sides)
        for at in range(pair.task.first.items):
            common = None if found.frequencies is None else found.frequencies.of(items.answer[at])
            cells = (
                pair.task.name, pair.metric, at, first[at], second[at], 1.0 if weights is None else weights[at],
                items.choices[at], items.context[at], len(items.answer[at]), common, items.echo[at],
            )  # fmt: skip
            yield dict(zip(COLUMNS, cells, strict=True))


def to_csv(found: Dissection) -> str:
    """The rows as comma-separated text with a head; what is missing is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(item_rows(found))
    return text.getvalue()


def write_csv(found: Dissection, path: Path) -> None:
    """Write the rows, over an older table of them at most.

    Raises:
        UserError: a file of another kind lies there, or it cannot be written.
    """
    if path.is_file() and not path.read_bytes().startswith(",".join(COLUMNS).encode()):
        raise UserError(f"{path} is no table of items and stays as it is; give the name of another file.")
    write_text(path, to_csv(found))


def _factor(pair: ItemPair) -> float:
    """Shares are told in points."""
    return 100.0 if pair.task.form(pair.metric) == "mean" else 1.0


def _unit(pair: ItemPair) -> str:
    return "points" if _factor(pair) > 1 else "nats"


def _told(pair: ItemPair, gap: float) -> str:
    """A difference with its sign: points with one decimal, nats with three or four."""
    return formats.signed(gap) if _factor(pair) == 1 else f"{100 * gap:+.1f}".replace("-", "−")


def _ends(pair: ItemPair, gap: Interval) -> str:
    return NONE if gap.low is None or gap.high is None else f"{_told(pair, gap.low)} to {_told(pair, gap.high)}"


def _resampled(pair: ItemPair) -> Interval:
    low, high = pair.bootstrap or (None, None)
    return replace(pair.over_items, low=low, high=high)


def _scaled(pair: ItemPair, gap: Interval) -> Interval:
    ends = [None if end is None else end * _factor(pair) for end in (gap.low, gap.high)]
    return replace(gap, mean=gap.mean * _factor(pair), low=ends[0], high=ends[1])
