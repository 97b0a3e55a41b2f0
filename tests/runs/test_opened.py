"""widestream.open: what a person does with a run folder in Python, and what goes wrong."""

import ast
import importlib
import inspect
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import widestream
from fake_runs import write_run
from page_commands import python_code
from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.recipe import to_dict
from widestream.runs.columns import to_columns
from widestream.runs.folder import flatten
from widestream.runs.rows import metrics_rows
from widestream.train.loop import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished run with checkpoints at steps 4 and 6."""
    folder = tmp_path_factory.mktemp("opened") / "run"
    train(tiny_config(data, train={"eval_windows": 2}), folder)
    return folder


@pytest.fixture
def spoiled(trained, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(trained, tmp_path / "spoiled")


def test_what_it_says_of_a_run(trained, data):
    run = widestream.open(trained)
    assert isinstance(run, widestream.RunFolder)
    assert (run.path, run.name) == (trained, "tiny")
    assert run.config == tiny_config(data, train={"eval_windows": 2})
    assert run.info["data"]["batch_size"] == 4
    assert run.checkpoints == [4, 6]
    assert run.done is not None
    assert run.done["step"] == 6
    loss = run.done["heldout"]["loss"]
    assert repr(run) == f"<RunFolder {trained}: tiny, matrix stream, 6 of 6 steps, held-out loss {loss:.4f}>"


def test_a_run_that_has_hardly_begun(trained, tmp_path):
    shutil.copy(trained / "config.yaml", tmp_path)
    run = widestream.open(str(tmp_path))
    assert repr(run) == f"<RunFolder {tmp_path}: tiny, matrix stream, 0 of 6 steps>"
    assert run.done is None
    assert run.checkpoints == []
    with pytest.raises(UserError, match=r"run\.json is missing"):
        _ = run.info
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing"):
        run.metrics()
    with pytest.raises(UserError, match="has no checkpoint yet; let it train"):
        run.model()


def test_metrics_as_columns(trained):
    run = widestream.open(trained)
    train, heldout, both = run.metrics("train"), run.metrics("eval"), run.metrics()
    assert train["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert train["step"].dtype == np.int64
    assert train["loss"].dtype == train["clock.wall_s"].dtype == np.float64
    assert (np.diff(train["clock.wall_s"]) > 0).all()
    assert heldout["whole"].tolist() == [False, False, True]
    assert "grad_norm" not in heldout
    assert len(both["step"]) == 9
    assert both["loss"][both["kind"] == "eval"].tolist() == heldout["loss"].tolist()
    assert np.isnan(both["lr"]).tolist() == (both["kind"] == "eval").tolist()
    assert {len(column) for column in both.values()} == {9}
    assert repr(train).startswith("<6 rows of kind, step, tokens, flops, loss")
    assert run.metrics("event") == {}
    with pytest.raises(UserError, match="no rows of kind 'test'; use train, eval"):
        run.metrics("test")


def test_numbers_that_are_missing_are_nan(tmp_path):
    rows = [{"kind": "event", "step": 3, "event": "nonfinite_skipped", "loss": None, "skipped": 1}]
    columns = widestream.open(write_run(tmp_path / "run", "rmt", rows=rows)).metrics()
    assert math.isnan(columns["loss"][0])
    assert columns["event"].tolist() == ["nonfinite_skipped"]
    assert columns["skipped"].dtype == np.int64


def test_a_data_frame_where_pandas_is_there(trained, monkeypatch):
    class Frame:
        def __init__(self, columns):
            self.columns = columns

    columns = widestream.open(trained).metrics("eval")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        columns.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", type(sys)("pandas"))
    sys.modules["pandas"].DataFrame = Frame
    assert columns.to_pandas().columns is columns


def test_the_model_gives_logits(trained):
    run = widestream.open(trained)
    model, tokens = run.model(), torch.randint(257, (2, 16))
    assert isinstance(model, widestream.LanguageModel)
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert not model.decoder.training
    with torch.no_grad():
        logits = model(tokens)
        assert logits.shape == (2, 16, 257)
        assert torch.equal(logits, model.decoder.logits(model.decoder(tokens)))
        assert torch.equal(logits, run.model(6)(tokens))
        assert not torch.equal(logits, run.model(4)(tokens))
        terms = model.decoder.loss(tokens[:, :-1], tokens[:, 1:])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.allclose(terms.cross_entropy, expected, atol=1e-5)
    assert run.model(device="cpu").decoder.head_weight().device.type == "cpu"


def test_samples_are_those_of_the_command(trained, capsys, monkeypatch):
    from widestream.cli import main

    run = widestream.open(trained)
    threads = torch.get_num_threads()
    text = run.sample("the", tokens=5, seed=3)
    assert torch.get_num_threads() == threads
    assert text == run.sample("the", 5, 0.8, seed=3) != run.sample("the", tokens=5, seed=4)
    monkeypatch.setattr(
        "sys.argv", ["widestream", "sample", str(trained), *["--prompt", "the", "--tokens", "5", "--seed", "3"]]
    )
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == f"the{text}\n"
    assert run.sample("the", tokens=3, temperature=0, checkpoint=4)
    assert not (trained / "samples.jsonl").exists(), "reading writes nothing"


def test_an_arm_with_several_seeds_opens_as_its_first(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "arm-seed0")
    assert widestream.open(tmp_path / "arm").path == tmp_path / "arm-seed0"
    (tmp_path / "arm").mkdir()
    with pytest.raises(UserError, match="is no run folder"):
        widestream.open(tmp_path / "arm")


def test_no_run_folder(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"is no run folder: it has no config\.yaml; give a folder that training"):
            widestream.open(path)
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(UserError, match=r"config\.yaml is damaged; put a good copy back"):
        widestream.open(tmp_path)


def test_an_unknown_step(trained):
    run = widestream.open(trained)
    for call in (run.model, lambda step: run.sample("the", checkpoint=step)):
        with pytest.raises(UserError, match=r"checkpoint of step 5 in .* cannot be used: it does not exist; .* 4, 6"):
            call(5)


def cut(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def test_damaged_checkpoints(spoiled, caplog):
    run, (older, newest) = widestream.open(spoiled), sorted((spoiled / "checkpoints").iterdir())
    expected = run.model(4).state_dict()
    cut(newest)
    assert all(torch.equal(value, expected[name]) for name, value in run.model().state_dict().items())
    assert "Skipping checkpoint" in caplog.text
    with pytest.raises(UserError, match=r"step 6 in .* model\.safetensors has .* bytes instead of .*; .* there: 4"):
        run.model(6)
    cut(older)
    with pytest.raises(UserError, match=r"Every checkpoint in .* is damaged; put back a good copy"):
        run.model()


def test_a_prompt_that_is_too_long_and_text_that_is_none(trained):
    run = widestream.open(trained)
    with pytest.raises(UserError, match=r"prompt has 41 tokens, but the model's context is 16 .* shorten the prompt"):
        run.sample("a" * 40)
    with pytest.raises(UserError, match="not valid text"):
        run.sample("\udcff")
    with pytest.raises(UserError, match="context"):
        run.model()(torch.zeros(1, 17, dtype=torch.int64))


def test_no_such_device(trained):
    with pytest.raises(UserError, match=r"device=abacus is not a device"):
        widestream.open(trained).model(device="abacus")


def test_committed_runs_of_earlier_versions_open(tmp_path):
    shutil.unpack_archive(ROOT / "lab" / "studies-cpu.tar.xz", tmp_path)
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) > 300
    kinds = set()
    for folder in folders[::5]:
        run = widestream.open(folder)
        kinds.add(run.config.model.stream.kind)
        assert run.done is not None
        assert run.info["data"]["seed"] == run.config.data.seed
        assert run.metrics("eval")["loss"][-1] == run.done["heldout"]["loss"]
        assert "held-out loss" in repr(run)
    assert len(kinds) > 5
    assert all(to_dict(widestream.open(folder).config) for folder in folders[:3])


def test_the_public_list_is_what_the_docstring_and_the_types_say():
    assert dir(widestream) == sorted(set(dir(widestream)))
    for name in widestream.__all__:
        assert getattr(widestream, name) is not None
        assert name in dir(widestream)
        assert name in (widestream.__doc__ or "") or name == "__version__"
    tree = ast.parse(inspect.getsource(widestream))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    aliases = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, (module, attribute) in aliases.items():
        assert getattr(widestream, name) is getattr(importlib.import_module(module or ""), attribute)
    assert {*aliases, "UserError", "__version__"} == set(widestream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = widestream.nothing  # pyright: ignore


def test_importing_loads_nothing_heavy():
    code = "import widestream, sys; widestream.load_recipe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded).isdisjoint({"torch", "numpy", "tokenizers", "filelock"})


def test_the_page_runs(trained, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    shutil.copytree(trained, tmp_path / "runs" / "demo" / "rmt-seed0")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in python_code("docs/reference/python.md"):
        exec(code, names)
    assert isinstance(names["text"], str)
    assert names["last"] == names["run"].done["heldout"]["loss"]
    assert len(names["of_training"]) == len(names["seconds"]) == 6
    assert isinstance(names["fresh"], widestream.LanguageModel)
    assert "is no run folder" in capsys.readouterr().out
    table = re.findall(r"^\| `run\.(\w+)", page, re.MULTILINE)
    public = {name for name in dir(names["run"]) if not name.startswith("_")}
    assert public - {"name"} == set(table)


def test_rows_of_any_form_become_the_same_columns():
    rows = [
        {"kind": "train", "step": 1, "loss": 2.5, "clock": {"wall_s": 1.0, "more": {"deep": 1}}},
        {"kind": "eval", "step": 1, "clock": {"wall_s": 2.0}, "whole": True},
        {"kind": "train", "step": 2, "loss": None, "clock": {"wall_s": 3.0, "more": {"deep": 2}}},
    ]
    for some in (rows, [*rows, {"kind": "event", "step": 3, "clock": None}], [*rows, rows[0] | {"clock": {}}]):
        flat = [flatten(row) for row in some]
        columns = to_columns(some)
        assert {*columns} == {name for row in flat for name in row}
        for name, column in columns.items():
            wanted = [row.get(name) for row in flat]
            got = [None if value != value else value for value in column.tolist()]
            assert got == wanted, name


def test_rows_before_a_damaged_one_are_handed_out_first(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "train", "step": 3}\n{"kind": "train", "step": 2}\n[]\n'
    )
    rows = iter(metrics_rows(tmp_path))
    assert [next(rows)["step"], next(rows)["step"]] == [1, 3]
    with pytest.raises(UserError, match=r"Line 3 .* is of step 2 and stands behind one of step 3"):
        next(rows)
