import pytest

from fake_runs import write_run
from widestream.errors import UserError
from widestream.report import Choice, compare
from widestream.report.stats.groups import group_runs
from widestream.runs.read import load_run


def groups_of(*folders):
    return [(label, [run.seeds[0] for run in runs]) for label, runs in group_runs([load_run(path) for path in folders])]


def test_seeds_of_one_configuration_are_one_model_and_the_transformer_comes_first(tmp_path):
    folders = [write_run(tmp_path / f"{m}{s}", m, seed=s, steps=25) for m in ("rmt", "transformer") for s in (1, 0)]
    assert groups_of(*folders) == [("transformer", [0, 1]), ("rmt", [0, 1])]


def test_a_transformer_with_options_beside_its_stream_is_not_the_plain_one(tmp_path):
    mixed = {"name": "a/resformer", "model.value_residual": "fixed"}
    local = {"name": "a/short", "model.short_swa": 8}
    plain = {"name": "a/plain", "model.value_residual": "none", "model.short_swa": None}
    named = {"a": mixed, "b": local, "c": plain}
    folders = [write_run(tmp_path / name, "transformer", steps=25, config=config) for name, config in named.items()]
    assert groups_of(*folders)[0][0] == "plain"


def test_names_paths_and_logging_do_not_split_a_model(tmp_path):
    changes = {"name": "demo/rmt-seed1", "data.path": "/elsewhere", "train.eval_every": 5, "description": "other"}
    a = write_run(tmp_path / "a", "rmt", seed=0, steps=25, config={"name": "demo/rmt-seed0"})
    b = write_run(tmp_path / "b", "rmt", seed=1, steps=25, config=changes)
    assert groups_of(a, b) == [("rmt", [0, 1])]


def test_another_learning_rate_or_other_data_is_another_model(tmp_path):
    a = write_run(tmp_path / "a", "rmt", steps=25)
    b = write_run(tmp_path / "b", "rmt", steps=25, config={"optimizer.lr": 0.5})
    c = write_run(tmp_path / "c", "rmt", steps=25, data={"fingerprint": "other"})
    assert groups_of(a, b) == [("rmt (lr 0.01)", [0]), ("rmt (lr 0.5)", [0])]
    assert groups_of(a, c) == [("rmt (data ab12cd)", [0]), ("rmt (data other)", [0])]


def test_the_same_measurement_twice_is_an_error(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "rmt", steps=25)
    with pytest.raises(UserError, match=r"same configuration and seeds.* leave one out \(--without b\)"):
        compare([tmp_path])
    assert len(compare([tmp_path], Choice(without=("b",))).runs) == 1


def test_runs_of_a_model_without_an_evaluation_in_common(tmp_path):
    write_run(tmp_path / "a", "rmt", seed=0, steps=50, every=50)
    write_run(tmp_path / "b", "rmt", seed=1, steps=50, every=20)
    with pytest.raises(UserError, match="no evaluation at equal tokens"):
        compare([tmp_path])


def test_configuration_differences_are_dotted_and_leave_out_what_is_equal(demo):
    rows = compare([demo]).config_differences
    assert rows == {
        "model.stream.kind": {"transformer": "vector", "rmt": "matrix"},
        "model.stream.key_dim": {"rmt": 32},
        "model.stream.norm_gain": {"rmt": "full"},
        "optimizer.lr": {"transformer": 0.003, "rmt": 0.01},
    }
