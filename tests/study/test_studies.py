"""Studies: how they are read, planned and searched, and what their records say."""

import json
from dataclasses import replace

import pytest
import yaml

from study_runs import finish, loss_of, write_run, write_study
from tiny_runs import write_data
from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.study import run
from widestream.study.archive import pack_results
from widestream.study.load import find_study, load_study, study_names
from widestream.study.plan import Place, Prints, arm_job, recipe_hash
from widestream.study.rates import best_rate, next_rate
from widestream.study.run import StudyOptions, run_study
from widestream.study.spec import SCALES, RateSearch

LOOKS = {"demo", "zoo"}
"""Studies that look at the beginning of training with a seed or two."""


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", finish)
    return StudyOptions(folder=tmp_path / "runs", workers=1)


def scales_of(name):
    return yaml.safe_load(find_study(name).read_text()).get("scales", SCALES)


def test_every_shipped_study_can_be_planned_at_every_scale_it_has(tmp_path):
    planned = set()
    for name in study_names():
        for scale in SCALES:
            if scale not in scales_of(name):
                with pytest.raises(UserError, match="has no scale"):
                    load_study(name, scale)
                continue
            study = load_study(name, scale)
            assert study.seeds >= (1 if name in LOOKS else 3)
            assert study.search is not None
            for arm in study.arms:
                if arm.tokens_per_parameter is None:
                    assert arm_job(study, arm, Place(tmp_path, None), 0, None).steps > 10, (name, scale, arm.name)
            planned.add((name, scale))
    assert set(study_names()) >= LOOKS
    assert {(name, "cpu") for name in study_names()} <= planned
    assert len([one for one in planned if one[1] == "paper"]) >= 5


def test_studies_share_the_runs_of_equal_recipes(tmp_path):
    place = Place(tmp_path, None)
    size, variants = load_study("stream_size"), load_study("variants")
    one = {arm.name: arm_job(size, arm, place, 0, 0.01).folder for arm in size.arms}
    other = {arm.name: arm_job(variants, arm, place, 0, 0.01).folder for arm in variants.arms}
    assert one["transformer"] == other["transformer"]
    assert one["rmt key_dim=32"] == other["rmt"]
    assert len(set(one.values())) == len(one)
    again = arm_job(size, size.arms[0], place, 1, 0.01).folder
    assert again != one["transformer"]
    assert again.name.rpartition("-")[0] == one["transformer"].name.rpartition("-")[0]


def test_whatever_can_change_a_figure_gives_a_run_a_name_of_its_own():
    changes = (
        "attention=auto", "attention=sdpa", "threads=2", "kernels=reference", "stream_memory=states", "device=cuda",
        "precision=bf16", "compile=true", "z_loss=0.5", "eval_every=7", "eval_windows=3", "selection=0.5",
    )  # fmt: skip
    prints: Prints = {"train": "t", "heldout": "h"}
    names = {recipe_hash(load_recipe("demo/rmt", [f"train.{change}"]), prints) for change in changes}
    names.add(recipe_hash(load_recipe("demo/rmt"), prints | {"heldout": "other"}))
    assert len(names) == len(changes) + 1
    seeds = [recipe_hash(load_recipe("demo/rmt", [f"train.seed={seed}", f"name=s{seed}"]), prints) for seed in (1, 2)]
    assert seeds[0] == seeds[1]


def test_a_setting_left_at_its_default_changes_no_name():
    prints: Prints = {"train": "t", "heldout": "h"}
    given = ["model.norm_bias=false", "model.moe.num_experts=0", "train.threads=1", "optimizer.kind=adamw"]
    assert recipe_hash(load_recipe("demo/rmt", given), prints) == recipe_hash(load_recipe("demo/rmt"), prints)
    stream = ["model.stream.kind=matrix_keys"]
    assert recipe_hash(load_recipe("demo/rmt", stream), prints) != recipe_hash(load_recipe("demo/rmt"), prints)


