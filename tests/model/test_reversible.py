"""Rebuilt states against saved ones: in every way of training, and what is kept and given up on the way."""

import gc
import weakref

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.kernels import cross_entropy, exchange
from widestream.kernels.exchange import ReferenceExchange, choose_exchange
from widestream.model.build import build_model
from widestream.model.depth import (
    Compiled,
    CompiledBlocks,
    Eager,
    Fused,
    OnTape,
    Rebuilt,
    Recomputed,
    RecomputedBlocks,
    plan_depth,
)
from widestream.model.depth.tape import Tape
from widestream.testing.memory import saved_by_writes
from widestream.testing.models import copy_of

CPU = torch.device("cpu")
MATRIX = {"kind": "matrix", "key_dim": 6}
STREAMS = {
    "in place": MATRIX,
    "in steps": {"kind": "matrix_delta", "key_dim": 16},
    "with a derived state": {"kind": "deep_delta", "compressor": "token"},
    "replayed": {"kind": "mhc", "phi": "random", "lanes": 3},
}


@pytest.fixture(params=sorted(STREAMS))
def stream(request):
    return STREAMS[request.param]


def tokens_of(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def pair(stream, depth=None, dtype=torch.float64, **changes):
    """The same model twice: it saves states, it rebuilds them. In float64, where rounding hides nothing."""
    upcast = {} if dtype == torch.float32 else {"upcast_attention": False}
    saving = build_model(tiny(stream, **upcast, **changes)).to(dtype)
    return saving, copy_of(saving, depth or Rebuilt(), dtype)


def backward(model, **options):
    model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1), **options).total.backward()


def error(saving, rebuilding):
    """The largest relative error of a gradient."""
    pairs = zip(saving.parameters(), rebuilding.parameters(), strict=True)
    return max(((a.grad - b.grad).norm() / a.grad.norm()).item() for a, b in pairs)


@pytest.mark.parametrize("positions", ["learned", "alibi", "rotary", "none"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_gradients_are_those_of_saved_states(stream, positions, norm):
    models = pair(stream, positions=positions, norm=norm)
    for model in models:
        backward(model, segments=torch.tensor([[0] * 9 + [1] * 11] * 2), z_loss=1e-3)
    assert error(*models) < 1e-9


@pytest.mark.parametrize("changes", [{"short_swa": 3}, {"tied_head": True}, {"value_residual": "learned"},
                                     {"init": {"query_zero": True}}], ids=str)  # fmt: skip
def test_other_models_too(stream, changes):
    models = pair(stream, **changes)
    for model in models:
        if "init" in changes:  # no query has a gradient where keys are zero, but for the second step
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01)
        backward(model)
    assert error(*models) < 1e-9


def test_autocast(stream):
    saving, rebuilding = pair(stream, dtype=torch.float32)
    for model in (saving, rebuilding):
        with torch.autocast("cpu", torch.bfloat16):
            terms = model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1))
        terms.total.backward()
    assert error(saving, rebuilding) < 2e-2


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({}, torch.float32),  # attention is computed in float32
        ({"upcast_attention": False}, torch.bfloat16),
        ({"upcast_attention": False, "positions": "rotary"}, torch.float32),  # rotated before it is cast
        ({"upcast_attention": False, "value_residual": "fixed"}, torch.float32),
    ],
)
def test_autocast_gives_the_same_numbers_forward(changes, attention):
    saving, rebuilding = pair(MATRIX, dtype=torch.float32, **changes)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(rebuilding(tokens_of(2, 20)), saving(tokens_of(2, 20)), rtol=0, atol=2e-2)
        read = []
        for block in rebuilding.blocks:
            block.register_forward_pre_hook(lambda _, inputs: read.append(next(iter(inputs[0].values())).dtype))
        rebuilding(tokens_of(2, 20))
    assert read == [attention, torch.bfloat16] * 2  # MLPs cast what they read


def test_accumulation(stream):
    """Two forward passes alive at once, and one after the other."""
    saving, rebuilding = pair(stream)
    for model in (saving, rebuilding):
        first = model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total
        second = model.loss(tokens_of(2, 20, seed=2), tokens_of(2, 20, seed=3)).total
        first.backward()
        second.backward()
        backward(model)
    assert error(saving, rebuilding) < 1e-9
    for model in (saving, rebuilding):
        model.zero_grad()
        losses = [model.loss(tokens_of(2, 20, seed=s), tokens_of(2, 20, seed=1)).total for s in (4, 5)]
        torch.stack(losses).sum().backward()
    assert error(saving, rebuilding) < 1e-9


