"""The tables of a comparison, shown by the terminal and by the page alike."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.search_record import Search, Trial
from widestream.report.stats.groups import Apart
from widestream.report.stats.labels import stream_kind
from widestream.report.stats.matched import RESOURCE_WORDS, RESOURCES, Reach
from widestream.report.stats.pairs import Pair, Target
from widestream.report.table import NONE, Table
from widestream.runs.read import Run
from widestream.runs.row import train_figures
from widestream.runs.settings import plain


def results(comparison: Comparison) -> Table:
    """Last evaluation of every model, and what it cost."""
    rows = []
    for group in comparison.groups:
        finals = group.ends
        losses = [row.loss for row in finals]
        bits = [row.bits_per_byte for row in finals if row.bits_per_byte is not None]
        rows.append(
            (
                group.label,
                group.seeds,
                formats.spread(losses),
                formats.perplexity(fmean(losses)),
                formats.loss(fmean(bits)) if len(bits) == len(finals) else NONE,
                group.trained,
                formats.flops(fmean([row.flops for row in finals])),
                formats.duration(fmean([row.wall_s for row in finals])),
                *_sizes(group.runs[0]),
            )
        )
    rows += [
        (one.label, f"0 of {len(one.runs)}", _word(one), *[NONE] * 5, *_sizes(one.runs[0])) for one in comparison.apart
    ]
    return Table(
        title="Results",
        caption="Last held-out evaluation, mean over seeds (lowest to highest seed); loss in nats per token. FLOPs are "
        "those of training, logits included; time is training time without evaluation and saving.",
        columns=(
            "model", "seeds", "held-out loss", "perplexity", "bits per byte", "tokens", "FLOPs", "time", "parameters",
            "non-embedding",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _sizes(run: Run) -> tuple[str, str]:
    return formats.count(run.parameters["total"]), formats.count(run.parameters["non_embedding"])


def _word(one: Apart) -> str:
    """What stands in place of the figures of a model that has none."""
    return "diverged" if one.diverged else "no figure"


def differences(comparison: Comparison) -> Table | None:
    """Differences at equal resources, with intervals; None where nothing can be compared."""
    pairs = (*comparison.pairs, *comparison.unranked)
    if not pairs or not comparison.comparable:
        return None
    rows = [row for pair in pairs for row in (_differences(pair) if pair.claimed else [_unclaimed(pair)])]
    family = max(pair.family for pair in pairs)
    holm = f" p: corrected for {family} comparisons (Holm), each resource by itself." if family > 1 else ""
    return Table(
        title="Difference at equal resources",
        caption="Difference in held-out loss at the last point that all runs reach; below zero the first-named is "
        f"better. Paired: taken seed by seed, on the same batches. An interval from two seeds is wide.{holm}",
        columns=("difference", "at equal", "held-out loss", "95 % interval", "p", "seeds"),
        rows=tuple(rows),
        words=2,
    )


def _differences(pair: Pair) -> list[tuple[str, ...]]:
    ends = {pair.reference.tokens, pair.other.tokens}
    place = "" if ends == {pair.tokens} else f" ({formats.count(pair.tokens)})"
    return [
        (
            f"{pair.other.label} − {pair.reference.label}",
            RESOURCE_WORDS[resource] + (place if resource == "tokens" else ""),
            formats.signed(interval.mean),
            formats.interval(interval.low, interval.high),
            formats.p_value(pair.corrected.get(resource)),
            f"{interval.n} {'paired' if interval.method == 'paired' else 'unpaired'}",
        )
        for resource, interval in pair.at_equal.items()
    ]


def _unclaimed(pair: Pair) -> tuple[str, ...]:
    seeds = f"{pair.other.seeds}, {pair.reference.seeds}"
    return (f"{pair.other.label} − {pair.reference.label}", NONE, "not claimed", NONE, NONE, seeds)


def resources(comparison: Comparison) -> Table | None:
    """Resources needed to reach the other model's best loss (paper, Tables 3 and 4); None where not comparable."""
    if not comparison.pairs or not comparison.comparable:
        return None
    rows = []
    for target in (target for pair in comparison.pairs for target in pair.targets):
        goal = f"{target.label}'s best, {formats.loss(target.loss)}"
        rows.append((goal, target.label, *_spent(target.own), NONE))
        rows.append((goal, target.other, *_reached(target), _by_seed(target)))
    return Table(
        title="Resources to reach the other's best loss",
        caption="Where the smoothed mean held-out curve first reaches that loss, interpolated in log-log and never "
        "beyond what was measured. Percentages are of what the model spent whose best loss it is.",
        columns=("loss to reach", "model", "tokens", "FLOPs", "time", "tokens, by seed"),
        rows=tuple(rows),
        words=2,
    )


