"""Recipes: shipped ones load from anywhere, mistakes are named, overrides and `extends` do what they say."""

import pytest
import yaml

from widestream.errors import UserError, unknown_name
from widestream.recipe import from_dict, load_recipe, recipe_names, to_dict
from widestream.recipe.load import RECIPES

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
        load_recipe("paper/rmt-46m", ["train.steps=5", override] if override != "train=3" else [override])
    assert sentence in str(error.value)


def test_missing_key_and_unknown_recipe():
    with pytest.raises(UserError, match=r"lacks model.stream.key_dim"):
        load_recipe("paper/transformer-49m", ["model.stream.kind=matrix"])
    with pytest.raises(UserError, match="did you mean paper/rmt-134m"):
        load_recipe("paper/rmt-135m")
    with pytest.raises(UserError, match=r"lacks .*model.num_layers|lacks name"):
        load_recipe("preset/rmt-paper")


def test_a_recipe_like_no_other_lists_folders():
    with pytest.raises(UserError) as error:
        load_recipe("qqqqqqqq")
    message, folder = str(error.value), RECIPES.folder
    for name in ("paper", "shipped", "zoo"):
        assert f" {name}/* ({len([*(folder / name).glob('*.yaml')])})" in message
    assert len(message) < 400


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


def test_a_new_kind_keeps_what_it_knows(tmp_path):
    """`warmup` and `floor` are every schedule's; `lanes` is hyper-connections', and the command line's in any order."""
    (tmp_path / "base.yaml").write_text(
        "extends: demo/transformer\nname: base\nschedule: {kind: cosine, warmup: 10, floor: 0.0}\n"
        "model: {stream: {kind: mhc, lanes: 3, norm_eps: null}}\n".replace(", norm_eps: null", "")
    )
    (tmp_path / "child.yaml").write_text(
        "extends: base\nname: child\nschedule: {kind: wsd}\nmodel: {stream: {kind: hyper_connections}}\n"
    )
    child = load_recipe(tmp_path / "child.yaml")
    assert (child.schedule.kind, child.schedule.warmup, child.schedule.floor) == ("wsd", 10, 0.0)
    assert child.model.stream.lanes == 3
    told = load_recipe(tmp_path / "base.yaml", ["schedule.warmup=7", "schedule.kind=wsd"])
    assert (told.schedule.kind, told.schedule.warmup, told.schedule.floor) == ("wsd", 7, 0.0)
    for order in (1, -1):
        both = ["model.stream.lanes=2", "model.stream.kind=hyper_connections"][::order]
        assert load_recipe("demo/transformer", both).model.stream.lanes == 2
        with pytest.raises(UserError, match=r"Unknown key model\.stream\.lanes"):
            load_recipe("demo/transformer", ["model.stream.lanes=2", "model.stream.kind=vector"][::order])
    assert load_recipe(tmp_path / "base.yaml", ["model.stream.kind=vector"]).model.stream.kind == "vector"


