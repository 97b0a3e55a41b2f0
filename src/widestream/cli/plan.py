"""`widestream plan`: what a run would take on devices that are not here."""

import sys
from typing import Annotated, Any

import typer

from widestream.cli.as_json import Json, print_json


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (scale/rmt-7b).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many devices.")] = 8,
    device: Annotated[str, typer.Option(help="a100, h100, h200, b200, mi300x, or here: measured.")] = "h100",
    memory: Annotated[float | None, typer.Option(help="GB of a device, in place of its own.")] = None,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s of its matrix products, likewise.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="GB/s of its memory.")] = None,
    inside: Annotated[float | None, typer.Option(help="GB/s that it sends within its machine.")] = None,
    between: Annotated[float | None, typer.Option(help="GB/s that it sends to other machines.")] = None,
    per_machine: Annotated[int | None, typer.Option(min=1, help="Devices of a machine.")] = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak that matrix products reach.")] = 0.4,
    as_json: Json = False,
) -> None:
    """Memory by part, bytes sent, seconds a step on devices that are not here, and the layout to take."""
    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])

    from widestream.cli.plan_tables import print_plan
    from widestream.plan import advise, find_kind
    from widestream.plan.forecast import asked_for

    kind = find_kind(
        device,
        memory=_times(memory, 1e9),
        flops=_times(tflops, 1e12),
        bandwidth=_times(bandwidth, 1e9),
        inside=_times(inside, 1e9),
        between=_times(between, 1e9),
        per_machine=per_machine,
    )
    precision = "float32" if config.train.precision == "float32" else "bf16"

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    own = asked_for(config, devices, kind, precision, mfu)
    advised = advise(config, devices, kind, precision, mfu, say)
    if as_json:
        found: dict[str, Any] = {"recipe": config.name, "devices": devices, "device": kind, "precision": precision}
        print_json({**found, "as_set": own.to_dict(), "advised": [one.to_dict() for one in advised]})
    else:
        print_plan(config, kind, devices, own, advised)


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
