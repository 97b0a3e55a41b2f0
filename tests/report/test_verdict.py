import json
import re

import pytest

from fake_runs import loss_at, write_run
from widestream.report import compare


def paired(root, gaps, seeds=(0, 1), steps=400, **changes):
    """Transformer runs, and RMT runs whose loss is the transformer's plus a gap(step, seed)."""
    for seed in seeds:
        write_run(root / f"t{seed}", "transformer", seed=seed, steps=steps)
        loss = lambda step, seed=seed: loss_at("transformer", step, seed) + gaps(step, seed)  # noqa: E731
        write_run(root / f"r{seed}", "rmt", seed=seed, steps=steps, loss=loss, **changes)
    return compare([root])


def test_lower_with_an_interval(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1 - 0.002 * seed)
    headline = found.verdict[0].headline
    assert headline.startswith("At equal tokens rmt's held-out loss is 0.101 lower than transformer's")
    half = 12.7062 * 0.001
    interval = found.pairs[0].difference
    assert interval.low == pytest.approx(-0.101 - half, abs=1e-5)
    assert interval.high == pytest.approx(-0.101 + half, abs=1e-5)
    assert "0.088 to 0.114, 2 seed pairs" in headline


def test_higher_is_said_as_plainly(tmp_path):
    found = paired(tmp_path, lambda step, seed: 0.05)
    assert found.verdict[0].headline.startswith("At equal tokens rmt's held-out loss is 0.050 higher")
    assert "the difference shows no clear movement: +0.050 at 819k tokens, +0.050 at the end" in str(found.verdict[0])


def test_no_difference_seen_when_the_interval_holds_zero(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.05 if seed else 0.03)
    assert found.verdict[0].headline.startswith("No difference seen.")
    assert "every seed" not in found.verdict[0].headline


def test_seeds_that_agree_are_mentioned_when_the_interval_holds_zero(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.05 - 0.1 * seed)
    assert found.verdict[0].headline.startswith("No difference seen.")
    assert "every seed points the same way, by 0.050 or more" in found.verdict[0].headline


def test_equal_models_show_no_difference(tmp_path):
    assert paired(tmp_path, lambda step, seed: 0.0).verdict[0].headline.startswith("No difference seen.")


def test_one_seed_has_no_interval(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1, seeds=(0,))
    assert "one seed each, so no interval" in found.verdict[0].headline


def test_the_gap_over_the_last_half_is_told_with_figures(tmp_path):
    shrinking = paired(tmp_path / "a", lambda step, seed: (step - 600) / 1000)
    growing = paired(tmp_path / "b", lambda step, seed: -step / 1000)
    crossing = paired(tmp_path / "c", lambda step, seed: (250 - step) / 1000)
    assert "rmt's lead is shrinking: 0.400 at 819k tokens, 0.200 at the end" in str(shrinking.verdict[0])
    assert "rmt's lead is growing: 0.200 at 819k tokens, 0.400 at the end" in str(growing.verdict[0])
    assert "rmt was 0.050 behind at 819k tokens and is 0.150 ahead at the end" in str(crossing.verdict[0])


def test_no_lead_is_told_of_one_seed_or_of_what_is_not_seen_at_the_end(tmp_path):
    one = paired(tmp_path / "a", lambda step, seed: -step / 1000, seeds=(0,))
    assert "the difference shows no clear movement: −0.200 at 819k tokens, −0.400 at the end" in str(one.verdict[0])
    unseen = paired(tmp_path / "b", lambda step, seed: (390 - step) / 1000 + 0.01 * seed)
    assert "the difference moves from +0.195 at 819k tokens to −0.0050 at the end" in str(unseen.verdict[0])
    assert "lead" not in f"{one.verdict[0]} {unseen.verdict[0]}"


