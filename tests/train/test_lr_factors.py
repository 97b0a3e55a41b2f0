"""optimizer.lr_factors: rates of parts of a model, and parts that are frozen."""

import json

import pytest
import torch

from tiny_runs import tiny_config, write_data
from widestream.cli.summary import summary
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.recipe import load_recipe, to_dict
from widestream.runs.folder import load_config
from widestream.study.plan import fingerprints, recipe_hash
from widestream.train.loop import train
from widestream.train.optim import build_optimizer, rate_factors
from widestream.train.origin import weights_hash


def optimizer_of(factors, **settings):
    return tiny_config("none", optimizer={"lr": 1e-2, "lr_factors": factors} | settings).optimizer


def model_of():
    return build_model(tiny_config("none").model)


def test_a_part_and_a_pattern_of_names():
    roles = model_of().roles()
    factors = rate_factors(roles, optimizer_of({"keys": 30.0, "stream.write_*": 3.0, "blocks.1.w1": 0.5}))
    assert factors["stream.read_0"] == 30
    assert factors["stream.write_1"] == 3  # the last one counts
    assert factors["blocks.1.w1"] == 0.5
    assert factors["blocks.1.w2"] == factors["embedding.token"] == 1


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_rates_of_groups(kind):
    model = model_of()
    optimizer = build_optimizer(model, optimizer_of({"keys": 30.0, "mlp": 2.0}, kind=kind))
    rates = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    if kind == "muon":  # whose groups hold views
        assert {group["peak_lr"] for group in optimizer.param_groups} == {0.02, 0.3, 0.01}
    else:
        assert rates[id(model.stream.read_0)] == pytest.approx(0.3)
        assert rates[id(model.get_parameter("blocks.1.w1"))] == pytest.approx(0.02)
        assert rates[id(model.embedding.token)] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("stream", "frozen", "memory", "kind"),
    [
        ("matrix", "keys", "states", "adamw"),
        ("matrix", "keys", "writes", "muon"),
        ("matrix", "everything else", "states", "muon"),
        ("matrix", "everything else", "writes", "adamw"),
        ("vector", "everything else", "states", "adamw"),
    ],
)
def test_what_is_frozen_does_not_move_and_the_rest_does(kind, stream, frozen, memory, tmp_path):
    part = "keys" if stream == "matrix" else "mlp"
    factors = {"keys": 0.0} if frozen == "keys" else {"*": 0.0, part: 1.0}
    data = write_data(tmp_path / "data")
    train(tiny_config(data, stream, train={"steps": 2}, optimizer={"lr": 0.0, "weight_decay": 0.0}), tmp_path / "first")
    optimizer = {"lr_factors": factors, "weight_decay": 0.1, "kind": kind, "grad_clip": 1.0}
    if kind == "muon":
        optimizer["muon"] = {"keys": True}
    config = tiny_config(data, stream, optimizer=optimizer, train={"stream_memory": memory, "steps": 2,
                                                                  "init_from": str(tmp_path / "first")})  # fmt: skip
    train(config, tmp_path / "run")
    from safetensors.torch import load_file

    before, after = (
        load_file(max((tmp_path / name / "checkpoints").iterdir()) / "model.safetensors") for name in ("first", "run")
    )
    roles = build_model(config.model).roles()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name, factor in rate_factors(roles, config.optimizer).items() if factor}
    assert moved == wanted


def test_a_frozen_part_has_no_part_in_the_norm_that_is_clipped(tmp_path):
    model = model_of()
    build_optimizer(model, optimizer_of({"mlp": 0.0}))
    tokens = torch.arange(16).view(1, 16)
    model.loss(tokens, tokens).total.backward()
    assert model.get_parameter("blocks.1.w1").grad is None
    assert model.stream.read_0.grad is not None


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ({"kyes": 3.0}, r"optimizer.lr_factors.kyes fits no parameter .*give a part \(unembedding"),
        ({"*": 0.0}, "freeze every parameter"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, sentence):
    with pytest.raises(UserError, match=sentence):
        build_optimizer(model_of(), optimizer_of(factors))


def test_a_factor_below_zero_is_refused():
    with pytest.raises(UserError, match=r"lr_factors.keys is -1\.0; it must be at least 0"):
        optimizer_of({"keys": -1.0})


def test_factors_on_the_command_line_in_recipes_and_in_summaries(capsys):
    config = load_recipe("demo/rmt", ["optimizer.lr_factors.keys=30", "optimizer.lr_factors.mlp=0"])
    assert config.optimizer.lr_factors == {"keys": 30.0, "mlp": 0.0}
    assert to_dict(config)["optimizer"]["lr_factors"] == {"keys": 30.0, "mlp": 0.0}
    plain = load_recipe("demo/rmt")
    prints = {"train": None, "heldout": None}
    assert recipe_hash(config, prints) != recipe_hash(plain, prints)
    summary("demo/rmt", ["optimizer.lr_factors.mlp=0"], as_json=True)
    counts = json.loads(capsys.readouterr().out)
    assert counts["parameters_by_optimizer"]["frozen"] == counts["parameters"]["by_part"]["mlp"]


def test_a_run_goes_on_with_its_factors_and_not_with_others(tmp_path):
    data = write_data(tmp_path / "data")
    config = tiny_config(data, optimizer={"lr_factors": {"keys": 3.0}})
    train(config, tmp_path / "run")
    assert load_config(tmp_path / "run") == config
    assert train(config, tmp_path / "run").step == 6
    with pytest.raises(UserError, match=r"differs in optimizer.lr_factors.keys \(3.0 there, 5.0 now\)"):
        train(tiny_config(data, optimizer={"lr_factors": {"keys": 5.0}}), tmp_path / "run")


def test_a_studys_key_names_the_weights_that_a_run_starts_from(tmp_path):
    data = write_data(tmp_path / "data")
    train(tiny_config(data), tmp_path / "first")
    train(tiny_config(data, train={"seed": 3}), tmp_path / "second")

    def key(place):
        config = tiny_config(data, train={"init_from": str(tmp_path / place)})
        return recipe_hash(config, fingerprints(config))

    plain = tiny_config(data)
    assert fingerprints(plain).keys() == {"train", "heldout"}
    assert len({recipe_hash(plain, fingerprints(plain)), key("first"), key("second")}) == 3
    before = key("first")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert key("moved") == before  # the same weights at another place
    assert key("first") != before  # there are none
    assert weights_hash(tmp_path / "moved") == weights_hash(max((tmp_path / "moved" / "checkpoints").iterdir()))
