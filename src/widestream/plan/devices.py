"""Devices by name, with what their makers print; any figure can be given instead."""

from dataclasses import dataclass, replace

import torch

from widestream.errors import UserError
from widestream.machine import choose_precision, find_device, matmul_peak, memory_total

HERE = "here"
"""The device of this machine, measured."""
USED = 0.92
"""Share of a device's memory that training can use; the rest is the driver's, the library's and what gets lost between
blocks."""
STREAMED = 0.7
"""Share of the printed bandwidth that a pass over memory reaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One of many equal ones."""

    name: str
    """What it is called."""
    memory: float
    """Bytes."""
    flops: float
    """FLOPs per second of its matrix products in bfloat16, at most."""
    bandwidth: float
    """Bytes per second of its memory."""
    inside: float
    """Bytes per second that a device sends to others of its machine."""
    between: float
    """Bytes per second that a device sends to other machines."""
    per_machine: int = 8
    """Devices of a machine."""
    gpu: bool = True
    """Or a CPU."""


DEVICES = {
    device.name: device
    for device in (
        Device(name="a100", memory=80e9, flops=312e12, bandwidth=2.0e12, inside=300e9, between=25e9),
        Device(name="h100", memory=80e9, flops=989e12, bandwidth=3.35e12, inside=450e9, between=50e9),
        Device(name="h200", memory=141e9, flops=989e12, bandwidth=4.8e12, inside=450e9, between=50e9),
        Device(name="b200", memory=180e9, flops=2250e12, bandwidth=8.0e12, inside=900e9, between=50e9),
        Device(name="mi300x", memory=192e9, flops=1307e12, bandwidth=5.3e12, inside=448e9, between=50e9),
    )
}
"""Printed figures: dense bfloat16, links in one direction, and one network card of 200 (A100) or 400 Gbit/s a device.
What a machine reaches is less: see `Forecast`."""


def find_kind(name: str, **given: float | None) -> Device:
    """A device by name.

    Args:
        name: one of `DEVICES`, or `here`: memory and matrix products of this machine, measured; links are those of an
            H100's machine unless they are given.
        given: figures in place of its own, by the names of its fields.

    Raises:
        UserError: there is none of this name, or a figure is not above 0.
    """
    if name == HERE:
        device = _measured()
    elif name in DEVICES:
        device = DEVICES[name]
    else:
        raise UserError(f"There is no device {name}; give {', '.join([*DEVICES, HERE])}.")
    for field, value in given.items():
        if value is not None and not value > 0:
            raise UserError(f"A device's {field.replace('_', '-')} is above 0, not {value:g}.")
    return replace(device, **{field: value for field, value in given.items() if value is not None})


def _measured() -> Device:
    place = find_device("auto")
    flops = matmul_peak(place, choose_precision("auto", place))
    number = torch.cuda.device_count() if place.type == "cuda" else 1
    room = float(memory_total(place))
    return replace(DEVICES["h100"], name=HERE, memory=room, flops=flops, per_machine=number, gpu=place.type == "cuda")
