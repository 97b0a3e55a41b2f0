import pytest
import torch

from tiny_runs import tiny_config
from widestream.data.batches import Batch, TrainBatches
from widestream.data.store import TokenStore
from widestream.model.build import build_model
from widestream.model.depth import Compiled, Eager
from widestream.train.optim import build_optimizer
from widestream.train.parallel import World
from widestream.train.step import batch_loss, optimizer_step, split

WORLD = World(torch.device("cpu"))


@pytest.fixture(params=["adamw", "muon"])
def config(data, request):
    return tiny_config(data, optimizer={"kind": request.param})


@pytest.fixture
def batch(data):
    return TrainBatches(TokenStore.open(data, "train"), 16, 8, seed=0).at(0)


def weighted(batch):
    """The batch with very different numbers of target tokens in its windows."""
    weights = torch.zeros(batch.tokens.shape)
    for row in range(len(weights)):
        weights[row, : 1 + 2 * row] = 1
    return Batch(tokens=batch.tokens, targets=batch.targets, segments=batch.segments, weights=weights)


def step(config, batch, **options):
    model = build_model(config.model, seed=3)
    optimizer = build_optimizer(model, config.optimizer)
    result = optimizer_step(model, optimizer, batch, world=WORLD, **options)
    return result, model


@pytest.mark.parametrize("shape", [lambda batch: batch, weighted], ids=["whole", "weighted"])
def test_accumulation_equals_the_big_batch(config, batch, shape):
    one, big = step(config, shape(batch), z_loss=1e-3)
    four, small = step(config, shape(batch), z_loss=1e-3, micro_batches=4)
    assert four.loss == pytest.approx(one.loss, rel=1e-6)
    assert four.z_loss == pytest.approx(one.z_loss, rel=1e-6)
    assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    assert four.losses.shape == (1, 4)
    for (name, a), b in zip(big.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6 * a.grad.abs().max().item(), msg=name)


def test_reported_loss_has_no_z_loss_in_it(config, batch):
    plain, _ = step(config, batch)
    with_z, _ = step(config, batch, z_loss=0.1)
    assert with_z.loss == plain.loss
    assert with_z.z_loss == plain.z_loss > 1
    assert with_z.grad_norm != plain.grad_norm


def test_clipping_bounds_the_applied_gradient_but_not_the_reported_one(config, batch):
    free, _ = step(config, batch)
    clipped, model = step(config, batch, grad_clip=free.grad_norm / 10)
    applied = torch.stack([parameter.grad.square().sum() for parameter in model.parameters()]).sum().sqrt()
    assert clipped.grad_norm == free.grad_norm
    assert applied.item() == pytest.approx(free.grad_norm / 10, rel=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(config, batch, poison):
    model = build_model(config.model, seed=3)
    optimizer = build_optimizer(model, config.optimizer)
    with torch.no_grad():
        model.get_parameter("unembedding")[0, 0] = poison
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = optimizer_step(model, optimizer, batch, world=WORLD)
    assert not result.applied
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.nan_to_num(), old.nan_to_num())
        assert not any(moment.any() for moment in optimizer.state[parameter].values())


def test_bf16_autocast_keeps_float32_weights_and_nearly_the_loss(config, batch):
    exact, _ = step(config, batch)
    rough, model = step(config, batch, precision="bf16")
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=1e-2)
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_split_gives_every_window_once_and_in_order(batch):
    parts = list(split(weighted(batch), 4))
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert torch.equal(torch.cat([part.weights for part in parts]), weighted(batch).weights)


@pytest.fixture
def kinds(data):
    """Batches without a document boundary in any window, and with one."""
    batches = TrainBatches(TokenStore.open(data, "train"), 16, 4, seed=0)
    found = {batch.has_boundaries: batch for batch in map(batches.at, range(40))}
    return found[False], found[True]


def passed_segments(model, batch, monkeypatch):
    """What the decoder gets, and the loss."""
    seen, forward = [], type(model).forward

    def spy(self, tokens, segments=None, **options):
        seen.append(segments)
        return forward(self, tokens, segments, **options)

    monkeypatch.setattr(type(model), "forward", spy)
    terms = batch_loss(model, batch, WORLD.device)
    return seen, terms


def test_no_mask_where_no_window_holds_a_boundary(config, kinds, monkeypatch):
    inside, across = kinds
    model = build_model(config.model, seed=3)
    masked = model.loss(inside.tokens, inside.targets, inside.segments).cross_entropy
    seen, terms = passed_segments(model, inside, monkeypatch)
    assert seen == [None]
    torch.testing.assert_close(terms.cross_entropy, masked, rtol=1e-6, atol=0)
    seen, _ = passed_segments(model, across, monkeypatch)
    assert seen[0] is not None


def test_every_micro_batch_decides_for_itself(config, kinds):
    inside, across = kinds
    pairs = zip(
        (inside.tokens, inside.targets, inside.segments), (across.tokens, across.targets, across.segments), strict=True
    )
    tokens, targets, segments = (torch.cat(pair) for pair in pairs)
    both = Batch(tokens=tokens, targets=targets, segments=segments)
    decided = [part.has_boundaries for part in split(both, 2)]
    assert decided == [False, True]
    one, big = step(config, both)
    two, small = step(config, both, micro_batches=2)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    for (name, a), b in zip(big.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6 * a.grad.abs().max().item(), msg=name)


def test_compiled_blocks_keep_the_mask(config, kinds, monkeypatch):
    model = build_model(config.model, seed=3, depth=Compiled(Eager(), backend="eager"))
    seen, _ = passed_segments(model, kinds[0], monkeypatch)
    assert seen[0] is not None
