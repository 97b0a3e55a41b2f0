"""The exchange in Triton against the reference in float64. Run by test_exchange_triton.py in a process of its own:
whether Triton interprets is settled at its first import.
"""

from dataclasses import replace

import pytest
import torch

from widestream.kernels.exchange import FUSED
from widestream.kernels.exchange_op import exchange
from widestream.kernels.exchange_triton import Launch, TritonExchange, Tuning, available
from widestream.testing.kernels import Case, draw, errors, grid, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# N is no multiple of the programs; 24, 40 and 48 are no powers of two; K is cut where tiles are small.
WHOLE = [(3, 16, 64, 3), (3, 24, 24, 8), (3, 48, 32, 12), (1, 64, 16, 16), (3, 32, 48, 16)]
CUT = [(3, 16, 40, 3)]
SMALL = Launch(cells=512, cells_per_warp=128, programs=1, stages=1)
SMALL_TILES = Tuning(forward=SMALL, backward=SMALL)


def name(case: Case) -> str:
    return "-".join(str(getattr(case, field)).removeprefix("torch.") for field in case.__dataclass_fields__)


@pytest.fixture(autouse=True, scope="module")
def kernels_run_here() -> None:
    assert available(DEVICE) is None


@pytest.mark.parametrize("case", list(grid(WHOLE)), ids=name)
def test_whole_tiles(case: Case) -> None:
    found = errors(TritonExchange(), case, DEVICE)
    assert max(found.values()) < case.tolerance, found


@pytest.mark.parametrize("case", list(grid(CUT)), ids=name)
def test_tiles_cut_along_the_keys(case: Case) -> None:
    found = errors(TritonExchange(SMALL_TILES), case, DEVICE)
    assert max(found.values()) < case.tolerance, found


def test_long_keys_are_cut_by_default() -> None:
    found = errors(TritonExchange(), Case(2, 64, 136, 3, 1), DEVICE)
    assert max(found.values()) < 1e-5, found


def test_a_state_far_from_zero_keeps_its_variance() -> None:
    """The statistics of cut tiles are sums; sums of squares about zero would cancel here."""
    case = Case(2, 16, 40, 3, 1)
    inputs = draw(case, DEVICE)
    inputs.state += 300
    values = inputs.state.double().flatten(1)
    mean, std = values.mean(1)[:, None, None], values.std(1, correction=0)[:, None, None]
    site = replace(inputs.site, write_keys=None)
    exact = ((inputs.state.double() - mean) / std * site.gain) @ site.read_keys.double().mT
    TritonExchange(SMALL_TILES).forward_(inputs.state, None, site, inputs.out)
    assert (inputs.out - exact).norm() < 1e-4 * exact.norm()


def test_behind_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a model whose states are saved."""
    monkeypatch.setitem(FUSED, DEVICE.type, ("exchange_triton", "TritonExchange"))
    case = Case(3, 16, 16, 3, 3, heads_first=True, vectors=torch.bfloat16)
    expected, inputs = run(TritonExchange(), draw(case, DEVICE), apart=True), draw(case, DEVICE)
    assert inputs.data is not None
    state, data = inputs.state.requires_grad_(), inputs.data.requires_grad_()
    after, out = exchange(state, data, inputs.site, torch.bfloat16, case.heads_first)
    torch.autograd.backward([after, out], [inputs.grad_state, inputs.grad_out])
    for found, name in ((after, "state"), (out, "out"), (state.grad, "grad state"), (data.grad, "grad data")):
        assert found is not None
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("tuning", [None, SMALL_TILES], ids=["whole", "cut"])
def test_the_same_every_time(tuning: Tuning | None) -> None:
    case = Case(5, 16, 48, 3, 3)
    first, second = (run(TritonExchange(tuning), draw(case, DEVICE)) for _ in range(2))
    for key in first:
        assert torch.equal(first[key], second[key]), key
