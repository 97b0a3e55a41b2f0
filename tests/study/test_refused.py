"""What a study is refused for before anything is trained, and what of its arms' own settings is honoured."""

import json
from dataclasses import replace

import pytest

from study_runs import finish, write_study
from tiny_runs import write_data
from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.study import run
from widestream.study.check import PlannedArm, check_plan
from widestream.study.load import load_study, study_names
from widestream.study.page.results import load_result
from widestream.study.plan import Place, arm_config
from widestream.study.run import StudyOptions, run_study
from widestream.study.spec import SCALES

PLAIN = {"recipe": "study/cpu/transformer"}
TWO = {"a": PLAIN, "b": PLAIN | {"set": {"model.num_layers": 2}}}
PRINTED = {"tokens": 0.4, "flops": 0.5, "parameters": 0.2, "wall_s": 0.0, "loss": [3.0, 2.9]}


@pytest.fixture
def carried_out(tmp_path, monkeypatch):
    """Carries out a study without training; gives its record."""
    jobs = []

    def train(more, *arguments, **options):
        jobs.extend(more)
        finish(more, *arguments, **options)

    monkeypatch.setattr(run, "run_jobs", train)

    def carry_out(changes, **options):
        path = write_study(tmp_path / "mine.yaml", **{"reference": next(iter(changes["arms"])), "seeds": 1} | changes)
        options = StudyOptions(folder=tmp_path / "runs", workers=1, **options)
        return json.loads(run_study(str(path), options).read_text())

    carry_out.jobs = jobs
    return carry_out


