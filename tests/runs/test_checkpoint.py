import errno
import hashlib
import json
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.runs import checkpoint, checkpoint_writer
from widestream.runs.checkpoint import at_step, latest, load_optimizer, load_weights
from widestream.runs.checkpoint_writer import save
from widestream.runs.model import load_model
from widestream.train.loop import train
from widestream.train.optim import build_optimizer


@pytest.fixture
def config(data):
    return tiny_config(data)


def trained(config, seed=0):
    """A model and an optimizer that have taken a step."""
    model = build_model(config.model, seed=seed)
    optimizer = build_optimizer(model, config.optimizer)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(config, tmp_path):
    """A run folder with checkpoints of steps 1, 2 and 3."""
    model, optimizer = trained(config)
    for step in (1, 2, 3):
        save(tmp_path, step, model, optimizer, {"note": step}, keep=3)
    return tmp_path


def rewrite(path, name, text):
    """Give a file of a checkpoint other contents, and its complete.json their hash."""
    (path / name).write_text(text)
    complete = json.loads((path / "complete.json").read_text())
    complete["files"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / "complete.json").write_text(json.dumps(complete))


def renumber(path, step):
    """Make a checkpoint one of another step, in what it says too."""
    text = re.sub(r'"step": \d+', f'"step": {step}', (path / "state.json").read_text(), count=1)
    rewrite(path, "state.json", text)
    path.rename(path.with_name(f"step_{step:08d}"))


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_weights_and_moments_come_back_bit_for_bit(config, tmp_path):
    model, optimizer = trained(config)
    path = save(tmp_path, 7, model, optimizer, {"wall_s": 1.5}, keep=1)
    found = latest(tmp_path)
    assert found is not None
    assert (found.path, found.step, found.state) == (path, 7, {"step": 7, "wall_s": 1.5})
    other, other_optimizer = trained(config, seed=5)
    load_weights(found.path, other)
    load_optimizer(found.path, other, other_optimizer)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        for kind, moment in optimizer.state[ours].items():
            assert torch.equal(moment, other_optimizer.state[theirs][kind]), (name, kind)


def test_shared_weights_are_one_plain_safetensors_file(config, tmp_path):
    model, optimizer = trained(config)
    path = save(tmp_path, 1, model, optimizer, {}, keep=1) / "model.safetensors"
    assert load_file(path).keys() == dict(model.named_parameters()).keys()
    other = build_model(config.model, seed=9)
    load_weights(path, other)
    assert torch.equal(other.head_weight(), model.head_weight())


def test_a_tied_head_is_saved_once_and_comes_back(data, tmp_path):
    config = tiny_config(data, stream="vector", model={"tied_head": True})
    model, optimizer = trained(config)
    path = save(tmp_path, 1, model, optimizer, {}, keep=1)
    other = build_model(config.model, seed=9)
    load_weights(path, other)
    assert torch.equal(other.embedding.token, model.embedding.token)


def test_only_the_newest_are_kept(config, tmp_path):
    model, optimizer = trained(config)
    for step in (5, 10, 15, 20):
        save(tmp_path, step, model, optimizer, {}, keep=2)
    assert names(tmp_path) == ["step_00000015", "step_00000020"]


def test_no_checkpoint_is_none(tmp_path):
    assert latest(tmp_path) is None


def truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return "model.safetensors has .* bytes instead of"


def alter(path):
    file = path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return "optimizer.safetensors was altered"


def remove_file(path):
    (path / "state.json").unlink()
    return "state.json is missing"


def never_finished(path):
    (path / "complete.json").unlink()
    return "complete.json is missing"


def scribble(path):
    (path / "complete.json").write_text("{")
    return "complete.json is damaged"


