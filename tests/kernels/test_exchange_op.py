"""The exchange as an operator: schema, derivative, and the same numbers when compiled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from widestream.kernels.exchange import Site, choose_exchange
from widestream.kernels.exchange_op import exchange
from widestream.testing.kernels import Case, Inputs, draw, exact, run

CASES = [
    Case(3, 4, 6, 2, 3, "layernorm", "full", True, True),
    Case(3, 4, 6, 2, 1, "rmsnorm", "row", True, False),
    Case(3, 4, 6, 2, 1, "layernorm", None, False, False),
]


def inputs_of(case: Case, dtype: torch.dtype = torch.float64) -> Inputs:
    drawn = draw(case, torch.device("cpu"))
    return exact(drawn) if dtype == torch.float64 else drawn


def leaves(inputs: Inputs) -> list[Tensor]:
    site = inputs.site
    found = [inputs.state, inputs.data, site.write_keys, site.read_keys, site.gain]
    return [x.detach().requires_grad_() for x in found if x is not None]


def call(case: Case, inputs: Inputs, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The functional operator with `tensors` in place of the inputs' own."""
    rest = iter(tensors)
    state, data = next(rest), next(rest) if case.writes else None
    write_keys = next(rest) if case.writes else None
    site = replace(inputs.site, write_keys=write_keys, read_keys=next(rest), gain=next(rest) if case.gain else None)
    return exchange(state, data, site, inputs.out.dtype, case.heads_first)


@pytest.mark.parametrize("case", CASES)
def test_derivative(case: Case) -> None:
    inputs = inputs_of(case)
    assert torch.autograd.gradcheck(lambda *x: call(case, inputs, [*x]), leaves(inputs))


@pytest.mark.parametrize("case", CASES)
def test_operators_are_what_they_declare(case: Case) -> None:
    inputs = inputs_of(case)
    site = inputs.site
    spread = (inputs.data, site.write_keys, site.read_keys, site.gain, site.norm, site.eps)
    operators: Any = torch.ops.widestream
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    backward = (inputs.state, inputs.grad_state, *spread, inputs.grad_out)
    torch.library.opcheck(operators.exchange_gradients, backward, test_utils=tests)
    forward = [x.requires_grad_() if isinstance(x, Tensor) else x for x in (inputs.state, *spread)]
    functional = (*forward, inputs.out.dtype, case.heads_first)
    torch.library.opcheck(operators.exchange, functional, test_utils=(*tests, "test_autograd_registration"))


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_operators_are_the_implementation(case: Case, state: torch.dtype) -> None:
    """To the bit, and what goes in stays."""
    case = replace(case, state=state)
    inputs = inputs_of(case, torch.float32)
    before = inputs.state.clone()
    tensors = leaves(inputs)
    after, out = call(case, inputs, tensors)
    torch.autograd.backward([after, out], [inputs.grad_state.to(state), inputs.grad_out])
    assert torch.equal(inputs.state, before)
    inputs.grad_state = inputs.grad_state.to(state)
    expected = run(choose_exchange("auto", torch.device("cpu")), inputs)
    assert torch.equal(after, expected["state"])
    assert torch.equal(out, expected["out"])
    names = ("grad state", "grad data", "grad write_keys", "grad read_keys", "grad gain")
    gradients = [expected[name] for name in names if name in expected]
    for found, value in zip(tensors, gradients, strict=True):
        assert found.grad is not None
        assert torch.equal(found.grad, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_eager(dtype: torch.dtype) -> None:
    case = replace(CASES[0], vectors=dtype)
    inputs = inputs_of(case, dtype)
    weights = torch.randn(inputs.out.shape, generator=torch.Generator().manual_seed(1))

    def two_exchanges(*tensors: Tensor) -> Tensor:
        state, read = call(case, inputs, [*tensors])
        again, read_again = call(case, inputs, [state, *tensors[1:]])
        return (read * weights).sum() + (read_again.square() * weights).sum() + again.square().mean()

    found = {}
    for name in ("eager", "compiled"):
        own = leaves(inputs)
        step = (
            torch.compile(two_exchanges, fullgraph=True, backend="aot_eager") if name == "compiled" else two_exchanges
        )
        step(*own).backward()
        found[name] = [x.grad for x in own]
    for one, other in zip(found["eager"], found["compiled"], strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_read_has_the_layout_asked_for() -> None:
    state, keys = torch.randn(3, 4, 6), torch.randn(5, 6)
    site = Site(None, keys, None, "layernorm", 1e-6)
    _, by_heads = exchange(state, None, site, torch.bfloat16, heads_first=True)
    assert (by_heads.shape, by_heads.dtype, by_heads.stride()) == ((3, 4, 5), torch.bfloat16, (20, 1, 4))
    _, plain = exchange(state, None, site, torch.float32)
    assert plain.stride() == (20, 5, 1)
    torch.testing.assert_close(by_heads, plain.bfloat16())
