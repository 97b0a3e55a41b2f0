"""Trimmed dense connections against their equations written as a loop, which layers they see, and their counts."""

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.depth.mudd import MuddStream
from widestream.testing.models import random_model, tokens_of


def test_equations_at_the_speedruns_depth():
    """Of 11 layers the last two have sums: of the embedding, layer 7 (from 0), and from layer 9 on."""
    stream = random_model({"kind": "mudd", "trim": 2}, {"num_layers": 11}).stream.double()
    embedding, *written = torch.randn(23, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state, x, value, behind = stream.write_embedding(None, embedding, None), embedding, None, {}
    for layer in range(11):
        given = stream.read(2 * layer, state)
        if value is None:
            torch.testing.assert_close(given["x"], stream.norms[2 * layer](x))
        else:
            torch.testing.assert_close(given["q"], stream.norms[2 * layer](x))
            assert given["k"] is given["q"]
            torch.testing.assert_close(given["v"], stream.value_norms[0](value))
        state = stream.write(2 * layer + 1, state, written[2 * layer])
        x = x + written[2 * layer]
        torch.testing.assert_close(stream.read(2 * layer + 1, state)["x"], stream.norms[2 * layer + 1](x))
        state = stream.write(2 * layer + 2, state, written[2 * layer + 1])
        behind[layer] = x = x + written[2 * layer + 1]
        if layer < 9:
            continue
        sources = torch.stack([embedding, behind[7], *(behind[i] for i in range(9, layer + 1))])
        w1, w2, b = (stream.get_parameter(f"{name}_{layer}") for name in ("w1", "w2", "b"))
        hidden = F.gelu(x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() @ w1.T)
        A = (hidden @ w2.T).unflatten(-1, b.shape) + b
        sums = torch.einsum("btcn,nbtd->cbtd", A, sources)
        value, x = (sums[0], sums[1]) if layer == 9 else (None, sums[0])
    torch.testing.assert_close(stream.read(22, state)["x"], stream.norms[22](x))


@pytest.mark.parametrize(
    ("layers", "trim", "shapes"),
    [
        (11, 2, {9: (2, 3, 6), 10: (1, 4, 16)}),
        (12, 1, {11: (1, 3, 12)}),
        (2, 2, {0: (2, 2, 4), 1: (1, 3, 12)}),  # all layers: the embedding is in front of the first
        (3, 2, {1: (2, 2, 4), 2: (1, 3, 12)}),  # the last layer but one in front of these is the embedding
    ],
)
def test_ways_sources_and_hidden_numbers(layers, trim, shapes):
    config = tiny({"kind": "mudd", "trim": trim}, num_layers=layers)
    assert meta_model(config).stream.shapes == shapes
    assert MuddStream.spec(config).history_size == (shapes[layers - 1][1] - 1) * 32


@pytest.mark.parametrize("trim", [1, 2, 3])
def test_it_starts_plain(trim):
    model, plain = build_model(tiny({"kind": "mudd", "trim": trim}, num_layers=3)), build_model(tiny(num_layers=3))
    torch.testing.assert_close(model(tokens_of(2, 20)), plain(tokens_of(2, 20)), rtol=1e-5, atol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="trim is -1; it must be at least 0"):
        tiny({"kind": "mudd", "trim": -1})
    with pytest.raises(UserError, match="trim is 3; of 2 layers it may be at most 2"):
        meta_model(tiny({"kind": "mudd", "trim": 3}))
