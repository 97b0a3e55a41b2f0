"""What holds for every stream: causality, isolated documents, gradients everywhere, switches that change nothing."""

import pytest
import torch
import torch.nn.functional as F

from models import STREAMS, tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.depth import Compiled, Eager, Recomputed, sites_of_layers
from widestream.testing.models import copy_of

POSITIONS = ("learned", "alibi", "rotary", "none")


@pytest.fixture(params=sorted(STREAMS))
def stream(request):
    return request.param


def tokens_of(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", POSITIONS)
def test_causality(stream, positions):
    model = build_model(tiny(stream, positions=positions))
    tokens = tokens_of(2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-6)
    assert (before[:, 12:] - after[:, 12:]).abs().max() > 1e-3


MODERN = {"norm": "rmsnorm", "norm_cast": "before_gain", "positions": "rotary"}


@pytest.mark.parametrize("changes", [{}, {"norm": "rmsnorm", "upcast_attention": True}, MODERN])
def test_shapes_without_numbers(stream, changes):
    if stream == "matrix" and "norm_cast" in changes:
        pytest.skip("its norms stay in float32")
    config = tiny(stream, **changes)
    tokens = tokens_of(2, 20).to("meta")
    for depth in (None, Recomputed(sites_of_layers(meta_model(config).layout))):
        model = meta_model(config, depth)
        logits = model.logits(model(tokens))
        assert logits.shape == (2, 20, 50)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("positions", POSITIONS)
def test_documents_do_not_see_each_other(stream, positions):
    model = build_model(tiny(stream, positions=positions))
    tokens, segments = tokens_of(1, 20), torch.tensor([[3] * 8 + [4] * 1 + [5] * 11])
    changed = tokens.clone()
    changed[:, :8] = (changed[:, :8] + 7) % 50
    before, after = model(tokens, segments), model(changed, segments)
    torch.testing.assert_close(before[:, 8:], after[:, 8:], rtol=0, atol=1e-6)
    without = build_model(tiny(stream, positions=positions, document_mask=False))
    assert (without(tokens, segments) - without(changed, segments))[:, 9:].abs().max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_learns(stream, positions):
    model = build_model(tiny(stream, positions=positions, norm="rmsnorm"))
    model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1), z_loss=1e-4).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


@pytest.mark.parametrize("positions", POSITIONS)
def test_token_by_token_equals_all_at_once(stream, positions):
    model = build_model(tiny(stream, positions=positions)).eval()
    tokens = tokens_of(2, 20)
    cache = model.new_cache(2, 20)
    with torch.no_grad():
        pieces = [model(tokens[:, :9], cache=cache), model(tokens[:, 9:13], cache=cache)]
        pieces += [model(tokens[:, t : t + 1], cache=cache) for t in range(13, 20)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


def test_cache_and_context_are_bounded(stream):
    model = build_model(tiny(stream))
    with pytest.raises(UserError, match="context of 24"):
        model(tokens_of(1, 25))
    with pytest.raises(UserError, match="cache of 4"):
        model(tokens_of(1, 5), cache=model.new_cache(1, 4))


def test_activation_checkpointing_changes_nothing(stream):
    plain = build_model(tiny(stream))
    kept = copy_of(plain, Recomputed(sites_of_layers(plain.layout)))
    tokens, targets = tokens_of(2, 20), tokens_of(2, 20, seed=1)
    for model in (plain, kept):
        model.loss(tokens, targets).total.backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.slow
def test_compiling_changes_nothing(stream):
    plain = build_model(tiny(stream))
    compiled = copy_of(plain, Compiled(Eager()))
    tokens, targets, segments = tokens_of(2, 20), tokens_of(2, 20, seed=1), torch.tensor([[0] * 9 + [1] * 11] * 2)
    for model in (plain, compiled):
        model.loss(tokens, targets, segments).total.backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_loss_is_cross_entropy_of_the_logits(stream):
    model = build_model(tiny(stream))
    tokens, targets = tokens_of(2, 20), tokens_of(2, 20, seed=1)
    terms = model.loss(tokens, targets, z_loss=0.1)
    logits = model.logits(model(tokens)).flatten(0, 1)
    z = logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(terms.cross_entropy, F.cross_entropy(logits, targets.flatten()))
    torch.testing.assert_close(terms.z_loss, z)
    torch.testing.assert_close(terms.total, terms.cross_entropy + 0.1 * z)
    assert terms.tokens == 40


def test_initial_loss_with_zero_unembedding_is_ln_vocab(stream):
    model = build_model(tiny(stream, init={"output_zero": True}))
    loss = model.loss(tokens_of(2, 20), tokens_of(2, 20)).cross_entropy
    torch.testing.assert_close(loss, torch.tensor(50.0).log())


def test_weights_depend_on_the_seed_alone(stream):
    same, again, other = (build_model(tiny(stream), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), again.parameters(), strict=True))
    assert not torch.equal(same.unembedding, other.unembedding)


def test_tied_head(stream):
    model = build_model(tiny(stream, tied_head=True))
    assert not any("unembedding" in name for name, _ in model.named_parameters())
    logits = model.logits(model(tokens_of(1, 20)))
    assert 0.3 < logits.std() < 3  # not sqrt(D) times as large, as the embedding's own scale would make them


def test_a_tied_head_cannot_start_at_zero():
    with pytest.raises(UserError, match="output_zero would zero the embedding too"):
        tiny(tied_head=True, init={"output_zero": True})


def test_bf16_autocast_stays_close(stream):
    model = build_model(tiny(stream))
    tokens, targets = tokens_of(2, 20), tokens_of(2, 20, seed=1)
    full = model.loss(tokens, targets).cross_entropy
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(tokens, targets)
    assert terms.cross_entropy.dtype == torch.float32
    torch.testing.assert_close(terms.cross_entropy, full, rtol=2e-2, atol=2e-2)


def test_the_plain_stream_is_the_textbook_transformer():
    """Pre-norm residual blocks written with torch's own multi-head attention arithmetic."""
    model = build_model(tiny("vector", inverse_layer_scaling=False))
    tokens = tokens_of(2, 20)
    x = model.embedding.token[tokens] + model.embedding.position[:20]
    for layer in range(2):
        attention, mlp = model.blocks[2 * layer], model.blocks[2 * layer + 1]
        h = F.layer_norm(x, (32,), model.stream.norms[2 * layer].gain, None, 1e-6)
        out, _ = F.multi_head_attention_forward(
            *(h.transpose(0, 1),) * 3, 32, 4, attention.qkv, None, None, None, False, 0.0, attention.out, None,
            need_weights=False, is_causal=True, attn_mask=torch.ones(20, 20, dtype=torch.bool).triu(1),
        )  # fmt: skip
        x = x + out.transpose(0, 1)
        h = F.layer_norm(x, (32,), model.stream.norms[2 * layer + 1].gain, None, 1e-6)
        x = x + F.gelu(h @ mlp.w1.T, approximate="tanh") @ mlp.w2.T
    expected = F.layer_norm(x, (32,), model.stream.norms[4].gain, None, 1e-6)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-5)
