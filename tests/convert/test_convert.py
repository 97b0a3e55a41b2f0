"""`widestream convert`: another stream, the same function, and a sentence where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

import widestream  # noqa: E402
from conversion import MODERN, SIZES, imported, logits_of, model_of, off, square, write_tokenizer  # noqa: E402
from tiny_runs import tiny_config, write_data  # noqa: E402
from widestream.convert.same import require_same  # noqa: E402
from widestream.convert.stream import convert_run, parse_stream, take_over  # noqa: E402
from widestream.errors import UserError  # noqa: E402
from widestream.model.build import build_model  # noqa: E402
from widestream.recipe import build  # noqa: E402
from widestream.recipe.model import ModelConfig  # noqa: E402
from widestream.runs.folder import read_info  # noqa: E402
from widestream.train.loop import train  # noqa: E402

STREAMS = (
    "attn_res", "data_lane:embedding_dim=32", "dca", "dca:form=v2", "dense_former", "depth_attention",
    "vertical_attention", "hier_agg:identity=true", "highway", "laurel",
    "generalized_hc:segments=2,slots=4,embedding=expand,readout=plain", "hyper_connections",
    "hyper_connections:lanes=3,dynamic=false", "mhc", "mhc:readout=learned,lanes=2", "mudd", "x0_scalars", "vector",
)  # fmt: skip
SMALL = {"init": {"scheme": "normal", "std": 0.02}}
NORMS = {
    "as Llama": MODERN,
    "layernorm with biases": {"norm": "layernorm", "norm_bias": True},
    "norms behind": MODERN | {"norm_place": "after"},
    "norms on both sides, 1 + w": MODERN | {"norm_place": "both", "norm_offset": True, "norm_cast": "after_gain"},
    "experts": {"moe": {"num_experts": 3, "top_k": 2}},
}


def converted(old, stream):
    """A model with another stream."""
    new = build_model(replace(old.config, stream=parse_stream(stream)), seed=3).eval()
    take_over(new, old)
    return new


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_that_starts_plain_computes_the_same(stream):
    old = model_of(MODERN | {"num_layers": 4})
    assert require_same(converted(old, stream), old) < 1e-5


@pytest.mark.parametrize("reads", ["shared", "qkv"])
@pytest.mark.parametrize("key_dim", [4, 9])
def test_a_matrix_stream_at_its_plain_start_computes_the_same(key_dim, reads):
    old = model_of(MODERN | {"num_layers": 4, "norm_cast": "after_gain"})
    new = converted(old, f"matrix_dense:key_dim={key_dim},start=plain,reads={reads}")
    assert require_same(new, old) < 1e-5
    with pytest.raises(UserError, match=r"norm_gain is row, and the plain transformer has a gain for every number"):
        converted(old, "matrix_dense:key_dim=9,start=plain,norm_gain=row")
    with pytest.raises(UserError, match=r"start is plain, and key_dim 3: it must be at least 4"):
        converted(old, "matrix_dense:key_dim=3,start=plain")


@pytest.mark.parametrize("stream", STREAMS)
def test_small_embeddings_beside_eps(stream):
    """Mean squares of 4e-4 beside an eps of 1e-3: a state that were a multiple of the plain one would show."""
    old = build_model(build(ModelConfig, SIZES | MODERN | SMALL | {"num_layers": 4}, "model"), 1).eval()
    assert require_same(converted(old, stream), old) < 1e-5


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("stream", ["attn_res", "hyper_connections", "mudd", "dca"])
def test_forms_of_norms_are_taken_over(norms, stream):
    old = model_of(NORMS[norms])
    assert require_same(converted(old, stream), old) < 1e-5


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """An imported run of Llama's family, and its logits."""
    run, theirs = imported(tmp_path_factory.mktemp("llama"), "Llama", 0, **square("Llama"))
    return run, logits_of(theirs)


@pytest.mark.parametrize("stream", ["hyper_connections", "mudd"])
def test_an_imported_run_is_converted(stream, llama, tmp_path):
    run, wanted = llama
    assert convert_run(run, stream, tmp_path / "run").off < 1e-5
    assert off(tmp_path / "run", wanted) < 1e-5


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        ("matrix:key_dim=8", "does not start as the plain transformer.*those that can are vector, attn_res"),
        ("mhc:phi=random", "does not start as the plain transformer"),
        ("data_lane:embedding_dim=8", "does not start as the plain"),
        ("hyper_conections", "hyper_connections"),
        ("hyper_connections:lnes=3", "did you mean lanes"),
        ("hyper_connections:lanes", "write it as KIND:setting=value"),
        ("mhc:", "write it as KIND:setting=value"),
        ("mhc:=3", "write it as KIND:setting=value"),
        ("mhc:lanes={a: b}", "model.stream.lanes must be int, not {'a': 'b'}"),
        ("mhc:lanes=[1", r"^The value of lanes in --stream mhc:lanes=\[1 is not valid YAML"),
        ("mhc:kind=attn_res", "names its kind twice"),
        ("mhc:lanes=2, lanes=3", "has lanes twice; give it once"),
        ("mhcc:lanes=2", "did you mean mhc"),
        ("no_such_module:MyStream:lanes=2", "no_such_module:MyStream cannot be loaded"),
        ("hyper_connections:lanes=3,dynamic", "write it as KIND:setting=value"),
        ("hier_agg:hidden=0", "must be at least 1"),
    ],
)
def test_what_cannot_take_over_is_refused_and_nothing_is_written(stream, sentence, llama, tmp_path):
    with pytest.raises(UserError, match=sentence):
        convert_run(llama[0], stream, tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30, "a", 1.0])