@pytest.mark.parametrize("value_residual", ["none", "learned"])
def test_activation_checkpointing(stream, value_residual):
    saving, rebuilding = pair(stream, Rebuilt(loop=RecomputedBlocks(Eager())), value_residual=value_residual)
    for model in (saving, rebuilding):
        backward(model)
    assert error(saving, rebuilding) < 1e-9


@pytest.mark.parametrize(
    ("name", "checkpointing", "layers"),
    [
        ("in place", True, 9),
        ("in steps", False, 1),
        ("with a derived state", False, 1),
        ("replayed", True, 1),
    ],  # 9: more than dynamo's limit
)
def test_compiled_blocks(name, checkpointing, layers):
    torch._dynamo.reset()
    loop = RecomputedBlocks(Eager()) if checkpointing else Eager()
    depth = Rebuilt(loop=CompiledBlocks(loop, backend="aot_eager", fullgraph=True))
    saving, rebuilding = pair(STREAMS[name], depth, value_residual="learned", num_layers=layers)
    for model in (saving, rebuilding):
        backward(model)
    assert error(saving, rebuilding) < 1e-9


@pytest.mark.slow
def test_blocks_compiled_to_machine_code():
    torch._dynamo.reset()
    saving, rebuilding = pair(MATRIX, Rebuilt(loop=CompiledBlocks(Eager())), dtype=torch.float32)
    for model in (saving, rebuilding):
        backward(model)
    assert error(saving, rebuilding) < 1e-4


def test_parameters_that_are_held_fixed(stream):
    models = pair(stream)
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("embedding" not in name and not name.endswith("_1"))
        backward(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_second_backward_pass_is_refused(stream):
    _, model = pair(stream)
    loss = model(tokens_of(2, 20)).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given up as an earlier backward pass rebuilt them"):
        loss.backward()


def test_gradients_of_gradients_are_refused(stream):
    _, model = pair(stream)
    hidden = model(tokens_of(2, 20))
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(hidden.square().sum(), model.embedding.token, create_graph=True)


def test_an_exchange_cannot_run_twice(stream):
    _, model = pair(stream)
    tape = Tape(model.stream)
    tape.begin(None)
    with pytest.raises(AssertionError, match="exchange 1 on a tape that stands at -1"):
        tape.advance(1, None)


class Watched(ReferenceExchange):
    """Remembers its states without holding them."""

    def __init__(self):
        self.seen = []

    def forward_(self, state, data, site, out):
        self.seen.append(weakref.ref(state.untyped_storage()))
        super().forward_(state, data, site, out)

    @property
    def alive(self):
        return len({id(storage) for ref in self.seen if (storage := ref()) is not None})


@pytest.mark.parametrize("goes_back", [False, True])
def test_one_state_is_alive_and_nothing_leaks(goes_back):
    watched = Watched()
    _, model = pair(MATRIX, Rebuilt(watched))
    tapes = weakref.WeakSet()
    tape_of = Tape.__init__

    def remember(self, *args):
        tapes.add(self)
        tape_of(self, *args)

    gc.collect()
    gc.disable()
    try:
        Tape.__init__ = remember
        loss = model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total
        assert len(tapes) == 1
        (tape,) = tapes
        state = weakref.ref(tape.state)
        if goes_back:
            loss.backward(retain_graph=True)
            assert tape.grad is None
            assert state() is None  # the graph is there, the state is not
        assert len(watched.seen) == 5
        del tape, loss
        assert not tapes
        assert state() is None
    finally:
        Tape.__init__ = tape_of
        gc.enable()


@pytest.mark.parametrize(
    "kind", [STREAMS["in steps"], {"kind": "deep_delta"}, {"kind": "matrix_dynamic", "key_dim": 6}, {"kind": "mhc"}]
)
def test_other_streams_do_not_leak(kind):
    _, model = pair(kind, value_residual="learned" if kind["kind"] == "deep_delta" else "none")
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(x, Tape) for x in gc.get_objects())
        for goes_back in (False, True):
            loss = model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total
            assert sum(isinstance(x, Tape) for x in gc.get_objects()) == before + 1
            if goes_back:
                loss.backward()
            del loss
            assert sum(isinstance(x, Tape) for x in gc.get_objects()) == before
    finally:
        gc.enable()


class Spoiling(ReferenceExchange):
    """Rebuilds every state wrongly, but for those that have `spared` writes."""

    def __init__(self, spared):
        self.spared, self.calls = spared, 0

    def backward_(self, state, grad_state, data, *rest):
        gradients = super().backward_(state, grad_state, data, *rest)
        self.calls += 1
        if 4 - self.calls not in self.spared and data is not None:
            state.add_(1.0 + state)
        return gradients


