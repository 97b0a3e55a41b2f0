"""A run's copy behind a URL: whole or absent, fetched where the run folder is gone, never in the way of training."""

import json
import shutil

import fsspec
import pytest
import torch

import ranks
from processes import train_quickly
from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.runs import mirror as mirrors
from widestream.runs.folder import list_checkpoints
from widestream.runs.mirror import Mirror
from widestream.train.loop import train


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://bucket/run"
    return f"file://{tmp_path}/there"


def config(data, url, **train):
    return tiny_config(data, train={"steps": 6, "save_every": 2, "keep": 2, "mirror": url, **train})


def names(url):
    system, place = fsspec.core.url_to_fs(url)
    return sorted(path.removeprefix(place).lstrip("/") for path in system.find(place))


def test_the_newest_checkpoints_are_there(data, tmp_path, url):
    train_quickly(config(data, url), tmp_path / "run")
    there = names(url)
    here = [str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert set(there) == set(here)
    assert {name.split("/")[1] for name in there if name.startswith("checkpoints")} == {
        "step_00000004", "step_00000006",
    }  # fmt: skip


def test_a_run_that_is_gone_goes_on_from_its_copy_bit_for_bit(data, tmp_path, url, capsys):
    train_quickly(config(data, url), tmp_path / "whole")
    system, place = fsspec.core.url_to_fs(url)
    system.rm(place, recursive=True)
    stop = config(data, url, steps=6)
    original = Mirror.push
    calls = []

    def die(self):
        original(self)
        calls.append(1)
        if len(calls) == 2:
            self.close()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mirror, "push", die)
        with pytest.raises(KeyboardInterrupt):
            train_quickly(stop, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    train_quickly(stop, tmp_path / "elsewhere")
    assert f"fetched from {url}" in capsys.readouterr().err
    assert ranks.rows(tmp_path / "elsewhere")[-1]["loss"] == ranks.rows(tmp_path / "whole")[-1]["loss"]
    assert len(ranks.rows(tmp_path / "elsewhere")) == len(ranks.rows(tmp_path / "whole"))
    for kind in ("model", "optimizer"):
        ours, whole = (ranks.weights(tmp_path / name, 6, kind) for name in ("elsewhere", "whole"))
        assert all(torch.equal(ours[name], value) for name, value in whole.items())


def test_a_checkpoint_that_was_copied_half_is_not_used(data, tmp_path, url):
    train_quickly(config(data, url), tmp_path / "run")
    system, place = fsspec.core.url_to_fs(url)
    system.rm(f"{place}/checkpoints/step_00000006/complete.json")
    shutil.rmtree(tmp_path / "run")
    assert Mirror(tmp_path / "run", url).restore()
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4]


def test_what_was_left_half_copied_is_removed(data, tmp_path, url):
    system, place = fsspec.core.url_to_fs(url)
    system.makedirs(f"{place}/checkpoints/step_00000001", exist_ok=True)
    system.pipe_file(f"{place}/checkpoints/step_00000001/model.safetensors", b"a part of it")
    train_quickly(config(data, url), tmp_path / "run")
    assert not any("step_00000001" in name for name in names(url))


def test_a_copy_that_was_altered_is_passed_over(data, tmp_path, url, caplog):
    train_quickly(config(data, url), tmp_path / "run")
    system, place = fsspec.core.url_to_fs(url)
    file = f"{place}/checkpoints/step_00000006/model.safetensors"
    content = bytearray(system.cat_file(file))
    content[-1] ^= 1
    system.pipe_file(file, bytes(content))
    shutil.rmtree(tmp_path / "run")
    train_quickly(config(data, url), tmp_path / "run")
    assert "model.safetensors was altered" in caplog.text
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 6


def test_a_storage_that_fails_does_not_stop_a_run(data, tmp_path, url, monkeypatch, caplog):
    monkeypatch.setattr(Mirror, "_put", lambda *_: (_ for _ in ()).throw(PermissionError("no right to write")))
    train_quickly(config(data, url), tmp_path / "run")
    assert "was not copied to" in caplog.text
    assert "no right to write" in caplog.text
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4, 6]


