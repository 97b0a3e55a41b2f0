"""What the exchange kernels in Triton cost by their compiled code, for an H100 that need not be there.

    python lab/triton_static.py

`TritonExchange` is called and its launches caught, so what is compiled is what a GPU would be given (ptxas comes with
Triton). Counted, not measured: instructions, shared memory and what waits are there for in the loop over tokens.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from widestream.kernels import exchange_triton, exchange_triton_kernels
from widestream.testing.kernels import Case, draw

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
KERNELS = ("forward_kernel", "statistics_kernel", "backward_kernel")
WIDE, SHARED = {"128": 4, "64": 2}, ("LDS", "STS", "LDSM", "STSM", "SHFL", "LDGSTS")
BYTES_PER_CYCLE = 3.0e12 / 132 / 1.755e9
"""Of a copy, per multiprocessor, as an H100 is expected to reach."""
SHAPES = ((64, 64, 16), (64, 48, 14), (64, 32, 12), (32, 32, 12))
"""V, K, R of the paper's models."""


def make_case(V: int, K: int, R: int, roles: int, state: torch.dtype, vectors: torch.dtype = torch.bfloat16) -> Case:
    """8,192 tokens, as many as a step has; the state's gradient as the state."""
    tokens = 8192 if V * K <= 4096 else 1024
    return Case(tokens, V, K, R, roles, heads_first=roles == 3, state=state, gradient=state, vectors=vectors)


def launches(case: Case) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Kernel, arguments and keywords of what a forward and a backward pass start."""
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Caught:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *values, **options: found.append((self.name, values, options))

    kernels = SimpleNamespace(**{name: Caught(name) for name in KERNELS})
    on_gpu = lambda self, exact: "bf16" if torch.bfloat16 in self.dtypes else exact  # noqa: E731
    with (
        patch.object(exchange_triton, "_kernels", lambda: kernels),
        patch.object(exchange_triton._Shape, "dot", on_gpu),
    ):
        x, exchange = draw(case, torch.device("cpu")), exchange_triton.TritonExchange()
        exchange.forward_(x.state, x.data, x.site, x.out)
        exchange.backward_(x.state, x.grad_state, x.data, x.site, x.grad_out, x.grad_data)
    return found


def build(kernel: Any, values: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Compile as Triton's launcher would specialise: aligned pointers, ones and multiples of 16 known."""
    given = dict(zip(kernel.arg_names, values, strict=False)) | {k: v for k, v in options.items() if k not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for at, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value, known = given[name], not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (known and type(value) is int and value == 1):
            signature[name], constants[(at,)] = "constexpr", value
            continue
        pointer = isinstance(value, torch.Tensor)
        signature[name] = NAMES[value.dtype] if pointer else "i32" if type(value) is int else "fp32"
        if pointer or (known and type(value) is int and value % 16 == 0):
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: options[name] for name in OPTIONS if name in options}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def token_loop(compiled: Any) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Instructions of the longest loop (operation, operands), and the kernel's REG and STACK."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text, use = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", text)
    code = [(int(at, 16), name, rest) for at, name, rest in found]
    jumps = [(int(rest.split("0x")[1], 16), at) for at, name, rest in code if name == "BRA" and "0x" in rest]
    first, last = max(jumps, key=lambda jump: jump[1] - jump[0])  # backwards, the farthest
    registers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", use)}
    return [(name, rest) for at, name, rest in code if first <= at <= last], registers


def count(compiled: Any, warps: int) -> dict[str, int]:
    """Per token unless it says else; cycles are of a multiprocessor that does nothing else."""
    code, use = token_loop(compiled)
    kinds = Counter(name.split(".")[0] for name, _ in code)
    shared = sum(
        next((waves for width, waves in WIDE.items() if f".{width}" in name), 4 if "SM." in name else 1)
        for name, _ in code
        if name.split(".")[0] in SHARED
    )
    registers, memory = -(-use["REG"] // 8) * 8, compiled.metadata.shared
    return {
        "registers": use["REG"], "stack": use["STACK"], "local": kinds["LDL"] + kinds["STL"], "shared": memory,
        "at a time": min(65536 // (registers * 32 * warps), 227 * 1024 // (memory + 1024), 64 // warps),
        "instructions": len(code), "barriers": kinds["BAR"], "tensor core": kinds["HGMMA"] + kinds["HMMA"],
        "issue": len(code) * warps // 4, "shared cycles": shared * warps,
    }  # fmt: skip


def least_cycles(name: str, case: Case) -> int:
    """Of a copy of what has to move."""
    state, vector = case.V * case.K * case.state.itemsize, case.V * case.vectors.itemsize
    forward = 2 * state + vector * case.R * (case.roles + 1)
    backward = 2 * (state + case.V * case.K * case.gradient.itemsize) + vector * case.R * (case.roles + 2)
    return round((forward if name == "forward_kernel" else backward) / BYTES_PER_CYCLE)


def rows() -> Iterator[dict[str, Any]]:
    """Every shape of the paper, precision of the state and reader; whole tiles need no statistics beforehand."""
    for V, K, R in SHAPES:
        for state in (torch.float32, torch.bfloat16):
            for roles in (3, 1):
                case = make_case(V, K, R, roles, state)
                for name, values, options in launches(case):
                    compiled = build(getattr(exchange_triton_kernels, name), values, options)
                    yield {
                        "kernel": name.removesuffix("_kernel"), "V": V, "K": K, "Q": roles * R, "state": str(state)[6:],
                        **count(compiled, options["num_warps"]), "copy": least_cycles(name, case),
                    }  # fmt: skip


def main() -> None:
    """Print the table."""
    for number, row in enumerate(rows()):
        if number == 0:
            print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
