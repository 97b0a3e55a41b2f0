"""Hidden states of exported models: transformers' own for the plain stream, and the stream's for every other."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from widestream.hub import WidestreamConfig, WidestreamForCausalLM
from widestream.lens import look
from widestream.recipe.kinds import OWN_KINDS
from widestream.streams import stream_class
from widestream.testing.models import small_config, tokens_of

sys.path.append(str(Path(__file__).parents[1] / "parity"))
from families import FAMILIES, both
from families import tokens_of as family_tokens

ROTARY = {"positions": "rotary"}


def model_of(kind, **changes):
    stream = {"kind": kind, **stream_class(kind).examples[0]}
    return WidestreamForCausalLM(WidestreamConfig.of(small_config(stream, ROTARY | changes))).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_of_the_plain_stream_they_are_those_of_transformers(family):
    theirs, ours = both(family, 0)
    tokens = family_tokens(0)
    hub = WidestreamForCausalLM(WidestreamConfig.of(ours.config)).eval()
    hub.decoder.load_state_dict(ours.state_dict())
    wanted, got = (model(tokens, output_hidden_states=True).hidden_states for model in (theirs, hub))
    assert len(got) == len(wanted) == ours.config.num_layers + 1
    for one, other in zip(got, wanted, strict=True):
        assert ((one - other).abs().max() / other.abs().max()).item() < 1e-4


@pytest.mark.parametrize("kind", OWN_KINDS)
@torch.no_grad()
def test_of_every_kind_they_are_what_layers_see(kind):
    model, tokens = model_of(kind), tokens_of(2, 12)
    plain, out = model(tokens), model(tokens, output_hidden_states=True)
    assert plain.hidden_states is None
    assert torch.equal(plain.logits, out.logits)
    assert len(out.hidden_states) == 4
    assert all(state.shape[:2] == (2, 12) and state.ndim == 3 for state in out.hidden_states)
    seen = look(model.decoder, tokens)
    assert torch.equal(out.hidden_states[-1], seen.exchanges[-1].inputs["x"])
    if kind == "matrix":
        assert torch.equal(out.hidden_states[1], seen["blocks.1.resid_pre"].flatten(2))


@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc", "deep_delta"])
@torch.no_grad()
def test_with_a_cache_they_are_the_same_token_by_token(kind):
    model, tokens = model_of(kind), tokens_of(1, 6)
    whole = model(tokens, output_hidden_states=True).hidden_states
    out = model.generate(
        tokens, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    assert len(out.hidden_states) == 3
    for got, wanted in zip(out.hidden_states[0], whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    again = model(out.sequences[:, :-1], output_hidden_states=True).hidden_states
    for got, wanted in zip(out.hidden_states[-1], again, strict=True):
        torch.testing.assert_close(got, wanted[:, -1:], rtol=1e-4, atol=1e-5)


def test_the_configuration_may_ask_for_them_and_gradients_go_through(tmp_path):
    model = model_of("matrix").train()
    model.config.output_hidden_states = True
    out = model(tokens_of(2, 8), labels=tokens_of(2, 8))
    assert len(out.hidden_states) == 4
    out.hidden_states[2].sum().backward()
    assert model.decoder.stream.read_0.grad.any()
    assert model(tokens_of(2, 8), output_hidden_states=False).hidden_states is None
    model.config.output_hidden_states = False
    model.save_pretrained(tmp_path)
    for cls in (AutoModel, AutoModelForCausalLM):
        assert len(cls.from_pretrained(tmp_path)(tokens_of(2, 8), output_hidden_states=True).hidden_states) == 4
