"""Time one exchange of a matrix stream on a CPU: the compiled kernel beside the reference in torch operations.

    python benchmarks/exchange.py --key-dims 16 32 64 128 256 512 --threads 1 2

Two kinds of site: in front of attention (rows in, 3 R heads out) and in front of an MLP (R heads in, rows out).
Implementations take turns. Reported are the shortest times, which a busy machine disturbs least, and with one thread
its processor time, which does not count the time that others had the processor. Then the products'
GFLOP/s, nominal; and the bytes that must be moved (state, its gradient and data vectors, each read or written once per
pass) per second, beside the bandwidth of a plain copy of the same state with as many threads. `step` sums a model's
exchanges, forward and backward: one at each of its L attention blocks, one at each of its L MLPs and the head's.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from widestream.kernels.exchange import Exchange, ReferenceExchange, Site
from widestream.kernels.exchange_cpu import CpuExchange
from widestream.machine import describe_machine

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# States taken in turn, so that a cache does not hold what a model's next exchange would find in memory.
STATES = 4
Figures = dict[str, float]


def clock_of_threads() -> Callable[[], float]:
    """Processor time where this thread does everything, else the wall's."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


class Case:
    """Tensors of one kind of site."""

    def __init__(self, args: argparse.Namespace, key_dim: int, attention: bool, dtype: torch.dtype):
        N, V, K, R = args.tokens, args.value_dim, key_dim, args.rank
        Q = 3 * R if attention else R
        state_dtype = DTYPES[args.state]
        self.site = Site(torch.randn(K, R) * 0.1, torch.randn(Q, K), torch.ones(V, K), "layernorm", 1e-6)
        self.states = [torch.randn(N, V, K).to(state_dtype) for _ in range(STATES)]
        self.grads = [torch.randn(N, V, K) for _ in range(STATES)]
        rows, heads = torch.randn(N, V, R, dtype=dtype), torch.randn(N, R, V, dtype=dtype).mT
        self.data, self.out = (rows, torch.randn(N, Q, V, dtype=dtype).mT) if attention else (heads, rows.clone())
        self.grad_data = torch.empty_like(self.data)
        state, vectors = self.states[0].nbytes, self.data.nbytes + self.out.nbytes
        self.bytes = 2 * state + vectors, 2 * state + 2 * self.grads[0].nbytes + vectors + self.data.nbytes
        self.flops = 2 * N * V * K * (R + Q), 2 * N * V * K * (3 * R + 2 * Q)

    def time(self, exchange: Exchange, round_: int) -> tuple[float, float]:
        """Seconds of a forward and a backward pass."""
        clock = clock_of_threads()
        state, grad = self.states[round_ % STATES], self.grads[round_ % STATES]
        begin = clock()
        exchange.forward_(state, self.data, self.site, self.out)
        middle = clock()
        exchange.backward_(state, grad, self.data, self.site, self.out, self.grad_data)
        return middle - begin, clock() - middle


def copy_bandwidth(case: Case, rounds: int) -> float:
    """GB/s, read and written, of copying a gradient onto another."""
    seconds, clock = [], clock_of_threads()
    for round_ in range(rounds):
        begin = clock()
        case.grads[round_ % STATES].copy_(case.grads[(round_ + 1) % STATES])
        seconds.append(clock() - begin)
    return 2 * case.grads[0].nbytes / min(seconds) / 1e9


def measure(case: Case, exchanges: dict[str, Exchange], rounds: int) -> dict[str, Figures]:
    """Figures of every implementation."""
    best = {name: (float("inf"), float("inf")) for name in exchanges}
    for round_ in range(rounds):
        for name, exchange in exchanges.items():
            forward, backward = case.time(exchange, round_)
            best[name] = min(best[name][0], forward), min(best[name][1], backward)
    figures: dict[str, Figures] = {}
    for name, seconds in best.items():
        figures[name] = own = {}
        for at, half in enumerate(("forward", "backward")):
            own[f"{half}_ms"] = seconds[at] * 1e3
            own[f"{half}_gflops"] = case.flops[at] / seconds[at] / 1e9
            own[f"{half}_gb_per_s"] = case.bytes[at] / seconds[at] / 1e9
    return figures


def rows_of(args: argparse.Namespace, threads: int, dtype: str, key_dim: int) -> list[dict[str, Any]]:
    """Measure and print one size: a row for each kind of site and implementation."""
    torch.set_num_threads(threads)
    exchanges: dict[str, Exchange] = {"compiled": CpuExchange(), "reference": ReferenceExchange()}
    rows, step_ms = [], dict.fromkeys(exchanges, 0.0)
    for reader in ("attention", "mlp"):
        case = Case(args, key_dim, reader == "attention", DTYPES[dtype])
        copy = copy_bandwidth(case, args.rounds)
        sites = args.layers if reader == "attention" else args.layers + 1
        for name, own in measure(case, exchanges, args.rounds).items():
            step_ms[name] += sites * (own["forward_ms"] + own["backward_ms"])
            setting = {"threads": threads, "data": dtype, "key_dim": key_dim, "reader": reader, "kernel": name}
            rows.append({**setting, "copy_gb_per_s": copy, **own})
            halves = "   ".join(
                f"{own[f'{half}_ms']:8.2f} {own[f'{half}_gflops']:6.0f} {own[f'{half}_gb_per_s']:6.1f}"
                for half in ("forward", "backward")
            )
            print(f"{threads:7d} {dtype:8s} {key_dim:4d} {reader:9s} {name:10s} {halves}   {copy:6.1f}", flush=True)
    print(" " * 27 + "step   " + "   ".join(f"{name} {ms / 1e3:.3f} s" for name, ms in step_ms.items()), flush=True)
    return rows


def main() -> None:
    """Time, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"tokens": 1024, "value-dim": 64, "rank": 12, "layers": 12, "rounds": 15}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--key-dims", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--data", choices=[*DTYPES], nargs="+", default=[*DTYPES], help="type of data vectors")
    parser.add_argument("--state", choices=[*DTYPES], default="float32", help="type of the state (default float32)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    print(f"{'threads':7s} {'data':8s} {'D_k':>4s} {'reader':9s} {'kernel':10s} ", end="")
    print("   ".join(f"{half:>8s} {'GF/s':>6s} {'GB/s':>6s}" for half in ("forward", "backward")) + "   copy GB/s")
    rows = [
        row
        for threads in args.threads
        for dtype in args.data
        for key_dim in args.key_dims
        for row in rows_of(args, threads, dtype, key_dim)
    ]
    if args.json:
        record = {
            "setting": {key: value for key, value in vars(args).items() if key != "json"},
            "machine": describe_machine(torch.device("cpu")),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
