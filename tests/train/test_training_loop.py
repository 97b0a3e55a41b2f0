import contextlib
import hashlib
import json
import logging
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tiny_runs import tiny_config, write_data
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig
from widestream.kernels import attention_cpu
from widestream.model.costs import summarize
from widestream.model.decoder import Decoder
from widestream.recipe import to_dict
from widestream.runs import checkpoint_writer
from widestream.runs.checkpoint import Checkpoint
from widestream.runs.identity import require_own
from widestream.runs.metrics import MetricsWriter
from widestream.runs.sample import sample_run
from widestream.runs.tensor_files import write_whole
from widestream.runs.write import move_aside
from widestream.train import loop, saving, setup
from widestream.train.evaluate import evaluate_run
from widestream.train.loop import train
from widestream.train.setup import TrainingRun

save = TrainingRun.save


def rows(run_dir, kind=None):
    """Rows of metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "clock"} for row in found if kind in (None, row["kind"])]


def final_weights(run_dir):
    return load_file(max((run_dir / "checkpoints").glob("step_*")) / "model.safetensors")


def with_train(config, **changes):
    return replace(config, train=replace(config.train, **changes))


@pytest.mark.parametrize("stream", ["matrix", "vector"])
def test_loss_falls_and_the_folder_tells_all(data, tmp_path, stream):
    config = tiny_config(data, stream, train={"steps": 60, "eval_every": 30, "log_every": 10, "save_every": 50})
    result = train(config, tmp_path / "run")

    losses = [row["loss"] for row in rows(tmp_path / "run", "train")]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [30, 60]
    last = rows(tmp_path / "run", "train")[-1]
    assert last["tokens"] == result.tokens == 60 * 4 * 16
    assert last["flops"] == result.flops == result.tokens * summarize(config.model).train_flops
    clock = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])["clock"]
    assert clock.keys() == {"wall_s", "tokens_per_s", "data_s", "mfu", "memory_bytes"}
    assert 0 < clock["mfu"] < 1
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert done["heldout"] == result.heldout
    assert done["heldout"]["whole"]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["precision"] == "float32"
    assert info["attention"] == ("fused" if attention_cpu.available() is None else "sdpa")
    assert info["peak_flops_per_s"] > 1e8
    assert info["data"]["sequence_length"] == 16
    assert info["summary"]["parameters"]["total"] == summarize(config.model).total_parameters
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture(params=[0.0, 0.2])
def dropout(request, monkeypatch):
    """Models as they are, and models that draw random numbers in every forward pass."""
    forward = Decoder.forward

    def noisy(self, *args, **kwargs):
        return torch.dropout(forward(self, *args, **kwargs), request.param, self.training)

    monkeypatch.setattr(Decoder, "forward", noisy)


@pytest.mark.usefixtures("dropout")
def test_in_a_resumed_run_weights_and_rows_are_those_of_an_uninterrupted_one(data, tmp_path):
    config = tiny_config(data, train={"steps": 9, "save_every": 4, "eval_every": 3})
    train(config, tmp_path / "whole")

    commit = checkpoint_writer.commit

    def interrupted(run_dir, step, *rest):
        if step == 8:
            raise KeyboardInterrupt
        return commit(run_dir, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    result = train(config, tmp_path / "parts")
    assert result.step == 9
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_is_left_alone(data, tmp_path):
    config = tiny_config(data)
    first = train(config, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert train(config, tmp_path / "run") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")} == files


def test_training_goes_on_from_the_newest_good_checkpoint(data, tmp_path, caplog):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    expected, weights = rows(tmp_path / "run"), final_weights(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run")
    assert "step_00000006" in caplog.text
    assert rows(tmp_path / "run") == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in final_weights(tmp_path / "run").items())


def test_activation_checkpointing_changes_no_number(data, tmp_path):
    config = tiny_config(data, train={"steps": 3})
    train(config, tmp_path / "plain")
    train(with_train(config, activation_checkpointing=True), tmp_path / "checkpointed")
    assert rows(tmp_path / "plain") == rows(tmp_path / "checkpointed")


def test_accumulation_changes_only_rounding(data, tmp_path):
    config = tiny_config(data, train={"steps": 3})
    train(config, tmp_path / "one")
    train(with_train(config, micro_batch_size=1), tmp_path / "four")
    for one, four in zip(rows(tmp_path / "one"), rows(tmp_path / "four"), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_length_in_tokens_is_rounded_up_to_whole_steps(data, tmp_path):
    config = tiny_config(
        data, train={"steps": None, "tokens": 65}, schedule={"warmup": 0}, data={"heldout_split": "none"}
    )
    result = train(config, tmp_path / "run")
    assert (result.step, result.heldout) == (2, None)


def test_part_of_the_heldout_split_on_the_way_and_all_of_it_at_the_end(data, tmp_path):
    train(tiny_config(data, train={"eval_every": 3, "eval_windows": 2}), tmp_path / "run")
    found = rows(tmp_path / "run", "eval")
    steps = [row["step"] for row in found]
    assert [row["whole"] for row in found] == [False] * (len(found) - 1) + [True]
    assert steps[-1] == steps[-2] > steps[-3]  # the last step is seen both ways
    assert found[-2]["target_tokens"] == found[0]["target_tokens"] < found[-1]["target_tokens"]


@pytest.mark.parametrize("settings", [{}, {"eval_windows": 2}, {"eval_windows": 2, "final_eval": "windows"}])
def test_settings_are_chosen_on_windows_that_no_evaluation_reads(data, tmp_path, settings):
    config = tiny_config(data, train={"eval_every": 3, "selection": 0.5} | settings)
    result = train(config, tmp_path / "run")
    step, heldout = evaluate_run(tmp_path / "run")
    assert step == 6
    assert result.selection is not None
    if "final_eval" not in settings:
        assert asdict(heldout) == result.heldout, "the checkpoint is judged on what the run is judged on"
        whole = json.loads((tmp_path / "run" / "run.json").read_text())["data"]["heldout_tokens"] - 1
        assert result.selection["target_tokens"] + result.heldout["target_tokens"] == whole
    assert not any(row["whole"] for row in rows(tmp_path / "run", "eval"))
    assert result.selection["loss"] not in [row["loss"] for row in rows(tmp_path / "run")]
    (tmp_path / "run" / "done.json").unlink()
    assert train(config, tmp_path / "run").selection == result.selection, "it is in the checkpoint"


def test_keeping_nothing_for_choosing_changes_nothing(data, tmp_path):
    result = train(tiny_config(data), tmp_path / "run")
    assert result.selection is None
    assert result.heldout["whole"]


def test_a_run_begun_anew_elsewhere_is_of_there_and_keeps_its_peak(data, tmp_path, monkeypatch):
    config = tiny_config(data)
    with monkeypatch.context() as killed:
        killed.setattr("widestream.train.setup.note_start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    monkeypatch.setattr("widestream.train.begin.code_of", lambda _: "other code")
    train(config, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["code"], info["resumed"]) == ("other code", [])


def test_a_search_reads_a_part_of_the_heldout_split_at_the_end_too(data, tmp_path):
    result = train(
        tiny_config(data, train={"eval_every": 3, "eval_windows": 2, "final_eval": "windows"}), tmp_path / "run"
    )
    found = rows(tmp_path / "run", "eval")
    assert not any(row["whole"] for row in found)
    assert len({row["step"] for row in found}) == len(found)
    assert result.heldout["loss"] == found[-1]["loss"]


# ---- a loss that is not finite


@pytest.fixture
def poisoned(monkeypatch):
    """At the fourth batch of a run the loss is NaN."""
    loss = Decoder.loss
    calls = iter(range(100))

    def poison(self, *args, **kwargs):
        terms = loss(self, *args, **kwargs)
        bad = self.training and next(calls) == 3
        return (
            replace(terms, total=terms.total * float("nan"), cross_entropy=terms.cross_entropy * float("nan"))
            if bad
            else terms
        )

    monkeypatch.setattr(Decoder, "loss", poison)


@pytest.mark.usefixtures("poisoned")
def test_by_default_the_run_stops_and_saves_the_batch_and_the_loss_of_each_part(data, tmp_path):
    config = tiny_config(data, train={"micro_batch_size": 2})
    with pytest.raises(
        UserError, match=r"stopped at step 2: the loss is nan .* saved as .*nonfinite_step_2.safetensors"
    ):
        train(config, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "nonfinite_step_2.safetensors")
    assert saved["tokens"].shape == saved["targets"].shape == saved["segments"].shape == (4, 16)
    assert saved["step"] == 2
    assert saved["losses"].isnan().tolist() == [[False, True]]
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1]


@pytest.mark.usefixtures("poisoned")
def test_on_request_the_step_is_skipped_and_counted(data, tmp_path, capsys):
    result = train(tiny_config(data, train={"nonfinite": "skip"}), tmp_path / "run")
    assert (result.step, result.skipped) == (6, 1)
    told = capsys.readouterr()
    assert "6 steps (1 skipped, which moved nothing)" in told.out + told.err
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1, 2, 3, 5, 6]
    (event,) = rows(tmp_path / "run", "event")
    assert event == {
        "kind": "event", "step": 4, "event": "nonfinite_skipped", "loss": None, "grad_norm": None, "skipped": 1,
    }  # fmt: skip
    assert all(tensor.isfinite().all() for tensor in final_weights(tmp_path / "run").values())


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_of_weights_that_give_no_finite_loss_there_is_no_checkpoint(data, tmp_path, capsys, nonfinite):
    config = tiny_config(data, optimizer={"lr": 1e30}, train={"save_every": 1, "nonfinite": nonfinite})
    with pytest.raises(UserError, match="stopped at step 3") if nonfinite == "stop" else contextlib.nullcontext():
        train(config, tmp_path / "run")
    told = capsys.readouterr()
    assert "step 2: its weights give no finite loss, so no checkpoint is made of them" in told.err + told.out
    assert ("most of its steps: this is no trained model" in told.err + told.out) == (nonfinite == "skip")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]
    assert evaluate_run(tmp_path / "run")[0] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_one_sentence(data, tmp_path, value, monkeypatch):
    monkeypatch.setattr(loop, "all_finite", lambda _: True)  # as before there was a look at it
    with monkeypatch.context() as broken:
        broken.setattr(TrainingRun, "save", lambda run: (run.model.embedding.token.data.fill_(value), save(run)))
        train(tiny_config(data, train={"steps": 2}), tmp_path / "run")
    with pytest.raises(UserError, match=r"step_00000002 holds weights that are not finite"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"step_00000002 holds weights that are not finite"):
        sample_run(tmp_path / "run", "the", SamplingConfig(max_new_tokens=3))


# ---- TensorBoard


def test_tensorboard_has_the_same_numbers(data, tmp_path):
    train(tiny_config(data, train={"tensorboard": True}), tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    logged = [row["loss"] for row in rows(tmp_path / "run", "train")]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(logged)
    assert "train/tokens_per_s" in events.Tags()["scalars"]


# ---- what a user can mend


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"path": "nowhere"}}, "nowhere holds no prepared data"),
        ({"data": {"heldout_split": "other"}}, "has no split 'other'"),
        ({"model": {"vocab_size": 256}}, "set model.vocab_size to at least 257"),
        ({"data": {"sequence_length": 17}}, "data.sequence_length is 17 but .* model.context=16"),
        ({"train": {"steps": None}}, "set train.steps or train.tokens"),
        ({"train": {"tokens": 100}}, "set one of them to null"),
        ({"train": {"micro_batch_size": 3}}, "train.micro_batch_size=3 does not divide the 4 windows"),
        ({"schedule": {"warmup": 6}}, "schedule.warmup is 6 steps but the run has only 6"),
        ({"train": {"device": "tpu"}}, "train.device=tpu"),
        (
            {"optimizer": {"kind": "muon"}, "model": {"init": {"scheme": "mup"}, "mup": {"base_mlp_dim": 8}}},
            "adjust_lr is match_rms_adamw",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_written(data, tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(data, **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corpus_shorter_than_a_window_is_refused(tmp_path):
    short = write_data(tmp_path / "short", train_documents=1, seed=1)
    config = tiny_config(short, model={"context": 4096})
    with pytest.raises(UserError, match="one window needs 4097"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"keep": 0}, {"log_every": 0}, {"z_loss": -1.0}, {"seed": -1}]
)
def test_values_out_of_range_are_refused(data, wrong):
    with pytest.raises(UserError, match=f"train.{next(iter(wrong))} is"):
        tiny_config(data, train=wrong)


def test_a_full_disk_during_a_save_leaves_a_run_that_can_go_on(data, tmp_path, monkeypatch):
    config = tiny_config(data)
    train(config, tmp_path / "whole")

    def full(folder, kind, tensors):
        if "step_00000004" in str(folder):
            raise OSError(28, "No space left on device")
        return write_whole(folder, kind, tensors)

    monkeypatch.setattr(saving, "write_whole", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    train(config, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_another_run_in_the_folder_is_refused_with_what_differs(data, tmp_path):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    other = tiny_config(
        data, train={"steps": 7}, optimizer={"lr": 0.5}, model={"stream": {"kind": "matrix", "key_dim": 8}}
    )
    with pytest.raises(UserError) as caught:
        train(other, tmp_path / "run")
    for part in (
        "train.steps (6 there, 7 now)",
        "optimizer.lr (0.01 there, 0.5 now)",
        "model.stream.key_dim",
        "--fresh",
    ):
        assert part in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_older_than_a_setting_goes_on(data, tmp_path):
    config = tiny_config(data)
    train(with_train(config, steps=6), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["train"]["attention"]
    path.write_text(yaml.safe_dump(values))
    before = rows(tmp_path / "run")
    train(with_train(config, steps=6), tmp_path / "run")
    assert rows(tmp_path / "run") == before


def test_fresh_moves_the_old_run_aside(data, tmp_path):
    config = tiny_config(data)
    for steps in (6, 7, 8):
        train(with_train(config, steps=steps), tmp_path / "run", resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1", "run.old-2"]
    assert rows(tmp_path / "run.old-1")[-1]["step"] == 6
    assert rows(tmp_path / "run.old-2")[-1]["step"] == 7


@pytest.mark.parametrize("trains", [True, False])
def test_two_that_begin_anew_in_one_folder_at_once(data, tmp_path, monkeypatch, trains):
    """While the second reads its data through, the first has begun, and may train already: it is not moved aside."""
    config = tiny_config(data)
    train(config, tmp_path / "run")
    open_data, begun = setup._open_data, contextlib.ExitStack()

    def overtaken(*arguments):
        if trains:
            begun.enter_context(MetricsWriter(tmp_path / "run", 6))
        else:
            shutil.copytree(move_aside(tmp_path / "run"), tmp_path / "run")
        return open_data(*arguments)

    monkeypatch.setattr(setup, "_open_data", overtaken)
    before = rows(tmp_path / "run")
    with begun, pytest.raises(UserError, match="Another process is training in"):
        train(config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run.old-2").exists()
    assert rows(tmp_path / "run") == before


def test_a_folder_with_something_else_in_it_is_refused(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"is no run folder and holds thesis.tex"):
        train(tiny_config(data), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_data_under_the_same_path_is_noticed(tmp_path):
    path = write_data(tmp_path / "data", seed=1)
    train(tiny_config(path), tmp_path / "run")
    path.rename(tmp_path / "old-data")
    write_data(path, seed=2)
    with pytest.raises(UserError, match=r"run data fingerprint"):
        train(tiny_config(path), tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(data, tmp_path):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    train(tiny_config(data, model={"norm": "rmsnorm"}, train={"steps": 8}), tmp_path / "other")
    (tmp_path / "other" / "checkpoints" / "step_00000008").rename(tmp_path / "run" / "checkpoints" / "step_00000008")
    with pytest.raises(UserError, match=r"is of another model: model.norm is rmsnorm there and layernorm here"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"train": {"seed": 1}}, "train.seed is 1 there and 0 here"),
        ({"optimizer": {"lr": 0.02}}, "optimizer.lr is 0.02 there and 0.01 here"),
        ({"schedule": {"kind": "constant"}}, "schedule.kind is constant there and cosine here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(data, tmp_path, sections, what):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    train(tiny_config(data, **sections), tmp_path / "other")
    for name in ("done.json", "checkpoints"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    for use in (lambda: train(config, tmp_path / "run"), lambda: evaluate_run(tmp_path / "run")):
        with pytest.raises(UserError, match=f"is of another run: {what}"):
            use()


@pytest.mark.parametrize("changes", [{}, {"steps": 8}, {"steps": 12}])
def test_a_checkpoint_behind_the_last_step_is_refused(data, tmp_path, changes):
    """The run has never come there; the longer run that it is from differs in nothing else."""
    constant = {"schedule": {"kind": "constant", "warmup": 0}}
    train(tiny_config(data, **constant), tmp_path / "run")
    train(tiny_config(data, train={"steps": 9}, **constant), tmp_path / "other")
    source = tmp_path / "other" / "checkpoints" / "step_00000009"
    state = json.loads((source / "state.json").read_text())
    state["settings"]["train.steps"] = 6
    (source / "state.json").write_text(json.dumps(state))
    complete = json.loads((source / "complete.json").read_text())
    complete["files"]["state.json"] = checkpoint_writer.describe(source / "state.json")
    (source / "complete.json").write_text(json.dumps(complete))
    source.rename(tmp_path / "run" / "checkpoints" / "step_00000009")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(UserError, match="a checkpoint of step 9, and its run has no more than 6 steps; remove that"):
        train(tiny_config(data, train=changes, **constant), tmp_path / "run")
    assert before == {path: path.read_bytes() for path in before}


def test_a_checkpoint_of_a_setting_that_a_terminal_would_obey(data, tmp_path):
    saved = Checkpoint(tmp_path, 1, {"settings": {"model.\x1b[2J": 1}}, None)
    with pytest.raises(UserError, match=r"model\.\\x1b\[2J is 1 there"):
        require_own(saved, tiny_config(data), {"data": {}})


def test_a_checkpoint_of_other_data_is_refused(data, tmp_path):
    train(tiny_config(data), tmp_path / "run")
    train(tiny_config(write_data(tmp_path / "data", seed=9)), tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="is of another run: it was trained on other data"):
        train(tiny_config(data), tmp_path / "run")


def test_a_run_with_a_checkpoint_of_an_older_version_goes_on(data, tmp_path):
    config = tiny_config(data)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000006")
    (tmp_path / "run" / "done.json").unlink()
    folder = tmp_path / "run" / "checkpoints" / "step_00000004"
    (folder / "metrics.json").unlink()
    state = json.loads((folder / "state.json").read_text())
    del state["settings"]
    text = json.dumps(state | {"model": to_dict(config.model)})
    (folder / "state.json").write_text(text)
    files = json.loads((folder / "complete.json").read_text())["files"]
    del files["metrics.json"]
    files["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "complete.json").write_text(json.dumps({"files": files}))
    train(config, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_the_recorded_configuration_builds_the_same_run(data, tmp_path):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    from widestream.runs.folder import load_config

    assert to_dict(load_config(tmp_path / "run")) == to_dict(config)


def test_a_folder_in_which_a_process_trains_is_refused(data, tmp_path):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    with MetricsWriter(tmp_path / "run", 6):  # held as long as training goes on
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        for resume in (True, False):
            with pytest.raises(UserError, match="Another process is training in"):
                train(config, tmp_path / "run", resume=resume)
        with pytest.raises(UserError, match="Another process is training in"):
            MetricsWriter(tmp_path / "run", 0)
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train(config, tmp_path / "run").step == 6


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_altered_data_are_refused(tmp_path, split):
    path = write_data(tmp_path / "data")
    shard = path / f"{split}_00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{split}_00000.bin was altered"):
        train(tiny_config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
