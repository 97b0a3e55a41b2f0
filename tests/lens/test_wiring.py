"""Who reads whom: coefficients against what a changed vector does, depth weights against the numbers they are."""

import math

import pytest
import torch

from lens_passes import reader, seen_of, seen_with, writer
from widestream.errors import UserError
from widestream.lens import composition, edit, flow, keys, look, steer, weights
from widestream.lens.shares import Replay

SHAPES = [
    ({"kind": "matrix", "key_dim": 8}, {"norm": "rmsnorm"}),
    ({"kind": "matrix", "key_dim": 6, "norm_gain": "row"}, {"norm": "rmsnorm", "num_kv_heads": 2, "num_layers": 2}),
    ({"kind": "matrix", "key_dim": 12, "norm_gain": "none"}, {"norm": "rmsnorm", "positions": "alibi"}),
    ({"kind": "matrix_keys", "key_dim": 10, "mlp_rank": 6}, {"norm": "rmsnorm", "num_heads": 3}),
    ({"kind": "matrix_dense", "key_dim": 9, "reads": "qkv"}, {"norm": "rmsnorm"}),
]


def scale_of(seen, site):
    """One over the root mean square of the state in front of a reader [B, T]."""
    return (seen.exchanges[site].state.square().mean((-1, -2)) + seen.model.stream.norms[site].eps).rsqrt()


@pytest.mark.parametrize(("stream", "changes"), SHAPES)
def test_a_coefficient_times_what_was_written_is_the_readers_share(stream, changes):
    """For every reader, over all writers: sum of coefficient * y / scale is what it gets."""
    seen = seen_with(stream, changes)
    found, columns = keys(seen), keys(seen).columns.nan_to_num(0.0)
    data = torch.stack([data_of(seen, one) for one in found.writers])  # [writers, B, T, V]
    for row, one in enumerate(found.readers):
        got = vector(seen, seen.exchanges[one.site].inputs[one.role], one.vector)
        predicted = torch.einsum("wv,wbtv->btv", columns[row], data.double()) * scale_of(seen, one.site)[..., None]
        torch.testing.assert_close(predicted, got.double(), rtol=1e-4, atol=1e-5)


def data_of(seen, one):
    """What was stored as one data vector [B, T, V]."""
    written = seen.exchanges[one.site].written[int(one.part == "position")]
    return vector(seen, written, one.vector).expand(2, 20, -1)


def vector(seen, x, number):
    if x.ndim == 4:
        return x[:, :, number]
    return x.unflatten(-1, (seen.model.config.head_dim, -1))[..., number]


def test_a_coefficient_predicts_what_a_change_does_to_a_read():
    """With the norm's scale held: the read's change is coefficient * change / scale."""
    seen = seen_with({"kind": "matrix", "key_dim": 8}, {"norm": "rmsnorm"})
    one, other = writer(seen, "1.mlp.2"), reader(seen, "2.attention.q.3")
    coefficient = keys(seen).columns[seen.readers().index(other), seen.writers().index(one)]
    direction = torch.randn(8, generator=torch.Generator().manual_seed(3))
    added = torch.zeros(32)
    added[2::4] = direction
    with torch.no_grad(), edit(seen.model, steer(one, added, 1e-3)):
        changed = look(seen.model, seen.tokens)
    before, after = (scale_of(s, 4)[..., None] for s in (seen, changed))
    q = [s.exchanges[4].inputs["q"][:, :, 3].double() / scale for s, scale in ((seen, before), (changed, after))]
    torch.testing.assert_close((q[1] - q[0]) / 1e-3, (coefficient * direction).expand(2, 20, 8), rtol=2e-2, atol=2e-2)


def test_gains_by_row_and_none_are_the_same_in_all_columns():
    for number in (1, 2):
        assert keys(seen_of("matrix", number)).spread.nan_to_num(0.0).max() < 1e-12
    assert keys(seen_of("matrix")).spread.nan_to_num(0.0).max() > 1e-3


