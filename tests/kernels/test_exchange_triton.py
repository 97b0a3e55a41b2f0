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
STATIC = Path(__file__).parents[2] / "lab" / "triton_static.py"
# V, K, R of the paper's models, roles, state: GPT2-medium's in every way, the others in one each.
SHAPES = [(64, 64, 16, roles, state) for roles in (1, 3) for state in (torch.float32, torch.bfloat16)]
SHAPES += [(64, 48, 14, 3, torch.bfloat16), (64, 32, 12, 1, torch.float32), (32, 32, 12, 3, torch.bfloat16)]


@pytest.mark.slow
def test_parity() -> None:
    """On a GPU where there is one, else interpreted."""
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("K", [16, 48])
@pytest.mark.parametrize(("dot", "norm"), [("ieee", "layernorm"), ("bf16", "layernorm"), ("bf16", "none")])
def test_kernels_compile_for_an_h100(K: int, dot: str, norm: str) -> None:
    """The interpreter takes what the compiler refuses, so the compiler is asked too; it needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from widestream.kernels import exchange_triton_kernels as kernels

    vectors = "*bf16" if dot == "bf16" else "*fp32"
    types = {"data": vectors, "out": vectors, "grad_out": vectors, "grad_data": vectors, "eps": "fp32"}
    types |= dict.fromkeys(("tokens", "block_d"), "i32")
    types |= {f"{name}_n": "i32" for name in ("data", "out", "grad", "grad_data")}
    fixed = {"V": 24, "K": K, "R": 3, "Q": 9, "BV": 32, "BK": 16, "BR": 16, "BQ": 16}
    fixed |= {"BLOCKS": K // 16, "WRITES": True, "STORES": True, "UNDOES": True}
    fixed |= {"GAIN": "full", "NORM": norm, "DOT": dot, "SUMS": (24 + 9 + 3) * K}
    fixed |= {"data_v": 3, "data_r": 1, "out_v": 1, "out_q": 24, "grad_v": 1, "grad_q": 24}
    fixed |= {"grad_data_v": 3, "grad_data_r": 1}
    for kernel in (kernels.forward_kernel, kernels.statistics_kernel, kernels.backward_kernel):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in fixed else types.get(name, "*fp32") for name in names}
        constants = {(names.index(name),): value for name, value in fixed.items() if name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 1})
        assert ("mma" in compiled.asm["ptx"]) == (dot == "bf16")


@pytest.mark.parametrize(("V", "K", "R", "roles", "state"), SHAPES)
def test_default_launches_fit_an_h100(V: int, K: int, R: int, roles: int, state: torch.dtype) -> None:
    """Registers and shared memory hold as many programs at a time as are launched, and a token's work stays in them."""
    spec = importlib.util.spec_from_file_location("triton_static", STATIC)
    assert spec is not None
    assert spec.loader is not None
    static = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(static)
    from widestream.kernels import exchange_triton_kernels as kernels

    case, tuning = static.make_case(V, K, R, roles, state), exchange_triton.Tuning()
    for name, values, options in static.launches(case):
        found = static.count(static.build(getattr(kernels, name), values, options), options["num_warps"])
        launch = tuning.forward if name == "forward_kernel" else tuning.backward
        assert found["at a time"] >= launch.at_a_time(options["BV"] * options["BK"]), (name, found)
        assert found["local"] <= found["instructions"] // 40, (name, found)
        assert found["tensor core"] > 0, (name, found)


def test_without_triton_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in (exchange_triton.available(torch.device("cuda")) or "")


def test_another_device_is_refused() -> None:
    assert "CUDA" in (exchange_triton.available(torch.device("cpu")) or "")