def sized(*layers, group="g"):
    return {f"{group}{n}": PLAIN | {"group": group, "set": {"model.num_layers": n}} for n in layers}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"set": {"train.seed": 3}}, "`set` sets train.seed; the runs have the seeds 0, 1"),
        (
            {"arms": {"a": PLAIN | {"grid": {"train.seed": [0, 1]}}}, "reference": "a seed=0"},
            r"Arm a seed=0 sets train\.seed",
        ),
        ({"arms": {"a": PLAIN | {"set": {"data": {"seed": 3}}}}}, "Arm a sets data.seed"),
        ({"set": {"optimizer.lr": 0.1}}, "`set` gives every arm optimizer.lr, and `search` looks for it"),
        ({"search": {"rates": [0.1, 0.2], "set": {"optimizer.lr": 0.1}}}, "search.set sets optimizer.lr"),
        ({"search": {"rates": [0.1, 0.2], "set": {"train.steps": 4}}}, "search.steps or search.share"),
        ({"search": {"rates": [0.1, 0.2], "set": {"train.selection": 0.1}}}, "say search.selection"),
        ({"search": {"rates": [0.1, 0.2], "set": {"data.seed": 1}}}, "search.set sets data.seed"),
        ({"search": {"rates": [0.1, 0.2], "selection": 1.0}}, "at least 0 and below 1"),
        ({"search": {"rates": [0.1, 0.2], "steps": 5, "share": 0.5}}, "two lengths of its runs"),
        ({"search": {"rates": [0.1, 0.2], "steps": 5}, "arms": {"a": PLAIN | {"share": 0.5}}}, "leave one out"),
        ({"arms": {1: PLAIN, 2: PLAIN}}, "The arm 1 must have a name of letters; put it into quotes: '1'"),
        ({"arms": {"a": PLAIN | {"share": 3.0}}}, "share` of arm a is 3.0; it must be above 0, at most 1"),
        ({"arms": {"a": PLAIN, "b": PLAIN | {"set": {"optimizer.lr": 0.1}, "rate_of": "a"}}}, "takes its rate of a"),
        ({"arms": {"a": PLAIN | {"set": {"train.tokens": 9999}, "tokens_per_parameter": 2}}}, "leave one of the two"),
        (
            {"corpus": {"source": "a.txt", "vocab_size": 300}, "set": {"data.path": "elsewhere"}},
            "the study prepares its own data",
        ),
        (
            {"arms": {"a": PLAIN | {"set": {"model.num_layers": 1}, "grid": {"model.num_layers": [1, 2]}}}},
            "and in `grid`",
        ),
    ],
)
def test_what_a_study_would_overwrite_in_silence_is_refused(tmp_path, changes, words):
    first = next(iter(changes.get("arms", {"transformer": None})))
    path = write_study(tmp_path / "mine.yaml", **{"reference": first} | changes)
    with pytest.raises(UserError, match=words):
        load_study(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {"a": PLAIN, "b": PLAIN}}, "arms a and b of the study mine are the same run"),
        ({"arms": {"a": PLAIN, "b": PLAIN | {"set": {"name": "other"}}}}, "are the same run"),
        ({"arms": {"a": PLAIN, "b": PLAIN | {"rate_of": "a"}}}, "are the same run"),
        ({"runs": "plain", "arms": {"a": PLAIN, "b": PLAIN}}, "are the same run"),
        ({"search": None, "arms": {"a": PLAIN, "b": PLAIN | {"rate_of": "a"}}}, "are the same run"),
        ({"arms": TWO, "set": {"data.heldout_split": "none"}}, "a study judges by the held-out loss"),
        ({"arms": TWO, "set": {"train.tokens": 9999, "train.steps": 3}}, "Arm a of the study mine: .*both given"),
        ({"arms": TWO, "set": {"train.steps": 3, "train.micro_batch_size": 5}}, "does not divide"),
        (
            {"arms": TWO, "analysis": {"kind": "sweep", "lines": [{"title": "T", "x": "num_layrs", "groups": ["a"]}]}},
            "Unknown size 'num_layrs' of arm a; did you mean num_layers",
        ),
        (
            {"arms": TWO, "analysis": {"kind": "sweep", "lines": [{"title": "T", "x": "tokens", "groups": ["c"]}]}},
            "names the group c; there are a, b",
        ),
        (
            {"arms": TWO, "analysis": {"kind": "sweep", "lines": [{"title": "T", "x": "tokens", "groups": ["a"]}]}},
            "'T' of a needs two points: it has one arm, a",
        ),
        (
            {
                "arms": sized(1, 2),
                "analysis": {"kind": "sweep", "lines": [{"title": "T", "x": "stream_size", "groups": ["g"]}]},
            },
            "g1, g2 have the same stream_size, 64",
        ),
        (
            {
                "arms": sized(1, 2),
                "analysis": {
                    "kind": "sweep",
                    "lines": [{"title": "T", "x": "num_layers", "groups": ["g"], "shared": {"g": "h"}}],
                },
            },
            "shares the arm h; there are g1, g2",
        ),
        ({"arms": TWO, "analysis": {"parameters_of": "num_layrs"}}, "Unknown size 'num_layrs'"),
        ({"arms": TWO, "analysis": {"kind": "lead", "pairs": [["a", "b"], ["a", "b"]]}}, "are the same arms"),
        ({"arms": sized(1, 2), "analysis": {"kind": "ladder", "reference": "h"}}, "reference h is no group"),
        ({"arms": sized(1, 2), "analysis": {"kind": "ladder", "reference": "g"}}, "needs another one"),
        (
            {"arms": sized(1, 2) | sized(3, group="h"), "analysis": {"kind": "ladder", "reference": "g"}},
            "fitted to h: it has one arm, h3",
        ),
        (
            {
                "arms": sized(1, 2) | {f"h{n}": PLAIN | {"group": "h", "set": {"train.z_loss": n}} for n in (1, 2)},
                "analysis": {"kind": "ladder", "reference": "g"},
            },
            "fitted to h: h1, h2 have the same non_embedding",
        ),
        ({"arms": {"a": PLAIN}, "analysis": {"kind": "race", "printed": PRINTED}}, "and there are 1 arms"),
        ({"arms": TWO, "analysis": {"kind": "race", "printed": PRINTED | {"flops": "many"}}}, "a number for flops"),
        ({"arms": TWO, "analysis": {"kind": "race", "printed": PRINTED | {"loss": [3.0]}}}, "two numbers"),
        ({"arms": TWO, "analysis": {"contrasts": [{"of": "a", "against": "a"}]}}, "a is compared with itself"),
        ({"arms": TWO, "analysis": {"kind": "lead", "pairs": [["a", "b"], ["b", "b"]]}}, "b is compared with itself"),
        ({"arms": TWO, "analysis": {"parameters": ["a"]}}, "several sizes: it has one arm, a"),
        (
            {"arms": TWO, "analysis": {"parameters": ["a", "b"], "parameters_of": "parametres"}},
            "did you mean parameters",
        ),
    ],
)
def test_what_would_come_to_nothing_is_refused_before_any_run(carried_out, changes, words):
    with pytest.raises(UserError, match=words):
        carried_out({"set": {"train.steps": 16}} | changes)
    assert carried_out.jobs == []


def test_every_shipped_study_passes_the_checks(tmp_path):
    for name in study_names():
        at_cpu_only = ("demo", "zoo", "data_lane", "modern", "maps_length", "maps_shape", "modern_long")
        scales = ["cpu"] if name in at_cpu_only else SCALES
        for scale in scales:
            study = load_study(name, scale)
            check_plan(study, Place(tmp_path, tmp_path / "data"), given_data=True)


def test_what_a_planned_arm_will_spend(tmp_path):
    study = load_study(str(write_study(tmp_path / "mine.yaml", arms=sized(1, 2), reference="g1", search=None)))
    arms = [PlannedArm(arm.name, arm_config(study, arm, Place(tmp_path))) for arm in study.arms]
    assert [arm.count("tokens") for arm in arms] == [32_768, 32_768]
    assert arms[1].count("flops") > arms[0].count("flops")


