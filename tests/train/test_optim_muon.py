"""Muon beside AdamW: what torch does on separate matrices, for parameters that hold several of them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models import tiny
from processes import train_quickly
from tiny_runs import tiny_config
from widestream.blocks.roles import Role
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.recipe import load_recipe, recipe_names
from widestream.recipe.train import MuonConfig, OptimizerConfig
from widestream.runs.checkpoint import load_optimizer, load_weights
from widestream.runs.checkpoint_writer import save
from widestream.train.optim import build_optimizer, set_lr, set_momentum
from widestream.train.optim_muon import Divided, MuonWithAdamW, matrices
from widestream.train.shards import Shares

MUP = {"init": {"scheme": "mup", "std": 0.5}, "mup": {"base_num_heads": 1, "base_mlp_dim": 8}}


def config_of(muon=None, **settings):
    return OptimizerConfig(kind="muon", muon=MuonConfig(**(muon or {})), **settings)


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def give(model, step):
    for name, gradient in gradients(model, step).items():
        model.get_parameter(name).grad = gradient


def take_steps(model, optimizer, steps):
    for step in steps:
        give(model, step)
        optimizer.step()


def pieces(name, value, rows):
    """A parameter's matrices, cut by hand into so many equal parts."""
    return {f"{name} {i}": part.clone() for i, part in enumerate(value.detach().chunk(rows))}


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_steps_are_those_of_torch_on_separate_matrices_bit_for_bit(stream, nesterov, adjust_lr):
    model, twin = build_model(tiny(stream), seed=1), build_model(tiny(stream), seed=1)
    muon = {"nesterov": nesterov, "adjust_lr": adjust_lr, "keys": True, "momentum": 0.9, "ns_steps": 4, "lr_factor": 2}
    config = config_of(muon, lr=0.01, weight_decay=0.1, decay="coupled")
    fused = ("qkv",) if stream == "vector" else ("read_0", "read_2")  # what attention reads
    taken = [name for name, p in twin.named_parameters() if p.ndim == 2 and not name.startswith(("emb", "unemb"))]
    taken = [name for name in taken if "norm" not in name]
    parts = {name: 3 if name.endswith(fused) else 1 for name in taken}
    separate = {
        key: nn.Parameter(v) for name in taken for key, v in pieces(name, twin.get_parameter(name), parts[name]).items()
    }
    rest = [p for name, p in twin.named_parameters() if name not in taken]
    theirs = torch.optim.Muon(
        separate.values(),
        lr=0.02,
        weight_decay=0.1,
        momentum=0.9,
        nesterov=nesterov,
        ns_steps=4,
        adjust_lr_fn=adjust_lr,
    )
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    take_steps(model, build_optimizer(model, config), range(3))
    for step in range(3):
        give(twin, step)
        for name in taken:
            for key, part in pieces(name, twin.get_parameter(name).grad, parts[name]).items():
                separate[key].grad = part
        theirs.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        if name in taken:
            for key, part in pieces(name, parameter, parts[name]).items():
                assert torch.equal(part, separate[key]), key
        else:
            assert torch.equal(parameter, twin.get_parameter(name)), name


def test_roles_say_who_takes_muon_and_keys_do_on_request():
    model = build_model(tiny("matrix"), seed=0)
    states = {}
    for keys in (False, True):
        optimizer = build_optimizer(model, config_of({"keys": keys}))
        states[keys] = {name for name, p in model.named_parameters() if set(optimizer.state[p]) == {"momentum_buffer"}}
    assert states[False] == {"blocks.1.w1", "blocks.1.w2", "blocks.3.w1", "blocks.3.w2"}
    own = {name for name, role in model.roles().items() if role.part == "keys"}
    assert own
    assert states[True] == states[False] | own


@pytest.mark.parametrize(
    ("shape", "role", "split_heads", "expected"),
    [
        ((6, 4), Role(1.0, "weight"), True, [(6, 4)]),
        ((8, 4), Role(1.0, "weight", splits=(4, 2, 2)), False, [(4, 4), (2, 4), (2, 4)]),
        ((8, 4), Role(1.0, "weight", splits=(4, 2, 2), head=(2, 4)), True, [(2, 4)] * 4),
        ((4, 6), Role(1.0, "weight", head=(4, 2)), True, [(4, 2)] * 3),
        ((5, 6, 4), Role(1.0, "weight"), False, [(6, 4)] * 5),
        ((5, 6, 4), Role(1.0, "weight", splits=(3, 3)), False, [(3, 4)] * 10),
        ((2, 5, 6, 4), Role(1.0, "weight", splits=(2, 4)), False, [(2, 4)] * 10 + [(4, 4)] * 10),
    ],
)
def test_a_parameter_divides_into_matrices_that_cover_it(shape, role, split_heads, expected):
    values = torch.zeros(shape)
    found = matrices(values, role, split_heads)
    assert [tuple(one.shape) for one in found] == expected
    for one in found:
        one += 1
    assert torch.equal(values, torch.ones(shape)), "every number lies in one of them, and they are views"