def test_a_storage_that_cannot_be_read_is_a_sentence(data, tmp_path, url, monkeypatch):
    train_quickly(config(data, url), tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(mirrors.Mirror, "_complete", lambda _: (_ for _ in ()).throw(OSError("the network is down")))
    with pytest.raises(UserError, match=r"cannot be fetched from .*the network is down"):
        train_quickly(config(data, url), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("/some/folder", "give a URL that fsspec knows"), ("nosuch://bucket/run", "cannot be opened|not installed")],
)
def test_what_is_no_url_is_refused(data, tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        train_quickly(config(data, wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_copy_of_another_run_is_left_alone(data, tmp_path, url):
    """Whether the folder is another one's, or the run begins anew: pushing would remove checkpoints."""
    train_quickly(config(data, url), tmp_path / "run")
    before = names(url)
    system, place = fsspec.core.url_to_fs(url)
    info = json.loads(system.cat_file(f"{place}/run.json"))
    train_quickly(config(data, None), tmp_path / "other")
    system.pipe_file(f"{place}/run.json", json.dumps(info | {"started": "2020-01-01T00:00:00+00:00"}).encode())
    with pytest.raises(UserError, match="holds the copy of another run"):
        train_quickly(config(data, url), tmp_path / "other")
    with pytest.raises(UserError, match="holds the copy of another run"):
        train(config(data, url, steps=2), tmp_path / "run", resume=False)
    assert names(url) == before
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4, 6]


def steps_there(url):
    return sorted({int(name.split("/")[1][5:]) for name in names(url) if name.endswith("/complete.json")})


def content(url, name):
    system, place = fsspec.core.url_to_fs(url)
    return system.cat_file(f"{place}/{name}")


def test_a_machine_lost_right_behind_a_checkpoint_leaves_a_copy_to_go_on_from(data, tmp_path, url, monkeypatch):
    """Whatever a checkpoint needs is there before it counts."""
    put, lost = Mirror._put, []

    def losing(self, path, name):
        if not lost:
            put(self, path, name)
        if name == "checkpoints/step_00000004/complete.json":
            lost.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put", losing)
        train_quickly(config(data, url, log_every=1), tmp_path / "run")
    assert steps_there(url)[-1] == 4
    shutil.rmtree(tmp_path / "run")
    assert Mirror(tmp_path / "run", url).restore()
    train_quickly(config(data, url, log_every=1), tmp_path / "run")
    assert [row["step"] for row in ranks.rows(tmp_path / "run") if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_that_are_gone_here_are_fetched(data, tmp_path, url, capsys):
    train_quickly(config(data, url), tmp_path / "run")
    before = {name: content(url, name) for name in names(url) if name.startswith("checkpoints")}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "done.json").unlink()
    train_quickly(config(data, url), tmp_path / "run")
    assert f"fetched from {url}" in capsys.readouterr().err
    assert before == {name: content(url, name) for name in names(url) if name.startswith("checkpoints")}
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4, 6]


def test_checkpoints_that_the_run_has_yet_to_reach_stay(data, tmp_path, url):
    """As where the folder is an older copy of the run's."""
    train_quickly(config(data, url), tmp_path / "run")
    for step, path in list_checkpoints(tmp_path / "run"):
        if step == 6:
            shutil.rmtree(path)
    mirror = Mirror(tmp_path / "run", url)
    mirror.push()
    mirror.close()
    assert steps_there(url) == [4, 6]


def test_all_that_a_run_keeps_is_fetched(data, tmp_path, url):
    """The best stay beside the newest."""
    train_quickly(config(data, url, keep=3), tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert Mirror(tmp_path / "run", url).restore()
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [2, 4, 6]


@pytest.mark.parametrize("file", ["model.safetensors", "complete.json"])
def test_a_damaged_copy_is_mended(data, tmp_path, url, file):
    train_quickly(config(data, url), tmp_path / "run")
    system, place = fsspec.core.url_to_fs(url)
    name = f"checkpoints/step_00000006/{file}"
    before = content(url, name)
    system.pipe_file(f"{place}/{name}", b"a part of it")
    train_quickly(config(data, url), tmp_path / "run")
    assert content(url, name) == before


def test_what_is_damaged_here_does_not_take_the_place_of_a_good_copy(data, tmp_path, url):
    train_quickly(config(data, url), tmp_path / "run")
    before = {name: content(url, name) for name in names(url) if name.startswith("checkpoints")}
    (tmp_path / "run" / "checkpoints" / "step_00000006" / "complete.json").write_text("{")
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "model.safetensors").write_text("x")
    mirror = Mirror(tmp_path / "run", url)
    mirror.push()
    mirror.close()
    assert before == {name: content(url, name) for name in names(url) if name.startswith("checkpoints")}


def test_a_checkpoint_made_anew_takes_the_place_of_the_older_copy(data, tmp_path, url):
    """As behind a rollback, which makes the same step of other batches."""
    train_quickly(config(data, url), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000006" / "model.safetensors").write_text("x")
    (tmp_path / "run" / "done.json").unlink()
    train_quickly(config(data, url), tmp_path / "run")
    for file in ("complete.json", "model.safetensors", "state.json"):
        name = f"checkpoints/step_00000006/{file}"
        assert content(url, name) == (tmp_path / "run" / name).read_bytes()


def test_a_copy_of_steps_that_the_run_has_gone_back_from_is_not_fetched(data, tmp_path, url, caplog):
    train_quickly(config(data, url, log_every=1), tmp_path / "run")
    system, place = fsspec.core.url_to_fs(url)
    rows = content(url, "metrics.jsonl").decode().splitlines(keepends=True)
    others = [row.replace('"loss": ', '"loss": 1') if '"step": 5' in row else row for row in rows]
    assert others != rows
    system.pipe_file(f"{place}/metrics.jsonl", "".join(others).encode())
    shutil.rmtree(tmp_path / "run")
    assert Mirror(tmp_path / "run", url).restore()
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [4]
    assert "step 6" in caplog.text