def test_anchors_stand_in_for_rebuilt_states():
    saving, rebuilding = pair(MATRIX)
    backward(saving)
    # Four writes: one anchor lies behind the second one, three behind the first three.
    for anchors, spared in ((1, {0, 1, 3}), (3, {0})):
        for kept in (anchors, 0):
            rebuilding.zero_grad()
            with rebuilding.using(Rebuilt(Spoiling(spared), anchors=kept)):
                backward(rebuilding)
            assert (error(saving, rebuilding) < 1e-9) == (kept > 0)


@pytest.mark.parametrize("anchors", [1, 2, 3])
def test_anchors_are_evenly_spaced_exact_copies(stream, anchors):
    saving, rebuilding = pair(stream, Rebuilt(anchors=anchors))
    tape = OnTape(rebuilding.stream, Rebuilt(anchors=anchors)).tape
    assert tape.anchor_sites == {1: {2}, 2: {2, 3}, 3: {1, 2, 3}}[anchors]
    for model in (saving, rebuilding):
        backward(model)
    assert error(saving, rebuilding) < 1e-9
    with torch.no_grad():
        assert not OnTape(rebuilding.stream, Rebuilt(anchors=anchors)).tape.anchor_sites


def test_a_state_in_bf16_is_close(stream):
    saving, rebuilding = pair(MATRIX, Rebuilt(bf16=True, anchors=3), dtype=torch.float32)
    for model in (saving, rebuilding):
        backward(model)
    assert 1e-5 < error(saving, rebuilding) < 5e-2


@pytest.mark.parametrize("kind", ["matrix", "matrix_delta", "matrix_softmax", "matrix_dense", "matrix_keys",
                                  "matrix_history"])  # fmt: skip
def test_saved_bytes_do_not_depend_on_the_length_of_keys(kind):
    narrow, wide = (saved_by_writes({"kind": kind, "key_dim": key_dim}, {}) for key_dim in (16, 512))
    assert narrow == wide


def test_bytes_saved_in_a_whole_pass_do_not_depend_on_the_length_of_keys():
    def kept(key_dim, depth):
        model = build_model(tiny({"kind": "matrix", "key_dim": key_dim}), depth=depth)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(tokens_of(4, 24), tokens_of(4, 24))
        assert loss.total.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    assert kept(512, Rebuilt()) == pytest.approx(kept(16, Rebuilt()), rel=0.01)
    assert kept(512, Eager()) > 5 * kept(16, Eager())


