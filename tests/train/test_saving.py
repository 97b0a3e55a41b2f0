"""Checkpoints in parts and behind the step: resharded, checked, kept; training goes on meanwhile."""

import json
import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

import ranks
from processes import look_for_newest, train_quickly
from ranks import rows, train_on
from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.runs import checkpoint
from widestream.runs.folder import list_checkpoints, load_config
from widestream.runs.model import load_model
from widestream.train import saving

DRILL = pytest.mark.drill


def layout(data, steps, kind="adamw", **parallel):
    train = {"steps": steps, "save_every": 3, "eval_every": 3, "keep": 9, "parallel": parallel, "batch_size": 4}
    return tiny_config(data, train=train, optimizer={"kind": kind, "grad_clip": 0.5})


def without_end(folder, last):
    """As if the run had been killed before its last checkpoint."""
    shutil.rmtree(folder / "checkpoints" / f"step_{last:08d}")
    (folder / "done.json").unlink()


def losses(folder):
    return [row["loss"] for row in rows(folder)]


@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=DRILL)])
def test_four_processes_then_two_then_one_and_back(data, tmp_path, kind):
    whole = tmp_path / "whole"
    train_on(4, layout(data, 9, kind, shard=4), whole)
    assert len(list((whole / "checkpoints" / "step_00000009").glob("model-*-of-00004.safetensors"))) == 4
    expected = losses(whole)
    for size, parallel in ((2, {"shard": 2}), (1, {}), (4, {"replicate": 2, "shard": 2})):
        folder = tmp_path / f"on-{size}"
        shutil.copytree(whole, folder)
        without_end(folder, 9)
        config = layout(data, 9, kind, **parallel)
        train_quickly(config, folder) if size == 1 else train_on(size, config, folder)
        assert losses(folder) == pytest.approx(expected, rel=1e-5)
        assert load_model(folder, torch.device("cpu"))[1].step == 9
    back = tmp_path / "back"
    shutil.copytree(tmp_path / "on-1", back)
    without_end(back, 9)
    train_on(4, layout(data, 9, kind, shard=4), back)
    assert losses(back) == pytest.approx(expected, rel=1e-5)


