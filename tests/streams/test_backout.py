"""Backout against its equation, where it keeps the stream, and its plain settings."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.vector.backout import BackoutConfig, BackoutStream, kept_layers
from widestream.testing.models import tokens_of


@pytest.mark.parametrize(("layers", "blocks_before"), [(0, 0), (1, 2), (2, 4), (None, 4)])
def test_equation(layers, blocks_before):
    stream = build_model(tiny({"kind": "backout", "layers": layers, "start": 0.3}, num_layers=3)).stream.double()
    x0, *written = torch.randn(7, 1, 3, 32, generator=torch.Generator().manual_seed(0)).double()
    state = stream.write_embedding(None, x0, None)
    for site, f in enumerate(written, start=1):
        state = stream.write(site, state, f)
    kept = x0 + sum(written[:blocks_before])
    wanted = x0 + sum(written) - torch.tensor(0.3).double() * kept
    torch.testing.assert_close(state.x, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layers", "kept"), [(1, 0), (2, 1), (3, 2), (4, 3), (11, 6), (12, 7)])
def test_it_keeps_what_nanochat_keeps_and_never_the_end(layers, kept):
    assert kept_layers(BackoutConfig(), tiny({"kind": "backout"}, num_layers=layers)) == kept


def test_with_short_attention_a_layer_ends_behind_its_third_block():
    assert build_model(tiny({"kind": "backout", "layers": 1}, short_swa=3)).stream.kept_site == 3


def test_nothing_taken_out_is_the_plain_transformer():
    model, plain = build_model(tiny({"kind": "backout", "start": 0.0})), build_model(tiny("vector"))
    assert torch.equal(model(tokens_of(2, 20)), plain(tokens_of(2, 20)))


def test_counts_at_the_size_of_gpt2_small():
    config = tiny({"kind": "backout"}, num_layers=12, num_heads=12, head_dim=64)
    assert BackoutStream.parameter_formula(config) == 1 + 25 * 768


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"layers is -1; it must be at least 0"):
        tiny({"kind": "backout", "layers": -1})
    with pytest.raises(UserError, match=r"layers is 2; of 2 layers it may be at most 1"):
        meta_model(tiny({"kind": "backout", "layers": 2}))
