"""A plan as tables for the terminal."""

from rich.console import Console
from rich.table import Table

from widestream.plan import Device, Forecast
from widestream.recipe import RunConfig
from widestream.train.layout import Layout

GB = 1e9


def print_plan(config: RunConfig, device: Device, devices: int, own: Forecast, advised: list[Forecast]) -> None:
    """Print what the recipe takes as it is set, and every layout that fits.

    Args:
        config: the recipe.
        device: what each device is.
        devices: how many.
        own: as it is set.
        advised: `plan.advise` of it.
    """
    console = Console(highlight=False, width=120)
    plan = own.plan
    console.print(
        f"[bold]{config.name}[/bold] on {devices:,} x {device.name}: {plan.steps:,} steps of "
        f"{plan.tokens_per_step:,} tokens"
    )
    console.print(_memory(own))
    if own.sent:
        console.print(_sent(own))
    console.print(_times(own))
    if not advised:
        console.print(
            f"[bold]No layout fits[/bold] into {own.room / GB:.0f} GB a device ({device.memory / GB:.0f} GB less what "
            "training cannot use): take more devices, or shorter windows (data.sequence_length)."
        )
        return
    console.print(_layouts(advised))
    console.print(f"[bold]Take[/bold] {' '.join(settings(advised[0]))}")
    console.print(
        "Memory is counted, and what a step keeps measured without contents; seconds are estimates from printed rates, "
        "the lower one if all that is sent is sent while devices compute. Measure a few steps before you rely on them."
    )


def settings(one: Forecast) -> list[str]:
    """What sets a recipe to a layout."""
    layout = one.layout
    return [
        f"train.parallel.replicate={layout.replicate}",
        f"train.parallel.shard={layout.shard}",
        *(f"train.parallel.{name}={number}" for name, number in _within(layout)),
        f"train.micro_batch_size={one.plan.micro_batch_size}",
        f"train.activation_checkpointing={str(one.checkpointing).lower()}",
    ]


def _memory(one: Forecast) -> Table:
    table, memory = _table(f"GB a device, {_name(one)}", ""), one.memory
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "weights made whole": memory.whole,
        "kept for the backward pass": memory.kept,
        "more at a time": memory.working,
    }
    for name, size in rows.items():
        table.add_row(name, f"{size / GB:,.2f}")
    table.add_section()
    table.add_row("total", f"{memory.total / GB:,.2f}")
    table.add_row("room", f"{one.room / GB:,.2f}" + ("" if one.fits else "  it does not fit"))
    return table


def _sent(one: Forecast) -> Table:
    table = _table("GB sent a step and device", "", "link")
    for sent in one.sent:
        table.add_row(sent.what, f"{sent.bytes / GB:,.2f}", f"{sent.link} machines" if sent.link == "between" else
                      "inside a machine")  # fmt: skip
    return table


def _times(one: Forecast) -> Table:
    table, (least, most) = _table("seconds a step, about", ""), one.step_s
    table.add_row("matrix products", f"{one.computing_s:,.3f}")
    table.add_row("the stream's exchanges", f"{one.streaming_s:,.3f}")
    for link, seconds in one.sending_s.items():
        table.add_row("sending " + ("between machines" if link == "between" else "inside a machine"), f"{seconds:,.3f}")
    table.add_section()
    table.add_row("a step", f"{least:,.3f} to {most:,.3f}")
    table.add_row("the run, days", f"{one.plan.steps * least / 86400:,.2f} to {one.plan.steps * most / 86400:,.2f}")
    return table


def _layouts(advised: list[Forecast]) -> Table:
    table = _table("layouts that fit", "GB", "windows", "checkpointing", "GB sent", "seconds a step")
    for one in advised:
        least, most = one.step_s
        table.add_row(
            _name(one),
            f"{one.memory.total / GB:,.1f}",
            f"{one.plan.micro_batches} x {one.plan.micro_batch_size}",
            "yes" if one.checkpointing else "no",
            f"{sum(sent.bytes for sent in one.sent) / GB:,.1f}",
            f"{least:,.2f} to {most:,.2f}",
        )
    return table


def _name(one: Forecast) -> str:
    layout = one.layout
    within = "".join(f" x {name} {number}" for name, number in _within(layout))
    return f"replicate {layout.replicate} x shard {layout.shard}{within}"


def _within(layout: Layout) -> list[tuple[str, int]]:
    """How many read the same windows, by setting, where any do."""
    return [(name, number) for name in ("context", "tensor") if (number := getattr(layout, name)) > 1]


def _table(title: str, *columns: str) -> Table:
    table = Table(title, *columns, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
