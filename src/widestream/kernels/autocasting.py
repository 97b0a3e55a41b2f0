"""Autocast as layers ask for it: on any device, `meta` too, of which torch's own functions know nothing."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts to at present; None: it is off, or the device has none (meta)."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
