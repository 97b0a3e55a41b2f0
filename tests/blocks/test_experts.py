"""A mixture of experts against a loop over tokens in float64, forward and backward."""

import pytest
import torch
from test_mlp import FORMULAS

from models import tiny
from widestream.blocks.context import make_context
from widestream.blocks.routing import bring_back, route, send
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.recipe.model import GATED

SETTINGS = {"num_experts": 5, "top_k": 2, "expert_dim": 12}


def experts_of(config):
    """The experts of the first layer, with biases that have left zero."""
    block = build_model(config).blocks[1].double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (block.b1, block.b2, block.balance_bias):
            if tensor is not None:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return block


def vectors(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context_of(config, x):
    return make_context(config, torch.arange(x.shape[1]))


def by_token(config, block, x):
    """The same, one token and one expert after the other."""
    out = []
    for token in x.flatten(0, 1):
        p = torch.softmax(block.router @ token, dim=0)
        scores = p if block.balance_bias is None else p + block.balance_bias
        picked = sorted(range(len(p)), key=lambda e: -scores[e].item())[: config.moe.top_k]
        total = sum(p[e] for e in picked) if config.moe.normalise else 1
        out.append(sum(p[e] / total * expert(config.activation, block, e, token) for e in picked))
    return torch.stack(out).view_as(x)


def expert(kind, block, e, token):
    hidden = block.w1[e] @ token + (0 if block.b1 is None else block.b1[e])
    if kind in GATED:
        gate, values = hidden.chunk(2)
        hidden = FORMULAS[kind](gate) * values
    else:
        hidden = FORMULAS[kind](hidden)
    return block.w2[e] @ hidden + (0 if block.b2 is None else block.b2[e])


CASES = [
    {"activation": "swiglu"},
    {"activation": "squared_relu", "mlp_bias": True},
    {"activation": "geglu", "moe": SETTINGS | {"normalise": False, "top_k": 1}},
    {"activation": "gelu", "moe": SETTINGS | {"normalise": False, "top_k": 5}},
    {"activation": "gelu_tanh", "moe": SETTINGS | {"balance": "bias", "top_k": 3}, "mlp_bias": True},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["activation"])
def test_values_and_gradients(case):
    config = tiny(**{"moe": SETTINGS} | case)
    block, x = experts_of(config), vectors(2, 7, 32).requires_grad_()
    weights = [x, *block.parameters()]
    got, wanted = block({"x": x}, context_of(config, x)), by_token(config, block, x)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    target = vectors(2, 7, 32, seed=2)
    pairs = (torch.autograd.grad((y * target).sum(), weights, materialize_grads=True) for y in (got, wanted))
    for (name, _), a, b in zip([("x", x), *block.named_parameters()], *pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        assert a.any()


def test_gradients_of_gradients():
    config = tiny(activation="swiglu", moe=SETTINGS)
    block, x = experts_of(config), vectors(1, 3, 32).requires_grad_()
    twice = []
    for out in (block({"x": x}, context_of(config, x)), by_token(config, block, x)):
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        twice.append(torch.autograd.grad(first.square().sum(), block.w1)[0])
    torch.testing.assert_close(*twice, rtol=1e-9, atol=1e-12)


def test_experts_that_nobody_picks():
    config = tiny(activation="swiglu", moe=SETTINGS)
    block, x = experts_of(config), vectors(2, 7, 32).abs()
    with torch.no_grad():
        block.router[3:] = -10.0
    out = block({"x": x}, context_of(config, x))
    torch.testing.assert_close(out, by_token(config, block, x), rtol=1e-10, atol=1e-12)
    out.sum().backward()
    assert not block.w1.grad[3:].any()
    assert block.w1.grad[:3].any()


def test_the_balance_bias_acts_on_the_choice_alone():
    x, router = vectors(2, 6, 8), vectors(4, 8, seed=3)
    plain = route(x, router, 2, normalise=False)
    same = route(x, router, 2, normalise=False, bias=torch.full((4,), 0.7))
    assert torch.equal(plain.weights, same.weights)
    pushed = route(x, router, 2, normalise=False, bias=torch.tensor([0.0, 0.0, 5.0, 5.0]))
    assert pushed.load.sum(0).tolist() == [0, 0, 12, 12]
    p = (x @ router.T).softmax(-1)[..., 2:].flatten(0, 1)
    torch.testing.assert_close(pushed.weights.sort(-1).values, p.sort(-1).values)


def test_the_way_there_and_back():
    x = vectors(3, 5, 8)
    routes = route(x, vectors(4, 8, seed=3), 2, normalise=True)
    assert routes.experts.tolist() == sorted(routes.experts.tolist())
    assert routes.ends.tolist() == routes.load.sum(0).cumsum(0).tolist()
    assert routes.ends[-1] == 3 * 5 * 2
    torch.testing.assert_close(bring_back(send(x.flatten(0, 1), routes), routes), x.flatten(0, 1))


def test_balance_is_that_of_the_formula_window_by_window():
    x, router = vectors(3, 16, 8), vectors(4, 8, seed=3).requires_grad_()
    routes = route(x, router, 2, normalise=True)
    p = (x @ router.T).softmax(-1)
    picked = torch.nn.functional.one_hot(p.topk(2).indices, 4).sum(2)
    wanted = torch.stack([4 * (picked[b].double().mean(0) * p[b].mean(0)).sum() for b in range(3)])
    torch.testing.assert_close(routes.balance, wanted)
    assert torch.equal(routes.load, picked.sum(1))
    got, expected = (torch.autograd.grad(y.sum(), router, retain_graph=True)[0] for y in (routes.balance, wanted))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("busy", "balance"), [(slice(0, 6), 2.0), (slice(0, 2), 6.0)], ids=["all", "two"])
def test_balance_of_equal_and_of_single_experts(busy, balance):
    """k when all are equally busy, E when k experts take all."""
    one_hot = torch.eye(6, dtype=torch.float64)[busy]
    x = 50 * (one_hot + one_hot.roll(1, 0))[None]
    routes = route(x, torch.eye(6, dtype=torch.float64), 2, normalise=True)
    torch.testing.assert_close(routes.balance, torch.tensor([balance], dtype=torch.float64))


def test_moving_the_bias():
    block = build_model(tiny(moe=SETTINGS | {"balance": "bias", "bias_rate": 0.25})).blocks[1]
    assert torch.equal(block.balance_bias, torch.zeros(5))
    for _ in range(2):
        block.move_bias(torch.tensor([10, 0, 4, 3, 3]))  # 4 is the mean
    assert block.balance_bias.tolist() == [-0.5, 0.5, 0.0, 0.5, 0.5]
    assert "balance_bias" not in dict(block.named_parameters())
    assert "balance_bias" in block.state_dict()


def test_the_router_computes_in_float32_under_autocast():
    x = vectors(1, 64, 32).float()
    routes = [route(x, vectors(16, 32, seed=3).float(), 2, normalise=False)]
    with torch.autocast("cpu", torch.bfloat16):
        routes.append(route(x, vectors(16, 32, seed=3).float(), 2, normalise=False))
    assert torch.equal(routes[0].weights, routes[1].weights)
    assert torch.equal(routes[0].order, routes[1].order)


def test_roles():
    roles = build_model(tiny(activation="swiglu", mlp_bias=True, moe=SETTINGS)).roles()
    router, w1, w2, b1 = (roles[f"blocks.1.{name}"] for name in ("router", "w1", "w2", "b1"))
    assert (w1.muon, w2.muon, router.muon, b1.muon) == (True, True, False, False)
    assert (w1.splits, w2.splits) == ((12, 12), ())
    assert (w1.std, router.std) == pytest.approx((32**-0.5, 32**-0.5))
    assert w2.std == pytest.approx(12**-0.5 / 2)
    assert w1.used == w2.used == b1.used == 2 / 5
    assert (router.used, router.decay, b1.decay) == (1, "weight", "none")


def test_the_router_under_mup():
    roles = build_model(tiny(init={"scheme": "mup"}, mup={"base_width": 8}, moe=SETTINGS)).roles()
    router = roles["blocks.1.router"]
    assert (router.std, router.multiplier, router.lr_factor) == pytest.approx((8**-0.5, 1 / 4, 1))


def test_experts_grow_where_a_stream_widens_its_mlps():
    config = tiny({"kind": "mudd", "widen_mlps": True}, num_layers=3, moe=SETTINGS)
    widths = [block.w2.shape[-1] for block in build_model(config).blocks[1::2]]
    assert widths == [6, 12, 18]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe": {"num_experts": 4, "top_k": 5}}, r"model\.moe\.top_k is 5, and there are 4 experts"),
        ({"moe": {"num_experts": 4}}, r"model\.moe\.top_k is missing"),
        ({"moe": {"num_experts": 4, "top_k": 1}}, r"model\.moe\.normalise .* with top_k: 1 use normalise: false"),
        ({"moe": {"num_experts": 4, "top_k": 2, "every": 3}}, r"model\.moe\.every is 3, and of model\.num_layers, 2"),
        (
            {"moe": SETTINGS, "init": {"scheme": "mup"}, "mup": {"base_mlp_dim": 20}},
            r"model\.mup\.base_mlp_dim .* leave out model\.moe\.expert_dim",
        ),
    ],
)
def test_refused(changes, words):
    with pytest.raises(UserError, match=words):
        tiny(**changes)
