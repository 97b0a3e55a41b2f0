"""Figure 1 of the RMT paper: what a wider stream costs in both models; and what they take of memory.

Sizes are those of GPT2-medium; D of the transformer and D_k of the RMT vary, all else stays (section 3.1).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widestream.paper.printed import GPT2_MEDIUM, RMT_MEDIUM, TABLE_8, TABLE_9
from widestream.paper.resources import BF16, FLOAT32, RMT, Transformer, checkpoint_balance
from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.pictures import write_pictures
from widestream.report.formats import count

STREAM_SIZES = tuple(range(512, 8193, 512))
"""Of Figure 1; D_k is a 64th."""

_PRECISIONS = {"float32": FLOAT32, "bf16": BF16}

Curves = Mapping[str, list[tuple[int, int]]]
"""(stream size, cost) by name."""


def models(stream_size: int) -> tuple[Transformer, RMT]:
    """Both models of Figure 1 with a stream of so many cells, a multiple of D_v."""
    key_dim = stream_size // RMT_MEDIUM.D_v
    return dataclasses.replace(GPT2_MEDIUM, D=stream_size), dataclasses.replace(RMT_MEDIUM, D_k=key_dim)


def figure_1() -> dict[str, Curves]:
    """Curves of both panels: parameters, and forward FLOPs per token.

    As printed, the transformer's FLOPs are with the V D that Table 7 means (erratum E7).
    """
    pairs = [models(size) for size in STREAM_SIZES]
    return {
        "parameters": {
            "transformer": [(plain.stream_size, plain.total_parameters) for plain, _ in pairs],
            "transformer, Table 7": [(plain.stream_size, plain.printed_parameters) for plain, _ in pairs],
            "RMT": [(rmt.stream_size, rmt.total_parameters) for _, rmt in pairs],
            "RMT, items of A.1": [(rmt.stream_size, sum(rmt.parameter_items.values())) for _, rmt in pairs],
            "RMT, Table 7": [(rmt.stream_size, rmt.printed_parameters) for _, rmt in pairs],
        },
        "FLOPs per token": {
            "transformer": [(plain.stream_size, plain.forward_flops) for plain, _ in pairs],
            "transformer, Table 7": [(plain.stream_size, plain.paper_flops(2)) for plain, _ in pairs],
            "RMT": [(rmt.stream_size, rmt.forward_flops) for _, rmt in pairs],
            "RMT, items of A.2": [(rmt.stream_size, sum(rmt.flop_items.values())) for _, rmt in pairs],
            "RMT, Table 7": [(rmt.stream_size, rmt.printed_flops) for _, rmt in pairs],
        },
    }


def write_chart(stem: str | Path) -> list[Path]:
    """Write Figure 1 as STEM-light.svg and STEM-dark.svg and return their paths. Thick lines: the models as they are.

    Raises:
        UserError: nowhere to write.
    """
    charts = [chart_of(name, curves) for name, curves in figure_1().items()]
    title = "Parameters and FLOPs against the size of the residual stream, transformer and RMT at GPT2-medium's sizes"
    return write_pictures(stem, charts, title)


def resources_record() -> dict[str, Any]:
    """Figure 1, and every cost of the paper's eight models, as plain values for JSON."""
    rows = (*TABLE_8, *TABLE_9)
    return {
        "figure_1": figure_1(),
        "models": {f"{'rmt' if row in TABLE_9 else 'transformer'}-{row.name}": costs(row.model) for row in rows},
        "tokens_at_equal_training_memory": {
            name: checkpoint_balance(GPT2_MEDIUM, RMT_MEDIUM, size) for name, size in _PRECISIONS.items()
        },
    }


def costs(model: Transformer | RMT) -> dict[str, Any]:
    """Every cost of one model; what is not itemised in the paper or not possible is None."""
    rmt = model if isinstance(model, RMT) else None
    return {
        "stream_size": model.stream_size,
        "parameters": {
            "printed": model.printed_parameters,
            "itemised": sum(rmt.parameter_items.values()) if rmt else None,
            "actual": model.total_parameters,
            "actual_without_norm": model.counted_parameters,
        },
        "flops_per_token": {
            "printed": model.printed_flops,
            "itemised": sum(rmt.flop_items.values()) if rmt else None,
            "actual": model.forward_flops,
            "actual_without_logits": model.forward_flops - model.flops["logits"],
        },
        "training_bytes": {
            "parameters_and_optimizer": model.training_bytes,
            "stream_states_per_token": model.saved_states,
            "stream_writes_per_token": model.saved_writes,
            "one_state_a_layer_per_token": {name: model.checkpoint_bytes(size) for name, size in _PRECISIONS.items()},
        },
        "decoding_bytes": {
            "cache_per_token": {name: model.cache_bytes(size) for name, size in _PRECISIONS.items()},
            "whole_context": {name: model.decoding_bytes(model.N, size) for name, size in _PRECISIONS.items()},
        },
    }


def chart_of(name: str, curves: Curves) -> Chart:
    """One panel: the models as they are thick, the paper's formulas thin."""
    exact = ("transformer", "RMT")
    series = tuple(
        Series(
            points=tuple((x, y / 1e9) for x, y in points),
            colour=0 if label.startswith("transformer") else 1,
            label=label,
            value=count(points[-1][1]),
            thick=label in exact,
            titles=tuple(f"{y:,}" for _, y in points),
        )
        for label, points in curves.items()
    )
    highest = max(y for line in series for _, y in line.points)
    return Chart(
        title=f"{name} against the size of the residual stream",
        x_label="cells of a token's stream: D, or D_k D_v",
        y_label=f"{name}, in billions",
        series=series,
        y_range=(0.0, 1.05 * highest),
    )
