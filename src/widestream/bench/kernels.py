"""Time the exchange as one operation against the bandwidth of a copy: every implementation that runs here.

Letters: N tokens, V value axis D_v, K key axis D_k, R data vectors written, Q data vectors read.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from widestream.bench.paired import Seconds, Turn, medians, take_turns
from widestream.bench.plots import Panel, lines
from widestream.bench.record import Outputs, make_record, require_counts
from widestream.errors import UserError, unknown_name
from widestream.kernels import exchange_cpu, exchange_triton
from widestream.kernels.exchange import Exchange, ReferenceExchange, Site
from widestream.kernels.exchange_cpu import CpuExchange
from widestream.kernels.exchange_triton import TritonExchange
from widestream.machine import DTYPES, find_device

IMPLEMENTATIONS: dict[str, tuple[type[Exchange], Callable[[torch.device], str | None]]] = {
    "reference": (ReferenceExchange, lambda device: None),
    "cpu": (CpuExchange, exchange_cpu.available),
    "triton": (TritonExchange, exchange_triton.available),
}
"""Implementations, each with a function that says why it cannot run on a device, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSettings:
    """What is timed."""

    kernels: tuple[str, ...] = tuple(IMPLEMENTATIONS)
    """Names of implementations."""
    key_dims: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """[K]."""
    num_tokens: int = 1024
    """[N]."""
    value_dim: int = 64
    """[V]."""
    num_heads: int = 12
    """[R]; three times as many are read, as in front of attention."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """In front of the read."""
    state_precision: str = "float32"
    """float32 or bf16."""
    rounds: int = 15
    """Timed rounds."""
    warmup: int = 3
    """Rounds before."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""

    def __post_init__(self):
        for name in self.kernels:
            if name not in IMPLEMENTATIONS:
                raise unknown_name(f"kernel {name!r}", name, IMPLEMENTATIONS)
        require_counts(self, key_dims=1, num_tokens=1, value_dim=1, num_heads=1, rounds=1, warmup=0)


def bench_kernels(settings: KernelSettings, outputs: Outputs) -> dict[str, Any]:
    """Time forward and backward of every implementation at every D_k, write what is asked for, and return the record.

    `seconds`, `medians` and `of_copy` are by D_k, then by `NAME forward`, `NAME backward` and `copy`. `of_copy` is the
    share of the measured copy bandwidth that the operation's unavoidable traffic reaches: state, data and output read
    or written once forward; state and its gradient read and written once backward. `unavailable` says what was left
    out, and why.

    Raises:
        UserError: settings that cannot be used, nothing that runs here, or nowhere to write.
    """
    outputs.check()
    device = find_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    implementations, unavailable = find_implementations(settings.kernels, device)
    if not implementations:
        raise UserError("No kernel that was named runs here: " + " ".join(unavailable.values()))
    seconds: dict[str, Seconds] = {}
    moved: dict[str, dict[str, int]] = {}
    for key_dim in settings.key_dims:
        moved[str(key_dim)], turns = _turns(implementations, settings, key_dim, device)
        seconds[str(key_dim)] = take_turns(turns, settings.rounds, settings.warmup, device)
    record = make_record(
        "kernels", settings, device,
        unavailable=unavailable,
        seconds=seconds,
        medians={key_dim: medians(group) for key_dim, group in seconds.items()},
        bytes_moved=moved,
        of_copy={key_dim: _of_copy(group, moved[key_dim]) for key_dim, group in seconds.items()},
    )  # fmt: skip
    outputs.write(record, _panels(record))
    return record


def find_implementations(names: tuple[str, ...], device: torch.device) -> tuple[dict[str, Exchange], dict[str, str]]:
    """Those that run on `device`, and why the others do not, by name."""
    reasons = {name: IMPLEMENTATIONS[name][1](device) for name in names}
    unavailable = {name: reason for name, reason in reasons.items() if reason is not None}
    return {name: IMPLEMENTATIONS[name][0]() for name in names if name not in unavailable}, unavailable


def _turns(
    implementations: dict[str, Exchange], settings: KernelSettings, key_dim: int, device: torch.device
) -> tuple[dict[str, int], dict[str, Turn]]:
    """Bytes that each operation has to move, and the operations, with a copy of a state among them."""
    N, V, R = settings.num_tokens, settings.value_dim, settings.num_heads
    generator = torch.Generator().manual_seed(key_dim)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    w, r, gain = draw(key_dim, R) * key_dim**-0.5, draw(3 * R, key_dim) * key_dim**-0.5, 1 + 0.1 * draw(V, key_dim)
    site = Site(w, r, gain, settings.norm, 1e-6)
    state = draw(N, V, key_dim).to(DTYPES[settings.state_precision])
    data, out, grad_out = draw(N, V, R), draw(N, V, 3 * R), draw(N, V, 3 * R)
    grad_state, grad_data = torch.zeros(N, V, key_dim, device=device), torch.empty(N, V, R, device=device)
    copied = torch.empty_like(state)
    turns: dict[str, Turn] = {"copy": lambda _: partial(copied.copy_, state)}
    moved = {"copy": 2 * state.nbytes}
    for name, exchange in implementations.items():
        # In every round, a backward takes back what a forward has written: the state stays what it was.
        forward = partial(exchange.forward_, state, data, site, out)
        backward = partial(exchange.backward_, state, grad_state, data, site, grad_out, grad_data)
        turns[f"{name} forward"] = _after(None, forward)
        turns[f"{name} backward"] = _after(grad_state.zero_, backward)
        moved[f"{name} forward"] = 2 * state.nbytes + data.nbytes + out.nbytes
        moved[f"{name} backward"] = 2 * (state.nbytes + grad_state.nbytes) + 2 * data.nbytes + grad_out.nbytes
    return moved, turns


def _after(before: Callable[[], Any] | None, run: Callable[[], Any]) -> Turn:
    def ready(_: int) -> Callable[[], Any]:
        if before is not None:
            before()
        return run

    return ready


def _of_copy(seconds: Seconds, moved: dict[str, int]) -> dict[str, float]:
    """Bandwidth relative to the copy's in the same round; median."""
    return {
        name: statistics.median(
            (moved[name] / own) / (moved["copy"] / copy) for own, copy in zip(values, seconds["copy"], strict=True)
        )
        for name, values in seconds.items()
        if name != "copy"
    }


def _panels(record: dict[str, Any]) -> list[Panel]:
    panels: list[Panel] = []
    for direction in ("forward", "backward"):
        curves: dict[str, list[tuple[float, float]]] = {}
        for key_dim, shares in record["of_copy"].items():
            for name, share in shares.items():
                if name.endswith(f" {direction}"):
                    curves.setdefault(name.removesuffix(f" {direction}"), []).append((int(key_dim), 100 * share))
        label = f"{direction}: % of the measured copy bandwidth"
        panels += lines(f"Exchange {label}", label, {name: sorted(line) for name, line in curves.items()})
    return panels
