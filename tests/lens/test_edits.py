"""Changes to a pass: what is cut, silenced, patched and steered, and nothing else."""

import pytest
import torch

from lens_passes import CASES, NOT_LINEAR, reader, seen_of, seen_with, writer
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig, generate
from widestream.lens import cut, edit, find, look, patch, silence, steer
from widestream.lens.shares import Replay
from widestream.testing.models import tokens_of


def looked(seen, *edits):
    with torch.no_grad(), edit(seen.model, *edits):
        return look(seen.model, seen.tokens)


def assert_equal_before(a, b, site):
    """What is read and written before a reader is untouched to the bit."""
    for one, other in zip(a.exchanges[:site], b.exchanges[:site], strict=True):
        assert all(torch.equal(one.inputs[role], other.inputs[role]) for role in one.inputs)
        assert all(torch.equal(x, y) for x, y in zip(one.written, other.written, strict=True))


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind, number in CASES if number == 0])
def test_a_cut_wire_takes_the_share_and_nothing_else(kind, number):
    seen = seen_of(kind, number)
    one = find("0.mlp", seen.writers())[-1] if kind != "depth_lstm" else seen.writers()[-1]
    other = next(r for r in seen.readers() if r.site == 4) if kind != "depth_lstm" else seen.readers()[-1]
    if kind in NOT_LINEAR:
        with pytest.raises(UserError, match="no wires to cut"):
            looked(seen, cut(one, other))
        return
    after = looked(seen, cut(one, other))
    assert_equal_before(seen, after, other.site)
    (share,) = (r.inputs[other.role].shares[0] for r in Replay(seen, [one]) if r.site == other.site)
    wanted = seen.exchanges[4].inputs[other.role].clone()
    got = after.exchanges[4].inputs[other.role]
    if other.vector is None:
        wanted -= share
    elif wanted.ndim == 4:
        wanted[:, :, other.vector] -= share[:, :, other.vector]
    else:
        wanted[..., other.vector :: 4] -= share[..., other.vector :: 4]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen.logits, after.logits, atol=1e-6)


def test_a_cut_wire_equals_a_stream_edited_by_hand(monkeypatch):
    """RMT: head 2 of layer 0 to the key of head 1 in layer 2, against a read whose state lacks w (x) y for that key."""
    seen = seen_with({"kind": "matrix", "key_dim": 8}, {"norm": "rmsnorm"})
    stream, kept = seen.model.stream, {}
    write, read = stream.write, stream.read

    def write_and_keep(site, state, written):
        kept[site] = written
        return write(site, state, written)

    def read_without(site, state):
        inputs = read(site, state)
        if site != 4:
            return inputs
        norm, row = stream.norms[4], stream.read_4[4 + 1]  # 4 queries, then keys
        scale = (state.square().mean((-1, -2), keepdim=True) + norm.eps).rsqrt()
        lost = torch.einsum("btv,k->btvk", kept[1][:, :, 2], stream.write_1[:, 2]) * scale * norm.gain
        k = inputs["k"].clone()
        k[:, :, 1] -= lost @ row
        return inputs | {"k": k}

    after = looked(seen, cut(writer(seen, "0.attention.2"), reader(seen, "2.attention.k.1")))
    monkeypatch.setattr(stream, "write", write_and_keep, raising=False)
    monkeypatch.setattr(stream, "read", read_without, raising=False)
    with torch.no_grad():
        by_hand = seen.model(seen.tokens)
    torch.testing.assert_close(after.exchanges[-1].inputs["x"], by_hand, rtol=1e-5, atol=1e-5)


def test_all_wires_of_a_writer_cut_are_a_writer_silenced_where_nothing_else_changes():
    """Cut from the last MLP to the head: the head's norm keeps its scale, so silence differs by that scale alone."""
    seen = seen_of("vector")
    last, head = writer(seen, "2.mlp"), reader(seen, "head")
    cut_off, silent = looked(seen, cut(last, head)), looked(seen, silence(last))
    a, b = (one.exchanges[-1].inputs["x"] for one in (cut_off, silent))
    assert not torch.allclose(a, b)
    torch.testing.assert_close(torch.cosine_similarity(a, b, dim=-1).detach(), torch.ones(2, 20), rtol=0, atol=0.02)


def test_a_patched_writer_and_reader_have_the_other_passs_vectors():
    for kind in ("vector", "matrix"):
        seen = seen_of(kind)
        source = look(seen.model, tokens_of(2, 20, seed=5))
        one = writer(seen, "1.attention.2")
        after = looked(seen, patch(one, source))
        (wanted,), (before,), (other,) = (x.exchanges[3].written for x in (after, seen, source))
        if kind == "matrix":
            before, other = before.clone(), other
            before[:, :, 2] = other[:, :, 2]
            torch.testing.assert_close(wanted, before)
        whole = looked(seen, patch(one.whole, source))
        torch.testing.assert_close(whole.exchanges[3].written[0], source.exchanges[3].written[0])
        got = next(r for r in seen.readers() if r.site == 3)
        there = looked(seen, patch(got, source)).exchanges[3].inputs[got.role]
        from_source = source.exchanges[3].inputs[got.role]
        pick = (lambda x: x) if got.vector is None else (lambda x: x.unflatten(-1, (8, -1))[..., 0])
        torch.testing.assert_close(pick(there), pick(from_source))


def test_heads_silenced_one_by_one_leave_what_is_constant():
    seen = seen_of("vector")
    edits = [silence(one) for one in find("1.attention", seen.writers())]
    assert len(edits) == 4
    torch.testing.assert_close(looked(seen, *edits).exchanges[3].written[0], torch.zeros(2, 20, 32), rtol=0, atol=1e-6)


