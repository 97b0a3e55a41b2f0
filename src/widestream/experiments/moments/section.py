"""Tables and sentences of the study of moment propagation, from its record (`experiments/moments/measure.py`)."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from widestream.report.formats import listing, loss, three
from widestream.report.stats.intervals import SIGNIFICANT, difference, holm, mean_interval
from widestream.report.table import NONE, Table

Record = Mapping[str, Any]
Key = TypeVar("Key")
Value = TypeVar("Value")

WAYS = ("forward", "backward")
PRINTED_HALF = 0.005
"""Table 2 is rounded to two digits behind the point."""
KEPT = 2.0
"""A moment is said to be kept over depth if it changes by less than this factor."""


def moments_tables(record: Record) -> list[Table]:
    """All tables that a record has figures for."""
    ratios, depth, training = (record.get(part, ()) for part in ("ratios", "depth", "training"))
    return [
        *(_ratio_table(ratios, scheme) for scheme in dict.fromkeys(row["scheme"] for row in ratios)),
        *(_depth_table(depth, scaled) for scaled in dict.fromkeys(row["depth_scale"] for row in depth)),
        *((_training_table(training), _map_table(training), _update_table(training)) if training else ()),
    ]


def moments_findings(record: Record) -> list[str]:
    """What the intervals say, in sentences."""
    return [
        *_ratio_findings(record.get("ratios", ())),
        *_depth_findings(record.get("depth", ())),
        *_training_findings(record.get("training", ())),
    ]


def _ratio_table(ratios: Sequence[Record], scheme: str) -> Table:
    chosen = [entry for entry in ratios if entry["scheme"] == scheme]
    return Table(
        title=f"Table 2 measured, {'Xavier' if scheme == 'xavier' else 'LeCun'} initialisation",
        caption="Second moment of what comes out over that of what goes in, and of gradients the other way, on the "
        f"real modules; mean and half of the 95 % interval over {chosen[0]['forward']['n']} initialisations. Agrees: "
        "whether the interval holds the closed form, and whether it holds what is printed. One in twenty misses by "
        "chance.",
        columns=("operation", "way", "printed", "closed form", "measured", "form agrees", "print agrees"),
        rows=tuple(_ratio_row(entry, way) for entry in chosen for way in WAYS),
        words=2,
    )


def _ratio_row(entry: Record, way: str) -> tuple[str, ...]:
    measured, printed = entry[way], entry["printed"]
    return (
        f"{_operation(entry)} ({_sizes(entry)})",
        way,
        NONE if printed is None else f"{printed[way]:g}",
        f"{measured['closed']:.3f}",
        f"{measured['mean']:.3f} ± {(measured['high'] - measured['low']) / 2:.3f}",
        "yes" if measured["inside"] else f"no, {abs(measured['z']):.1f} s.e. off",
        NONE if printed is None else "yes" if _holds(measured, printed[way]) else "no",
    )


def _operation(entry: Record) -> str:
    row = entry["row"]
    return f"{row['model']}, {row['layer'].replace('feed-forward', 'FF')} {row['operation']}"


def _sizes(entry: Record) -> str:
    shape = entry["shape"]
    if entry["row"]["model"] == "RMT":
        return f"R {shape['rank']}, D_k {shape['key_dim']}"
    return f"D {shape['rank'] * shape['value_dim']}"


def _holds(measured: Record, printed: float) -> bool:
    return measured["low"] <= printed + PRINTED_HALF and measured["high"] >= printed - PRINTED_HALF


def _ratio_findings(ratios: Sequence[Record]) -> Iterator[str]:
    if not ratios:
        return
    every = [(entry, way) for entry in ratios for way in WAYS]
    inside = sum(entry[way]["inside"] for entry, way in every)
    farthest = max(abs(entry[way]["z"]) for entry, way in every)
    yield (
        f"{inside} of {len(every)} 95 % intervals hold the closed form; the farthest mean lies {farthest:.1f} standard "
        "errors from it."
    )
    wrong = [
        f"{_operation(entry)} ({_sizes(entry)}, {way}: printed {entry['printed'][way]:g}, "
        f"measured {entry[way]['mean']:.2f})"
        for entry, way in every
        if entry["printed"] is not None and not _holds(entry[way], entry["printed"][way])
    ]
    yield f"Table 2 as printed is excluded for {listing(wrong)}." if wrong else "No printed figure is excluded."


def _depth_table(depth: Sequence[Record], scaled: bool) -> Table:
    chosen = [entry for entry in depth if entry["depth_scale"] == scaled]
    layers = list(dict.fromkeys(entry["layers"] for entry in chosen))
    growths = {(entry["stream"], entry["layers"]): entry["growth"] for entry in chosen}
    names = {"seen": "seen", "written_gradient": "gradient"}
    streams = list(dict.fromkeys(entry["stream"] for entry in chosen))
    rows = tuple(
        (stream, *(_estimate(growths.get((stream, number), {}).get(name)) for name in names for number in layers))
        for stream in streams
    )
    start = "1/sqrt(2 L) smaller" if scaled else "unscaled"
    return Table(
        title=f"Growth over depth at initialisation, blocks' output maps {start}",
        caption="Seen: second moment of the stream as the last MLP's norm sees it over that at the first one's. "
        "Gradient: of what the first attention writes over that of what the last one writes. 1 is kept. Geometric "
        "mean, in brackets the 95 % interval over seeds.",
        columns=("stream", *(f"{name}, {number} layers" for name in names.values() for number in layers)),
        rows=rows,
    )


def _depth_findings(depth: Sequence[Record]) -> Iterator[str]:
    for scaled in dict.fromkeys(entry["depth_scale"] for entry in depth):
        chosen = deepest(depth, scaled)
        growths = {entry["stream"]: entry["growth"] for entry in chosen}
        kept = [
            stream
            for stream, growth in growths.items()
            if _kept(growth["seen"][0]) and _kept(growth["written_gradient"][0])
        ]
        start = "with scaled output maps" if scaled else "with unscaled output maps"
        yield (
            f"At {chosen[0]['layers']} layers, {start}, {len(kept)} of {len(growths)} streams keep both second "
            f"moments, in the mean over seeds, within a factor of {KEPT:g}{': ' + listing(kept) if kept else ''}."
        )


def deepest(depth: Sequence[Record], scaled: bool) -> list[Record]:
    """The entries of all streams at the greatest depth at which most streams were measured."""
    by_layers = _grouped((entry["layers"], entry) for entry in depth if entry["depth_scale"] == scaled)
    return by_layers[max(by_layers, key=lambda layers: (len(by_layers[layers]), layers))]


def _kept(growth: float | None) -> bool:
    return growth is not None and growth > 0 and abs(math.log(growth)) < math.log(KEPT)


def _estimate(estimate: Sequence[float | None] | None) -> str:
    if estimate is None or estimate[0] is None:
        return NONE
    mean, low, high = estimate[0], *estimate[1:]
    return three(mean) if low is None or high is None else f"{three(mean)} ({three(low)} to {three(high)})"


def by_name(training: Sequence[Record]) -> dict[str, list[Record]]:
    """Measured runs by the name of their recipe: its seeds."""
    return _grouped((run["name"], run) for run in training)


def run_figures(run: Record, step: Record) -> dict[str, float | None]:
    """Single figures of a run at a step, by name, from its sites."""
    sites, ranks = step["sites"], step["ranks"]
    blocks = range(len(run["writers"]) - 1)
    forward = [_ratio(sites["written"][i + 1], sites["read"][i]) for i in blocks]
    backward = [_ratio(sites["read_gradient"][i], sites["written_gradient"][i + 1]) for i in blocks]
    writes = _geometric_mean(sites["written_gradient"][1:])
    return {
        "loss": step["loss"],
        "seen growth": _ratio(sites["seen"][-2], sites["seen"][1]),
        "gradient growth": _ratio(sites["written_gradient"][1], sites["written_gradient"][-2]),
        "block forward": _geometric_mean(forward),
        "block backward": _geometric_mean(backward),
        "gradient of writes": None if writes is None else math.sqrt(writes),
        "rank of the stream": ranks["seen"][-2],
        "rank of reads": ranks["read"][-2],
        "rank of a matrix": ranks["matrix"][-2],
    }


def _training_table(training: Sequence[Record]) -> Table:
    rows, names = [], []
    for name, runs in by_name(training).items():
        for number, measured in by_step(runs).items():
            figures = [run_figures(run, step) for run, step in measured]
            names = list(figures[0])
            cells = (over_seeds([row[key] for row in figures]) for key in names)
            rows.append((name, str(number), str(len(measured)), *cells))
    return Table(
        title="Moments during training",
        caption="On held-out text; step 0 is the same model at its initial weights. Growth as over depth. Block: "
        "second moment of what a block writes over that of what it reads, and of gradients the other way, geometric "
        "mean over blocks. Gradient of writes: root mean square. Rank: exp of the entropy of the covariance's spectrum "
        "over tokens, at the last MLP; of a matrix: of a token's singular values. Mean and 95 % interval over seeds.",
        columns=("model", "step", "seeds", *names),
        rows=tuple(rows),
    )


def _map_table(training: Sequence[Record]) -> Table:
    """Table 1's ratios with trained weights, maps of the same name over all layers together."""
    rows = []
    for name, runs in by_name(training).items():
        kinds = dict.fromkeys(_map_kind(key) for key in runs[0]["steps"][0]["maps"])
        ends = _ends(runs)
        for kind in kinds:
            cells = (
                over_seeds([_map_mean(step["maps"], kind, way) for _, step in measured])
                for way in range(len(WAYS))
                for _, measured in ends
            )
            rows.append((name, kind, f"{ends[0][0]}, {ends[1][0]}", *cells))
    return Table(
        title="Ratios of Table 1 with the weights' own second moment",
        caption="Fan-in (forward) and fan-out (backward) times the mean square of a map's weights: what it does to the "
        "second moment of vectors that know nothing of it. Geometric mean over layers, mean and 95 % interval over "
        "seeds.",
        columns=("model", "map", "steps", *(f"{way}, {when}" for way in WAYS for when in ("initial", "trained"))),
        rows=tuple(rows),
        words=3,
    )


