"""The compiled exchange for CPUs: against the reference in float64, over odd sizes, types and layouts; threads; NaN."""

import itertools
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from widestream.kernels import exchange_cpu
from widestream.kernels.compiled import Kernel
from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, SiteGradients
from widestream.kernels.exchange_cpu import CpuExchange, available

WHY_NOT = available(torch.device("cpu"))
# Where nothing can be compiled the reference is what a user gets, so that is what the tests then see.
EXCHANGE: Exchange = CpuExchange() if WHY_NOT is None else ReferenceExchange()
# N, V, K, R, Q: whole vectors and rests of every size, fewer and more rows than a block of a product has.
SIZES = [
    (70, 64, 32, 12, 36),
    (5, 6, 10, 3, 9),
    (3, 1, 1, 1, 1),
    (4, 7, 33, 5, 15),
    (3, 33, 80, 17, 51),
    (2, 16, 512, 4, 140),
    (2, 150, 17, 2, 3),
    (0, 6, 10, 3, 9),
]
Layout = Literal["rows", "heads", "odd"]
F32, BF16 = torch.float32, torch.bfloat16


def draw(*shape: int, seed: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lay(x: Tensor, layout: Layout) -> Tensor:
    """The same [N, V, P] numbers: contiguous, as heads [N, P, V], or as every second number of something wider."""
    if layout == "rows":
        return x.clone()
    if layout == "heads":
        return x.mT.contiguous().mT
    wide = torch.full((*x.shape[:2], 2 * x.shape[2] + 1), torch.nan, dtype=x.dtype)
    wide[..., ::2][..., : x.shape[2]] = x
    return wide[..., ::2][..., : x.shape[2]]


class Case:
    """Tensors of an exchange; `wide` gives their float64 copies."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int, int],
        *,
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        gain: str | None = "full",
        writes: bool = True,
        layout: Layout = "rows",
        dtype: torch.dtype = F32,
        state_dtype: torch.dtype = F32,
        grad_dtype: torch.dtype = F32,
    ):
        N, V, K, R, Q = sizes
        gains = {"full": 1 + draw(V, K, seed=6) / 2, "row": 1 + draw(K, seed=6) / 2, None: None}
        w = draw(K, R, seed=4) if writes else None
        self.site = Site(w, draw(Q, K, seed=5), gains[gain], norm, 1e-6)
        self.layout: Layout = layout
        # An offset, so that the mean matters.
        self.state = (draw(N, V, K, seed=0) + 0.5).to(state_dtype)
        self.grad_state = draw(N, V, K, seed=1, dtype=grad_dtype)
        self.grad_out = lay(draw(N, V, Q, seed=2, dtype=dtype), layout)
        self.data = lay(draw(N, V, R, seed=3, dtype=dtype), layout) if writes else None
        self.out = torch.empty_like(self.grad_out) if layout != "odd" else lay(torch.zeros_like(self.grad_out), "odd")

    def wide(self) -> "Case":
        twin = object.__new__(Case)
        site = self.site
        w, r, gain = (None if x is None else x.double() for x in (site.write_keys, site.read_keys, site.gain))
        assert r is not None
        twin.layout, twin.site = self.layout, Site(w, r, gain, site.norm, site.eps)
        for name in ("state", "grad_state", "grad_out", "data", "out"):
            own = getattr(self, name)
            setattr(twin, name, None if own is None else own.to(torch.float64, copy=True))
        return twin

    def run(self, exchange: Exchange) -> dict[str, Tensor | None]:
        """All results of a forward and a backward pass."""
        exchange.forward_(self.state, self.data, self.site, self.out)
        after = self.state.clone()
        grad_data = (
            None if self.data is None else torch.empty_strided(self.data.shape, self.data.stride()).to(self.data.dtype)
        )
        found = exchange.backward_(self.state, self.grad_state, self.data, self.site, self.grad_out, grad_data)
        assert isinstance(found, SiteGradients)
        return {
            "after": after, "out": self.out, "before": self.state, "grad_state": self.grad_state,
            "grad_data": grad_data, "write_keys": found.write_keys, "read_keys": found.read_keys, "gain": found.gain,
        }  # fmt: skip


def check(case: Case, tolerance: float) -> None:
    """Every result within `tolerance` of the reference in float64, relative to that result's norm."""
    wide = case.wide().run(ReferenceExchange())
    own = case.run(EXCHANGE)
    for name, expected in wide.items():
        found = own[name]
        if expected is None or found is None:
            assert expected is found is None, name
            continue
        assert found.shape == expected.shape
        assert bool(found.isfinite().all()), name
        error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error:.2e}"


def test_a_machine_with_a_compiler_gets_the_kernel() -> None:
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    assert (WHY_NOT is None) == has_compiler, WHY_NOT


