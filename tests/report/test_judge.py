"""The judge of what may be compared looks at every run, and names the odd one."""

import json

import pytest

from fake_runs import write_run
from widestream.report import compare
from widestream.report.comparable import judge
from widestream.report.comparison_tables import results, run_table
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
        ({"machine": {"cpu": "A Good CPU", "threads": 1}}, "Machines or threads differ", "A Good CPU (1 thread)"),
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
    assert (
        "Steps were skipped that moved nothing, and count as tokens and FLOPs: rmt 195 of 200 steps." in found.cautions
    )
    row = next(row for row in run_table(found).rows if row[1] == "rmt")
    assert row[run_table(found).columns.index("skipped")] == "195"
    table = results(found)
    assert [row[table.columns.index("tokens")] for row in table.rows] == ["819k", "819k, 195 of 200 steps skipped"]


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


def start(folder="runs/big/checkpoints/step_00005000", step=5000, sha256="aa"):
    """What run.json says of a run that starts from trained weights."""
    return {"init_from": {"folder": folder, "step": step, "sha256": sha256, "settings": []}}


def test_trained_weights_to_start_from_are_told(tmp_path):
    """Its tokens are not all that it has seen; nor were those of weights that were made, which have no steps."""
    write_run(tmp_path / "a", "transformer", steps=100)
    write_run(tmp_path / "b", "rmt", steps=100, config={"train.init_from": "runs/big"}, info=start())
    made = start("runs/wide/checkpoints/step_00000000", 0, "bb")
    write_run(tmp_path / "c", "rmt", steps=100, config={"train.init_from": "runs/wide"}, info=made)
    found = compare([tmp_path])
    told = next(line for line in found.cautions if line.startswith("Trained weights are where some runs start"))
    assert told.endswith("rmt (from big at step 5,000) from big at step 5,000, rmt (from wide) from wide.")
    assert found.comparable


def test_runs_from_other_weights_are_another_model_wherever_the_weights_lie(tmp_path):
    write_run(tmp_path / "a", "rmt", steps=100, config={"train.init_from": "big"}, info=start())
    write_run(tmp_path / "b", "rmt", steps=100, seed=1, config={"train.init_from": "moved"}, info=start("x/y/z"))
    write_run(tmp_path / "c", "rmt", steps=100, seed=2, config={"train.init_from": "big"}, info=start(sha256="bb"))
    found = compare([tmp_path])
    assert [[run.path.name for run in group.runs] for group in found.groups] == [["a", "b"], ["c"]]
    assert [group.label for group in found.groups] == ["rmt (from aa)", "rmt (from bb)"]


@pytest.mark.parametrize("origin", [[], "big", {"folder": None}, {"folder": "big", "step": "5"}, {"sha256": 3}])
def test_damaged_words_on_where_a_run_started_cost_that_run_alone(tmp_path, origin):
    write_run(tmp_path / "a", "transformer", steps=100)
    write_run(tmp_path / "b", "rmt", steps=100, info={"init_from": origin or [1]})
    found = compare([tmp_path])
    assert [group.label for group in found.groups] == ["transformer"]
    assert "run.json is damaged" in found.notes[0]


def test_what_is_not_comparable_claims_nothing_in_json_either(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", "transformer", seed=seed, steps=100)
        write_run(tmp_path / f"b{seed}", "rmt", seed=seed, steps=100, data={"fingerprint": "other"})
    [pair] = compare([tmp_path]).to_dict()["pairs"]
    assert (pair["claimed"], set(pair["corrected_p"].values())) == (False, {None})


def test_a_lost_seed_is_not_one_that_was_not_run(tmp_path):
    for name, model in {"a": "transformer", "b": "rmt"}.items():
        for seed in (0, 1):
            write_run(tmp_path / f"{name}{seed}", model, seed=seed, steps=100, finished=(name, seed) != ("b", 1))
    (tmp_path / "b1" / "nonfinite_step_60.safetensors").write_bytes(b"")
    found = compare([tmp_path])
    assert found.verdict[0].headline.startswith("rmt: 1 of 2 seeds diverged")
    assert not any("Some seeds were run for one model only" in line for line in found.cautions)


@pytest.mark.parametrize("figure", ["flops", "wall_s"])
def test_a_run_whose_spending_falls_is_named_and_left_out(tmp_path, figure):
    """A share of a run's time or FLOPs would be any number."""
    write_run(tmp_path / "a", "transformer", steps=100)
    write_run(tmp_path / "b", "rmt", steps=100)
    file = tmp_path / "b" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        spent = row["clock"] if figure == "wall_s" else row
        spent[figure] = 1e9 - row["step"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare([tmp_path])
    assert [group.label for group in found.groups] == ["transformer"]
    assert f"its {figure} fall from one evaluation to a later one" in found.notes[0]


def test_many_models_are_told_of_in_a_line(tmp_path):
    """How far into training, of eight models that do not compare."""
    for number in range(8):
        data, lr = {"fingerprint": str(number % 2)}, {"optimizer.lr": 0.001 * (number + 1)}
        write_run(tmp_path / str(number), "rmt", steps=100, config=lr, data=data)
    found = compare([tmp_path])
    assert not found.comparable
    assert "; 0.193 tokens per non-embedding parameter for each model, where" in found.verdict[0].details[-1]
