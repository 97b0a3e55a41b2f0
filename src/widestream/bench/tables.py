"""Records as tables on the screen."""

from typing import Any

from rich.console import Console
from rich.table import Table

from widestream.bench.memory import MIB

Rows = list[tuple[str, ...]]


def print_record(record: dict[str, Any]) -> None:
    """Print what a measurement found, and on what machine."""
    columns, rows = TABLES[record["bench"]](record)
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
    for name, reason in record.get("unavailable", {}).items():
        console.print(f"Not measured: {name}. {reason}", markup=False, highlight=False)


def _step(record: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Time, ratio to the first model, and share of the matmul peak, by model."""
    first = next(iter(record["medians"]))
    rows = [
        (name, f"{value:.4f}", f"{record['ratios'][name].get(first, 1.0):.3f}", f"{100 * record['mfu'][name]:.1f}")
        for name, value in record["medians"].items()
    ]
    return ("model", "seconds per step", f"relative to {first}", "MFU %"), rows


def _memory(record: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Saved bytes and peak, by model."""
    peaks = {name: f"{peak / MIB:.0f}" for name, peak in record["peak_bytes"].items()}
    rows = [
        (name, f"{own['stream'] / MIB:.1f}", f"{own['model'] / MIB:.1f}", peaks.get(name, ""))
        for name, own in record["saved_bytes"].items()
    ]
    return ("model", "kept by the stream, MiB", "kept in all, MiB", "peak of a step, MiB"), rows


def _decode(record: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Tokens a second, by batch size and model."""
    rows = []
    for size, own in record["medians"].items():
        for name, value in own.items():
            relative = next(iter(record["ratios"][size][name].values()), 1.0)
            speed = record["tokens_per_s"][size][name]
            rows.append((size, name, f"{speed:.1f}", f"{1000 * value:.2f}", f"{relative:.3f}"))
    return ("sequences", "model", "tokens/s", "ms per token", "time relative to the first"), rows


def _kernels(record: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Time and share of the copy's bandwidth, by key dim and operation."""
    rows = [
        (key_dim, name, f"{1e3 * record['medians'][key_dim][name]:.3f}", f"{100 * share:.0f}")
        for key_dim, shares in record["of_copy"].items()
        for name, share in shares.items()
    ]
    return ("D_k", "operation", "ms", "% of copy bandwidth"), rows


def _data(record: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Tokens and batches a second."""
    rows = [
        (name, f"{value:,.0f}", f"{record['batches_per_s'][name]:,.1f}" if name in record["batches_per_s"] else "")
        for name, value in record["tokens_per_s"].items()
    ]
    return ("what", "tokens/s", "batches/s"), rows


TABLES = {"step": _step, "memory": _memory, "decode": _decode, "kernels": _kernels, "data": _data}
