"""The record of a muP search (`widestream tune`) as sentences, tables, charts and a page."""

from typing import Any

from widestream.report import formats
from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.rows import BarChart
from widestream.report.page import render_page
from widestream.report.table import NONE, Table

LABELS = {
    "lr": "learning rate",
    "init_std": "initial std s",
    "alpha_in": "input multiplier α_in",
    "alpha_attn": "attention multiplier α_attn",
    "alpha_out": "output multiplier α_out",
}
"""What settings are called."""
FEW = 50
"""Below so many finished trials the page says that there are few."""
EDGE = 1.25
"""A best setting within this factor of an end of its interval is said to lie there."""
_DOT, _DIVERGED, _BEST = 0, 5, 1

Record = dict[str, Any]
"""Contents of tune.json (`experiments/tune/record.py`)."""


def sentences(record: Record) -> list[str]:
    """What the search found, and how far it can be trusted."""
    trials, space = record["trials"], record["setup"]["space"]
    done = [trial for trial in trials if trial["state"] == "done"]
    diverged = sum(trial["state"] == "diverged" for trial in trials)
    steps = record["setup"]["recipe"]["train"]["steps"]
    how = {"random": "log-uniform draws", "tpe": "draws by TPE"}[record["setup"]["sampler"]]
    lines = [
        f"{len(trials)} trials of {steps:,} steps on {record['recipe']}, {how} from the {record['interval']} "
        f"intervals: {len(done)} finished, {diverged} diverged, {len(trials) - len(done) - diverged} not finished."
    ]
    if record["best"] is None:
        return [*lines, "No trial has finished."]
    best = trials[record["best"]]
    others = sorted(trial["loss"] for trial in done)
    second = f"; the next best: {others[1]:.4f}" if len(others) > 1 else ""
    lines.append(f"Best: trial {best['number']}, held-out loss {best['loss']:.4f} nats per token{second}.")
    for name, value in best["settings"].items():
        low, high = space[name]
        if value < low * EDGE or value > high / EDGE:
            lines.append(f"Its {LABELS[name]}, {formats.three(value)}, lies at an end of [{low:g}, {high:g}].")
    if len(done) < FEW:
        lines.append(
            f"{len(done)} trials in {len(space)} dimensions at this size say which settings work here; "
            "they are no claim about large models, nor that these settings are the best."
        )
    return lines


def settings_table(record: Record) -> Table | None:
    """The best settings beside their intervals and their importance; None without a finished trial."""
    if record["best"] is None:
        return None
    importance = record["importance"]
    shares = {} if importance is None else importance["shares"]
    rows = tuple(
        (
            LABELS[name],
            formats.three(value),
            "[{:g}, {:g}]".format(*record["setup"]["space"][name]),
            formats.percent(shares[name]) if name in shares else NONE,
        )
        for name, value in record["trials"][record["best"]]["settings"].items()
    )
    return Table(
        title="Best settings",
        caption="Importance is the share of a setting in reaching the best trials (PED-ANOVA).",
        columns=("setting", "best", "interval", "importance"),
        rows=rows,
    )


def trials_table(record: Record) -> Table:
    """Every trial, the best first; those that diverged with the reason."""
    order = {"done": 0, "diverged": 1, "running": 2}
    rows = sorted(record["trials"], key=lambda row: (order[row["state"]], row["loss"] or 0.0, row["number"]))
    return Table(
        title="All trials",
        caption="Held-out loss in nats per token; time is training time.",
        columns=("trial", "became", "loss", *LABELS.values(), "time"),
        rows=tuple(
            (
                str(row["number"]),
                row["reason"] or {"done": "finished", "running": "not finished"}[row["state"]],
                NONE if row["loss"] is None else f"{row['loss']:.4f}",
                *(formats.three(row["settings"][name]) if name in row["settings"] else NONE for name in LABELS),
                NONE if row["training_s"] is None else formats.duration(row["training_s"]),
            )
            for row in rows
        ),
        words=2,
    )


def importance_chart(record: Record) -> BarChart | None:
    """Importance of the settings as bars; None where too few trials have finished."""
    importance = record["importance"]
    if importance is None:
        return None
    return BarChart(
        title=f"Importance of settings, {record['recipe']}",
        x_label=f"share in reaching the best {formats.percent(importance['best_share'])} of trials "
        f"({importance['method']})",
        values={LABELS[name]: share for name, share in importance["shares"].items()},
    )


def slice_charts(record: Record) -> dict[str, Chart]:
    """Held-out loss against every setting, a dot a trial, by the setting's label; diverged trials lie at the top."""
    done = [row for row in record["trials"] if row["state"] == "done"]
    if len(done) < 2:
        return {}
    losses = [row["loss"] for row in done]
    room = 0.08 * (max(losses) - min(losses)) or 0.1
    top = max(losses) + room
    charts = {}
    for name, ends in record["setup"]["space"].items():
        dots = [_dot(row, name, top, record["best"]) for row in record["trials"] if row["state"] != "running"]
        # Dots of one point draw no line; the invisible ends make the axis as long as the interval.
        frame = Series(points=tuple((end, top + 2 * room) for end in ends), colour=_DOT, thick=False)
        charts[LABELS[name]] = Chart(
            title=f"Held-out loss against the {LABELS[name]}, {record['recipe']}",
            x_label=LABELS[name],
            y_label="held-out loss, nats per token",
            series=(frame, *dots),
            y_range=(min(losses) - room, top + room),
            log_x=True,
        )
    return charts


def _dot(row: dict[str, Any], name: str, top: float, best: int | None) -> Series:
    loss = "diverged" if row["loss"] is None else f"{row['loss']:.4f}"
    colour = _DIVERGED if row["loss"] is None else _BEST if row["number"] == best else _DOT
    value = row["settings"][name]
    return Series(
        points=((value, top if row["loss"] is None else row["loss"]),),
        colour=colour,
        label="best" if row["number"] == best else None,
        titles=(f"trial {row['number']}: {loss} at {formats.three(value)}",),
    )


def page(record: Record) -> str:
    """The search as one HTML document."""
    return render_page(
        "tune_page.html",
        record=record,
        sentences=sentences(record),
        settings=settings_table(record),
        importance=importance_chart(record),
        slices=slice_charts(record),
        trials=trials_table(record),
    )
