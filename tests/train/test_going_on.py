"""What a run that goes on may change, training longer, and starting from another run's weights."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tiny_runs import tiny_config, write_data
from widestream.errors import UserError
from widestream.recipe import to_dict
from widestream.runs.folder import read_info
from widestream.runs.identity import LENGTH, MAY_CHANGE
from widestream.runs.settings import BOOKKEEPING, settings
from widestream.runs.write import write_info
from widestream.train import loop
from widestream.train.loop import train

original = loop._upcoming


def weights(run_dir):
    return load_file(max((run_dir / "checkpoints").glob("step_*")) / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def begun(tmp_path):
    """Trains as if killed after so many steps; the newest checkpoint is of an even one."""

    def begin(config, steps=4):
        with pytest.MonkeyPatch.context() as killed:
            killed.setattr(loop, "_finish", lambda *_: None)
            killed.setattr(loop, "_upcoming", lambda run: itertools.islice(original(run), steps))
            train(config, tmp_path / "run")
        return tmp_path / "run"

    return begin


def test_every_setting_that_may_change_is_a_setting(data):
    known = settings(to_dict(tiny_config(data)))
    assert MAY_CHANGE.keys() <= known.keys()
    assert all(any(key.startswith(start) for key in known) for start in LENGTH)
    assert {key for key in BOOKKEEPING if not key.endswith("seed")} <= MAY_CHANGE.keys()


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("train", {"keep": 5, "save_every": 3, "log_every": 2, "tensorboard": True}),
        ("train", {"eval_every": 2}),
        ("train", {"precision": "auto"}),
        ("data", {"sequence_length": 16}),
    ],
)
def test_what_changes_no_batch_may_change(data, tmp_path, begun, capsys, section, changes):
    config = tiny_config(data)
    train(config, tmp_path / "whole")
    run = begun(config)
    changed = tiny_config(data, **{section: changes})
    train(changed, run)
    assert same(weights(run), weights(tmp_path / "whole"))
    told = capsys.readouterr()
    for key, value in changes.items():
        assert f"{section}.{key} {str(value).lower()} (" in told.err + told.out
    (entry,) = json.loads((run / "run.json").read_text())["resumed"]
    assert entry["step"] == 4
    assert entry["settings"].keys() == {f"{section}.{key}" for key in changes}
    assert yaml.safe_load((run / "config.yaml").read_text()) == to_dict(changed)
    assert train(changed, run).step == 6, "its own checkpoint is taken"


def test_what_changes_rounding_may_change(data, tmp_path, begun, capsys):
    train(tiny_config(data), tmp_path / "whole")
    run = begun(tiny_config(data))
    result = train(tiny_config(data, train={"threads": 2, "micro_batch_size": 1, "kernels": "reference"}), run)
    told = capsys.readouterr()
    assert "train.micro_batch_size 1 (null before)" in told.err + told.out
    assert "numbers may change by rounding" in told.err + told.out
    whole = json.loads((tmp_path / "whole" / "done.json").read_text())
    assert result.heldout is not None
    assert result.heldout["loss"] == pytest.approx(whole["heldout"]["loss"], rel=1e-4)


def test_the_data_may_move(tmp_path, begun):
    config = tiny_config(write_data(tmp_path / "data"))
    run = begun(config)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert train(tiny_config(tmp_path / "moved"), run).step == 6


def test_a_finished_run_stays_as_it_is(data, tmp_path, capsys):
    train(tiny_config(data), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    train(tiny_config(data, train={"keep": 1}), tmp_path / "run")
    told = capsys.readouterr()
    assert "it is finished already, and stays as it is: train.keep 1 (2 before)" in told.err + told.out
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("sections", [{"train": {"seed": 1}}, {"train": {"precision": "bf16"}}, {"data": {"seed": 1}}])
def test_what_changes_numbers_is_another_run(data, begun, sections):
    run = begun(tiny_config(data))
    before = (run / "run.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"holds another run; it differs in .*train.init_from"):
        train(tiny_config(data, **sections), run)
    assert before == ((run / "run.json").read_bytes(), (run / "metrics.jsonl").read_bytes())


@pytest.mark.parametrize("schedule", [{"kind": "constant"}, {"kind": "wsd", "decay": 2}])
@pytest.mark.parametrize("steps", [4, None])
def test_constant_and_wsd_runs_go_on_for_longer(data, tmp_path, begun, schedule, steps):
    schedule = {"warmup": 1, **schedule}
    if steps is None and schedule["kind"] == "wsd":
        schedule["decay"] = 1  # of which a last step is still at the peak
    train(tiny_config(data, schedule=schedule, train={"steps": 9}), tmp_path / "whole")
    short = tiny_config(data, schedule=schedule)
    run = begun(short, steps) if steps else (train(short, tmp_path / "run"), tmp_path / "run")[1]
    assert train(tiny_config(data, schedule=schedule, train={"steps": 9}), run).step == 9
    assert same(weights(run), weights(tmp_path / "whole"))
    done = json.loads((run / "done.json").read_text())
    assert done["step"] == 9


def test_a_warm_up_that_is_over_counts_as_it_was(data, begun):
    schedule = {"kind": "constant", "warmup": 0.4}
    run = begun(tiny_config(data, schedule=schedule))  # two steps of six, four of ten
    assert train(tiny_config(data, schedule=schedule, train={"steps": 10}), run).step == 10


def test_longer_than_another_schedule_only_when_asked_for(data, tmp_path, capsys):
    config, longer = tiny_config(data), tiny_config(data, train={"steps": 9})
    train(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(
        UserError, match=r"train.steps \(6 there, 9 now\)\. With --extend it goes on all the same: 4 of"
    ):
        train(longer, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in before}
    assert train(longer, tmp_path / "run", extend=True).step == 9
    told = capsys.readouterr()
    assert "4 of the 6 steps done had other rates" in told.err + told.out
    assert train(longer, tmp_path / "run").step == 9
    with pytest.raises(UserError, match="It has done 9 steps already"):
        train(config, tmp_path / "run", extend=True)


def test_a_run_killed_as_it_was_extended_goes_on(data, tmp_path, monkeypatch):
    config, longer = tiny_config(data), tiny_config(data, train={"steps": 9})
    train(config, tmp_path / "run")
    with monkeypatch.context() as killed:
        killed.setattr("widestream.train.begin.write_config", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(longer, tmp_path / "run", extend=True)
    assert train(longer, tmp_path / "run", extend=True).step == 9


# ---- another run's weights


def test_a_run_starts_from_the_weights_of_another(data, tmp_path, capsys):
    train(tiny_config(data), tmp_path / "first")
    still = {"lr": 0.0, "weight_decay": 0.0}
    config = tiny_config(data, train={"init_from": str(tmp_path / "first"), "seed": 5}, optimizer=still)
    train(config, tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "first"))
    told = capsys.readouterr()
    assert f"begins with the weights of {tmp_path / 'first' / 'checkpoints' / 'step_00000006'}" in told.err + told.out
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["init_from"]["step"] == 6
    earlier = str(tmp_path / "first" / "checkpoints" / "step_00000004")
    train(replace(config, train=replace(config.train, init_from=earlier)), tmp_path / "other")
    assert not same(weights(tmp_path / "other"), weights(tmp_path / "run"))


def test_once_it_trains_a_run_does_not_need_where_it_started_from(data, tmp_path, begun):
    train(tiny_config(data), tmp_path / "first")
    config = tiny_config(data, train={"init_from": str(tmp_path / "first")})
    train(config, tmp_path / "whole")
    run = begun(config)
    (tmp_path / "first").rename(tmp_path / "gone")
    train(config, run)
    assert same(weights(run), weights(tmp_path / "whole"))


def test_weights_that_changed_before_the_first_checkpoint_are_refused(data, tmp_path, begun):
    train(tiny_config(data), tmp_path / "first")
    config = tiny_config(data, train={"init_from": str(tmp_path / "first")})
    run = begun(config, 1)
    train(tiny_config(data, schedule={"kind": "constant"}), tmp_path / "first", resume=False)
    with pytest.raises(UserError, match="holds other weights now than when"):
        train(config, run)


def test_what_a_run_cannot_start_from_is_named_and_nothing_is_written(data, tmp_path):
    train(tiny_config(data), tmp_path / "first")

    def start(place, **sections):
        train(tiny_config(data, train={"init_from": str(tmp_path / place)}, **sections), tmp_path / "run")

    with pytest.raises(UserError, match="is no run folder and no checkpoint of one"):
        start("nowhere")
    with pytest.raises(UserError, match=r"is of another model: .* has shape"):
        start("first", model={"mlp_dim": 48})
    with pytest.raises(UserError, match="is the run's own folder"):
        train(tiny_config(data, train={"init_from": str(tmp_path / "first")}), tmp_path / "first", resume=False)
    info = read_info(tmp_path / "first")
    info["data"]["tokenizer_sha256"] = "1" * 64
    write_info(tmp_path / "first", info)
    with pytest.raises(UserError, match="another tokenizer"):
        start("first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]
