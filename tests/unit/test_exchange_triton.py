"""The exchange in Triton: parity by Triton's interpreter, that the kernels compile for a GPU, and where they run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from widestream.kernels import exchange_triton

CASES = Path(__file__).with_name("exchange_triton_cases.py")


@pytest.mark.slow
def test_parity() -> None:
    """On a GPU where there is one, else interpreted."""
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("K", [16, 48])
@pytest.mark.parametrize("dot", ["ieee", "bf16"])
def test_kernels_compile_for_an_h100(K: int, dot: str) -> None:
    """The interpreter takes what the compiler refuses, so the compiler is asked too; it needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from widestream.kernels import exchange_triton_kernels as kernels

    vectors = "*bf16" if dot == "bf16" else "*fp32"
    types = {"data": vectors, "out": vectors, "grad_out": vectors, "grad_data": vectors, "eps": "fp32"}
    types |= dict.fromkeys(("tokens", "block_d"), "i32")
    types |= {f"{name}_{axis}": "i32" for name in ("data", "out", "grad", "grad_data") for axis in "nvrq"}
    fixed = {"V": 24, "K": K, "R": 3, "Q": 9, "BV": 32, "BK": 16, "BR": 16, "BQ": 16}
    fixed |= {"BLOCKS": K // 16, "WRITES": True, "STORES": True, "UNDOES": True}
    fixed |= {"GAIN": "full", "CENTRED": True, "DOT": dot}
    for kernel in (kernels.forward_kernel, kernels.statistics_kernel, kernels.backward_kernel):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in fixed else types.get(name, "*fp32") for name in names}
        constants = {(names.index(name),): value for name, value in fixed.items() if name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 1})
        assert ("mma" in compiled.asm["ptx"]) == (dot == "bf16")


def test_without_triton_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in (exchange_triton.available(torch.device("cuda")) or "")


def test_another_device_is_refused() -> None:
    assert "CUDA" in (exchange_triton.available(torch.device("cpu")) or "")
