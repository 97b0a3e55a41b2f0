"""The zoo: which recipes it holds, its record, runs that diverge, the report at a tiny size."""

from dataclasses import replace
from pathlib import Path

import pytest

from study_runs import finish as finish_all
from study_runs import write_run
from tiny_runs import write_data
from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.recipe.load import RECIPES
from widestream.report.search_record import load_search
from widestream.runs.pool import Job, run_jobs
from widestream.streams import OWN_KINDS
from widestream.study import corpus, run
from widestream.study.load import load_study
from widestream.study.page.results import load_result
from widestream.study.plan import trial_job
from widestream.study.run import Place, StudyOptions
from widestream.study.zoo import run_zoo, search_zoo, zoo_study

ZOO = load_study("zoo")
RATES = (0.006, 0.012, 0.024)


def finish(jobs, workers, may_diverge=False):
    """What training leaves behind: the higher the rate the lower the loss, and the highest diverges."""
    for job in jobs:
        if load_recipe(job.recipe, job.changes).optimizer.lr == max(RATES):
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "nonfinite_step_7.safetensors").touch()
        else:
            write_run(job, lambda config, *_: 5 - 10 * config.optimizer.lr)


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", finish)
    return StudyOptions(folder=tmp_path / "runs", data=write_data(tmp_path / "data"))


def test_every_kind_of_stream_is_in_the_zoo_at_one_size():
    configs = {arm.name: load_recipe(arm.recipe) for arm in ZOO.arms}
    assert {config.model.stream.kind for config in configs.values()} == set(OWN_KINDS)
    assert next(iter(configs)) == ZOO.reference == "transformer"
    reference = configs[ZOO.reference]
    for name, config in configs.items():
        assert str(config.name) == f"zoo/{name}"
        assert config.data == reference.data, name
        assert config.train == reference.train, name
        assert config.model.num_layers == reference.model.num_layers
        assert config.model.num_heads * config.model.head_dim == 128
        assert config.description, name
    assert any(config.model.value_residual != "none" for config in configs.values())


def test_all_recipes_use_the_rates_that_the_search_found():
    assert ZOO.search is not None
    assert ZOO.search.record is not None
    assert ZOO.search.rates == RATES
    search = load_search(ZOO.search.record)
    recipes = {arm.name: arm.recipe for arm in ZOO.arms}
    assert set(search.models) == set(recipes)
    for label, trials in search.models.items():
        assert [trial.lr for trial in trials] == sorted(RATES)
        assert {trial.steps for trial in trials} == {(ZOO.search.steps,)}
        assert [trial.lr for trial in trials if trial.chosen] == [load_recipe(recipes[label]).optimizer.lr], label


def test_search_runs_are_those_of_earlier_versions(tmp_path):
    job = trial_job(ZOO, ZOO.arms[0], Place(tmp_path, tmp_path / "data"), 0.012)
    before = (
        "train.seed=100", "data.seed=100", f"data.path={tmp_path / 'data'}", "optimizer.lr=0.012", "train.steps=100",
        "train.eval_every=100", "train.save_every=100", "train.eval_windows=128", "train.final_eval=windows",
    )  # fmt: skip
    assert load_recipe(job.recipe, job.changes) == load_recipe("zoo/transformer", before)
    assert job.folder == tmp_path / "transformer-0.012"


def test_the_search_records_all_rates_and_keeps_other_models(options, tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: zoo/rmt\nname: mine\n")
    shipped = (RECIPES.folder / "zoo" / "search.json").read_bytes()
    options = replace(options, search_only=True)
    search_zoo(options, [str(mine)])
    record = search_zoo(options, ["zoo/mudd"])
    assert record == options.folder / "zoo.study.json"
    assert (RECIPES.folder / "zoo" / "search.json").read_bytes() == shipped
    search = load_search(record)
    assert set(search.models) == {"mine", "mudd", "transformer"}
    assert [trial.mean for trial in search.models["mudd"]] == [4.94, 4.88, None]
    assert [trial.chosen for trial in search.models["mudd"]] == [False, True, False]
    assert "mudd: best peak rate 0.012" in capsys.readouterr().out


def test_search_and_runs_in_one_folder_share_a_record(options, monkeypatch):
    search_zoo(replace(options, search_only=True), ["zoo/mudd"])
    monkeypatch.setattr(run, "run_jobs", finish_all)
    page = run_zoo(options, ["zoo/rmt"], search=options.folder / "zoo.study.json")
    assert "peak rates 0.006, 0.012 and 0.024" in page.read_text()
    assert page.with_name("zoo-dark.svg").is_file()
    arms = load_result(options.folder / "zoo.study.json").arms
    assert list(arms) == ["transformer", "rmt", "mudd"]
    assert [len(arm.entry["trials"]) for arm in arms.values()] == [3, 0, 3]
    assert [len(arm.entry["runs"]) for arm in arms.values()] == [1, 1, 0]
    assert arms["rmt"].entry["runs"][0]["folder"] == "rmt-seed0"


@pytest.mark.parametrize("content", ['{"rows": []}', "{", '{"study": "ladder", "arms": []}'])
def test_a_file_that_is_no_record_of_the_zoo_is_not_overwritten(options, tmp_path, content):
    path = tmp_path / "search.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is no record of the study zoo, and stays as it is"):
        search_zoo(replace(options, record=path, search_only=True), ["zoo/mudd"])
    assert path.read_text() == content


def test_a_recipe_that_was_changed_does_not_take_a_finished_run_for_its_own(options, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", finish_all)
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: zoo/rmt\nname: mine\n")
    run_zoo(options, [str(mine)])
    run_zoo(options, [str(mine)])
    mine.write_text("extends: zoo/rmt\nname: mine\noptimizer: {lr: 0.5}\n")
    with pytest.raises(UserError, match=r"mine-seed0 holds another run; it differs in optimizer.lr \(0.012 there"):
        run_zoo(options, [str(mine)])
    mine.write_text("extends: zoo/rmt\nname: mine\n")
    others = replace(options, data=write_data(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="holds another run; it differs in tokens"):
        run_zoo(others, [str(mine)])


def test_a_run_that_diverges_is_a_result_and_any_other_failure_is_not(tmp_path):
    job = Job(recipe="zoo/none-of-this-name", changes=(), folder=tmp_path / "run", steps=5)
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
        zoo_study(StudyOptions(), ["zoo/mudd", str(path)])


def test_data_elsewhere_must_be_there(tmp_path):
    with pytest.raises(UserError, match="holds no prepared data"):
        run_zoo(StudyOptions(data=tmp_path / "mine", folder=tmp_path), ["zoo/mudd"])


def test_data_is_the_demos_and_is_prepared_where_it_is_missing(tmp_path, monkeypatch):
    folders = []

    def prepare(folder, source, vocab_size):
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_prepare", prepare)
    for data in (None, tmp_path / "data"):
        with pytest.raises(KeyboardInterrupt):
            run_zoo(StudyOptions(data=data, folder=tmp_path), ["zoo/mudd"])
    assert folders == [Path("runs/demo"), tmp_path]