def run_table(comparison: Comparison) -> Table:
    """Every run with its folder."""
    rows = [_run_row(label, run) for label, runs in comparison.models for run in runs]
    return Table(
        title="Runs",
        caption="Every figure of this report comes from these folders: metrics.jsonl for the curves, run.json for "
        "model and machine. Seeds: weights/order of batches. Steps are those at the last evaluation; skipped steps "
        "moved nothing. Tokens/s and MFU are medians, memory is the peak.",
        columns=(
            "folder", "model", "seeds", "state", "steps", "skipped", "tokens", "held-out loss", "bits per byte",
            "FLOPs", "time", "tokens/s", "MFU", "memory",
        ),
        rows=tuple(rows),
        words=2,
    )  # fmt: skip


def _run_row(label: str, run: Run) -> tuple[str, ...]:
    speed = train_figures(run)
    last = run.final if run.evals else None
    return (
        str(run.path),
        label,
        run.seed_name,
        run.state if run.diverged_at is None else f"diverged at {run.diverged_at:,}",
        f"{last.step if last else run.steps:,}",
        f"{run.skipped:,}",
        *(
            (NONE,) * 5
            if last is None
            else (
                formats.count(last.tokens),
                formats.loss(last.loss),
                NONE if last.bits_per_byte is None else formats.loss(last.bits_per_byte),
                formats.flops(last.flops),
                formats.duration(last.wall_s),
            )
        ),
        NONE if speed["tokens_per_s"] is None else formats.count(speed["tokens_per_s"]),
        NONE if speed["mfu"] is None else formats.percent(speed["mfu"]),
        NONE if speed["memory_bytes"] is None else formats.memory(speed["memory_bytes"]),
    )


def parameters(comparison: Comparison) -> Table:
    """Parameters by part, and the size of the stream."""
    runs = [group.runs[0] for group in comparison.groups]
    return Table(
        title="Parameters",
        caption="Non-embedding leaves out embedding, learned positions and unembedding. The stream's size is how many "
        "numbers it carries for each token.",
        columns=("", *(group.label for group in comparison.groups)),
        rows=(
            ("stream", *(stream_kind(run) for run in runs)),
            ("stream size", *(_whole(run.info["summary"]["stream_size"]) for run in runs)),
            *_parts([run.parameters for run in runs], ("total", "non_embedding")),
        ),
    )


def flops(comparison: Comparison) -> Table:
    """FLOPs per token, in all and by part."""
    costs = [group.runs[0].flops_per_token for group in comparison.groups]
    return Table(
        title="FLOPs per token",
        caption="The logits matmul is included unless the row says otherwise. The parts are those of a forward pass.",
        columns=("", *(group.label for group in comparison.groups)),
        rows=tuple(_parts(costs, ("train", "forward", "forward_without_logits", "decode"))),
    )


