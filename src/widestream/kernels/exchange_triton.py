"""The exchange of `exchange.py` on a GPU: one pass over the state, by the kernels of `exchange_triton_kernels`.

What a pass moves per token, with S the bytes of a token's state: forward 2 S (read, write), backward 4 S (state and its
gradient, each read and written); a tile too large for registers is read once more in both. Triton is imported at the
first use, so this module loads without it.

Products are exact in float32 (never TF32) where data vectors and state are float32, and take bfloat16 operands with
float32 sums where either is bfloat16.
"""

import importlib.util
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from widestream.kernels.exchange import Exchange, Site, SiteGradients

INTERPRETER_PROGRAMS = 2
"""Programs of a launch in Triton's interpreter, one after the other; several, so that sums are tested."""


REGISTERS = 65536
"""Of 4 bytes, of a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel runs, beside what it computes."""

    cells: int
    """Largest tile held in registers, padded; beyond it K is cut into blocks."""
    cells_per_warp: int
    """Warps are as many as a tile needs at so many cells each; between 4 and 16."""
    programs: int
    """Programs per multiprocessor for tiles of 4096 cells; for smaller ones more. The compiler gets registers for so
    many to run at a time: while some wait for memory, others compute."""
    stages: int
    """Depth of software pipelining of loads: 1 is none, 3 asks for the next token's (2 only as this one's is done)."""

    def at_a_time(self, cells: int) -> int:
        """Programs per multiprocessor. Registers grow slower than tiles, and hardly shrink with small ones."""
        return max(1, round(self.programs * (4096 / max(2048, cells)) ** 0.5))


@dataclass(frozen=True, slots=True)
class Tuning:
    """Launches of both passes, and the operands of float32 products."""

    forward: Launch = Launch(cells=8192, cells_per_warp=2048, programs=3, stages=1)
    backward: Launch = Launch(cells=4096, cells_per_warp=1024, programs=2, stages=1)
    float32_dot: str = "ieee"
    """`tl.dot`'s input_precision where everything is float32."""


def available(device: torch.device) -> str | None:
    """None if the kernels run on `device`, else one sentence that says why not."""
    if importlib.util.find_spec("triton") is None:
        return "Fused exchange kernels for a GPU need the package triton: pip install triton."
    if device.type != "cuda" and not _interpreted():
        return f"Fused Triton kernels need a CUDA device (this is {device.type}), or TRITON_INTERPRET=1 to try them."
    return None


class TritonExchange(Exchange):
    """See `Exchange`.

    Args:
        tuning: launch sizes; the default was chosen by counting in compiled code, not by measurement.
    """

    def __init__(self, tuning: Tuning | None = None):
        self.tuning = tuning or Tuning()

    def forward_(self, state, data, site, out, source=None):
        """See `Exchange`."""
        shape = _Shape(state, data, site, out)
        _require_twin(source, state)
        programs, sizes, options = shape.launch(self.tuning.forward)
        with _on(state.device):
            _kernels().forward_kernel[(programs,)](
                state if source is None else source, state, data if shape.writes else None, *shape.keys(), out,
                shape.tokens, site.eps, *shape.data_strides, *out.stride(),
                R=shape.R, BR=_padded(shape.R), WRITES=shape.writes, STORES=shape.writes or source is not None,
                **sizes, **self._common(shape), **options,
            )  # fmt: skip

    def backward_(self, state, grad_state, data, site, grad_out, grad_data, grad_after=None):
        """See `Exchange`."""
        _require_twin(grad_after, grad_state)
        assert grad_state.dtype in (torch.float32, torch.bfloat16), grad_state.dtype
        assert grad_state.is_contiguous()
        shape = _Shape(state, data, site, grad_out)
        programs, sizes, options = shape.launch(self.tuning.backward)
        blocks = sizes["BLOCKS"]
        common = self._common(shape)
        write_keys, read_keys, gain = shape.keys()
        sizes_of_sums = [x.numel() for x in (read_keys, write_keys, gain) if x is not None]
        sums = _empty(state, programs, sum(sizes_of_sums))
        statistics = _empty(state, shape.tokens, 4) if blocks > 1 else None
        parts = grad_data
        if grad_data is not None and blocks > 1:
            parts = _empty(state, blocks, *grad_data.shape)
        strides = (0, 0, 0) if parts is None else parts.stride()[-3:]
        with _on(state.device):
            if blocks > 1:
                _kernels().statistics_kernel[(programs,)](
                    state, read_keys, gain, grad_out, statistics, shape.tokens, site.eps, *grad_out.stride(),
                    **sizes, **common, **options,
                )  # fmt: skip
            _kernels().backward_kernel[(programs, blocks)](
                state, grad_state if grad_after is None else grad_after, grad_state, data if shape.writes else None,
                write_keys, read_keys, gain, grad_out, parts, statistics, sums, shape.tokens, site.eps,
                *shape.data_strides, *grad_out.stride(),
                parts.stride(0) if blocks > 1 and parts is not None else 0, *strides,
                R=shape.R, BR=_padded(shape.R), WRITES=shape.writes, UNDOES=shape.writes and grad_after is None,
                SUMS=sums.shape[1], **sizes, **common, **options,
            )  # fmt: skip
        if grad_data is not None and parts is not None and blocks > 1:
            grad_data.copy_(parts.sum(0))
        # One sum for all: launched three times, it would take as long as a tenth of the kernel.
        totals = iter(sums.sum(0).split(sizes_of_sums))
        read, write, gain = (
            None if x is None else next(totals).view_as(x).to(x.dtype) for x in (read_keys, write_keys, gain)
        )
        assert read is not None
        return SiteGradients(write, read, gain)

    def _common(self, shape: "_Shape") -> dict[str, Any]:
        return {"GAIN": shape.gain, "NORM": shape.site.norm, "DOT": shape.dot(self.tuning.float32_dot)}