def test_what_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not on meta" in (available(torch.device("meta")) or "")
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(exchange_cpu, "KERNEL", Kernel("exchange", exchange_cpu._Problem))
    assert "/bin/false" in (available(torch.device("cpu")) or "")
    with pytest.raises(RuntimeError, match="/bin/false"):
        CpuExchange()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("norm", "writes"), list(itertools.product(("layernorm", "rmsnorm"), (True, False))))
def test_parity_in_float32(sizes: tuple[int, int, int, int, int], norm: Literal["layernorm", "rmsnorm"], writes: bool):
    for gain, layout in itertools.product(("full", "row", None), ("rows", "heads", "odd")):
        check(Case(sizes, norm=norm, gain=gain, writes=writes, layout=layout), 1e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("dtype", "state_dtype", "grad_dtype"),
    [(BF16, F32, F32), (F32, BF16, F32), (BF16, BF16, F32), (BF16, BF16, BF16), (F32, F32, BF16)],
)
def test_parity_in_bfloat16(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, state_dtype: torch.dtype, grad_dtype: torch.dtype
):
    for layout in ("rows", "heads", "odd"):
        check(Case(sizes, layout=layout, dtype=dtype, state_dtype=state_dtype, grad_dtype=grad_dtype), 1e-2)


def test_mixed_layouts_and_an_expanded_gradient() -> None:
    """What attention writes lies by heads while an MLP reads rows; the gradient of a sum has strides of zero."""
    case = Case((5, 64, 32, 12, 36))
    assert case.data is not None
    case.data = lay(case.data, "heads")
    check(case, 1e-5)
    case = Case((5, 64, 32, 12, 36))
    case.grad_out = draw(1, 1, 1, seed=7).expand(5, 64, 36)
    check(case, 1e-5)


def test_a_large_mean_does_not_spoil_the_variance() -> None:
    for sizes in ((3, 6, 10, 3, 9), (3, 64, 32, 12, 36)):
        case = Case(sizes)
        case.state += 1000
        check(case, 1e-3)


@pytest.mark.parametrize("K", [5, 32, 512])
@pytest.mark.parametrize("at", [0, 20])
def test_a_few_large_numbers_do_not_spoil_the_variance(K: int, at: int) -> None:
    """Wherever in the tile they are."""
    case = Case((3, 64, K, 3, 9))
    case.state[:, at, :16] += 1000
    check(case, 1e-5)


def test_other_precisions_and_keys_in_bfloat16() -> None:
    check(Case((5, 6, 10, 3, 9)).wide(), 1e-12)
    case = Case((5, 6, 10, 3, 9))
    w, r, gain = case.site.write_keys, case.site.read_keys, case.site.gain
    assert w is not None
    assert gain is not None
    case.site = Site(w.bfloat16(), r.bfloat16(), gain.bfloat16(), "layernorm", 1e-6)
    check(case, 1e-2)
    assert case.run(EXCHANGE)["read_keys"].dtype == BF16  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("layout", ["rows", "heads"])
def test_same_bits_whenever_and_with_any_number_of_threads(layout: Layout) -> None:
    first = Case((200, 64, 32, 12, 36), layout=layout, dtype=BF16).run(EXCHANGE)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            again = Case((200, 64, 32, 12, 36), layout=layout, dtype=BF16).run(EXCHANGE)
        finally:
            torch.set_num_threads(1)
        for name, value in first.items():
            assert value is not None
            assert torch.equal(value, again[name]), (name, threads)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(("layout", "state_dtype"), list(itertools.product(("rows", "heads"), (F32, BF16))))
def test_nan_stays_in_its_token_and_shows_in_the_gradients(bad: float, layout: Layout, state_dtype: torch.dtype):
    for K in (32, 10):
        case = Case((4, 6, K, 3, 9), layout=layout, state_dtype=state_dtype)
        case.state[1, 2, 3] = bad
        found = case.run(EXCHANGE)
        for name in ("out", "grad_state", "grad_data"):
            value = found[name]
            assert value is not None
            assert bool(value[1].isnan().all()), name
            assert bool(value[[0, 2, 3]].isfinite().all()), name
        for name in ("write_keys", "read_keys", "gain"):
            value = found[name]
            assert value is not None
            assert not bool(value.isfinite().all()), name


def test_nan_of_data_and_gradients_arrives() -> None:
    case = Case((2, 6, 10, 3, 9), dtype=BF16, state_dtype=BF16)
    assert case.data is not None
    case.data[0, 0, 0] = torch.nan
    case.grad_out[1, 0, 0] = torch.nan
    found = case.run(EXCHANGE)
    for name, token in (("after", 0), ("out", 0), ("grad_state", 1), ("grad_data", 1)):
        value = found[name]
        assert value is not None
        assert bool(value[token].isnan().any()), name
