"""Delta attention residuals against their equations written as loops, and where their starts come from."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.depth.delta_attn_res import DeltaAttnResStream
from widestream.testing.models import random_model, tokens_of


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_equations(size, gate):
    stream = random_model({"kind": "delta_attn_res", "group_size": size, "gate": gate}, {}).stream.double()
    outputs = torch.randn(7, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state, h = stream.write_embedding(None, outputs[0], None), outputs[0]
    for site in range(7):
        if site:
            state, h = stream.write(site, state, outputs[site]), h + outputs[site]
        given = h
        if 0 < site < 6:
            groups = [outputs[1 + size * g : 1 + size * (g + 1)].sum(0) for g in range(site // size)]
            sources = torch.stack([outputs[0], *groups])
            chosen = sources[0]
            if site >= size:
                keys = rms(sources) * stream.key_gains[site - size]
                alpha = torch.einsum("d,nbtd->nbt", stream.queries[site - size], keys).softmax(0)
                chosen = torch.einsum("nbt,nbtd->btd", alpha, sources)
            given = h + (stream.gates[site - 1] * chosen if gate else chosen)
            given = given if gate else given * len(sources) / (len(sources) + 1)
        norm = stream.norms[site]
        wanted = torch.nn.functional.layer_norm(given, (32,), norm.gain, eps=1e-6)
        torch.testing.assert_close(stream.read(site, state)["x"], wanted, rtol=1e-10, atol=1e-10)


def test_the_scale_changes_nothing_but_what_eps_does():
    """Without it, as the paper has (1), the norm gives the same where eps is nothing."""
    model = random_model({"kind": "delta_attn_res"}, {"norm_eps": 1e-30})
    stream = model.double().stream
    f0, f1 = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state = stream.write(1, stream.write_embedding(None, f0, None), f1)
    keys = [v / v.square().mean(-1, keepdim=True).sqrt() * stream.key_gains[0] for v in (f0, f1)]
    alpha = torch.stack([key @ stream.queries[0] for key in keys]).softmax(0)[..., None]
    paper = f0 + f1 + alpha[0] * f0 + alpha[1] * f1
    torch.testing.assert_close(stream.read(1, state)["x"], stream.norms[1](paper), rtol=1e-10, atol=1e-10)


def test_the_mean_of_incomplete_groups_is_not_the_stream():
    model, plain = build_model(tiny({"kind": "delta_attn_res", "group_size": 2})), build_model(tiny("vector"))
    assert (model(tokens_of(2, 20)) - plain(tokens_of(2, 20))).abs().max() > 1e-3


@pytest.mark.parametrize(("gate", "extra"), [(False, 0), (True, 23)])
def test_counts_at_the_size_of_gpt2_small(gate, extra):
    config = tiny({"kind": "delta_attn_res", "gate": gate}, num_layers=12, num_heads=12, head_dim=64)
    assert DeltaAttnResStream.parameter_formula(config) == (25 + 2 * 23) * 768 + extra
    assert DeltaAttnResStream.spec(config).history_size == 24 * 768


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="group_size is 0"):
        tiny({"kind": "delta_attn_res", "group_size": 0})
    with pytest.raises(UserError, match=r"group_size is 4, and the model has 4 blocks.*at most 3"):
        meta_model(tiny({"kind": "delta_attn_res", "group_size": 4}))