def test_a_direction_is_added_as_often_as_asked():
    seen, direction = seen_of("vector"), torch.arange(32.0)
    after = looked(seen, steer(writer(seen, "0.mlp"), direction, 0.5))
    torch.testing.assert_close(after.exchanges[2].written[0], seen.exchanges[2].written[0] + 0.5 * direction)


def test_edits_compose_in_their_order_and_end():
    seen = seen_of("matrix")
    one, other = writer(seen, "0.attention.1"), reader(seen, "1.mlp.2")
    before = seen.model(seen.tokens)
    with torch.no_grad(), edit(seen.model, cut(one, other)), edit(seen.model, silence(writer(seen, "0.mlp.0"))):
        nested = seen.model(seen.tokens)
    with torch.no_grad(), edit(seen.model, cut(one, other), silence(writer(seen, "0.mlp.0"))):
        together = seen.model(seen.tokens)
    assert torch.equal(nested, together)
    assert torch.equal(before, seen.model(seen.tokens))
    assert not any("mix" in module.__dict__ for module in seen.model.modules())


@pytest.mark.parametrize("kind", ["vector", "matrix", "deep_delta", "mhc"])
def test_edits_hold_with_a_cache_and_in_steps(kind):
    seen = seen_of(kind)
    readers = [r for r in seen.readers() if r.site == 4]
    made = cut(seen.writers()[0], readers[0]), silence(seen.writers()[5])
    choose = SamplingConfig(max_new_tokens=8, temperature=0)
    with torch.no_grad(), edit(seen.model, *made):
        cached, afresh = (generate(seen.model, [3, 1, 4, 1], choose, use_cache=use) for use in (True, False))
        cache = seen.model.new_cache(1, 8)
        whole = seen.model.logits(seen.model(seen.tokens[:1, :6]))[:, -1]
        seen.model(seen.tokens[:1, :5], cache=cache)
        stepped = seen.model.step(seen.tokens[:1, 5:6], torch.tensor([5]), cache)
    assert cached == afresh
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, seen.model.logits(seen.model(seen.tokens[:1, :6]))[:, -1], atol=1e-4)


def test_what_cannot_be_cut_is_refused():
    seen = seen_of("vector")
    with pytest.raises(UserError, match="there is no wire"):
        cut(writer(seen, "2.mlp"), reader(seen, "1.mlp"))
    with edit(seen.model, cut(writer(seen, "0.mlp"), reader(seen, "head"))), pytest.raises(UserError, match="no_grad"):
        seen.model(seen.tokens)
    with pytest.raises(UserError, match=r"There is no '9.mlp'"):
        find("9.mlp", seen.writers())


def test_a_pass_of_another_length_is_not_patched_in():
    seen = seen_of("vector")
    for length in (1, 7):
        source = look(seen.model, tokens_of(2, length))
        for place in (writer(seen, "0.mlp"), writer(seen, "0.attention.1"), reader(seen, "1.mlp")):
            with pytest.raises(UserError, match="of as many tokens"):
                looked(seen, patch(place, source))


def test_silence_passes_gradients():
    seen = seen_of("vector")
    with edit(seen.model, silence(writer(seen, "0.mlp"))):
        loss = seen.model.loss(seen.tokens, seen.tokens).total
        gradients = torch.autograd.grad(loss, [seen.model.blocks[1].w2, seen.model.blocks[3].w2], allow_unused=True)
    assert gradients[0] is None or not gradients[0].any()
    assert gradients[1].any()


def test_edits_of_one_writer_follow_one_another():
    for kind in ("vector", "matrix"):
        seen = seen_of(kind)
        head, whole = writer(seen, "1.attention.2"), writer(seen, "1.attention.2").whole
        once, twice = looked(seen, silence(head)), looked(seen, silence(head), silence(head))
        assert torch.equal(once.exchanges[3].written[0], twice.exchanges[3].written[0])
        both = looked(seen, silence(head), silence(whole)).exchanges[3].written[0]
        torch.testing.assert_close(both, torch.zeros_like(both), rtol=0, atol=1e-6)
        added = looked(seen, silence(whole), steer(whole, torch.ones(1))).exchanges[3].written[0]
        torch.testing.assert_close(added, torch.ones_like(added), rtol=0, atol=1e-6)
    seen = seen_of("matrix")
    again = looked(seen, silence(whole), silence(head)).exchanges[3].written[0]
    assert not again.any()
    with pytest.raises(UserError, match="changed as a whole"):
        looked(seen_of("vector"), silence(whole), silence(head))


def test_cuts_of_a_silenced_writer_and_of_its_heads_take_what_is_there():
    seen = seen_of("vector")
    head, reader_ = writer(seen, "0.attention.1"), reader(seen, "1.mlp")
    silent, both = looked(seen, silence(head)), looked(seen, silence(head), cut(head, reader_))
    torch.testing.assert_close(silent.logits, both.logits)
    every = looked(seen, *(cut(one, reader_) for one in find("0.attention", seen.writers())))
    whole = looked(seen, cut(head.whole, reader_))
    torch.testing.assert_close(every.logits, whole.logits, rtol=1e-4, atol=1e-5)


def test_all_wires_cut_leave_a_reader_with_constants():
    for kind in ("vector", "matrix"):
        seen = seen_of(kind)
        for other in [r for r in seen.readers() if r.site == 4][:2]:
            cuts = [cut(one, other) for one in seen.writers() if one.site <= 4]
            x = looked(seen, *cuts).exchanges[4].inputs[other.role]
            got = x if other.vector is None else x[:, :, other.vector]
            torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-4)