def test_sizes_of_the_plan_are_those_of_the_run(tmp_path, monkeypatch):
    from widestream.model.costs import summarize

    study = load_study("ladder")
    for arm in study.arms[::3]:
        config = arm_config(study, arm, Place(tmp_path))
        planned, costs = PlannedArm(arm.name, config), summarize(config.model).to_dict()
        assert planned.count("parameters") == costs["parameters"]["total_without_norm"]
        assert planned.count("non_embedding") == costs["parameters"]["non_embedding_without_norm"]
        assert planned.count("stream_size") == costs["stream_size"]
        assert planned.count("flops") == planned.count("tokens") * costs["flops_per_token"]["train"]


def test_an_arm_that_sets_its_rate_trains_at_it_and_is_not_searched(carried_out):
    arms = {
        "a": PLAIN,
        "own": PLAIN | {"grid": {"optimizer.lr": [0.003, 0.03]}},
        "as own": TWO["b"] | {"rate_of": "own lr=0.03"},
    }
    record = carried_out({"arms": arms})
    found = {arm["name"]: (arm["rate_from"], arm["rate"], len(arm["trials"])) for arm in record["arms"]}
    assert found == {
        "a": ("search", 0.01, 3), "own lr=0.003": ("own", 0.003, 0), "own lr=0.03": ("own", 0.03, 0),
        "as own": ("arm", 0.03, 0),
    }  # fmt: skip
    rates = [load_recipe(job.recipe, job.changes).optimizer.lr for job in carried_out.jobs[-4:]]
    assert rates == [0.01, 0.003, 0.03, 0.03]


def test_without_a_search_a_borrowed_rate_is_the_lenders(carried_out):
    arms = {"a": PLAIN | {"set": {"optimizer.lr": 0.02}}, "b": TWO["b"] | {"rate_of": "a"}}
    record = carried_out({"arms": arms, "search": None})
    assert [(arm["rate"], arm["rate_from"]) for arm in record["arms"]] == [(0.02, "own"), (0.02, "arm")]
    assert {load_recipe(job.recipe, job.changes).optimizer.lr for job in carried_out.jobs} == {0.02}


def test_how_often_to_evaluate_and_what_to_keep_may_be_set(carried_out):
    carried_out({"arms": {"a": PLAIN}, "search": None, "set": {"train.steps": 16, "train.eval_every": 5}})
    train = load_recipe(carried_out.jobs[0].recipe, carried_out.jobs[0].changes).train
    assert (train.eval_every, train.save_every, train.keep) == (5, 2, 1)


def test_given_data_does_not_take_the_place_of_arms_own(carried_out, tmp_path):
    data = write_data(tmp_path / "data")
    arms = {"a": PLAIN, "b": PLAIN | {"set": {"data.path": "other"}}}
    with pytest.raises(UserError, match=r"Arm b sets data\.path and others have other data"):
        carried_out({"arms": arms}, data=data)
    carried_out({"arms": {"a": PLAIN}, "set": {"train.steps": 16, "data.path": "other"}}, data=data)
    assert all(load_recipe(job.recipe, job.changes).data.path == str(data) for job in carried_out.jobs)


def test_arms_that_a_search_brings_to_one_run_are_named_and_not_compared(carried_out, tmp_path):
    from widestream.study.page.results import contrast

    arms = {"searched": PLAIN, "set": PLAIN | {"set": {"optimizer.lr": 0.01}}}
    carried_out({"arms": arms, "seeds": 2})
    one = contrast(load_result(tmp_path / "runs" / "cpu" / "mine.study.json"), "set", "searched")
    assert one is not None
    assert one.refused == "set and searched are the same runs"


def test_rates_are_chosen_on_text_that_results_are_not_reported_on(carried_out, tmp_path):
    arms = {"a": PLAIN}
    record = carried_out({"arms": arms})
    assert record["search"]["selection"] == 0.5
    assert {load_recipe(job.recipe, job.changes).train.selection for job in carried_out.jobs} == {0.5}
    carried_out.jobs.clear()
    record = carried_out({"arms": arms, "search": {"rates": [0.004, 0.01], "selection": 0.0}})
    assert record["search"]["selection"] == 0
    assert {load_recipe(job.recipe, job.changes).train.selection for job in carried_out.jobs} == {0.0}
    job = replace(carried_out.jobs[0], folder=tmp_path / "chosen")
    job.folder.mkdir()
    (job.folder / "done.json").write_text(
        json.dumps({"step": job.steps, "heldout": {"loss": 3.0}, "selection": {"loss": 2.0}})
    )
    assert job.choosing_loss == 2.0