def test_sampling_and_evaluation_in_place(stream):
    saving, rebuilding = pair(stream)
    tokens = tokens_of(2, 20)
    with torch.no_grad():
        expected = saving(tokens)
        torch.testing.assert_close(rebuilding(tokens), expected, rtol=1e-5, atol=1e-5)
        cache = rebuilding.new_cache(2, 20)
        pieces = [rebuilding(tokens[:, a:b], cache=cache) for a, b in ((0, 9), (9, 10), (10, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_cache_under_autograd_saves_states(stream):
    """Rebuilding would move the cache on a second time."""
    models = pair(stream)
    for model in models:
        model(tokens_of(2, 20), cache=model.new_cache(2, 20)).square().sum().backward()
    own, other = (model.stream.norms[0].gain.grad for model in models)
    assert torch.equal(own, other)


def test_kernels_are_chosen_by_device_and_switch(monkeypatch):
    why = iter([None, None, "the compiler is missing.", "the compiler is missing."])
    monkeypatch.setattr(cross_entropy, "available", lambda device: next(why), raising=False)
    monkeypatch.setattr(cross_entropy, "Fused", Spoiling, raising=False)
    monkeypatch.setattr(cross_entropy, "Fused", lambda: Spoiling(()), raising=False)
    monkeypatch.setattr(exchange, "FUSED", {"cpu": ("cross_entropy", "Fused"), "cuda": ("not_there", "Fused")})
    assert isinstance(choose_exchange("reference", CPU), ReferenceExchange)
    assert isinstance(choose_exchange("auto", CPU), Spoiling)
    assert isinstance(choose_exchange("fused", CPU), Spoiling)
    assert type(choose_exchange("auto", CPU)) is ReferenceExchange
    with pytest.raises(UserError, match=r"fused cannot be had: the compiler is missing; use auto or reference\.$"):
        choose_exchange("fused", CPU)
    for place in ("cuda", "mps"):
        assert type(choose_exchange("auto", torch.device(place))) is ReferenceExchange
        with pytest.raises(UserError, match=f"there is no fused exchange for a {place} device"):
            choose_exchange("fused", torch.device(place))


def test_plans():
    matrix, plain, delta = tiny(MATRIX), tiny("vector"), tiny({"kind": "deep_delta"})
    for config in (plain, delta):  # of the second one states could be rebuilt, but that is slower
        assert type(plan_depth(config, CPU)) is Eager
    saving = plan_depth(matrix, CPU, "states", kernels="reference")
    assert type(saving) is type(plan_depth(matrix, CPU, kernels="reference")) is Eager
    assert saving.describe() == {"memory": "states"}
    depth = plan_depth(matrix, CPU, "auto", anchors=2, kernels="reference", state_precision="bf16")
    assert depth.describe() == {
        "memory": "writes", "kernel": "ReferenceExchange", "anchors": 2, "state_precision": "bf16",
    }  # fmt: skip
    assert isinstance(plan_depth(delta, CPU, anchors=1), Rebuilt)
    rebuilt = plan_depth(delta, CPU, "writes", anchors=1)
    assert isinstance(rebuilt, Rebuilt)
    assert (rebuilt.anchors, rebuilt.bf16) == (1, False)


def test_plans_with_recomputation_and_compiling():
    matrix = tiny(MATRIX)
    whole = plan_depth(matrix, CPU, "states", kernels="reference", recompute=True, compiled=True)
    assert isinstance(whole, Compiled)
    assert whole.depth == Recomputed((range(1, 3), range(3, 5)))
    by_block = plan_depth(matrix, CPU, "writes", kernels="reference", recompute=True, compiled=True)
    assert isinstance(by_block, Rebuilt)
    assert isinstance(by_block.loop, CompiledBlocks)
    assert by_block.loop.loop == RecomputedBlocks(Eager())
    assert whole.compiled
    assert by_block.compiled
    assert not plan_depth(matrix, CPU, recompute=True).compiled


class Fast:
    """A fused exchange."""


def test_plans_that_save_states(monkeypatch):
    matrix, cuda = tiny(MATRIX), torch.device("cuda")
    monkeypatch.setattr(exchange, "FUSED", dict.fromkeys(("cpu", "cuda"), ("cross_entropy", "Fused")))
    monkeypatch.setattr(cross_entropy, "available", lambda device: None, raising=False)
    monkeypatch.setattr(cross_entropy, "Fused", Fast, raising=False)
    for device in (CPU, cuda):
        depth = plan_depth(matrix, device, "states", kernels="fused")
        assert depth.describe() == {"memory": "states", "kernel": "Fast"}
        assert type(plan_depth(matrix, device, "states", kernels="reference")) is Eager
    assert isinstance(plan_depth(matrix, CPU, "states"), Fused)
    assert type(plan_depth(matrix, cuda, "states")) is Eager  # nobody has measured it there
    assert type(plan_depth(tiny({"kind": "mhc"}), CPU, "states")) is Eager
    monkeypatch.setattr(cross_entropy, "available", lambda device: "the compiler is missing.", raising=False)
    assert type(plan_depth(matrix, CPU, "states")) is Eager
    with pytest.raises(UserError, match="the compiler is missing; use auto or reference"):
        plan_depth(matrix, CPU, "states", kernels="fused")


@pytest.mark.parametrize(
    ("stream", "asked", "words"),
    [
        ("vector", {"memory": "writes"}, "A vector stream rebuilds no states, which take no more than what is written"),
        ({"kind": "laurel", "weights": "none"}, {"memory": "writes"}, "A laurel stream rebuilds no states"),
        ({"kind": "mhc"}, {"memory": "writes", "kernels": "fused"}, "has no form for the exchange of a mhc stream"),
        ({"kind": "mhc"}, {"memory": "writes", "state_precision": "bf16"}, "bf16 does not suit a mhc stream"),
        ("vector", {"anchors": 1}, "train.anchors acts where .* but a vector stream saves its states"),
        ("vector", {"kernels": "fused"}, "has no form for the exchange of a vector stream"),
        ({"kind": "mhc"}, {"memory": "states", "kernels": "fused"}, "has no form for the exchange of a mhc stream"),
        (
            "matrix",
            {"memory": "states", "anchors": 1},
            "train.anchors acts where .*stream_memory is states; leave it out",
        ),
        ("matrix", {"memory": "states", "state_precision": "bf16"}, "train.stream_memory is states; leave it out"),
        ("matrix", {"anchors": 4}, "it must be below the number of this model's blocks, 4"),
        ({"kind": "deep_delta"}, {"kernels": "fused"}, "has no form for the exchange of a deep_delta stream"),
        ({"kind": "deep_delta"}, {"state_precision": "bf16"}, "bf16 does not suit a deep_delta stream"),
    ],
)
def test_settings_that_do_not_fit_are_refused(stream, asked, words):
    with pytest.raises(UserError, match=words):
        plan_depth(tiny(stream), CPU, **asked)