HOSTILE = [
    "[]", "{}", "nope", "[" * 100_000, '{"step": "3"}', '{"step": 3.0}', '{"step": {"a": 1}}', '{"step": true}',
    '{"step": 3, "wall_s": "1"}', '{"step": 3, "wall_s": Infinity}', '{"step": 3, "skipped": null}',
    '{"step": 3, "heldout": [1]}', '{"step": 3, "losses": ["a"]}', '{"step": 3, "settings": 1}',
    f'{{"wall_s": {10**400}, "step": 3}}', f'{{"losses": [{10**400}], "step": 3}}', '{"step": 3, "losses": [NaN]}',
    '{"step": 3, "losses": [-Infinity]}', '{"step": 3, "wall_s": NaN}', '{"step": 3, "heldout": {"loss": NaN}}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_a_state_that_no_run_has_written_is_named_and_skipped(saved, caplog, text):
    """Its hash is right."""
    rewrite(saved / "checkpoints" / "step_00000003", "state.json", text)
    found = latest(saved)
    assert found is not None
    assert found.step == 2
    assert "state.json is damaged" in caplog.text


@pytest.mark.parametrize("text", ['{"bytes": -5, "sha256": "e3b0"}', '{"bytes": 5}', "[]", "[" * 100_000], ids=len)
def test_nonsense_about_the_rows_is_named_and_skipped(saved, caplog, text):
    rewrite(saved / "checkpoints" / "step_00000003", "metrics.json", text)
    found = latest(saved)
    assert found is not None
    assert found.step == 2
    assert "metrics.json is damaged" in caplog.text


def test_names_of_files_that_are_none(config, saved):
    """A bare folder's are taken."""
    path = saved / "checkpoints" / "step_00000003"
    (path / "complete.json").write_text('{"files": [1, 2]}')
    model, _ = trained(config, seed=5)
    load_weights(path, model)


@pytest.mark.parametrize("harm", [truncate, alter, remove_file, never_finished, scribble])
def test_damaged_checkpoints_are_named_and_skipped(saved, caplog, harm):
    reason = harm(saved / "checkpoints" / "step_00000003")
    found = latest(saved)
    assert found is not None
    assert found.step == 2
    assert re.search(reason, caplog.text)
    assert "step_00000003" in caplog.text
    assert "step_00000002" not in caplog.text


@pytest.mark.parametrize("moment", ["_fault", "json.loads"])
def test_checkpoints_that_training_removes_meanwhile_give_way_to_newer_ones(saved, monkeypatch, caplog, moment):
    def removing(*args, **kwargs):
        undo.undo()
        for path in sorted((saved / "checkpoints").iterdir())[1:]:
            shutil.rmtree(path)
        renumber(saved / "checkpoints" / "step_00000001", 4)
        return original(*args, **kwargs)

    original = checkpoint._fault if moment == "_fault" else json.loads
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(checkpoint if moment == "_fault" else json, moment.split(".")[-1], removing)
        found = latest(saved)
    assert found is not None
    assert found.path.name == "step_00000004"
    assert not caplog.text


def test_a_checkpoint_removed_before_its_weights_are_read_gives_way_to_a_newer_one(data, tmp_path, monkeypatch):
    config = tiny_config(data)
    train(config, tmp_path)

    def removing(path, model):
        monkeypatch.undo()
        renumber(path, 9)
        load_weights(path, model)

    monkeypatch.setattr(checkpoint, "load_weights", removing)
    assert load_model(tmp_path, torch.device("cpu"))[1].path.name == "step_00000009"


def test_a_renamed_checkpoint_is_not_taken_for_another(saved, caplog):
    for step in (3, 2):
        (saved / "checkpoints" / f"step_{step:08d}").rename(saved / "checkpoints" / f"step_{step + 6:08d}")
    found = latest(saved)
    assert found is not None
    assert found.step == 1
    assert "it is the checkpoint of step 3" in caplog.text
    with pytest.raises(UserError, match=r"step 9 in .* cannot be used: it is the checkpoint of step 3"):
        at_step(saved, 9)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_refused(config, saved, kind):
    file = saved / "checkpoints" / "step_00000003" / "model.safetensors"
    save_file({name: tensor.to(kind) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"holds numbers of another kind: .* is (F64|BF16) there and F32 here"):
        load_weights(file, build_model(config.model))


def test_all_damaged_is_an_error(saved):
    for step in (1, 2, 3):
        truncate(saved / "checkpoints" / f"step_{step:08d}")
    with pytest.raises(UserError, match=r"Every checkpoint in .* is damaged.*--fresh"):
        latest(saved)


def test_a_damaged_checkpoint_gives_way_when_its_step_is_reached_again(config, saved):
    alter(saved / "checkpoints" / "step_00000003")
    model, optimizer = trained(config)
    save(saved, 3, model, optimizer, {}, keep=3)
    found = latest(saved)
    assert found is not None
    assert found.step == 3
    save(saved, 4, model, optimizer, {}, keep=2)
    assert names(saved) == ["step_00000003", "step_00000004"]


def test_leftovers_of_a_killed_save_are_no_checkpoints_and_are_removed_by_the_next(config, saved):
    shutil.copytree(saved / "checkpoints" / "step_00000003", saved / "checkpoints" / ".unfinished_step_00000009")
    found = latest(saved)
    assert found is not None
    assert found.step == 3
    save(saved, 4, *trained(config), {}, keep=1)
    assert names(saved) == ["step_00000004"]


def moved(path, elsewhere):
    """Move a folder, and leave a link to it."""
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def test_of_a_checkpoint_moved_to_another_disk_the_link_is_removed(config, saved, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    for step in (2, 3):
        moved(saved / "checkpoints" / f"step_{step:08d}", disk / str(step))
    moved(saved / "checkpoints" / "step_00000001", saved / "checkpoints" / ".unfinished_step_00000001")
    moved(saved / "checkpoints" / ".unfinished_step_00000001", disk / "1")
    save(saved, 4, *trained(config), {}, keep=2)
    assert names(saved) == ["step_00000003", "step_00000004"]
    assert all((disk / name / "complete.json").is_file() for name in "123")
    found = latest(saved)
    assert found is not None
    assert found.step == 4


def test_a_link_to_nothing_is_a_damaged_checkpoint(config, saved, caplog):
    for step in (2, 3):
        path = saved / "checkpoints" / f"step_{step:08d}"
        shutil.rmtree(path)
        path.symlink_to(saved / "nowhere")
    found = latest(saved)
    assert found is not None
    assert found.step == 1
    assert "step_00000003: complete.json is missing" in caplog.text
    assert save(saved, 3, *trained(config), {}, keep=1).is_dir()
    save(saved, 4, *trained(config), {}, keep=1)
    assert names(saved) == ["step_00000004"]
    shutil.rmtree(saved / "checkpoints" / "step_00000004")
    (saved / "checkpoints" / "step_00000004").symlink_to(saved / "nowhere")
    with pytest.raises(UserError, match=r"Every checkpoint in .* is damaged"):
        latest(saved)


@pytest.mark.parametrize("culprit", ["write_atomic", "describe", "write_whole"])
def test_a_full_disk_is_one_sentence_and_leaves_the_older_ones(config, saved, monkeypatch, culprit):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, culprit, full)
    with pytest.raises(
        UserError, match=r"step_00000004 could not be written .*No space left.*older checkpoints are unt"
    ):
        save(saved, 4, *trained(config), {}, keep=1)
    assert names(saved) == ["step_00000001", "step_00000002", "step_00000003"]
    found = latest(saved)
    assert found is not None
    assert found.step == 3


def test_safetensors_own_error_for_a_full_disk_is_understood(config, saved, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_writer, "write_whole", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(saved, 4, *trained(config), {}, keep=1)
    assert names(saved) == ["step_00000001", "step_00000002", "step_00000003"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"mlp_dim": 48}, r"blocks.1.w1 has shape \[32, 16\] there and \[48, 16\] here"),
        ({"num_layers": 2}, "it lacks blocks.3.w1"),
        ({"positions": "alibi"}, "it has embedding.position"),
    ],
)
def test_weights_of_another_model_are_refused_with_the_first_difference(data, saved, changes, difference):
    other = build_model(tiny_config(data, model=changes).model)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(UserError, match=f"is of another model: {difference}"):
        load_weights(saved / "checkpoints" / "step_00000003", other)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), before, strict=True))


def test_a_file_that_is_not_there_or_not_safetensors_is_refused(config, tmp_path):
    model = build_model(config.model)
    with pytest.raises(UserError, match=r"none.safetensors does not exist"):
        load_weights(tmp_path / "none.safetensors", model)
    (tmp_path / "bad.safetensors").write_text("nothing of the kind")
    with pytest.raises(UserError, match=r"bad.safetensors is no readable safetensors file"):
        load_weights(tmp_path / "bad.safetensors", model)


def test_complete_json_describes_every_other_file(saved):
    folder = saved / "checkpoints" / "step_00000001"
    described = json.loads((folder / "complete.json").read_text())["files"]
    assert described.keys() == {path.name for path in folder.iterdir()} - {"complete.json"}
    assert all(entry["bytes"] == (folder / name).stat().st_size for name, entry in described.items())
