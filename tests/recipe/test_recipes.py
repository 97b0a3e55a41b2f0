"""Recipes: shipped ones load from anywhere, mistakes are named, overrides and `extends` do what they say."""

import pytest
import yaml

from widestream.errors import UserError
from widestream.recipe import from_dict, load_recipe, recipe_names, to_dict

RUNNABLE = [name for name in recipe_names() if not name.startswith("preset/")]


@pytest.mark.parametrize("name", RUNNABLE)
def test_shipped_recipes_load_from_anywhere_and_round_trip(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_recipe(name)
    assert from_dict(to_dict(config)) == config
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert load_recipe(tmp_path / "copy.yaml") == config


@pytest.mark.parametrize("model", ["transformer-160m", "rmt-134m"])
def test_presets_differ_as_the_code_does_from_the_paper(model):
    kind = model.split("-")[0]
    paper, code = load_recipe(f"paper/{model}"), load_recipe(f"paper/{model}", [f"extends=preset/{kind}-code"])
    assert (paper.model.norm, code.model.norm) == ("layernorm", "rmsnorm")
    assert (paper.model.positions, code.model.positions) == ("learned", "alibi")
    assert (paper.model.document_mask, code.model.document_mask) == (False, True)
    assert (paper.model.init.scheme, code.model.init.scheme, code.model.init.std) == ("lecun", "mup", 0.02)
    assert (paper.model.init.output_zero, code.model.init.output_zero) == (False, True)
    assert (paper.optimizer.grad_clip, code.optimizer.grad_clip) == (None, 1.0)
    assert (paper.schedule.warmup, code.schedule.warmup) == (0.05, 0.10)
    assert paper.model.num_layers == code.model.num_layers == 12
    assert paper.model.stream == code.model.stream


def test_both_models_of_the_demo_differ_in_their_stream_and_rate_only():
    a, b = (to_dict(load_recipe(f"demo/{name}")) for name in ("transformer", "rmt"))
    for values in (a, b):
        del values["name"], values["model"]["stream"], values["optimizer"]["lr"]
    assert a == b


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.numlayers=3", "Unknown key model.numlayers; did you mean num_layers?"),
        ("optimiser.lr=1", "Unknown key optimiser; did you mean optimizer?"),
        ("model.stream.kind=matrx", "Unknown stream kind 'matrx'; did you mean matrix?"),
        ("model.stream.kind=no_module:Stream", "cannot be loaded"),
        ("model.stream.keydim=3", "did you mean key_dim?"),
        ("model.norm=layrnorm", "did you mean layernorm?"),
        ("train.steps=many", "train.steps must be int or null, not 'many'."),
        ("train.compile=1", "train.compile must be bool, not 1."),
        ("optimizer.lr=true", "optimizer.lr must be float, not True."),
        ("train=3", "train must be a mapping of keys to values, not 3."),
        ("train.steps.more=3", "Cannot set train.steps.more: steps is a value, not a mapping."),
        ("steps", "Cannot read the override 'steps'; write it as key.sub=value"),
        ("a=[", "is not valid YAML"),
        ("model.num_layers=0", "model.num_layers is 0; it must be at least 1."),
        ("model.width=-4", "model.width is -4; it must be at least 1."),
        ("model.width=0", "model.width is 0; it must be at least 1."),
        ("model.mup.base_key_dim=0", "model.mup.base_key_dim is 0; it must be at least 1."),
        ("model.init.std=0", "model.init.std is 0.0; it must be above 0."),
        ("extends=5", "must be a recipe or a list of recipes, not 5."),
    ],
)
def test_mistakes_are_named(override, sentence):
    with pytest.raises(UserError) as error:
        load_recipe("paper/rmt-46m", ["train.steps=5", override])
    assert sentence in str(error.value)


def test_missing_key_and_unknown_recipe():
    with pytest.raises(UserError, match=r"lacks model.stream.key_dim"):
        load_recipe("paper/transformer-49m", ["model.stream.kind=matrix"])
    with pytest.raises(UserError, match="did you mean paper/rmt-134m"):
        load_recipe("paper/rmt-135m")
    with pytest.raises(UserError, match=r"lacks .*model.num_layers|lacks name"):
        load_recipe("preset/rmt-paper")


def test_numbers_in_any_notation():
    config = load_recipe("paper/rmt-46m", ["optimizer.lr=1e-3", "optimizer.eps=1", "model.width=null"])
    assert config.optimizer.lr == 0.001
    assert isinstance(config.optimizer.eps, float)


def test_changing_the_stream_drops_the_old_ones_fields():
    assert load_recipe("paper/rmt-46m", ["model.stream.kind=vector"]).model.stream.kind == "vector"
    config = load_recipe("paper/transformer-49m", ["model.stream.kind=matrix", "model.stream.key_dim=9"])
    assert config.model.stream.key_dim == 9


def test_files_extend_files(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: paper/rmt-46m\nname: base\ntrain: {tokens: null, steps: 7}\n")
    (tmp_path / "top.yaml").write_text("extends: base\nname: top\noptimizer: {lr: 0.5}\n")
    config = load_recipe(tmp_path / "top.yaml")
    assert (config.name, config.train.steps, config.optimizer.lr, config.model.stream.key_dim) == ("top", 7, 0.5, 32)


def test_broken_files(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.write_text("extends: loop\n")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(loop)
    loop.write_text("a: [1\n")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_recipe(loop)
    loop.write_text("- 1\n")
    with pytest.raises(UserError, match="must be a mapping"):
        load_recipe(loop)
    loop.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_recipe(loop)