class _Shape:
    """Sizes, strides and precision of one call, checked."""

    def __init__(self, state: Tensor, data: Tensor | None, site: Site, vectors: Tensor):
        assert state.dtype in (torch.float32, torch.bfloat16), state.dtype
        assert state.is_contiguous()
        self.site = site
        self.tokens, self.V, self.K = state.shape
        self.Q = site.read_keys.shape[0]
        assert site.read_keys.shape == (self.Q, self.K)
        assert vectors.shape == (self.tokens, self.V, self.Q)
        self.writes = data is not None and site.write_keys is not None
        self.data_strides: tuple[int, ...] = (0, 0, 0)
        self.R = 1
        if data is not None and site.write_keys is not None:
            self.R = data.shape[2]
            assert data.shape[:2] == state.shape[:2]
            assert site.write_keys.shape == (self.K, self.R)
            self.data_strides = data.stride()
        self.dtypes = {state.dtype, vectors.dtype} | ({data.dtype} if data is not None else set())
        self.device, self.interpreted = state.device, state.device.type != "cuda"
        self.gain = "none" if site.gain is None else "row" if site.gain.ndim == 1 else "full"

    def keys(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Storage keys (None where nothing is written), retrieval keys and gain, contiguous."""
        site = self.site
        write = site.write_keys.contiguous() if self.writes and site.write_keys is not None else None
        return write, site.read_keys.contiguous(), None if site.gain is None else site.gain.contiguous()

    def dot(self, float32_dot: str) -> str:
        """How the kernels' products round their operands."""
        if torch.bfloat16 in self.dtypes:
            return "rounded" if self.interpreted else "bf16"
        return float32_dot

    def launch(self, launch: Launch) -> tuple[int, dict[str, int], dict[str, int]]:
        """Programs in all, sizes of the tile that each holds at a time, and the launch options that go with it."""
        if torch.bfloat16 not in self.dtypes:  # float32 products run without tensor cores and take all registers
            launch = replace(launch, cells_per_warp=512, programs=1)
        BV = _padded(self.V)
        BK = max(16, min(_padded(self.K), launch.cells // BV))
        sizes = {"V": self.V, "K": self.K, "Q": self.Q, "BV": BV, "BK": BK, "BQ": _padded(self.Q)}
        blocks = -(-self.K // BK)
        warps = min(16, max(4, BV * BK // launch.cells_per_warp))
        # Pipelined loads would overtake the stores of the same token that the second round has to see.
        options = {"num_warps": warps, "num_stages": launch.stages if blocks == 1 else 1}
        at_a_time = launch.at_a_time(BV * BK)
        registers = REGISTERS // (at_a_time * warps * 32) // 8 * 8
        options |= {"maxnreg": registers} if registers < 256 else {}
        programs = INTERPRETER_PROGRAMS
        if not self.interpreted:
            programs = at_a_time * torch.cuda.get_device_properties(self.device).multi_processor_count
        return min(self.tokens, programs), {**sizes, "BLOCKS": blocks}, options


def _require_twin(apart: Tensor | None, x: Tensor) -> None:
    assert apart is None or (apart.is_contiguous() and (apart.shape, apart.dtype) == (x.shape, x.dtype))


def _kernels() -> ModuleType:
    from widestream.kernels import exchange_triton_kernels

    return exchange_triton_kernels


def _interpreted() -> bool:
    """Whether Triton runs in its interpreter, as it decides at its import."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(_kernels().forward_kernel, InterpretedFunction)


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