def test_parts_are_the_weights_of_one_process(data, tmp_path):
    """To rounding: rows in a wrong place would be far off."""
    config = layout(data, 3, shard=2)
    train_on(2, config, tmp_path / "two")
    train_quickly(layout(data, 3), tmp_path / "one")
    two, one = (load_model(tmp_path / name, torch.device("cpu"))[0].state_dict() for name in ("two", "one"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-3, atol=1e-5), name


def test_altered_and_missing_parts_are_passed_over(data, tmp_path, caplog):
    config = layout(data, 6, shard=2)
    train_on(2, config, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    part = newest / "optimizer-00002-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 3
    assert "optimizer-00002-of-00002.safetensors was altered" in caplog.text
    part.unlink()
    (tmp_path / "run" / "done.json").unlink()
    train_on(2, config, tmp_path / "run")
    assert checkpoint.at_step(tmp_path / "run", 6)
    # One that it does not name is none of it.
    shutil.copy(part, newest / "optimizer-00003-of-00003.safetensors")
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 6
    complete = json.loads((newest / "complete.json").read_text())
    del complete["files"]["model-00001-of-00002.safetensors"]
    (newest / "complete.json").write_text(json.dumps(complete))
    with pytest.raises(UserError, match="names no whole set of files"):
        checkpoint.at_step(tmp_path / "run", 6)


def test_all_go_on_from_what_the_main_process_finds(data, tmp_path):
    """A disk of the network may show each of them another list."""
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    train_on(2, layout(data, 6, shard=2), run)

    def told() -> list[str]:
        assert ranks.run(look_for_newest, run, out) == [0, 0]
        return [(out / f"{rank}.txt").read_text() for rank in range(2)]

    assert told() == ["checkpoints/step_00000006, step 6"] * 2
    for step in (6, 3):
        (run / f"checkpoints/step_{step:08d}/model-00002-of-00002.safetensors").unlink()
        first, second = told()
        assert first == second
        assert first == "checkpoints/step_00000003, step 3" if step == 6 else " is damaged; " in first
    first, second = ((out / f"{rank}.log").read_text() for rank in range(2))
    assert "step_00000003: model-00002-of-00002.safetensors is missing" in first
    assert not second  # one of them says it


def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    write, released, seen = saving.write_whole, threading.Event(), []

    def slow(folder, kind, tensors):
        if "step_00000002" in str(folder):
            assert released.wait(60)
        return write(folder, kind, tensors)

    def note(self):
        if self.reached.step == 3:
            seen.append([step for step, _ in list_checkpoints(self.folder)])
            released.set()
        return original(self)

    from widestream.train.setup import TrainingRun

    original = TrainingRun.tokens.fget
    monkeypatch.setattr(TrainingRun, "tokens", property(note))
    monkeypatch.setattr(saving, "write_whole", slow)
    config = tiny_config(data, train={"steps": 5, "save_every": 2, "keep": 9})
    train_quickly(config, tmp_path / "run")
    assert seen[0] == []
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [2, 4, 5]
    monkeypatch.undo()
    train_quickly(config, tmp_path / "plain")
    for step in (2, 4, 5):
        file = f"checkpoints/step_{step:08d}/model.safetensors"
        slowly, plainly = load_file(tmp_path / "run" / file), load_file(tmp_path / "plain" / file)
        assert all(torch.equal(slowly[name], value) for name, value in plainly.items())


def test_what_cannot_be_written_ends_the_run_at_the_next_step(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_whole", full)
    with pytest.raises(UserError, match=r"step_00000002 could not be written .*No space left"):
        train_quickly(tiny_config(data), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == []


def test_an_interrupted_run_has_what_it_was_writing(data, tmp_path, monkeypatch):
    write = saving.write_whole

    def slow(folder, kind, tensors):
        time.sleep(0.3)
        return write(folder, kind, tensors)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "write_whole", slow)
    monkeypatch.setattr("widestream.train.loop._log", lambda run, *_: run.reached.step == 3 and interrupted())
    with pytest.raises(KeyboardInterrupt):
        train_quickly(tiny_config(data, train={"save_every": 2, "eval_every": 9}), tmp_path / "run")
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 2


def test_the_best_stay_beside_the_newest(data, tmp_path):
    train = {"steps": 12, "save_every": 2, "eval_every": 4, "keep": 1, "keep_best": 2}
    config = tiny_config(data, train=train, optimizer={"lr": 0.5})  # too high, so that the last is not the best
    train_quickly(config, tmp_path / "run")
    evaluated = {row["step"]: row["loss"] for row in rows(tmp_path / "run") if row["kind"] == "eval"}
    best = sorted(evaluated, key=lambda step: evaluated[step])[:2]
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == sorted({*best, 12})
    assert load_config(tmp_path / "run").train.keep_best == 2


def test_a_step_does_not_wait_for_the_disk(data, tmp_path, monkeypatch):
    """However long a checkpoint is written: the steps beside it take what they took."""
    write = saving.write_whole

    def slow(folder, kind, tensors):
        time.sleep(1.0)
        return write(folder, kind, tensors)

    monkeypatch.setattr(saving, "write_whole", slow)
    begun = []
    original = saving.Saver.begin

    def timed(self, *arguments):
        start = time.perf_counter()
        original(self, *arguments)
        begun.append(time.perf_counter() - start)

    monkeypatch.setattr(saving.Saver, "begin", timed)
    train_quickly(tiny_config(data, train={"steps": 4, "save_every": 4, "eval_every": 4}), tmp_path / "run")
    assert len(begun) == 1
    assert begun[0] < 0.5
