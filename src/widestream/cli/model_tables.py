"""A summary as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from widestream.model.catalog import StreamRow
from widestream.model.costs import Summary
from widestream.recipe import RunConfig


def print_summary(config: RunConfig, summary: Summary, updated: dict[str, int]) -> None:
    """Print parameters, FLOPs and bytes of a recipe's model; `updated` has parameters by optimizer."""
    values = summary.to_dict()
    console = Console(highlight=False)
    shape = " x ".join(map(str, summary.stream_shape))
    console.print(
        f"[bold]{config.name}[/bold]: stream {config.model.stream.kind}, {shape} = {summary.stream_size:,} cells"
    )
    counts = values["parameters"]
    rows = [(part, f"{count:,}") for part, count in summary.parts.items()]
    through = {} if counts["active"] == counts["total"] else {"  that a token goes through": counts["active"]}
    totals = {
        "total": counts["total"],
        **through,
        "  without norm gains": counts["total_without_norm"],
        "  without embeddings": counts["non_embedding"],
        "  without both": counts["non_embedding_without_norm"],
        **{f"updated by {name}": count for name, count in updated.items()},
    }
    console.print(_table("parameters", rows, totals))
    flops = values["flops_per_token"]
    rows = [(part, f"{count:,}") for part, count in summary.flops.items() if count]
    totals = {
        "forward": flops["forward"],
        "  without logits": flops["forward_without_logits"],
        "train": flops["train"],
        "  without logits ": flops["train_without_logits"],
        f"decode, {config.model.context} tokens back": flops["decode"],
    }
    console.print(_table("FLOPs per token", rows, totals))
    kept = {
        f"kept for backward, {name}{', about' * (name in summary.about)}": size
        for name, size in summary.activation_bytes.items()
    }
    stream = {f"stream, {name}": size for name, size in summary.stream_bytes.items()}
    console.print(_table("bytes per token", [], {**kept, **stream}))


def print_streams(config: RunConfig, rows: list[StreamRow]) -> None:
    """Print one line for each stream."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=190)
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"Streams at the sizes of {config.name}")
    lines = [
        {
            "kind": row.kind,
            "state": " x ".join(map(str, row.state_shape)),
            "history": row.history,
            "kept": f"{row.history_size:,}",
            "starts plain": "yes" if row.starts_plain else "no",
            "parameters": f"{row.extra_parameters:+,}",
            "FLOPs/token": f"{row.extra_flops:+,}",
            "bytes/token": f"{row.bytes_moved:,}",
            "saved": f"{row.bytes_saved:,}",
            "as writes": "" if row.bytes_saved_writes is None else f"{row.bytes_saved_writes:,}",
            "papers": ", ".join(row.papers),
        }
        for row in rows
    ]
    for name in lines[0]:
        words = name in ("kind", "state", "history", "starts plain", "papers")
        table.add_column(name, justify="left" if words else "right")
    for line in lines:
        table.add_row(*line.values())
    console.print(table)
    console.print(
        "Parameters and forward FLOPs: more or fewer than the plain transformer's. Kept: numbers per token. Saved: "
        "bytes per token for the backward pass with saved states, and with states rebuilt from writes."
    )
    console.print("[bold]Released models[/bold] (model_type in transformers), and what gives their streams:")
    for row in rows:
        for model, settings in row.models.items():
            console.print(f"  {model}: {{{', '.join([f'kind: {row.kind}', *_settings(settings)])}}}")
    for row in rows:
        for limit in row.limits:
            console.print(f"[bold]{row.kind}[/bold]: {limit}")


def _settings(settings: dict[str, Any]) -> list[str]:
    """As a recipe would have them."""
    return [f"{name}: {value}" for name, value in settings.items()]


def _table(title: str, rows: list[tuple[str, str]], totals: dict[str, int]) -> Table:
    table = Table(title, "", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    for row in rows:
        table.add_row(*row)
    if rows:
        table.add_section()
    for name, value in totals.items():
        table.add_row(name, f"{value:,}")
    return table
