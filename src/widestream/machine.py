"""The machine a run computes on: what it is, how fast it multiplies matrices, and how it is set up for one run."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from widestream.errors import UserError
from widestream.recipe.train import TrainConfig

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

BF16_GAIN = 1.2
"""On a CPU, bf16 has to multiply so much faster than float32 to be chosen: casting the weights takes time too."""


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt, from glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, for its next step, instead of giving it back to the system.

    A step frees and asks again for gigabytes. Where the system hands them out as new pages each time, it clears every
    one of them first: on a CPU, 0.4 of 4.5 processor seconds of a step at GPT-2 small's sizes. The process grows to
    what a step needs at its peak and stays there. Allocations of a GPU are not affected.

    Returns:
        Whether this machine's C library can be told so (glibc can); where not, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # However large, no block gets pages of its own, and the end of the heap is never given back.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Turn the name of a device into one that exists.

    Args:
        name: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
        local_rank: number of this process on its machine, which chooses the GPU; None when there is one process.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device={name} is not a device; use auto, cpu, cuda or cuda:NUMBER.") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UserError(f"train.device={name} is not supported; use auto, cpu, cuda or cuda:NUMBER.")
    index = (device.index or 0) if local_rank is None else local_rank
    if index >= torch.cuda.device_count():
        raise UserError(
            f"train.device={name} needs GPU number {index} but {torch.cuda.device_count()} can be seen; "
            "use train.device=cpu."
        )
    return torch.device("cuda", index)


@contextlib.contextmanager
def numerics(train: TrainConfig) -> Iterator[None]:
    """Set threads and determinism as a run asks for, and put back afterwards what was there before."""
    threads = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()  # 0 off, 1 warn, 2 error
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a process first uses the GPU
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
        memory.fill_uninitialized_memory = fill


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context a forward pass runs in: bfloat16 where that is safe for `bf16`, nothing special for `float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(asked: str, device: torch.device) -> str:
    """Turn `auto` into `bf16` on a GPU, and on a CPU that is measured to multiply it faster; else into `float32`."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # By processor time: beside other work a clock on the wall may find either precision faster, from run to run.
    rates = {name: matmul_peak(device, name, seconds=0.1, clock=time.process_time) for name in DTYPES}
    return "bf16" if rates["bf16"] > BF16_GAIN * rates["float32"] else "float32"


def matmul_peak(
    device: torch.device, precision: str, seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the fastest square matrix product.

    Args:
        device: where.
        precision: `float32` or `bf16`.
        seconds: how long to try.
        clock: measures time; on a CPU processor time too.

    Returns:
        FLOPs per second of one process at the current number of threads: the peak against which MFU is given.
    """
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best = float("inf")
    end = clock() + seconds
    while best == float("inf") or clock() < end:
        synchronize(device)
        start = clock()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best


def memory_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated by torch on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    known = _proc("self/status", "VmHWM")  # getrusage may count the memory of the process that started this one
    if known is not None:
        return int(known.split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_total(device: torch.device) -> int:
    """Bytes that a device can hold: a GPU's memory; or the machine's with its swap, or what a container may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    swap = _proc("meminfo", "SwapTotal")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + int((swap or "0").split()[0]) * 1024]
    with contextlib.suppress(OSError, ValueError):  # no such file, or the word `max`
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


_NO_MEMORY = (
    *("can't allocate memory", "not enough memory"),
    *("Storage size calculation overflowed", "integer multiplication overflow"),
)
"""What torch's errors say where memory is lacking, or where sizes are beyond any memory."""


@contextlib.contextmanager
def memory_errors(what: str, advice: str) -> Iterator[None]:
    """Turn memory that cannot be had into a `UserError`.

    Args:
        what: takes the memory, as the sentence begins.
        advice: what to make smaller, as the sentence ends.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        named = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not named and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise UserError(f"{what} needs more memory than there is; {advice}.") from error


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What run.json says of the machine."""
    return {
        "cpu": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _proc(file: str, key: str) -> str | None:
    """What a file of /proc says behind a key, where there is one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", file).read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return None


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
