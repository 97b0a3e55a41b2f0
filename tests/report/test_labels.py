"""Names of models: short, and never two alike."""

import itertools

import pytest

from fake_runs import write_run
from widestream.report import compare
from widestream.report.stats.groups import group_runs
from widestream.runs.read import load_run


def labels_of(root, runs):
    """Labels of runs given by (config changes, data changes), in order."""
    folders = [
        write_run(root / f"run{number}", "rmt", steps=25, config=config, data=data)
        for number, (config, data) in enumerate(runs)
    ]
    return [label for label, _ in group_runs([load_run(path) for path in folders])]


def test_a_grid_of_rates_and_data_under_one_name(tmp_path):
    grid = itertools.product((0.01, 0.02), ("A", "B"))
    runs = [({"name": "tiny", "optimizer.lr": lr, "data.path": f"data/{d}"}, {"fingerprint": d * 9}) for lr, d in grid]
    assert labels_of(tmp_path, runs) == [
        "tiny (lr 0.01, data A)", "tiny (lr 0.01, data B)", "tiny (lr 0.02, data A)", "tiny (lr 0.02, data B)",
    ]  # fmt: skip


def test_in_a_grid_across_corpora_the_mismatch_is_named_and_no_verdict_given(tmp_path):
    for lr, d in itertools.product((0.01, 0.02), ("A", "B")):
        config = {"name": "tiny", "optimizer.lr": lr, "data.path": f"data/{d}"}
        data = {"fingerprint": d * 9, "heldout_fingerprint": f"held{d}"}
        write_run(tmp_path / f"{d}-{lr}", "rmt", steps=25, config=config, data=data)
    found = compare([tmp_path])
    assert [mismatch.field for mismatch in found.mismatches] == ["data", "held-out data"]
    assert len({group.label for group in found.groups}) == 4
    assert found.mismatches[0].values["tiny (lr 0.02, data B)"] == "B BBBBBBBBB"
    assert [verdict.headline for verdict in found.verdict] == [
        "Not comparable, so no verdict about loss is given: the models differ in data and held-out data."
    ]


def test_as_few_settings_as_tell_models_apart(tmp_path):
    runs = [
        ({"optimizer.lr": lr, "train.batch_size": 16 * step, "model.num_heads": step}, {})
        for step, lr in enumerate((0.1, 0.2, 0.3), start=1)
    ]
    assert labels_of(tmp_path, runs) == ["rmt (lr 0.1)", "rmt (lr 0.2)", "rmt (lr 0.3)"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("zoo/rmt", "demo/rmt", "zoo/wide"), ["zoo/rmt", "demo/rmt", "wide"]),
        (("rmt", "rmt-wide", "rmt-wide-deep"), ["rmt", "rmt-wide", "rmt-wide-deep"]),
        (("rmt", "a/rmt", "b/a/rmt"), ["rmt", "a/rmt", "b/a/rmt"]),
        (("", "  ", "/"), ["run0", "run1", "run2"]),
        (("two\nlines", "tail/", "//x"), ["two lines", "tail", "x"]),
        (("m", "m", "m (lr 2)"), ["m (lr 1)", "m (lr 2)", "m (lr 2) #2"]),
    ],
)
def test_names_that_are_empty_or_alike_or_contain_each_other(tmp_path, names, labels):
    rates = enumerate(names, start=1)
    assert labels_of(tmp_path, [({"name": name, "optimizer.lr": lr}, {}) for lr, name in rates]) == labels


def test_seeds_of_two_digits_leave_no_digit_in_the_name(tmp_path):
    runs = [({"name": f"demo/rmt-seed{s}", "train.seed": s, "data.seed": s}, {"seed": s}) for s in (1, 10, 11)]
    assert labels_of(tmp_path, runs) == ["rmt"]


def test_a_run_of_an_older_version_is_one_more_seed(tmp_path):
    """What was not written down then has its default now."""
    old = ({"train.seed": 1, "data.seed": 1}, {"seed": 1})
    new = ({"train.final_eval": "whole", "optimizer.beta1": 0.9, "model.value_residual": "none"}, {})
    assert labels_of(tmp_path, [old, new]) == ["rmt"]
