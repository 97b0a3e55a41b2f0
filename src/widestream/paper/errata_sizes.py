"""Errata of parameters and budgets: E1 to E4, E12, E13, E17, E18."""

import dataclasses

from widestream.paper.erratum import Cells, Figures
from widestream.paper.printed import (
    GPT2_SMALL,
    RMT_MEDIUM,
    RMT_SMALL,
    SWEEP_STREAM_SIZES,
    TABLE_8,
    TABLE_9,
    TABLE_9_PRINTED,
)
from widestream.paper.resources import RMT, Transformer
from widestream.report.formats import count

CHINCHILLA = 20
"""Training tokens per non-embedding parameter (section 4.2)."""


def table_9_shapes() -> Figures:
    """E1: the shapes of the two large RMTs."""
    rows, values, ratios = (
        [("row", "D_k, D_v printed", "parameters", "D_k, D_v meant", "parameters", "stream / D")],
        {},
        [],
    )
    for printed, meant, plain in zip(TABLE_9_PRINTED, TABLE_9, TABLE_8, strict=True):
        a, b, ratio = printed.model, meant.model, meant.model.stream_size / plain.model.D
        shapes = [f"{m.D_k}, {m.D_v}" for m in (a, b)]
        counts = [f"{m.counted_parameters:,}" for m in (a, b)]
        rows.append((printed.name, shapes[0], counts[0], shapes[1], counts[1], f"{ratio:.2f}"))
        values |= {f"{meant.name} printed": a.counted_parameters, f"{meant.name} meant": b.counted_parameters}
        values |= {f"{meant.name} stream / D": ratio, f"{meant.name} norm gains": b.parameters["norm"]}
        values[f"{meant.name} printed stream / D"] = a.stream_size / plain.model.D
        ratios.append(ratio)
    values |= {"printed width": TABLE_9_PRINTED[2].model.width, "smallest ratio": min(ratios)}
    return Figures(values, tuple(rows), {"meant_width": TABLE_8[2].model.D})


def chinchilla_budget() -> Figures:
    """E2: the token budget of the 305M row."""
    budgets = {row: CHINCHILLA * row.model.non_embedding_parameters for row in (*TABLE_8, *TABLE_9)}
    rows = ((row.name, row.tokens, count(budget)) for row, budget in budgets.items())
    table = (("row", "tokens printed", "20 per non-embedding parameter"), *rows)
    return Figures({row.name: budget for row, budget in budgets.items()}, table)


def rmt_parameter_total() -> Figures:
    """E3: the total of A.1."""
    model = RMT_MEDIUM
    items, printed = sum(model.parameter_items.values()), model.printed_parameters
    keys, words = model.R * model.D_k, model.V * model.width
    values = {"printed": printed, "items": items, "difference": keys + words}
    return Figures(values, quoted={"keys": keys, "words": words})


def transformer_parameter_total() -> Figures:
    """E4: the transformer's parameters in Table 7."""
    rows, values = [("row", "by Table 7", "with both vocabulary matrices and positions")], {}
    for row in TABLE_8:
        printed, found = row.model.printed_parameters, row.model.counted_parameters
        rows.append((row.name, f"{printed:,}", f"{found:,}"))
        values |= {row.name: found, f"{row.name} Table 7": printed}
    return Figures(values, tuple(rows))


def variants_budget() -> Figures:
    """E12: steps and tokens of C.4."""
    steps, batch, named, context = 5000, 64, 1.6e9, GPT2_SMALL.N
    window = batch * context
    values = {"tokens": steps * window, "steps needed": named / window, "tokens at 50K": 50_000 * window}
    return Figures(values, quoted={"steps": steps, "batch": batch, "context": context})


def sweep_sizes() -> tuple[RMT, ...]:
    """The six models of section 4.4."""
    return tuple(dataclasses.replace(RMT_SMALL, D_k=size // RMT_SMALL.D_v) for size in SWEEP_STREAM_SIZES)


def sweep_total() -> Figures:
    """E13: the size of the sweep's models."""
    rows: list[Cells] = [("stream size", "D_k", "parameters", "with norm gains")]
    values = {}
    for model in sweep_sizes():
        counts = [f"{number:,}" for number in (model.counted_parameters, model.total_parameters)]
        rows.append((str(model.stream_size), str(model.D_k), *counts))
        values[str(model.stream_size)] = model.counted_parameters
    return Figures(values, tuple(rows))


def sweep_axis() -> Figures:
    """E17: what the sweep varies."""
    return Figures({str(model.stream_size): model.D_k for model in sweep_sizes()}, quoted={"D_v": RMT_SMALL.D_v})


def highway_parameters(model: Transformer, biases: bool) -> int:
    """Of a Highway Transformer, without norm gains: two D x D maps more for each of the 2 L blocks."""
    maps = 2 * 2 * model.L
    return model.counted_parameters + maps * (model.D**2 + (model.D if biases else 0))


def positions_counted() -> Figures:
    """E18: whether Table 10 counts positions."""
    positions = GPT2_SMALL.parameters["positions"]
    counted, biased = (highway_parameters(GPT2_SMALL, biases) for biases in (False, True))
    return Figures({"with": counted, "without": counted - positions, "without, biases": biased - positions})
