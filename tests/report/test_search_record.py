import json

import pytest

from fake_runs import write_search
from widestream.errors import UserError
from widestream.report.figures.comparison_charts import search_chart
from widestream.report.search_record import load_search


def record(path, *rows):
    fields = ("model", "lr", "seed", "steps", "heldout_loss", "diverged")
    path.write_text(json.dumps({"rows": [dict(zip(fields, row, strict=True)) for row in rows]}))
    return load_search(path)


def test_the_best_rate_is_the_lowest_mean_loss_of_rates_at_which_nothing_diverged(tmp_path):
    found = record(
        tmp_path / "s.json",
        ("a", 0.1, 0, 10, 1.0, False), ("a", 0.1, 1, 10, None, True),
        ("a", 0.01, 0, 10, 3.0, False), ("a", 0.01, 1, 10, 3.2, False),
        ("a", 0.001, 0, 10, 4.0, False), ("a", 0.001, 1, 10, 4.0, False),
    )  # fmt: skip
    assert [(trial.lr, trial.mean, trial.chosen) for trial in found.models["a"]] == [
        (0.001, 4.0, False),
        (0.01, pytest.approx(3.1), True),
        (0.1, None, False),
    ]


def test_the_record_of_a_study_is_one_of_its_search_too(tmp_path):
    trials = [
        {"lr": 0.1, "loss": 3.0, "steps": 10, "status": "done"},
        {"lr": 0.2, "loss": None, "steps": 10, "status": "failed"},
        {"lr": 0.4, "loss": None, "steps": 10, "status": "diverged"},
    ]
    (tmp_path / "s.json").write_text(json.dumps({"arms": [{"name": "a", "trials": trials}, {"name": "b"}]}))
    found = load_search(tmp_path / "s.json")
    assert [(trial.lr, trial.mean, trial.chosen) for trial in found.models["a"]] == [
        (0.1, 3.0, True),
        (0.4, None, False),
    ]
    assert set(found.models) == {"a"}


def test_equal_grids_are_said_to_be_equal(tmp_path):
    sentence = load_search(write_search(tmp_path / "s.json")).sentence
    assert (
        sentence
        == "transformer and rmt had the same grid: peak rates 0.001, 0.003, 0.01 and 0.03, 1 seed each, 400 steps."
    )


def test_unequal_grids_are_said_to_differ(tmp_path):
    found = record(tmp_path / "s.json", ("a", 0.1, 0, 10, 1.0, False), ("b", 0.1, 0, 20, 1.0, False))
    assert found.sentence.startswith("The grids differ: a had ")


def test_remarks_on_the_rates_used_and_on_the_edge_of_the_grid(tmp_path):
    found = record(
        tmp_path / "s.json", ("a", 0.1, 0, 9, 1.0, False), ("a", 0.2, 0, 9, 2.0, False), ("b", 1, 0, 9, 1.0, False)
    )
    assert found.remarks({"a": 0.1, "b": 1, "c": 7}) == [
        "The runs compared here use the best rate of each.",
        "The best rate of a is the lowest tried: a better one may lie beyond.",
    ]
    assert found.remarks({"a": 0.2})[0] == "a was then trained at 0.2, not at its best rate, 0.1."


def test_no_chart_of_single_rates(tmp_path):
    found = record(tmp_path / "s.json", ("a", 0.1, 0, 10, 1.0, False), ("a", 0.2, 0, 10, None, True))
    assert search_chart(found, {"a": 0}) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no rows"),
        ('{"a": 1}', "holds no rows"),
        ('[{"model": "a"}]', "Row 1 .* lr"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, content, words):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=words):
        load_search(tmp_path / "s.json")


def test_a_missing_record(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_search(tmp_path / "s.json")


ROW = {"model": "a", "lr": 0.1, "seed": 0, "steps": 10, "heldout_loss": 3.0, "diverged": False}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": "0.1"}, "lr '0.1'"),
        ({"lr": None}, "lr None"),
        ({"lr": 0}, "lr 0"),
        ({"steps": [1]}, r"steps \[1\]"),
        ({"heldout_loss": "x"}, "heldout_loss 'x'"),
        ({"model": None}, "model None"),
        ({"diverged": "no"}, "diverged 'no'"),
    ],
)
def test_a_row_that_holds_something_else_is_named(tmp_path, changes, words):
    (tmp_path / "s.json").write_text(json.dumps([ROW, ROW | changes]))
    with pytest.raises(UserError, match=f"Row 2 of the search record .* has {words}, which it cannot be"):
        load_search(tmp_path / "s.json")


@pytest.mark.parametrize("arms", [None, "x", [None], [{"name": "a", "trials": None}], [{"name": "a", "trials": [3]}]])
def test_a_damaged_record_of_a_study_is_no_traceback(tmp_path, arms):
    (tmp_path / "s.json").write_text(json.dumps({"arms": arms}))
    with pytest.raises(UserError, match=r"is no record of a study, or is damaged|holds no rows"):
        load_search(tmp_path / "s.json")
