"""A summary as tables for the terminal."""

from rich.console import Console
from rich.table import Table

from widestream.model.catalog import StreamRow
from widestream.model.costs import Summary
from widestream.recipe import RunConfig


def print_summary(config: RunConfig, summary: Summary) -> None:
    """Print parameters, FLOPs and bytes of a recipe's model."""
    values = summary.to_dict()
    console = Console(highlight=False)
    shape = " x ".join(map(str, summary.stream_shape))
    console.print(
        f"[bold]{config.name}[/bold]: stream {config.model.stream.kind}, {shape} = {summary.stream_size:,} cells"
    )
    counts = values["parameters"]
    rows = [(part, f"{count:,}") for part, count in summary.parts.items()]
    totals = {
        "total": counts["total"],
        "  without norm gains": counts["total_without_norm"],
        "  without embeddings": counts["non_embedding"],
        "  without both": counts["non_embedding_without_norm"],
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
    kept = {f"kept for backward, {name}": size for name, size in summary.activation_bytes.items()}
    stream = {f"stream, {name}": size for name, size in summary.stream_bytes.items()}
    console.print(_table("bytes per token", [], {**kept, **stream}))


def print_streams(config: RunConfig, rows: list[StreamRow]) -> None:
    """Print one line for each stream."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=190)
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"Streams at the sizes of {config.name}")
    for name in (
        "kind",
        "state",
        "history",
        "kept",
        "starts plain",
        "parameters",
        "FLOPs/token",
        "bytes/token",
        "saved",
        "as writes",
        "papers",
    ):
        right = name in ("kept", "parameters", "FLOPs/token", "bytes/token", "saved", "as writes")
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        table.add_row(
            row.kind,
            " x ".join(map(str, row.state_shape)),
            row.history,
            f"{row.history_size:,}",
            "yes" if row.starts_plain else "no",
            f"{row.extra_parameters:+,}",
            f"{row.extra_flops:+,}",
            f"{row.bytes_moved:,}",
            f"{row.bytes_saved:,}",
            "" if row.bytes_saved_writes is None else f"{row.bytes_saved_writes:,}",
            ", ".join(row.papers),
        )
    console.print(table)
    console.print(
        "Parameters and forward FLOPs: more or fewer than the plain transformer's. Kept: numbers per token. Saved: "
        "bytes per token for the backward pass with saved states, and with states rebuilt from writes."
    )


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