def _map_mean(maps: Mapping[str, Sequence[float]], kind: str, way: int) -> float | None:
    return _geometric_mean([ratios[way] for key, ratios in maps.items() if _map_kind(key) == kind])


def _map_kind(name: str) -> str:
    """A parameter's name with numbers of layers and sites left open."""
    return re.sub(r"(?<=[._])\d+", "*", name)


def _update_table(training: Sequence[Record]) -> Table:
    rows, parts = [], list(dict.fromkeys(part for run in training for part in run["updates"][0]["relative"]))
    for name, runs in by_name(training).items():
        for (start, end), updates in by_span(runs).items():
            cells = (over_seeds([update["relative"].get(part) for update in updates]) for part in parts)
            rows.append((name, f"{start} to {end}", *cells))
    return Table(
        title="Relative change of parameters between checkpoints",
        caption="Norm of the change over the norm before, by part. Mean and 95 % interval over seeds.",
        columns=("model", "steps", *parts),
        rows=tuple(rows),
    )


def _training_findings(training: Sequence[Record]) -> Iterator[str]:
    groups = by_name(training)
    for name, runs in groups.items():
        for key, what in (("seen growth", "the stream"), ("gradient growth", "the gradient of writes")):
            phrases = [
                f"{over_seeds([run_figures(run, step)[key] for run, step in measured])} times at step {number}"
                for number, measured in _ends(runs)
            ]
            yield f"{name}: over depth {what} grows {listing(phrases)}."
    if len(groups) == 2:
        yield from _survival(groups)