def test_tokens_per_parameter_leave_norm_gains_out(tmp_path):
    study = load_study("ladder")
    arm = next(arm for arm in study.arms if arm.name == "transformer 1")
    non_embedding = 12 * 24 * 24
    assert arm_job(study, arm, Place(tmp_path, None), 0, None).steps == -(-20 * non_embedding // 2048)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {}}, "lacks arms"),
        ({"arms": {"a": {"recipe": "study/cpu/rmt", "sett": {}}}}, "did you mean set"),
        ({"arms": {"a": {}}}, "lacks arms.a.recipe"),
        ({"arms": {"a": {"recipe": "study/cpu/rmt", "grid": {"model.num_layers": 3}}}}, "must be a list"),
        ({"reference": "rtm"}, "Unknown arm 'rtm'"),
        ({"search": {"rates": [0.1]}}, "two or more positive rates"),
        ({"search": {"rates": [0.1, 0.1]}}, "each once"),
        ({"search": {"rates": [0.1, float("inf")]}}, "finite number"),
        ({"search": {"rates": [0.1, float("nan")]}}, "finite number"),
        ({"search": {"rates": "many"}}, "search.rates must be a list"),
        ({"search": {"most": 3}}, "lacks search.rates"),
        ({"seedz": 3}, "did you mean seeds"),
        ({"seeds": 0}, "at least one"),
        ({"analysis": {"contrasts": [{"of": "rmt", "against": "transformer"}]}}, "Unknown arm 'rmt'"),
        ({"scales": ["paper"]}, "has no scale cpu"),
        ({"runs": "plane"}, "did you mean plain"),
        ({"runs": "plain", "arms": {"a/b": {"recipe": "study/cpu/rmt"}}, "reference": "a/b"}, "no folder can be named"),
        ({"arms": {"all": {"recipe": "no/such/*"}}}, "there are none"),
        ({"search": {"rates": [0.1, 0.2], "record": "no/such.json"}}, "there is no file"),
        ({"search": {"rates": [0.1, 0.2], "steps": 0}}, "at least one"),
        ({"search": {"rates": [0.1, 0.2], "set": [1]}}, "must be a mapping"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_in_a_sentence(tmp_path, changes, words):
    path = write_study(tmp_path / "mine.yaml", **changes)
    with pytest.raises(UserError, match=words):
        load_study(str(path))


def test_unknown_studies_scales_and_settings_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean ladder"):
        find_study("lader")
    with pytest.raises(UserError, match="paper"):
        load_study("ladder", "papier")
    path = write_study(tmp_path / "mine.yaml", set={"model.num_layer": 2, "train.steps": 3})
    study = load_study(str(path))
    with pytest.raises(UserError, match=r"Arm transformer of the study mine: .*did you mean num_layers"):
        arm_job(study, study.arms[0], Place(tmp_path, None), 0, None)


def test_the_grid_grows_while_the_best_rate_lies_at_its_edge():
    search = RateSearch(rates=(0.004, 0.01), most=4)
    assert next_rate({0.004: 3.0, 0.01: 2.9}, search) == 0.025
    assert next_rate({0.004: 2.8, 0.01: 2.9}, search) == 0.0016
    assert next_rate({0.004: 3.0, 0.01: 2.9, 0.025: 3.1}, search) is None
    assert next_rate({0.0016: 1, 0.004: 2, 0.01: 3, 0.025: 4}, search) is None, "as many as allowed"
    assert next_rate({0.004: 3.0, 0.01: None}, search) == 0.0016, "a rate that diverged is no best one"
    assert next_rate({0.004: None, 0.01: None}, search) is None
    assert best_rate({0.004: None, 0.01: None}) is None
    close = RateSearch(rates=(0.01, 0.010001), most=9)
    assert next_rate({0.01: 3.0, 0.010001: 2.9}, close) is None, "the next one would be rounded to one that was tried"


def test_a_study_searches_rates_then_trains_all_seeds_and_records_both(tmp_path, options):
    path = write_study(tmp_path / "mine.yaml")
    record = json.loads(run_study(str(path), options).read_text())
    arms = {arm["name"]: arm for arm in record["arms"]}
    assert set(arms) == {"transformer", "rmt key_dim=4", "rmt key_dim=16"}
    assert arms["transformer"]["rate"] == 0.01
    assert arms["rmt key_dim=4"]["rate"] == 0.025
    assert [trial["lr"] for trial in arms["rmt key_dim=4"]["trials"]] == [0.004, 0.01, 0.025, 0.0625]
    assert [trial["lr"] for trial in arms["transformer"]["trials"]] == [0.004, 0.01, 0.025]
    for arm in arms.values():
        assert [one["status"] for one in arm["runs"]] == ["done", "done"]
        best = next(trial for trial in arm["trials"] if trial["lr"] == arm["rate"])
        assert best["folder"] == arm["runs"][0]["folder"], "the best rate's run is the first seed's"
        for one in arm["runs"]:
            folder = options.folder / "cpu" / one["folder"]
            assert (folder / "done.json").is_file()
            assert one["command"].startswith("widestream train study/cpu/")
    command = arms["transformer"]["runs"][1]["command"].split()
    config = load_recipe(command[2], command[3 : command.index("--out")])
    assert config.train.seed == config.data.seed == 1
    assert config.optimizer.lr == 0.01


def test_a_shorter_search_has_seeds_of_its_own(tmp_path, options):
    path = write_study(tmp_path / "mine.yaml", search={"rates": [0.004, 0.01], "most": 2, "share": 0.5})
    record = json.loads(run_study(str(path), options).read_text())
    arm = record["arms"][0]
    assert {trial["steps"] for trial in arm["trials"]} == {8}
    assert not {trial["folder"] for trial in arm["trials"]} & {one["folder"] for one in arm["runs"]}


def test_a_search_of_a_length_of_its_own(tmp_path, options):
    search = {"rates": [0.004, 0.01], "most": 2, "steps": 24, "set": {"train.eval_windows": 7}}
    record = json.loads(run_study(str(write_study(tmp_path / "mine.yaml", search=search)), options).read_text())
    for arm in record["arms"]:
        assert {trial["steps"] for trial in arm["trials"]} == {24}
        assert all("train.seed=100" in trial["command"] for trial in arm["trials"])
        assert all("train.eval_windows=7" in trial["command"] for trial in arm["trials"])
        assert not any("train.eval_windows" in one["command"] for one in arm["runs"])


def test_searching_only(tmp_path, options):
    path = write_study(tmp_path / "mine.yaml")
    record = json.loads(run_study(str(path), replace(options, search_only=True)).read_text())
    assert record["command"].startswith(f"widestream study run {path} --search")
    assert [len(arm["runs"]) for arm in record["arms"]] == [0, 0, 0]
    assert record["arms"][0]["rate"] == 0.01
    with pytest.raises(UserError, match="has no `search`"):
        run_study(str(write_study(tmp_path / "fixed.yaml", search=None)), replace(options, search_only=True))


def test_plain_names(tmp_path, options):
    path = write_study(tmp_path / "mine.yaml", runs="plain", evaluations="recipe", search=None)
    record = json.loads(run_study(str(path), options).read_text())
    assert [one["folder"] for arm in record["arms"] for one in arm["runs"]] == [
        f"{arm}-seed{seed}" for arm in ("transformer", "rmt key_dim=4", "rmt key_dim=16") for seed in (0, 1)
    ]
    assert (options.folder / "mine.study.json").is_file()
    assert (options.folder / "rmt key_dim=4-seed1" / "done.json").is_file()
    assert "eval_every" not in record["arms"][0]["runs"][0]["command"]
    assert pack_results(options.folder, tmp_path / "kept.tar.xz") == 6
    with pytest.raises(UserError, match=r"holds another run; it differs in train.steps \(16 there, 5 now\)"):
        run_study(str(path), replace(options, steps=5))


def test_an_arm_of_every_recipe_in_a_folder(tmp_path):
    arms = {"rmt": {"recipe": "study/cpu/rmt", "about": "listed"}, "others": {"recipe": "study/{scale}/*"}}
    study = load_study(str(write_study(tmp_path / "mine.yaml", arms=arms)))
    assert [(arm.name, arm.recipe) for arm in study.arms] == [
        ("rmt", "study/cpu/rmt"), ("transformer", "study/cpu/transformer"),
    ]  # fmt: skip
    assert study.arms[0].about == "listed"


def test_arms_may_take_the_rate_of_another_or_the_recipes(tmp_path, options):
    arms = {
        "transformer": {"recipe": "study/cpu/transformer"},
        "other": {"recipe": "study/cpu/transformer", "set": {"model.mlp_dim": 64}, "rate_of": "transformer"},
        "own": {"recipe": "study/cpu/transformer", "set": {"optimizer.lr": 0.123}, "rate_of": "recipe"},
    }
    record = json.loads(run_study(str(write_study(tmp_path / "mine.yaml", arms=arms)), options).read_text())
    rates = {arm["name"]: arm["rate"] for arm in record["arms"]}
    assert rates == {"transformer": 0.01, "other": 0.01, "own": 0.123}
    folder = options.folder / "cpu" / record["arms"][2]["runs"][0]["folder"]
    assert "lr: 0.123" in (folder / "config.yaml").read_text()


def test_runs_that_diverge_or_fail_stand_in_the_record(tmp_path, options, monkeypatch):
    rounds = []

    def troubled(jobs, workers, may_diverge=False, may_fail=False):
        assert may_diverge
        rounds.append(may_fail)
        for job in jobs:
            config = load_recipe(job.recipe, job.changes)
            if config.optimizer.lr > 0.005 and config.model.stream.kind == "matrix":
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / "nonfinite_step_3.safetensors").touch()
            elif config.train.seed == 1 and config.model.stream.kind == "vector":
                job.failed = True
                job.log.parent.mkdir(parents=True, exist_ok=True)
                job.log.write_text("something\nwidestream: The disk is full.\n")
            else:
                write_run(job)

    monkeypatch.setattr(run, "run_jobs", troubled)
    record = json.loads(run_study(str(write_study(tmp_path / "mine.yaml")), options).read_text())
    arms = {arm["name"]: arm for arm in record["arms"]}
    assert [one["status"] for one in arms["transformer"]["runs"]] == ["done", "failed"]
    assert arms["transformer"]["runs"][1]["why"] == "The disk is full."
    assert rounds[-1]
    assert not any(rounds[:-1]), "a failed search run may not decide a rate"
    assert arms["rmt key_dim=4"]["rate"] == 0.004
    assert [trial["status"] for trial in arms["rmt key_dim=4"]["trials"]] == ["done", "done", "diverged"]


def test_a_study_whose_runs_all_failed_is_no_success(tmp_path, options, monkeypatch):
    def fail(jobs, workers, may_diverge=False, may_fail=False):
        for job in jobs:
            job.failed = True

    monkeypatch.setattr(run, "run_jobs", fail)
    with pytest.raises(
        UserError, match=r"Every run of the study mine failed \(.*mine\.study\.json says so\)\. The run"
    ):
        run_study(str(write_study(tmp_path / "mine.yaml", search=None)), options)
    record = json.loads((options.folder / "cpu" / "mine.study.json").read_text())
    assert {one["status"] for arm in record["arms"] for one in arm["runs"]} == {"failed"}


def test_loss_of_the_fake_runs_says_what_the_tests_rely_on():
    plain, wide = (load_recipe(f"study/cpu/{name}", ["optimizer.lr=0.01"]) for name in ("transformer", "rmt"))
    assert loss_of(wide, 0) < loss_of(plain, 0)


def test_runs_on_other_data_have_other_folders(tmp_path):
    study = load_study(str(write_study(tmp_path / "mine.yaml")))
    folders = {
        arm_job(study, study.arms[0], Place(tmp_path, write_data(tmp_path / f"data{seed}", seed=seed)), 0, 0.01).folder
        for seed in (0, 1)
    }
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ["transformer"]}, "must be a mapping"),
        ({"analysis": {"kind": "ladders"}}, "did you mean ladder"),
        ({"analysis": {"kind": "sweep"}}, "lacks `lines`"),
        ({"analysis": {"kind": "lead", "pairs": [["transformer", "rmt key_dim=4"]]}}, "two pairs"),
        ({"analysis": {"contrasts": [{"of": "transformer"}]}}, r"lacks analysis.contrasts\[0\].against"),
        ({"analysis": {"contrast": []}}, "did you mean contrasts"),
        ({"analysis": {"kind": "sweep", "lines": [{"title": "Loss", "x": "parameters"}]}}, "lacks .*groups"),
        ({"evaluations": 0}, "whole number, at least one"),
        ({"evaluations": "many"}, "evaluations must be int"),
        ({"corpus": {"source": "bundled:prose"}}, "lacks corpus.vocab_size"),
        ({"corpus": {"source": "a.txt", "vocab_size": 300, "folders": "x"}}, "did you mean folder"),
        (
            {
                "arms": {
                    "a": {"recipe": "study/cpu/rmt", "rate_of": "b"},
                    "b": {"recipe": "study/cpu/rmt", "rate_of": "recipe"},
                },
                "reference": "a",
            },
            "no search of its own",
        ),
        ({"arms": {"a": {"recipe": "study/cpu/rmt", "tokens_per_parameter": "many"}}}, "must be int or float"),
        ({"arms": {"a": {"recipe": "study/cpu/rmt", "tokens_per_parameter": 0}}}, "positive number"),
    ],
)
def test_what_would_go_wrong_after_hours_is_said_at_once(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load_study(str(write_study(tmp_path / "mine.yaml", **changes)))
