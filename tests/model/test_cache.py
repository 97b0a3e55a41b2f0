"""What a KV cache keeps and refuses; that every stream decodes with it is in the contract (testing/streams.py)."""

import pytest
import torch

from models import STREAMS, tiny
from widestream.errors import UserError
from widestream.generate import cast_weights
from widestream.model.build import build_model
from widestream.model.depth import Recomputed, RecomputedBlocks, plan_depth, sites_of_layers
from widestream.model.depth.eager import Eager
from widestream.testing.models import copy_of, tokens_of


@pytest.fixture(params=sorted(STREAMS))
def model(request):
    return build_model(tiny(request.param), seed=1)


SEGMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])


def test_documents_behind_tokens_without_are_refused_and_nothing_is_lost(model):
    tokens, cache = tokens_of(2, 12), model.new_cache(2, 12)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
        with pytest.raises(UserError, match="documents were not given"):
            model(tokens[:, 5:], SEGMENTS[:, 5:], cache)
        rest = model(tokens[:, 5:], cache=cache)
        torch.testing.assert_close(rest, model(tokens)[:, 5:], rtol=1e-4, atol=1e-5)


def test_a_model_that_looks_across_documents_does_so_in_a_cache_too():
    model = build_model(tiny(document_mask=False))
    tokens, cache = tokens_of(2, 12), model.new_cache(2, 12)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
        rest = model(tokens[:, 5:], SEGMENTS[:, 5:], cache)
        torch.testing.assert_close(rest, model(tokens)[:, 5:], rtol=1e-4, atol=1e-5)


def test_pairs_of_a_second_piece_reach_into_the_cache(model):
    tokens, pairs = tokens_of(2, 12), torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    pairs = pairs.tril() | torch.eye(12, dtype=torch.bool)
    cache = model.new_cache(2, 12)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache, mask=pairs[:, :5, :5])
        with pytest.raises(UserError, match=r"mask is \[2, 7, 7\]; for 7 tokens and 12 keys"):
            model(tokens[:, 5:], cache=cache, mask=pairs[:, 5:, 5:])
        rest = model(tokens[:, 5:], cache=cache, mask=pairs[:, 5:])
        torch.testing.assert_close(rest, model(tokens, mask=pairs)[:, 5:], rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="cache is for 3 sequences, and the tokens are of 2"):
        model(tokens_of(2, 5), cache=model.new_cache(3, 12))
    with pytest.raises(UserError, match=r"segments are \[2, 11\], and the tokens \[2, 12\]"):
        model(tokens_of(2, 12), SEGMENTS[:, 1:])


def test_documents_of_one_row_are_those_of_all_rows(model):
    tokens = tokens_of(2, 12)
    assert torch.equal(model(tokens, SEGMENTS[:1]), model(tokens, SEGMENTS[:1].expand(2, -1)))


def test_any_way_through_the_depth_has_the_gradients_of_two_pieces(model):
    def gradient(depth):
        way, tokens = copy_of(model, depth), tokens_of(2, 12)
        cache = way.new_cache(2, 12)
        pieces = [way(tokens[:, :5], cache=cache), way(tokens[:, 5:], cache=cache)]
        torch.cat(pieces, dim=1).square().sum().backward()
        return way.embedding.token.grad

    ways = [Recomputed(sites_of_layers(model.layout)), RecomputedBlocks(Eager())]
    if type(model.stream).spec(model.config).undo != "no":
        ways.append(plan_depth(model.config, torch.device("cpu"), "writes"))
    for way in ways:
        assert torch.equal(gradient(way), gradient(Eager()))


def test_sampling_on_leaves_what_autograd_kept(model):
    """A piece with gradients, then one without in the same cache: the first can still be gone back through."""
    tokens, cache = tokens_of(2, 12), model.new_cache(2, 12)
    first = model(tokens[:, :5], cache=cache)
    with torch.no_grad():
        rest = model(tokens[:, 5:], cache=cache)
        torch.testing.assert_close(rest, model(tokens)[:, 5:], rtol=1e-4, atol=1e-5)
    ours, wanted = (torch.autograd.grad(x.sum(), model.embedding.token)[0] for x in (first, model(tokens[:, :5])))
    torch.testing.assert_close(ours, wanted)


def test_weights_in_half_precision_are_refused_with_a_sentence(model):
    whole = copy_of(model, dtype=torch.bfloat16)
    for autocast in (False, True):
        precision = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        with precision, pytest.raises(UserError, match="keys, gates and norms compute in float32"):
            whole(tokens_of(2, 12))
    cast_weights(model, "bf16")
    with pytest.raises(UserError, match=r"blocks' weights are torch\.bfloat16; compute under torch\.autocast"):
        model(tokens_of(2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens_of(2, 12)).isfinite().all()