def test_it_always_says_how_far_into_training_it_looks(tmp_path):
    told = paired(tmp_path, lambda step, seed: -0.1).verdict[0].details[-1]
    tokens = 400 * 4096
    assert told.startswith("This looks 1.64M tokens into training")
    assert f"{tokens / 3_400_000:.3f} epochs of the corpus" in told
    assert f"{tokens / 3_150_080:.3f} tokens per non-embedding parameter for transformer" in told
    assert f"{tokens / 2_120_704:.3f} for rmt" in told
    assert "20" in told


def test_resources_to_the_others_best_and_not_reached(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1)
    better = found.pairs[0].targets[0]
    assert better.others is not None
    assert better.label == "transformer"
    told = str(found.verdict[0])
    percent = [round(100 * (better.ratio(resource) or 0)) for resource in ("tokens", "flops", "wall_s")]
    shown = re.search(
        r"rmt reaches transformer's best \([\d.]+\) with (\d+)\s% of its tokens, (\d+)\s% of its FLOPs and (\d+)", told
    )
    assert shown is not None
    assert [int(figure) for figure in shown.groups()] == percent
    assert found.pairs[0].targets[1].others is None
    assert "transformer does not reach rmt's best" in told


def test_who_is_read_before_its_end_is_said(tmp_path):
    details = " ".join(paired(tmp_path, lambda step, seed: -0.1).verdict[0].details)
    assert re.search(
        r"At equal training FLOPs \(logits included\) it is .* with transformer read at 82\s% of its run", details
    )
    assert re.search(r"at equal wall time it is .* with rmt read at 76\s% of its run", details)


def test_an_unfinished_run_is_compared_where_both_have_been(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1, finished=False)
    assert found.pairs[0].tokens == 200 * 4096
    assert found.pairs[0].difference.mean == pytest.approx(-0.1, abs=2e-3)
    assert sum("unfinished" in note for note in found.notes) == 2


def test_the_last_evaluations_are_compared_as_measured(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1)
    finals = [group.finals for group in found.groups]
    assert list(found.pairs[0].by_seed.values()) == pytest.approx([b - a for a, b in zip(*finals, strict=True)])


def test_one_model_alone(tmp_path):
    write_run(tmp_path / "a", "rmt", steps=50)
    found = compare([tmp_path / "a"])
    assert "nothing to compare" in found.verdict[0].headline
    assert found.pairs == ()


def test_every_other_model_gets_its_verdict(tmp_path):
    write_run(tmp_path / "a", "rmt", steps=50)
    write_run(tmp_path / "b", "transformer", steps=50)
    write_run(tmp_path / "c", "rmt", steps=50, config={"model.stream": {"kind": "matrix", "key_dim": 8}})
    found = compare([tmp_path])
    assert [pair.reference.label for pair in found.pairs] == ["transformer", "transformer"]
    assert len(found.verdict) == 2


def test_models_without_a_shared_stretch(tmp_path):
    write_run(tmp_path / "a", "transformer", steps=50)
    write_run(tmp_path / "b", "rmt", steps=400, every=200)
    assert compare([tmp_path]).verdict[0].headline == "rmt and transformer share no stretch of training."


def test_a_single_evaluation_is_enough(tmp_path):
    found = paired(tmp_path, lambda step, seed: -0.1, steps=25)
    assert found.pairs[0].difference.mean == pytest.approx(-0.1)
    assert found.pairs[0].trend is None


def test_the_comparison_as_json(demo):
    told = json.loads(json.dumps(compare([demo]).to_dict(), allow_nan=False))
    assert told["comparable"] is True
    assert [model["label"] for model in told["models"]] == ["transformer", "rmt"]
    pair = told["pairs"][0]
    finals = [[run["final"] for run in model["runs"]] for model in told["models"]]
    assert pair["at_equal"]["tokens"]["mean"] == pytest.approx(sum(finals[1]) / 2 - sum(finals[0]) / 2)
    assert pair["targets"][1]["others"] is None
    assert pair["targets"][1]["ratio"] == {"tokens": None, "flops": None, "wall_s": None}
    assert {run["path"] for model in told["models"] for run in model["runs"]} == {str(path) for path in demo.iterdir()}
