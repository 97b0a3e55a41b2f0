"""Runs that diverged, are unfinished, damaged or not evaluated: named everywhere, averaged nowhere."""

import io
import json

import pytest

from fake_runs import loss_at, write_run
from widestream.errors import UserError
from widestream.report import compare, print_table
from widestream.report.comparison_tables import results, run_table


def diverge(folder, step, evaluated=True):
    """Make of an unfinished run one that stopped at a loss that is not finite."""
    (folder / f"nonfinite_step_{step}.safetensors").write_bytes(b"")
    if not evaluated:
        (folder / "metrics.jsonl").write_text("")
    return folder


def three_seeds(root, model, lost=(), evaluated=True, steps=200, lead=0.0, **changes):
    for seed in range(3):
        folder = write_run(
            root / f"{model}-{seed}",
            model,
            seed=seed,
            steps=steps,
            finished=seed not in lost,
            loss=lambda step, seed=seed: loss_at("transformer", step, seed) + lead,
            **changes,
        )
        if seed in lost:
            diverge(folder, steps // 2 + 7, evaluated)


def told(comparison):
    out = io.StringIO()
    print_table(comparison, file=out)
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("evaluated", [True, False])
def test_one_seed_of_three_diverged_is_a_result(tmp_path, evaluated):
    three_seeds(tmp_path, "transformer")
    three_seeds(tmp_path, "rmt", lost=(2,), lead=-0.5, evaluated=evaluated)
    found = compare([tmp_path])
    rmt = found.groups[1]
    headline = found.verdict[0].headline
    assert headline.startswith("rmt: 1 of 3 seeds diverged (seed 2 at step 107). No difference at equal tokens between")
    assert f"rmt {sum(rmt.finals) / 2:.3f} (2 of 3 seeds)" in headline
    assert "lower" not in str(found.verdict[0])
    assert rmt.seeds == "2 of 3 seeds"
    assert {end.tokens for end in rmt.ends} == {200 * 4096}, "nothing is averaged over different tokens"
    assert (found.pairs, found.unranked[0].claimed) == ((), False)
    row = next(row for row in run_table(found).rows if row[0].endswith("rmt-2"))
    assert "diverged at 107" in row
    assert next(row for row in results(found).rows if row[0] == "rmt")[1] == "2 of 3 seeds"
    assert "1 of 3 seeds diverged" in told(found)
    model = found.to_dict()["models"][1]
    assert [run["diverged_at"] for run in model["not_counted"]] == [107]
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_a_model_whose_seeds_all_diverged_stands_in_every_table(tmp_path):
    three_seeds(tmp_path, "transformer")
    three_seeds(tmp_path, "rmt", lost=(0, 1, 2))
    found = compare([tmp_path])
    assert [one.label for one in found.apart] == ["rmt"]
    assert found.verdict[-1].headline.startswith("rmt: all 3 seeds diverged (seed 0 at step 107, seed 1 at step 107")
    assert ("rmt", "0 of 3", "diverged") in [row[:3] for row in results(found).rows]
    assert sum("diverged at 107" in row for row in run_table(found).rows) == 3
    assert found.to_dict()["apart"][0]["diverged"]


def test_an_unfinished_seed_is_not_averaged_at_other_tokens(tmp_path):
    three_seeds(tmp_path, "transformer")
    for seed in (0, 1, 2):
        write_run(tmp_path / f"rmt-{seed}", "rmt", seed=seed, steps=200, finished=seed != 2)
    found = compare([tmp_path])
    rmt = found.groups[1]
    assert (rmt.seeds, len(rmt.finals)) == ("2 of 3 seeds", 2)
    assert found.pairs[0].tokens == 200 * 4096
    assert found.pairs[0].claimed, "that a run was stopped from outside says nothing of its loss"


def test_unfinished_seeds_alone_are_read_where_all_have_been(tmp_path):
    for seed, rows in enumerate((100, 140, 30)):
        run = write_run(tmp_path / f"rmt-{seed}", "rmt", seed=seed, steps=200, every=10)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(line for line in lines if json.loads(line)["step"] <= rows) + "\n")
        (run / "done.json").unlink()
    group = compare([tmp_path]).groups[0]
    assert {end.tokens for end in group.ends} == {100 * 4096}
    assert [run.seeds[0] for run in group.behind] == [2], "one that has hardly begun does not hold the others back"


def test_what_cannot_be_read_is_named_and_the_rest_compared(tmp_path):
    three_seeds(tmp_path, "transformer")
    (write_run(tmp_path / "broken", "rmt", steps=50) / "run.json").write_text("null")
    write_run(tmp_path / "begun", "rmt", steps=50, seed=1, finished=False)
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    found = compare([tmp_path])
    assert [group.label for group in found.groups] == ["transformer"]
    assert any("broken is left out" in note for note in found.notes)
    assert any("begun: unfinished" in note for note in found.notes)
    assert found.verdict[-1].headline == "rmt: seed 1 has no evaluation after its first step."


def test_nothing_left_is_refused_with_all_reasons(tmp_path):
    diverge(write_run(tmp_path / "a", "rmt", steps=50, finished=False), 3, evaluated=False)
    (write_run(tmp_path / "b", "rmt", steps=50) / "run.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"nothing to compare.*1 seed diverged \(seed 0 at step 3\).*run\.json is damaged"
    ):
        compare([tmp_path])


def test_a_loss_beyond_all_bounds_has_a_perplexity_of_inf(tmp_path):
    three_seeds(tmp_path, "transformer")
    write_run(tmp_path / "rmt", "rmt", steps=200, loss=lambda step: 709.0 + step)
    write_run(tmp_path / "zero", "rmt", steps=200, loss=lambda step: 0.0, config={"optimizer.lr": 0.5})
    found = compare([tmp_path])
    assert "inf" in next(row for row in results(found).rows if "0.01" in row[0])
    assert "rmt (lr 0.5)" in told(found)
