"""The zoo: which recipes it holds, its record, runs that diverge, the report at a tiny size."""

import json

import pytest

from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.report.search_record import load_search
from widestream.runs.pool import Job, run_jobs
from widestream.streams import OWN_KINDS
from widestream.study import zoo
from widestream.study.zoo import RATES, REFERENCE, ZooOptions, chosen_recipes, search_rates, zoo_recipes

CHANGES = ("model.vocab_size=300", "model.context=16", "train.batch_size=2", "train.eval_every=2")


def finish(jobs, workers, may_diverge=False):
    """What training leaves behind: the higher the rate the lower the loss, and the highest diverges."""
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        rate = float(next(change for change in job.changes if change.startswith("optimizer.lr=")).partition("=")[2])
        if rate == max(RATES):
            (job.folder / "nonfinite_step_7.safetensors").touch()
        else:
            done = {"step": job.steps, "heldout": {"loss": 5 - 10 * rate}}
            (job.folder / "done.json").write_text(json.dumps(done))


@pytest.fixture
def searched(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "run_jobs", finish)
    monkeypatch.setattr(zoo, "prepare_data", lambda folder: folder / "data")
    return ZooOptions(folder=tmp_path / "runs", data=tmp_path / "data", record=tmp_path / "search.json")


def test_every_kind_of_stream_is_in_the_zoo_at_one_size():
    configs = {name: load_recipe(name) for name in zoo_recipes()}
    assert {config.model.stream.kind for config in configs.values()} == set(OWN_KINDS)
    assert next(iter(configs)) == REFERENCE
    reference = configs[REFERENCE]
    for name, config in configs.items():
        assert config.data == reference.data, name
        assert config.train == reference.train, name
        assert config.model.num_layers == reference.model.num_layers
        assert config.model.num_heads * config.model.head_dim == 128
        assert config.description, name
    assert any(config.model.value_residual != "none" for config in configs.values())


def test_all_recipes_use_the_rates_that_the_search_found():
    options = ZooOptions()
    search = load_search(options.search_record)
    recipes = chosen_recipes(options)
    assert set(search.models) == set(recipes)
    for label, trials in search.models.items():
        assert [trial.lr for trial in trials] == sorted(RATES)
        assert [trial.lr for trial in trials if trial.chosen] == [load_recipe(recipes[label]).optimizer.lr], label


def test_the_search_records_all_rates_and_keeps_other_models(searched):
    searched.search_record.write_text(
        json.dumps(
            {"rows": [{"model": "mine", "lr": 1, "seed": 0, "steps": 5, "heldout_loss": 3.0, "diverged": False}]}
        )
    )
    search = load_search(search_rates(ZooOptions(recipes=("zoo/mudd",), folder=searched.folder, data=searched.data,
                                                 record=searched.record)))  # fmt: skip
    assert set(search.models) == {"mine", "mudd", "transformer"}
    assert [trial.mean for trial in search.models["mudd"]] == [4.94, 4.88, None]
    assert [trial.chosen for trial in search.models["mudd"]] == [False, True, False]


def test_a_run_that_diverges_is_a_result_and_any_other_failure_is_not(tmp_path):
    job = Job(recipe="zoo/mudd", changes=(f"data.path={tmp_path / 'nothing'}",), folder=tmp_path / "run", steps=5)
    job.folder.mkdir()
    with pytest.raises(UserError, match=r"The run .* failed"):
        run_jobs([job], workers=1, may_diverge=True)
    (job.folder / "nonfinite_step_3.safetensors").touch()
    run_jobs([job], workers=1, may_diverge=True)
    assert job.diverged


def test_two_recipes_of_one_name_are_refused(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("extends: zoo/mudd\nname: mine/mudd\n")
    with pytest.raises(UserError, match="both called mudd"):
        chosen_recipes(ZooOptions(recipes=("zoo/mudd", str(path))))


def test_data_elsewhere_must_be_there(tmp_path):
    with pytest.raises(UserError, match="holds no prepared data"):
        zoo.run_zoo(ZooOptions(recipes=("zoo/mudd",), data=tmp_path / "mine", folder=tmp_path))


@pytest.mark.parametrize("name", ["seeds", "steps", "workers"])
def test_options_out_of_range(name):
    with pytest.raises(UserError, match=f"--{name}"):
        ZooOptions(**{name: 0})
