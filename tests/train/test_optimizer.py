import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.recipe.train import OptimizerConfig
from widestream.train.optim import build_optimizer, clip_gradients, set_lr

MUP = {"init": {"scheme": "mup", "std": 0.5}, "mup": {"base_num_heads": 1, "base_mlp_dim": 8, "base_key_dim": 2}}


@pytest.fixture
def model(data):
    """An RMT whose parameters have several learning-rate factors."""
    return build_model(tiny_config(data, model=MUP).model, seed=1)


def fill_gradients(model, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("decay", ["coupled", "independent"])
def test_three_steps_are_those_of_the_formula(model, decay):
    config = OptimizerConfig(lr=0.02, weight_decay=0.1, decay=decay, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer = build_optimizer(model, config)
    fill_gradients(model)
    roles = model.roles()
    assert len({role.lr_factor for role in roles.values()}) > 1
    expected = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    m = dict.fromkeys(expected, 0.0)
    v = dict.fromkeys(expected, 0.0)
    for count, s in enumerate((0.0, 0.5, 1.0), start=1):
        set_lr(optimizer, s)
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            g, rate, w = parameter.grad.double(), config.lr * roles[name].lr_factor, expected[name]
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g * g
            u = (m[name] / (1 - 0.8**count)) / ((v[name] / (1 - 0.9**count)).sqrt() + 1e-6)
            wd = 0.0 if roles[name].decay == "none" else 0.1
            expected[name] = w - s * (rate * u + (wd if decay == "independent" else rate * wd) * w)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_keys_are_spared_on_request(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.0, weight_decay=0.5, decay_keys=False))
    fill_gradients(model)
    optimizer.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        kind = model.roles()[name].decay
        kinds.add(kind)
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if kind == "weight" else 1.0))
    assert kinds == {"none", "weight", "key"}


@pytest.mark.parametrize("decay", ["coupled", "independent"])
def test_a_peak_rate_of_zero_leaves_only_independent_decay(model, decay):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.0, weight_decay=0.1, decay=decay))
    fill_gradients(model)
    set_lr(optimizer, 0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decays = decay == "independent" and model.roles()[name].decay != "none"
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1.0))


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_is_exact_and_leaves_small_gradients_alone(scale, limit):
    parameters = [
        torch.nn.Parameter(torch.zeros(3, 4)),
        torch.nn.Parameter(torch.zeros(5)),
        torch.nn.Parameter(torch.zeros(2)),
    ]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters[:2]:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    grads = [parameter.grad.clone() for parameter in parameters[:2] if parameter.grad is not None]
    norm = math.sqrt(sum(grad.double().square().sum().item() for grad in grads))
    assert clip_gradients(parameters, limit).item() == pytest.approx(norm, rel=1e-5)
    for parameter, grad in zip(parameters, grads, strict=False):
        if norm < 0.999 * limit:
            assert torch.equal(parameter.grad, grad)
        else:
            torch.testing.assert_close(parameter.grad, grad * min(1.0, limit / norm))


def test_without_a_limit_the_norm_is_only_measured(model):
    fill_gradients(model, scale=100.0)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    assert clip_gradients(model.parameters(), None) > 100
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"beta2": 1.0}, {"eps": 0.0}, {"grad_clip": 0.0}, {"weight_decay": -0.1}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))} is"):
        OptimizerConfig(**wrong)
