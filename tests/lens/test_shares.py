"""Who wrote what a reader gets: of every kind of stream, exactly."""

import pytest
import torch

from lens_passes import CASES, NOT_LINEAR, seen_of, seen_with
from widestream.errors import UserError
from widestream.lens import attribute, exactness, flow
from widestream.lens.parted import Ledger, Parted
from widestream.lens.shares import Replay


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_a_logit_is_the_sum_over_writers(kind, number):
    seen = seen_of(kind, number)
    targets = seen.tokens.roll(1)
    if kind in NOT_LINEAR:
        with pytest.raises(UserError, match="not linear"):
            attribute(seen, targets)
        return
    found = attribute(seen, targets)
    logit = seen.logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(found.total(), logit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sum(found.by_site().values()) + found.constants, logit, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc", "mudd", "attn_res", "matrix_maps", "deep_delta"])
def test_the_same_on_blocks_of_today_with_norms_behind_them(kind):
    modern = not kind.startswith("matrix")
    seen = (
        seen_of(kind, 0, modern=True)
        if modern
        else seen_with(
            {"kind": kind, "key_dim": 12},
            {"norm": "rmsnorm", "positions": "rotary", "num_kv_heads": 1, "activation": "swiglu"},
        )
    )
    found = attribute(seen, 7, minus=3)
    difference = seen.logits[..., 7] - seen.logits[..., 3]
    torch.testing.assert_close(found.total(), difference, rtol=1e-4, atol=1e-4)


def test_biases_and_head_bias_are_constants():
    seen = seen_with(
        {"kind": "vector"}, {"norm_bias": True, "head_bias": True, "attention_bias": "all", "mlp_bias": True}
    )
    with torch.no_grad():
        for name, parameter in seen.model.named_parameters():
            if "bias" in name or name.endswith((".b1", ".b2")):
                parameter.normal_()
    seen = look_again(seen)
    found = attribute(seen, 5)
    torch.testing.assert_close(found.total(), seen.logits[..., 5], rtol=1e-4, atol=1e-4)
    assert found.constants.abs().max() > 0.01


def test_biases_that_are_still_zero_are_writers_of_nothing():
    seen = seen_with({"kind": "vector"}, {"attention_bias": "all"})
    found = attribute(seen, 5)
    torch.testing.assert_close(found.total(), seen.logits[..., 5], rtol=1e-4, atol=1e-4)
    biases = [value for one, value in zip(found.writers, found.values, strict=True) if one.part == "attention.bias"]
    assert len(biases) == 3
    assert not torch.stack(biases).any()


def look_again(seen):
    from widestream.lens import look

    return look(seen.model, seen.tokens)


def test_shares_of_all_readers_sum_to_what_they_get():
    for kind in ("vector", "matrix", "hyper_connections", "dca"):
        found = flow(seen_of(kind))
        total = found.part.nan_to_num(0.0).sum(1) + found.constants
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


def test_a_model_that_passes_shares_in_groups_gives_the_same(monkeypatch):
    seen = seen_of("matrix")
    whole = attribute(seen, 5)
    monkeypatch.setattr("widestream.lens.shares.in_parts.__defaults__", (40_000,))
    in_groups = attribute(seen, 5)
    assert torch.equal(whole.values, in_groups.values)
    assert torch.equal(whole.constants, in_groups.constants)


def test_exactness_tells_gates_from_none():
    assert str(exactness(seen_of("matrix"))) == "exact"
    assert str(exactness(seen_of("hyper_connections", 1))) == "exact"
    assert str(exactness(seen_of("hyper_connections"))) == "exact given the gates"


def test_unknown_tokens_are_refused():
    for token in (-1, 50):
        with pytest.raises(UserError, match=f"Token {token} is none of this model's 50"):
            attribute(seen_of("vector"), token)


class TestParted:
    """Rules of operations, each against the operation on the tensor."""

    @staticmethod
    def parted(shape=(2, 3, 4), seed=0):
        generator = torch.Generator().manual_seed(seed)
        shares = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        return Parted(sum(shares), list(shares), Ledger())

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x.transpose(1, 2).reshape(2, -1),
            lambda x: torch.stack((x, 2 * x)).sum(0),
            lambda x: torch.cat((x[:, :1], x[:, 1:]), dim=1),
            lambda x: x - x.mean(-1, keepdim=True),
            lambda x: torch.einsum("btd,de->bte", x, torch.ones(4, 5, dtype=torch.float64)),
            lambda x: torch.nn.functional.linear(
                x, torch.ones(5, 4, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
            ),
            lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
            lambda x: x + 1,
            lambda x: 1 - x,
            lambda x: x.masked_fill(torch.eye(3, 4, dtype=torch.bool), 2.0),
            lambda x: x * torch.softmax(x, -1).sum(-1, keepdim=True),
            lambda x: x / x.norm(),
            lambda x: torch.addcmul(x, x, torch.sigmoid(x)),
            lambda x: torch.lerp(x, 2 * x, 0.3),
            lambda x: torch.nn.functional.layer_norm(x, (4,), torch.arange(4.0).double(), torch.ones(4).double()),
            lambda x: torch.nn.functional.rms_norm(x, (4,)),
            lambda x: x.split(2, dim=-1)[1],
            lambda x: x.unbind(1)[2],
            lambda x: x @ x.mT.sigmoid(),
            lambda x: x.cumsum(1).roll(1, 1).flip(1),
            lambda x: torch.nn.functional.pad(x, (0, 0, 1, 0)),
        ],
    )
    def test_shares_sum_to_the_tensor(self, function):
        x = self.parted()
        got, wanted = function(x), function(x.value)
        torch.testing.assert_close(got.value, wanted)
        assert got.missing() < 1e-12

    @pytest.mark.parametrize(
        "function", [torch.sigmoid, lambda x: x * x, lambda x: 1 / x, torch.relu, lambda x: x.amax(-1)]
    )
    def test_what_is_not_linear_has_no_shares(self, function):
        x = self.parted()
        got = function(x)
        torch.testing.assert_close(got.value, function(x.value))
        assert got.shares is None
        assert got.missing() == 1.0
        assert x.ledger.nonlinear

    def test_a_share_is_what_its_writer_has_in_it(self):
        x = self.parted()
        got = (3 * x + 1).sum(-1)
        for share, before in zip(got.shares[:2], x.shares[:2], strict=True):
            torch.testing.assert_close(share, 3 * before.sum(-1))
        torch.testing.assert_close(got.shares[2], 3 * x.shares[2].sum(-1) + 4)

    def test_a_gate_that_is_added_is_missing(self):
        x = self.parted()
        assert 0.01 < (x + torch.sigmoid(x)).missing() < 1


def test_every_share_of_a_replay_stops_where_its_writer_begins():
    seen = seen_of("vector")
    writers = [one for one in seen.writers() if one.site == 3]
    for read in Replay(seen, writers):
        shares = read.inputs["x"].shares
        assert [share is None for share in shares[:-1]] == [read.site < 3] * len(writers)
