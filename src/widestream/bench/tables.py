"""Records as tables on the screen."""

from typing import Any

from rich.console import Console
from rich.table import Table

from widestream.bench.memory import MIB


def print_step(record: dict[str, Any]) -> None:
    """Time, ratio to the first model, and share of the matmul peak, by model."""
    first = next(iter(record["medians"]))
    rows = [
        (name, f"{value:.4f}", f"{record['ratios'][name].get(first, 1.0):.3f}", f"{100 * record['mfu'][name]:.1f}")
        for name, value in record["medians"].items()
    ]
    _print(record, ("model", "seconds per step", f"relative to {first}", "MFU %"), rows)


def print_memory(record: dict[str, Any]) -> None:
    """Saved bytes and peak, by model."""
    peaks = record["peak_bytes"]
    rows = [
        (name, *(f"{own[part] / MIB:.1f}" for part in ("stream", "model")), _mib(peaks.get(name)))
        for name, own in record["saved_bytes"].items()
    ]
    _print(record, ("model", "kept by the stream, MiB", "kept in all, MiB", "peak of a step, MiB"), rows)


def print_decode(record: dict[str, Any]) -> None:
    """Tokens a second, by batch size and model."""
    rows = [
        (size, name, f"{record['tokens_per_s'][size][name]:.1f}", f"{1000 * value:.2f}", _ratio(record, size, name))
        for size, own in record["medians"].items()
        for name, value in own.items()
    ]
    _print(record, ("sequences", "model", "tokens/s", "ms per token", "time relative to the first"), rows)


def print_kernels(record: dict[str, Any]) -> None:
    """Time and share of the copy's bandwidth, by key dim and operation."""
    rows = [
        (key_dim, name, f"{1e3 * record['medians'][key_dim][name]:.3f}", f"{100 * share:.0f}")
        for key_dim, shares in record["of_copy"].items()
        for name, share in shares.items()
    ]
    _print(record, ("D_k", "operation", "ms", "% of copy bandwidth"), rows)
    for name, reason in record["unavailable"].items():
        Console().print(f"Not measured: {name}. {reason}", markup=False, highlight=False)


def print_data(record: dict[str, Any]) -> None:
    """Tokens and batches a second."""
    rows = [
        (name, f"{value:,.0f}", f"{record['batches_per_s'][name]:,.1f}" if name in record["batches_per_s"] else "")
        for name, value in record["tokens_per_s"].items()
    ]
    _print(record, ("what", "tokens/s", "batches/s"), rows)


def _ratio(record: dict[str, Any], size: str, name: str) -> str:
    return f"{next(iter(record['ratios'][size][name].values()), 1.0):.3f}"


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / MIB:.0f}"


def _print(record: dict[str, Any], columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    for column, values in zip(table.columns, zip(*rows, strict=True), strict=True):
        column.justify = "right" if all(not value or value[0].isdigit() for value in values) else "left"
    console, machine = Console(), record["machine"]
    console.print(table)
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    precision = f", {record['precision']}" if "precision" in record else ""
    console.print(f"{where}, torch {record['versions']['torch']}{precision}", markup=False, highlight=False)