def _parts(counts: Sequence[dict[str, Any]], totals: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Rows of totals, then of parts, a column for each model."""
    for name in totals:
        yield (
            name.replace("non_embedding", "non-embedding").replace("_", " "),
            *(_whole(count[name]) for count in counts),
        )
    by_part = [count.get("by_part", {}) for count in counts]
    for part in dict.fromkeys(name for parts in by_part for name in parts):
        yield f"– {part.replace('_', ' ')}", *(_whole(parts.get(part)) for parts in by_part)


def configuration(comparison: Comparison) -> Table | None:
    """What differs between the configurations; None where nothing does."""
    if not comparison.config_differences:
        return None
    labels = [group.label for group in comparison.groups]
    rows = tuple(
        (key, *(plain(values[label]) if label in values else NONE for label in labels))
        for key, values in comparison.config_differences.items()
    )
    return Table(
        title="What differs in the configuration",
        caption="All other keys are equal, but for seeds, names and how often to log and save.",
        columns=("key", *labels),
        rows=rows,
        words=1 + len(labels),
    )


def search_table(search: Search) -> Table:
    """Held-out loss of every model at every learning rate tried."""
    rates = sorted({trial.lr for trials in search.models.values() for trial in trials})
    rows = []
    for name, trials in search.models.items():
        by_rate = {trial.lr: trial for trial in trials}
        rows.append((name, *(_trial(by_rate.get(rate)) for rate in rates)))
    return Table(
        title="Learning-rate search",
        caption=f"{search.sentence} Held-out loss at the end, mean over seeds; ✓ marks the best rate. "
        f"From {search.source}.",
        columns=("peak learning rate", *(f"{rate:g}" for rate in rates)),
        rows=tuple(rows),
    )


def machines(comparison: Comparison) -> Table:
    """Machine and versions, one column for each setting that some runs share."""
    settings: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in comparison.runs:
        settings.setdefault(tuple(_environment(run).items()), []).append(run)
    names = dict.fromkeys(name for setting in settings for name, _ in setting)
    heads = (
        [", ".join(str(run.path) for run in runs) for runs in settings.values()] if len(settings) > 1 else ["all runs"]
    )
    rows = tuple((name, *(dict(setting).get(name, NONE) for setting in settings)) for name in names)
    return Table(title="Machine and versions", caption="", columns=("", *heads), rows=rows, words=1 + len(heads))


def _environment(run: Run) -> dict[str, str]:
    info, machine = run.info, run.info.get("machine", {})
    peak, memory = info.get("peak_flops_per_s"), machine.get("memory_gb")
    values = {
        "CPU": machine.get("cpu"),
        "cores, threads used": f"{machine.get('cores', '?')}, {machine.get('threads', '?')}",
        "GPU": machine.get("gpu") or "none",
        "memory": None if memory is None else f"{formats.three(memory)} GB",
        "precision": info.get("precision"),
        "measured matmul peak": None if peak is None else f"{formats.flops(peak)} FLOP/s",
        "widestream": info.get("widestream"),
        "PyTorch": info.get("torch"),
        "Python": info.get("python"),
        "data fingerprint": run.data["fingerprint"],
        "tokenizer sha256": run.data.get("tokenizer_sha256"),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _spent(reach: Reach) -> list[str]:
    bound = "≤ " if reach.at_most else ""
    return [bound + shown(getattr(reach, resource)) for resource, shown in formats.AMOUNTS.items()]


def _reached(target: Target) -> list[str]:
    if target.others is None:
        return ["not reached"] * len(RESOURCES)
    spent = zip(RESOURCES, _spent(target.others), strict=True)
    return [f"{amount} ({formats.percent(target.ratio(resource) or 0)})" for resource, amount in spent]


def _by_seed(target: Target) -> str:
    return ", ".join("not reached" if reach is None else formats.count(reach.tokens) for reach in target.others_by_run)


def _trial(trial: Trial | None) -> str:
    if trial is None:
        return NONE
    if trial.mean is None:
        failed = trial.runs - len(trial.losses)
        return "diverged" if trial.runs == 1 else f"diverged ({failed} of {trial.runs})"
    return f"{formats.loss(trial.mean)}{' ✓' if trial.chosen else ''}"


def _whole(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