def _survival(groups: Mapping[str, list[Record]]) -> Iterator[str]:
    """Which of two models keeps moments better at the first and last step of all their runs, by seed (`difference`)."""
    steps = {name: _shared_steps(runs) for name, runs in groups.items()}
    one, other = groups
    numbers = [number for number in steps[one] if number in steps[other]]
    gaps = {}
    for key in ("seen growth", "gradient growth", "block forward", "block backward"):
        for number in (numbers[0], numbers[-1]):
            a, b = (_distances(steps[name][number], key) for name in (one, other))
            if a is not None and b is not None:
                gaps[key, number] = difference(a, b)
    phrases: dict[str, list[str]] = {}
    for ((key, number), gap), p in zip(gaps.items(), holm(list(gaps.values())), strict=True):
        if p is None:
            said = "one seed tells nothing"
        elif p >= SIGNIFICANT:
            said = "no difference is seen"
        else:
            said = one if gap.mean > 0 else other
        phrases.setdefault(key, []).append(f"{said} at step {number}")
    for key, said in phrases.items():
        yield f"Nearer to 1 in {key}: {listing(said)}."
    if phrases:
        yield f"A difference is seen where p, corrected for these {len(gaps)} comparisons (Holm), is below 0.05."


def by_step(runs: Sequence[Record]) -> dict[int, list[tuple[Record, Record]]]:
    """Every step at which some of the runs were measured: (run, step) of each that was."""
    steps = _grouped((step["step"], (run, step)) for run in runs for step in run["steps"])
    return dict(sorted(steps.items()))


def by_span(runs: Sequence[Record]) -> dict[tuple[int, int], list[Record]]:
    """Every two steps between which parameters of some of the runs were compared: the change of each that was."""
    spans = _grouped(((update["from"], update["to"]), update) for run in runs for update in run["updates"])
    return dict(sorted(spans.items()))


def _grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _shared_steps(runs: Sequence[Record]) -> dict[int, list[tuple[Record, Record]]]:
    return {number: measured for number, measured in by_step(runs).items() if len(measured) == len(runs)}


def _ends(runs: Sequence[Record]) -> list[tuple[int, list[tuple[Record, Record]]]]:
    """The first and the last step that all of the runs have; every run has its start."""
    shared = list(_shared_steps(runs).items())
    return [shared[0], shared[-1]]


def _distances(measured: Sequence[tuple[Record, Record]], key: str) -> dict[int, float] | None:
    """By seed: how far a ratio is from 1, as the size of its logarithm; None where a seed has no such ratio."""
    ratios = {run["seed"]: run_figures(run, step)[key] for run, step in measured}
    distances = {seed: abs(math.log(ratio)) for seed, ratio in ratios.items() if ratio}
    return distances if len(distances) == len(ratios) else None


def over_seeds(values: Sequence[float | None]) -> str:
    """Mean and 95 % interval; a dash where a seed has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NONE
    interval = mean_interval(known)
    shown = loss(interval.mean) if 0.01 <= abs(interval.mean) < 10 else three(interval.mean)
    if interval.low is None or interval.high is None:
        return shown
    return f"{shown} ± {three((interval.high - interval.low) / 2)}"


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _geometric_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    if len(known) < len(values):
        return None
    return math.exp(math.fsum(math.log(value) for value in known) / len(known))
