import platform
import subprocess
import sys
import time

import pytest
import torch

from widestream import machine
from widestream.errors import UserError
from widestream.machine import find_device
from widestream.recipe.train import TrainConfig

CPU = torch.device("cpu")


def test_numerics_are_set_for_a_run_and_put_back_after_it():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with machine.numerics(TrainConfig(threads=2)):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    with machine.numerics(TrainConfig(deterministic=False)):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("bf16", "chosen"), [(3e11, "bf16"), (1.1e11, "float32"), (1e9, "float32")])
def test_automatic_precision_on_a_cpu_is_what_was_measured_to_be_faster(monkeypatch, bf16, chosen):
    rates = {"float32": 1e11, "bf16": bf16}
    monkeypatch.setattr(machine, "matmul_peak", lambda device, precision, **_: rates[precision])
    assert machine.choose_precision("auto", CPU) == chosen
    assert machine.choose_precision("float32", CPU) == "float32"


def test_automatic_precision_does_not_depend_on_what_else_computes(monkeypatch):
    """The clock on the wall stands still for one precision and runs away for the other; processor time does neither."""
    chosen, product, wall = machine.choose_precision("auto", CPU), torch.mm, [0.0]
    slow = torch.float32 if chosen == "float32" else torch.bfloat16

    def mm(a, b):
        wall[0] += 100.0 if a.dtype == slow else 1e-3
        return product(a, b)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(time, "perf_counter", lambda: wall[0])
    assert machine.choose_precision("auto", CPU) == chosen


def test_matmul_peak_is_at_least_the_rate_of_a_small_product():
    peak = max(machine.matmul_peak(CPU, "float32", seconds=0.2) for _ in range(3))  # others may compute here too
    a = torch.randn(64, 64)
    start = time.perf_counter()
    for _ in range(20_000):  # as long as each of the others
        torch.mm(a, a)
    assert peak > 20_000 * 2 * 64**3 / (time.perf_counter() - start)


def test_memory_counts_what_was_allocated():
    before = machine.memory_bytes(CPU)
    held = torch.ones(before // 4)  # as many bytes as the process has had so far
    assert machine.memory_bytes(CPU) > before + held.nbytes / 3


@pytest.mark.parametrize(
    ("name", "reason"), [("gpu", "is not a device"), ("meta", "is not supported"), ("cuda:99", "99")]
)
def test_devices_that_do_not_exist_are_refused(name, reason):
    with pytest.raises(UserError, match=reason):
        find_device(name)
    assert find_device("cpu") == CPU


KEEPS = """
import resource, torch
from widestream import machine
kept = machine.keep_freed_memory()
pages = []
for _ in range(20):  # small blocks that come to lie in between move the large one at first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20 // 4)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, pages[0], min(pages[1:]))
"""


def test_freed_memory_is_used_again_without_new_pages():
    """In a process of its own, as the setting stays. glibc itself maps and unmaps blocks above 32 MiB every time."""
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True)
    kept, first, later = done.stdout.split()
    assert (kept == "True") == (platform.libc_ver()[0] == "glibc")
    if kept == "True":
        assert int(later) < int(first) / 100, (first, later)
