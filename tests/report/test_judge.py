"""The judge of what may be compared looks at every run, and names the odd one."""

import json

import pytest

from fake_runs import write_run
from widestream.report import compare
from widestream.report.comparable import judge
from widestream.report.comparison_tables import run_table
from widestream.report.stats.groups import Group, measure
from widestream.runs.read import load_run


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"batch_size": 32}, "Batch size differs, so no step has the same batch and differences are unpaired"),
        ({"seed": 5}, "No batches in common, so differences are unpaired: transformer seed 0, rmt seed 0/5"),
    ],
)
def test_other_batches_of_the_same_text_take_away_the_pairing_and_no_more(tmp_path, data, words):
    """The loss on the same held-out text after the same tokens is one quantity, whatever the batches were."""
    write_run(tmp_path / "a", "transformer", steps=200)
    write_run(tmp_path / "b", "rmt", steps=200, data=data)
    found = compare([tmp_path])
    assert found.comparable
    assert words in " ".join(found.cautions)
    assert (found.pairs[0].difference.method, found.pairs[0].by_seed) == ("welch", {})


def three_seeds_each(root, odd, **changes):
    """Two models, three seeds each, of which the run `odd` is another."""
    for name, model in {"a": "transformer", "b": "rmt"}.items():
        for seed in range(3):
            folder = f"{name}{seed}"
            write_run(root / folder, model, seed=seed, steps=100, **(changes if folder == odd else {}))
    return compare([root])


@pytest.mark.parametrize(
    ("info", "words", "shown"),
    [
        ({"torch": "2.14.0"}, "The version of PyTorch differs", "2.14.0"),
        ({"widestream": "0.2.0"}, "The version of widestream differs", "0.2.0"),
        ({"code": "0123456789ab"}, "The version of widestream differs", "0.1.0 0123456789ab"),
        ({"machine": {"cpu": "Other CPU", "threads": 2}}, "Machines or threads differ", "Other CPU (2 threads)"),
        ({"machine": {"cpu": "A Good CPU", "threads": 1}}, "Machines or threads differ", "A Good CPU (1 threads)"),
    ],
)
@pytest.mark.parametrize("odd", ["a2", "b1"])
def test_every_run_is_looked_at_and_the_odd_one_named(tmp_path, odd, info, words, shown):
    found = three_seeds_each(tmp_path, odd, info=info)
    assert len(found.groups) == 2
    told = next(line for line in found.cautions if line.startswith(words))
    assert f"{tmp_path / odd} {shown}" in told


@pytest.mark.parametrize(
    ("changes", "field", "label"),
    [
        ({"data": {"heldout_fingerprint": "other"}}, "held-out data", "rmt (held-out other)"),
        ({"data": {"fingerprint": "another"}}, "data", "rmt (data anothe)"),
        ({"config": {"data.path": "data/news"}, "data": {"fingerprint": "another"}}, "data", "rmt (data news)"),
    ],
)
def test_a_seed_on_other_data_is_a_model_of_its_own_and_ends_the_verdict(tmp_path, changes, field, label):
    found = three_seeds_each(tmp_path, "b1", **changes)
    assert label in [group.label for group in found.groups]
    assert field in [mismatch.field for mismatch in found.mismatches]
    assert "no verdict" in found.verdict[0].headline


def test_a_seed_in_another_precision_is_a_model_of_its_own(tmp_path):
    found = three_seeds_each(tmp_path, "b1", info={"precision": "float32"})
    assert [(group.label, len(group.runs)) for group in found.groups] == [
        ("transformer", 3), ("rmt (precision bf16)", 2), ("rmt (precision float32)", 1),
    ]  # fmt: skip
    assert any(line.startswith("Precision differs") for line in found.cautions)


def test_runs_that_a_study_takes_for_one_arm_are_judged_too(tmp_path):
    """An arm's seeds are averaged because the study says so; where they disagree, their folders are named."""
    for seed, data in enumerate(({}, {}, {"heldout_fingerprint": "fedcba9876543210"})):
        write_run(tmp_path / f"wide-{seed}", "rmt", seed=seed, steps=100, data=data)
    arm = measure("wide", [load_run(path) for path in sorted(tmp_path.iterdir())], "loss")
    assert isinstance(arm, Group)
    (mismatch,) = judge([arm]).mismatches
    assert mismatch.field == "held-out data"
    assert mismatch.values[str(tmp_path / "wide-2")] == "prose fedcba987654"
    assert mismatch.values[str(tmp_path / "wide-0")] == "prose none"


def test_a_run_that_went_on_elsewhere_is_named(tmp_path):
    later = {"step": 40, "torch": "2.14.0", "machine": {"cpu": "Other CPU", "threads": 8}}
    told = " ".join(three_seeds_each(tmp_path, "b1", info={"resumed": [later]}).cautions)
    assert f"{tmp_path / 'b1'} A Good CPU (2 threads), then Other CPU (8 threads)" in told
    assert f"{tmp_path / 'b1'} 2.13.0, then 2.14.0" in told
    assert "The wall time of a run that went on elsewhere is made of both" in told


def test_skipped_steps_are_told(tmp_path):
    write_run(tmp_path / "a", "transformer", steps=200)
    rows = (write_run(tmp_path / "b", "rmt", steps=200) / "metrics.jsonl").read_text()
    skip = {"kind": "event", "event": "nonfinite_skipped", "step": 200, "skipped": 195}
    (tmp_path / "b" / "metrics.jsonl").write_text(rows + json.dumps(skip) + "\n")
    found = compare([tmp_path])
    assert "Steps were skipped that moved nothing, and count as tokens and FLOPs: rmt 195 of 200." in found.cautions
    row = next(row for row in run_table(found).rows if row[1] == "rmt")
    assert row[run_table(found).columns.index("skipped")] == "195"


def test_last_evaluations_of_other_sizes_are_not_subtracted_from_each_other(tmp_path):
    """One read its windows at the end, the other the whole split too: the curves are of the same windows."""
    for name, model, last in (("a", "transformer", (900, 8000)), ("b", "rmt", (900,))):
        rows = [
            {
                "kind": "eval", "step": step, "tokens": step * 4096, "flops": step * 1e9, "loss": 9.0 - size / 1000,
                "bits_per_byte": 1.0, "target_tokens": size, "whole": size == 8000, "clock": {"wall_s": float(step)},
            }
            for step, sizes in ((25, (900,)), (50, last))
            for size in sizes
        ]  # fmt: skip
        write_run(tmp_path / name, model, rows=rows)
    found = compare([tmp_path])
    assert found.pairs[0].difference.mean == pytest.approx(0.0)
    assert any("The last evaluations are made on different numbers" in line for line in found.cautions)


def test_many_values_are_told_by_what_they_have_in_common(tmp_path):
    for number in range(9):
        data = {"fingerprint": "other"} if number % 2 else {}
        config = {"name": f"m{number}", "optimizer.lr": number}
        write_run(tmp_path / f"m{number}", "rmt", steps=50, data=data, config=config)
    (mismatch,) = compare([tmp_path]).mismatches
    assert mismatch.sentence == (
        "data differs: prose ab12cd34ef56 of m0, m2, m4 and 2 more; prose other of m1, m3, m5 and m7."
    )