def test_a_seed_out_of_range_is_refused(seed, llama, tmp_path):
    with pytest.raises(UserError, match=r"it must be a whole number, at least 0 and below 2\^31"):
        convert_run(llama[0], "attn_res", tmp_path / "run", seed=seed)
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_where_a_run_cannot_lie(llama, tmp_path):
    (tmp_path / "file").touch()
    for to in (tmp_path / "file" / "run", tmp_path / ("x" * 300), tmp_path / "new" / "deep" / ("x" * 300)):
        with pytest.raises(UserError, match=r"is no place for a file .*: choose another, then|at most 200 bytes"):
            convert_run(llama[0], "laurel", to)
    for to in ("/proc/x", "/proc/x/y"):
        with pytest.raises(UserError, match=rf"The folder {to} cannot be made .*; name another one"):
            convert_run(llama[0], "laurel", Path(to))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_a_plain_run_is_converted(llama, tmp_path):
    convert_run(llama[0], "laurel", tmp_path / "laurel")
    with pytest.raises(UserError, match="has a laurel stream; what is converted is a run with the plain one"):
        convert_run(tmp_path / "laurel", "mhc", tmp_path / "run")
    with pytest.raises(UserError, match="exists; give the name of a new folder"):
        convert_run(llama[0], "mhc", tmp_path / "laurel")


def test_a_stream_with_a_claim_that_does_not_hold_is_caught(llama, tmp_path, monkeypatch):
    from widestream.streams.vector.laurel import LaurelStream

    monkeypatch.setattr(LaurelStream, "from_plain", lambda self, plain: {})
    with pytest.raises(UserError, match="of the largest one off"):
        convert_run(llama[0], "laurel", tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_the_settings_of_a_stream_are_read_as_yaml():
    stream = parse_stream("hyper_connections:lanes=3,dynamic=false")
    assert (stream.kind, stream.lanes, stream.dynamic) == ("hyper_connections", 3, False)


# ---- the run that comes of it


def test_a_trained_run_is_converted_sampled_and_trained_on(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    first = tiny_config(data, "vector", train={"steps": 4})
    train(first, tmp_path / "first")
    convert_run(tmp_path / "first", "hyper_connections:lanes=2", tmp_path / "wide")
    info = read_info(tmp_path / "wide")
    assert info["made"]["by"] == "convert"
    assert info["made"]["step"] == 4
    model = widestream.open(tmp_path / "wide")
    assert model.config.model.stream.kind == "hyper_connections"
    assert model.checkpoints == [0]
    assert isinstance(model.sample("the", tokens=3), str)
    config = widestream.open(tmp_path / "wide").config
    on = tiny_config(data, "vector", train={"init_from": str(tmp_path / "wide"), "steps": 4})
    train(replace(on, model=config.model), tmp_path / "on")
    started = json.loads((tmp_path / "on" / "run.json").read_text())["init_from"]
    assert started["folder"].startswith(str(tmp_path / "wide"))
    with pytest.raises(UserError, match="was made by `widestream convert` and not trained: it cannot be gone on with"):
        train(replace(on, model=config.model), tmp_path / "wide")
    assert not (tmp_path / "wide" / "metrics.jsonl").exists()


def test_compare_and_summary_open_it(llama, tmp_path, capsys):
    from widestream.cli.summary import summary
    from widestream.runs.read import load_run

    with pytest.raises(UserError, match="was made by `widestream import hf` and not trained: it has no metrics"):
        load_run(llama[0])
    summary(str(llama[0]), [], as_json=True)
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] > 0


def test_an_imported_run_is_evaluated_and_trained_on_data_of_its_tokenizer(tmp_path):
    from widestream.data.prepare import prepare
    from widestream.data.tokenizer import resolve_tokenizer
    from widestream.train.evaluate import evaluate_run

    theirs_folder = tmp_path / "model"
    run, _ = imported(theirs_folder, "Llama", 0, **square("Llama"), max_position_embeddings=48)
    write_tokenizer(theirs_folder / "hf")
    from widestream.convert.hf import import_hf

    import_hf(theirs_folder / "hf", tmp_path / "run")
    text = [{"text": " ".join(f"w{(7 * i + j) % 58}" for j in range(30))} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    prepare([str(tmp_path / "text.jsonl")], tmp_path / "data", resolve_tokenizer(str(tmp_path / "run")))
    _, before = evaluate_run(tmp_path / "run", tmp_path / "data", "cpu")
    config = widestream.open(tmp_path / "run").config
    loop = replace(config.train, init_from=str(tmp_path / "run"), steps=12, device="cpu", threads=1, batch_size=4)
    on = replace(config, data=replace(config.data, path=str(tmp_path / "data")), train=loop,
                 optimizer=replace(config.optimizer, lr=1e-2))  # fmt: skip
    result = train(on, tmp_path / "on")
    assert result.heldout["loss"] < before.loss
    with pytest.raises(UserError, match="was imported without a tokenizer"):
        train(replace(on, train=replace(loop, init_from=str(run))), tmp_path / "off")
