"""Orthogonal updates against their equation, and what follows: no step along the stream, lengths that add up."""

import pytest
import torch

from models import tiny
from widestream.model.build import build_model
from widestream.streams.vector.orthogonal import OrthogonalStream


@pytest.fixture
def stream():
    return build_model(tiny({"kind": "orthogonal"})).stream


def test_equation(stream):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 32, generator=gen).double()
    state = stream.write_embedding(None, x, None)
    for site in range(1, 5):
        f = torch.randn(2, 3, 32, generator=gen).double()
        state = stream.write(site, state, f)
        along = torch.einsum("btd,btd->bt", x, f) / (torch.einsum("btd,btd->bt", x, x) + 1e-6)
        x = x + f - torch.einsum("bt,btd->btd", along, x)
        torch.testing.assert_close(state, x, rtol=1e-12, atol=1e-12)


def test_a_step_is_orthogonal_and_lengthens_the_stream_by_its_own_length(stream):
    gen = torch.Generator().manual_seed(1)
    x, f = (torch.randn(2, 3, 32, generator=gen).double() for _ in range(2))
    step = stream.write(1, x, f) - x
    assert (x * step).sum(-1).abs().max() < 1e-6 * x.square().sum(-1).max()
    squares = x.square().sum(-1) + step.square().sum(-1)
    torch.testing.assert_close((x + step).square().sum(-1), squares, rtol=1e-6, atol=0)


def test_of_a_block_that_says_what_the_stream_is_nothing_is_left(stream):
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(stream.write(1, x, 3 * x), x, rtol=1e-6, atol=0)


def test_an_empty_stream_takes_all(stream):
    f = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(stream.write(1, torch.zeros_like(f), f), f)


def test_bfloat16_outputs_are_projected_in_float32(stream):
    gen = torch.Generator().manual_seed(4)
    x, f = torch.randn(1, 3, 32, generator=gen), torch.randn(1, 3, 32, generator=gen).bfloat16()
    assert torch.equal(stream.write(1, x, f), stream.write(1, x, f.float()))


def test_it_has_no_parameters_of_its_own():
    sizes = {"num_layers": 12, "num_heads": 12, "head_dim": 64}
    assert OrthogonalStream.parameter_formula(tiny({"kind": "orthogonal"}, **sizes)) == 25 * 768
