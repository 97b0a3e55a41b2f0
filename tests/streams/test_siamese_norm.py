"""SiameseNorm against the loop of its published vision models, written anew, and its counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.streams.vector.siamese_norm import SiameseNormStream
from widestream.testing.models import random_model


def normed(norm, x, kind):
    if kind == "layernorm":
        return F.layer_norm(x, (32,), norm.gain, eps=1e-6)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.gain


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_two_streams_through_the_same_blocks(kind):
    stream = random_model({"kind": "siamese_norm"}, {"norm": kind}).stream.double()
    x, *written = torch.randn(7, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state, y = stream.write_embedding(None, x, None), x
    for i, z in enumerate([*written, None]):
        x = normed(stream.x_norms[i], x, kind)
        wanted = normed(stream.norms[i], x + normed(stream.y_norms[i], y, kind), kind)
        torch.testing.assert_close(stream.read(i, state)["x"], wanted, rtol=1e-10, atol=1e-10)
        if z is not None:
            state = stream.write(i + 1, state, z)
            x, y = x + z / math.sqrt(2 * (i // 2 + 1)), y + z


def test_with_short_attention_the_scale_goes_by_layers():
    stream = random_model({"kind": "siamese_norm"}, {"short_swa": 3, "num_layers": 2}).stream
    assert stream.scales == [1 / math.sqrt(2)] * 3 + [1 / 2] * 3


def test_the_streams_own_norms_stay_where_blocks_have_theirs_behind_them():
    stream = random_model({"kind": "siamese_norm"}, {"norm_place": "after"}).stream
    assert not list(stream.norms[0].parameters())
    assert len(list(stream.x_norms.parameters())) == len(list(stream.y_norms.parameters())) == 7


def test_counts_at_the_size_of_gpt2_small():
    config = tiny({"kind": "siamese_norm"}, num_layers=12, num_heads=12, head_dim=64)
    assert SiameseNormStream.parameter_formula(config) == 3 * 25 * 768
    assert SiameseNormStream.spec(config).state_shape == (2, 768)