def test_experts_and_heads_step_as_if_they_were_alone():
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(3, 8, 4, generator=generator) for _ in range(2))
    experts = nn.Parameter(start.clone())
    shares = Shares(build_model(tiny()))
    divided = Divided("experts", experts, Role(1.0, "weight", splits=(4, 4)), split_heads=False, shares=shares)
    experts.grad = gradient.clone()
    divided.lend_gradient()
    torch.optim.Muon(divided.views, lr=0.1).step()
    for i in range(3):
        for rows in (slice(0, 4), slice(4, 8)):
            alone = nn.Parameter(start[i, rows].clone())
            alone.grad = gradient[i, rows].clone()
            torch.optim.Muon([alone], lr=0.1).step()
            assert torch.equal(experts[i, rows], alone)


def test_experts_and_gates_of_a_model_are_separate_matrices():
    """W_1 of an expert holds its gate and its values one above the other; the router's outputs are no width."""
    changes = {"activation": "swiglu", "moe": {"num_experts": 4, "top_k": 2}}
    model = build_model(tiny("vector", **changes), seed=0)
    optimizer = build_optimizer(model, config_of())
    assert set(optimizer.state[model.get_parameter("blocks.1.router")]) == {"step", "exp_avg", "exp_avg_sq"}
    w1 = model.get_parameter("blocks.1.w1")
    assert len(matrices(w1.detach(), model.roles()["blocks.1.w1"], split_heads=False)) == 8
    halves = w1.detach().clone().unflatten(1, (2, -1))
    take_steps(model, optimizer, range(1))
    gradient = gradients(model, 0)["blocks.1.w1"].unflatten(1, (2, -1))
    for expert, half in ((0, 0), (3, 1)):
        alone = nn.Parameter(halves[expert, half].clone())
        alone.grad = gradient[expert, half].clone()
        torch.optim.Muon([alone], lr=1e-2, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw").step()
        assert torch.equal(w1.unflatten(1, (2, -1))[expert, half], alone)


def test_head_by_head_is_another_step():
    def after(split_heads):
        model = build_model(tiny("vector"), seed=0)
        take_steps(model, build_optimizer(model, config_of({"split_heads": split_heads})), range(1))
        return dict(model.named_parameters())

    whole, by_head = after(False), after(True)
    different = {name for name, p in whole.items() if not torch.equal(p, by_head[name])}
    assert different == {f"blocks.{i}.{name}" for i in (0, 2) for name in ("qkv", "out")}


@pytest.mark.parametrize("decay", ["coupled", "independent"])
@pytest.mark.parametrize(("own", "strength"), [(None, 0.1), (0.3, 0.3)])
def test_decay_is_by_the_schedule_and_the_unadjusted_rate(decay, own, strength):
    model = build_model(tiny("vector"), seed=0)
    muon = {"weight_decay": own, "lr_factor": 0.5}
    optimizer = build_optimizer(model, config_of(muon, lr=0.2, weight_decay=0.1, decay=decay))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    set_lr(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factor = 1 - 0.5 * (0.1 * strength if decay == "coupled" else strength)
    for name in ("blocks.0.qkv", "blocks.0.out", "blocks.1.w1", "blocks.1.w2"):
        torch.testing.assert_close(model.get_parameter(name).detach(), before[name] * factor)


def test_a_rate_of_zero_leaves_only_independent_decay():
    model = build_model(tiny("vector"), seed=0)
    optimizer = build_optimizer(model, config_of(lr=0.0, weight_decay=0.1))
    before = model.get_parameter("blocks.1.w1").detach().clone()
    take_steps(model, optimizer, range(1))
    torch.testing.assert_close(model.get_parameter("blocks.1.w1").detach(), before * 0.9)


def test_a_checkpoint_has_one_momentum_a_parameter_and_training_goes_on_from_it_bit_for_bit(tmp_path):
    model = build_model(tiny("vector"), seed=0)
    optimizer = build_optimizer(model, config_of())
    take_steps(model, optimizer, range(2))
    path = save(tmp_path, 2, model, optimizer, {}, keep=1)
    other = build_model(tiny("vector"), seed=5)
    restored = build_optimizer(other, config_of())
    load_weights(path, other)
    load_optimizer(path, other, restored)
    take_steps(model, optimizer, range(2, 4))
    take_steps(other, restored, range(2, 4))
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert all(moment.shape in (ours.shape, ()) for moment in optimizer.state[ours].values())


def test_gradients_are_forgotten_and_not_held_between_steps():
    model = build_model(tiny("vector"), seed=0)
    optimizer = build_optimizer(model, config_of())
    give(model, 0)
    storage = {p.grad.untyped_storage()._weak_ref() for p in model.parameters() if p.grad is not None}
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.UntypedStorage._expired(ref) for ref in storage)


def test_a_parameter_without_a_gradient_stays():
    model = build_model(tiny("vector"), seed=0)
    optimizer = build_optimizer(model, config_of())
    give(model, 0)
    model.get_parameter("blocks.0.qkv").grad = None
    before = model.get_parameter("blocks.0.qkv").detach().clone()
    optimizer.step()
    assert torch.equal(model.get_parameter("blocks.0.qkv"), before)


def test_momentum_warms_up_by_the_number_of_the_step():
    model = build_model(tiny("vector"), seed=0)
    optimizer = build_optimizer(model, config_of({"momentum": 0.9, "momentum_start": 0.5, "momentum_warmup": 4}))
    assert isinstance(optimizer, MuonWithAdamW)
    seen = []
    for step in (0, 1, 4, 9):
        set_momentum(optimizer, step)
        (now,) = {group["momentum"] for group in optimizer.param_groups if "momentum" in group}
        seen.append(now)
    assert seen == pytest.approx([0.5, 0.6, 0.9, 0.9])


def test_a_run_warms_momentum_up(data, tmp_path):
    plain = {"kind": "muon"}
    warmed = {"kind": "muon", "muon": {"momentum_start": 0.5, "momentum_warmup": 3}}
    for name, optimizer in (("plain", plain), ("warmed", warmed)):
        train_quickly(tiny_config(data, train={"steps": 3, "save_every": 3}, optimizer=optimizer), tmp_path / name)
    folder = Path("checkpoints/step_00000003/optimizer.safetensors")
    a, b = (load_file(tmp_path / name / folder)["momentum_buffer/blocks.1.w1"] for name in ("plain", "warmed"))
    assert b.norm() > 1.5 * a.norm(), "less of the mean is kept, so more of each gradient is in it"


def test_under_mup_the_scale_by_shape_takes_the_place_of_the_rate_factor(data):
    model = build_model(tiny_config(data, "vector", model=MUP).model, seed=0)
    assert any(role.muon and role.lr_factor != 1 for role in model.roles().values())
    optimizer = build_optimizer(model, config_of({"adjust_lr": "original", "lr_factor": 3}, lr=0.01))
    (rate,) = {group["lr"] for group in optimizer.param_groups if "momentum" in group}
    assert rate == pytest.approx(0.03)
    with pytest.raises(UserError, match=r"optimizer\.muon\.adjust_lr is match_rms_adamw"):
        build_optimizer(model, config_of())


def test_a_model_whose_blocks_have_no_matrix_is_refused(monkeypatch):
    model = build_model(tiny({"kind": "matrix_keys", "key_dim": 6}), seed=0)
    with pytest.raises(
        UserError, match=r"no matrix in this model; set optimizer\.muon\.keys=true for the stream's own, or"
    ):
        build_optimizer(model, config_of())
    optimizer = build_optimizer(model, config_of({"keys": True}))
    take_steps(model, optimizer, range(1))
    plain = {name: replace(role, muon=False) for name, role in model.roles().items()}
    monkeypatch.setattr(model, "roles", lambda: plain)
    with pytest.raises(UserError, match=r"no matrix in this model; set optimizer\.kind=adamw"):
        build_optimizer(model, config_of({"keys": True}))


@pytest.mark.parametrize("name", [name for name in recipe_names() if re.fullmatch(r"zoo/\w+", name)])
def test_every_parameter_of_every_stream_takes_a_step(name):
    model = build_model(replace(load_recipe(name).model, vocab_size=50), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config_of({"keys": True, "split_heads": True}, weight_decay=0.0))
    take_steps(model, optimizer, range(1))
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lr_factor": -1.0}, "optimizer.muon.lr_factor is -1.0; it must be at least 0"),
        ({"momentum": 1.0}, "optimizer.muon.momentum is 1.0"),
        ({"momentum_start": 1.0, "momentum_warmup": 3}, "optimizer.muon.momentum_start is 1.0"),
        ({"momentum_start": 0.8}, "go together; give both or neither"),
        ({"momentum_warmup": 3}, "go together; give both or neither"),
        ({"ns_steps": 100}, "optimizer.muon.ns_steps is 100; it must be from 1 to 99"),
        ({"weight_decay": -0.1}, "optimizer.muon.weight_decay is -0.1"),
    ],
)
def test_values_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        MuonConfig(**wrong)


def test_settings_of_muon_without_muon_are_refused():
    with pytest.raises(
        UserError, match=r"optimizer\.muon is set, but optimizer\.kind is adamw; set optimizer\.kind=muon"
    ):
        OptimizerConfig(muon=MuonConfig())
    assert OptimizerConfig(kind="muon").muon == MuonConfig()
