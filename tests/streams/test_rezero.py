"""ReZero: nothing at the start, the plain transformer at alpha = 1."""

import pytest
import torch

from models import tiny
from widestream.model.build import build_model
from widestream.streams.vector.rezero import ReZeroStream
from widestream.testing.models import tokens_of


@pytest.mark.parametrize("pre_norm", [True, False])
def test_no_block_contributes_at_the_start(pre_norm):
    model = build_model(tiny({"kind": "rezero", "pre_norm": pre_norm}))
    tokens = tokens_of(2, 20)
    embedded = sum(model.embedding(tokens, torch.arange(20)))
    wanted = torch.nn.functional.layer_norm(embedded, (32,), eps=1e-6) if pre_norm else embedded
    torch.testing.assert_close(model(tokens), wanted)


def test_open_gates_are_the_plain_transformer():
    model, plain = build_model(tiny({"kind": "rezero"})), build_model(tiny("vector"))
    model.stream.alpha.data.fill_(1)
    torch.testing.assert_close(model(tokens_of(2, 20)), plain(tokens_of(2, 20)))


def test_each_block_has_its_gate():
    model = build_model(tiny({"kind": "rezero", "pre_norm": False}))
    gates = torch.tensor([0.5, -2.0, 3.0, 0.25])
    model.stream.alpha.data = gates
    written = torch.randn(4, 1, 3, 32)
    x = torch.randn(1, 3, 32)
    state = model.stream.write_embedding(None, x, None)
    for i in range(4):
        state = model.stream.write(i + 1, state, written[i])
    torch.testing.assert_close(state, x + torch.einsum("i,ibtd->btd", gates, written))


def test_bfloat16_outputs_are_gated_in_float32():
    stream = build_model(tiny({"kind": "rezero"})).stream
    stream.alpha.data.fill_(1 / 3)
    f = torch.randn(1, 3, 32).bfloat16()
    torch.testing.assert_close(stream.write(1, torch.zeros(1, 3, 32), f), f.float() / 3, rtol=1e-6, atol=0)


def test_counts_at_the_size_of_gpt2_small():
    sizes = {"num_layers": 12, "num_heads": 12, "head_dim": 64}
    assert ReZeroStream.parameter_formula(tiny({"kind": "rezero"}, **sizes)) == 24 + 25 * 768
    assert ReZeroStream.parameter_formula(tiny({"kind": "rezero", "pre_norm": False}, **sizes)) == 24