def test_a_section_does_not_undo_what_was_set_before():
    with pytest.raises(UserError, match=r"would undo model\.stream\.key_dim=3"):
        load_recipe("demo/rmt", ["model.stream.key_dim=3", "model.stream={kind: vector}"])
    values = ["model.stream={kind: matrix, key_dim: 4}", "model.stream.key_dim=3", "train.steps=4", "train.steps=5"]
    config = load_recipe("demo/rmt", values)
    assert (config.model.stream.key_dim, config.train.steps) == (3, 5)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=2026-11-22", "2026-11-22"),
        ("name=1.10", "1.10"),
        ("name=007", "007"),
        ("name=12:30", "12:30"),
        ("name=1_000", "1_000"),
        ("name=no", "no"),
        ("train.tokens=1e4", 10_000),
        ("train.tokens=2.0", 2),
        ("train.tokens=164_000_000", 164_000_000),
        ("optimizer.lr=.01", 0.01),
        ("data.path=~/d", "/home/nobody/d"),
    ],
)
def test_values_are_what_they_look_like(override, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/nobody")
    config = load_recipe("demo/rmt", [override])
    section, _, key = override.partition("=")[0].rpartition(".")
    found = getattr(getattr(config, section) if section else config, key)
    assert found == value
    assert type(found) is type(value)


BIG = "1" + 400 * "0"


@pytest.mark.parametrize(
    "override",
    [
        f"optimizer.lr={BIG}",
        "optimizer.lr=1e400",
        "schedule.warmup=.inf",
        "optimizer.lr=.nan",
        f"train.steps={5000 * '9'}",
        "train.steps=1e30",
        "train.steps=1.5",
        "train.steps=2026-13-45",
        "train.steps=!!int x",
        "train.steps=!!python/object/apply:os.getcwd []",
        f"name={3000 * '['}",
        f"name={400 * 'n'}",
        "name=../../x",
        "name=/tmp/x",
        "name=a/../../b",
        'name="a\\x1b[31m"',
        'name="a\\0"',
        "name=",
        'data.path="a\\0b"',
        f"model.mlp_dim=1{30 * '0'}",
        "model.num_layers=4000000",
        "train.threads=1000000",
        "model.stream={kind: 'os:system'}",
        "model.stream={kind: ':'}",
        "model.stream={kind: 'nosuchmodule:X'}",
        f"model.stream.kind={5000 * 'k'}",
        f"{5000 * 'k'}=1",
        "a.=1",
        ".=1",
        "=1",
        "extends=[1]",
        "extends={a: b}",
        f"extends={400 * 'n'}",
        'extends="a\\0"',
    ],
)
def test_what_nobody_can_mean_is_one_short_sentence(override):
    with pytest.raises(UserError) as error:
        load_recipe("demo/rmt", [override])
    assert len(str(error.value)) < 2000
    assert str(error.value).isprintable()


def test_of_many_known_names_forty_are_listed():
    names = [f"name{number:05}" for number in range(12_345)]
    listed = ", ".join(names[:40])
    assert str(unknown_name("thing 'x'", "x", names)) == f"Unknown thing 'x'; known are: {listed} and 12,305 more."
    assert str(unknown_name("thing 'x'", "x", names[:40])) == f"Unknown thing 'x'; known are: {listed}."


def test_a_key_that_stands_twice_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "dup.yaml"
    file.write_text("extends: demo/rmt\ntrain: {steps: 3}\noptimizer: {lr: 1e-3}\ntrain:\n  eval_every: 3\n")
    with pytest.raises(
        UserError, match=r"the key train stands here again, after line 2; put both into one \(line 4, column 1\)"
    ):
        load_recipe(file)


def test_files_that_grow_without_bound(tmp_path):
    for i in range(40):
        (tmp_path / f"e{i}.yaml").write_text(f"extends: [e{i + 1}, e{i + 1}]\n")
    (tmp_path / "e40.yaml").write_text("extends: demo/rmt\nname: deep\n")
    assert load_recipe(tmp_path / "e0.yaml").name == "deep", "each file is read once"
    for i in range(60):
        (tmp_path / f"f{i}.yaml").write_text(f"extends: f{i + 1}\n")
    with pytest.raises(UserError, match="more than 50 files"):
        load_recipe(tmp_path / "f0.yaml")
    aliases = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for name, text in {
        "bomb": f"a0: &a0 [x, x]\n{aliases}",
        "merge": "a: &a {b: 1}\nc: {<<: *a}\n",
        "long": "name: " + (1 << 20) * "x",
        "null": "null\n",
        "list": "- 1\n",
        "binary": "\x00",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(UserError):
            load_recipe(tmp_path / f"{name}.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError):
        load_recipe(tmp_path / "folder.yaml")


def test_what_two_places_of_a_file_share_is_not_changed_in_both(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: demo/rmt\nname: a\ntrain: &t {steps: 3, seed: 0}\ndata: {path: x}\n")
    config = load_recipe(tmp_path / "a.yaml", ["train.seed=4"])
    assert (config.train.seed, load_recipe(tmp_path / "a.yaml").train.seed) == (4, 0)
