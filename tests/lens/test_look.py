"""What is kept of a pass, by name."""

import pytest
import torch

from lens_passes import CASES, seen_of, seen_with
from widestream.errors import UserError
from widestream.lens import held, logit_lens, look
from widestream.testing.models import tokens_of


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_everything_has_a_name_and_a_shape(kind, number):
    seen = seen_of(kind, number)
    assert {"tokens", "embed", "pos_embed", "logits"} <= {*seen.names()}
    for name in seen.names():
        x = seen[name]
        assert x.shape[0] in (1, 2)
        assert x.isfinite().all() or name == "tokens"
    pattern = seen["blocks.1.pattern"]
    assert pattern.shape == (2, 4, 20, 20)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 20))
    assert not pattern.triu(1).any()
    torch.testing.assert_close(seen.logits, seen.model.logits(seen.model(seen.tokens)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "alibi", "num_kv_heads": 1},
        {"positions": "rotary", "attention_window": 5, "attention_soft_cap": 3.0},
        {"qk_norm": {"over": "head"}, "attention_bias": "all", "norm_place": "both"},
    ],
)
def test_patterns_give_what_heads_put_out(changes):
    seen = seen_with({"kind": "vector"}, changes)
    for layer in range(3):
        pattern, v, z = (seen[f"blocks.{layer}.{name}"] for name in ("pattern", "v", "z"))
        v = v.repeat_interleave(4 // v.shape[2], dim=2)
        mixed = torch.einsum("bhts,bshk->bthk", pattern, v)
        torch.testing.assert_close(mixed, z, rtol=1e-4, atol=1e-5)


def test_the_plain_stream_is_the_sum_of_what_was_written():
    seen = seen_of("vector")
    after = seen["embed"] + seen["pos_embed"]
    for layer in range(3):
        torch.testing.assert_close(seen[f"blocks.{layer}.resid_pre"], after)
        after = after + seen[f"blocks.{layer}.attn_out"]
        torch.testing.assert_close(seen[f"blocks.{layer}.resid_mid"], after)
        after = after + seen[f"blocks.{layer}.mlp_out"]
        torch.testing.assert_close(seen[f"blocks.{layer}.resid_post"], after)


def test_documents_are_kept_apart():
    seen = seen_of("vector")
    segments = torch.tensor([[0] * 8 + [1] * 12] * 2)
    apart = look(seen.model, seen.tokens, segments)
    assert not apart["blocks.0.pattern"][:, :, 8:, :8].any()
    assert seen["blocks.0.pattern"][:, :, 8:, :8].all()


def test_unknown_names_and_shapes_are_refused():
    seen = seen_of("vector")
    with pytest.raises(UserError, match=r"no 'blocks.3.q' here; names are tokens"):
        seen["blocks.3.q"]
    with pytest.raises(UserError, match=r"takes \[B, T\]"):
        look(seen.model, torch.zeros(3, dtype=torch.long))


def test_a_look_leaves_the_model_as_it_was():
    seen = seen_of("matrix")
    before = seen.model.attention, seen.model.depth
    look(seen.model, tokens_of(1, 5))
    assert (seen.model.attention, seen.model.depth) == before
    assert not any("mix" in module.__dict__ for module in seen.model.modules())
    assert not any(module._forward_pre_hooks for module in seen.model.modules())


def test_the_logit_lens_of_the_last_site_is_the_model_and_earlier_ones_are_read_by_the_heads_keys():
    seen = seen_of("matrix")
    assert torch.equal(logit_lens(seen, seen.last), seen.logits)
    stream, state = seen.model.stream, seen.exchanges[2].state
    by_hand = seen.model.logits((stream.norms[-1](state) @ getattr(stream, f"read_{seen.last}").T).flatten(2))
    torch.testing.assert_close(logit_lens(seen, 2), by_hand)
    with pytest.raises(UserError, match="none of 0 to 6"):
        logit_lens(seen, 7)
    with pytest.raises(UserError, match="history"):
        logit_lens(seen_of("dense_former"), 2)


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind, number in CASES if number == 0])
def test_what_a_stream_holds_is_within_its_bounds(kind, number):
    seen = seen_of(kind, number)
    for site in range(seen.last + 1):
        found = held(seen, site)
        assert found.norm > 0
        assert 1 <= found.token_rank <= 40
        assert 1 - 1e-6 <= found.rank <= 8 + 1e-6
        if kind.startswith("matrix"):
            assert 1 <= found.rows <= seen.model.stream.key_dim + 1e-6


def test_ranks_of_states_that_are_known():
    seen = seen_of("matrix")
    exchanged = seen.exchanges[2]
    one = torch.zeros(2, 20, 8, 32)
    one[..., 3, 5] = 2.0  # one cell: rank one, one row
    full = torch.zeros(2, 20, 8, 32)
    full[..., torch.arange(8), torch.arange(8)] = 1.0  # eight equal singular values, eight rows
    for state, rank, rows in ((one, 1.0, 1.0), (full, 8.0, 8.0)):
        object.__setattr__(exchanged, "state", state)
        found = held(seen, 2)
        assert found.rank == pytest.approx(rank, rel=1e-6)
        assert found.rows == pytest.approx(rows, rel=1e-6)
    seen_of.cache_clear()