@pytest.mark.parametrize("kind", ["vector", "matrix_carry", "matrix_delta", "matrix_lane", "matrix_softmax", "mhc"])
def test_keys_alone_say_nothing_of_other_streams(kind):
    with pytest.raises(UserError, match="no coefficients from keys alone"):
        keys(seen_of(kind))


def test_flow_is_each_share_of_what_is_read():
    seen = seen_of("matrix")
    found = flow(seen)
    one, other = writer(seen, "0.attention.2"), reader(seen, "1.mlp.1")
    (read,) = (r for r in Replay(seen, [one]) if r.site == other.site)
    share, whole = (vector(seen, x, 1) for x in (read.inputs["x"].shares[0], read.inputs["x"].value))
    row, column = found.readers.index(other), found.writers.index(one)
    assert found.size[row, column].item() == pytest.approx((share.norm() / whole.norm()).item(), rel=1e-5)
    signed = ((share * whole).sum(-1) / whole.square().sum(-1)).mean()
    assert found.part[row, column].item() == pytest.approx(signed.item(), rel=1e-4)
    assert found.named(found.size)["1.mlp.1"]["0.attention.2"] == found.size[row, column].item()
    largest = found.largest(5)
    assert [value for *_, value in largest] == sorted((value for *_, value in largest), reverse=True)
    assert largest[0][2] == found.size.nan_to_num(-1).max().item()


def test_readers_read_nothing_that_comes_later():
    found = flow(seen_of("vector"))
    for row, one in enumerate(found.readers):
        for column, other in enumerate(found.writers):
            assert math.isnan(found.size[row, column]) == (other.site > one.site)


def test_tokens_at_the_start_can_be_left_out():
    seen = seen_of("vector")
    whole, rest = flow(seen), flow(seen, skip=5)
    assert not torch.equal(whole.size.nan_to_num(0), rest.size.nan_to_num(0))
    with pytest.raises(UserError, match="rows have 20 tokens"):
        flow(seen, skip=20)


def test_depth_weights_of_the_plain_stream_are_one_and_of_others_what_they_are_set_to():
    plain = weights(seen_of("vector"))
    assert (plain.mean.nan_to_num(1.0) - 1).abs().max() < 1e-6
    assert plain.spread.nan_to_num(0.0).max() < 1e-6
    rezero = seen_of("rezero")
    alpha = rezero.model.stream.alpha.double()
    wanted = torch.cat((torch.ones(2).double(), alpha))
    torch.testing.assert_close(weights(rezero).mean[-1], wanted, rtol=1e-5, atol=1e-5)
    gated = weights(seen_of("hyper_connections"))
    assert gated.spread.nan_to_num(0.0).max() > 1e-4
    assert gated.unlike.nan_to_num(0.0).max() < 1e-5
    with pytest.raises(UserError, match="use keys"):
        weights(seen_of("matrix"))


def test_composition_scores_are_those_of_the_maps_written_out():
    seen = seen_with({"kind": "vector"}, {"norm": "rmsnorm", "num_kv_heads": 2})
    scores = composition(seen)
    config, gain = seen.model.config, seen.model.stream.norms[2].factor().double()
    earlier, later = seen.model.blocks[0], seen.model.blocks[2]

    def maps(block, head, gain):
        q, k, v = block.qkv.double().split([32, 16, 16])
        rows, pair = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        return (q * gain)[rows], (k * gain)[pair], (v * gain)[pair], block.out.double()[:, rows]

    q, k, v, o = maps(later, 1, gain)
    *_, v0, o0 = maps(earlier, 2, seen.model.stream.norms[0].factor().double())
    written, norm = o0 @ v0, torch.linalg.matrix_norm
    row, column = config.num_heads + 1, 2
    for role, matrix in {"Q": q.T @ k, "K": k.T @ q, "V": o @ v}.items():
        read = matrix if role == "V" else matrix.T
        wanted = norm(read @ written) / (norm(matrix) * norm(written))
        torch.testing.assert_close(scores[role][row, column], wanted)
    assert scores["Q"][0].isnan().all()
    with pytest.raises(UserError, match="no maps of its own"):
        composition(seen_of("matrix"))
