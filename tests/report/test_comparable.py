import pytest

from fake_runs import write_run
from widestream.report import compare


def two(tmp_path, **changes):
    write_run(tmp_path / "a", "transformer", steps=200)
    write_run(tmp_path / "b", "rmt", steps=200, **changes)
    return compare([tmp_path / "a", tmp_path / "b"])


def test_equal_data_and_order_are_comparable(tmp_path):
    found = two(tmp_path)
    assert found.comparable
    assert found.metric == "loss"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"fingerprint": "other"}, "data"),
        ({"heldout_fingerprint": "other"}, "held-out data"),
        ({"sequence_length": 128}, "sequence length"),
    ],
)
def test_what_differs_is_named_and_there_is_no_verdict(tmp_path, data, field):
    found = two(tmp_path, data=data)
    assert [mismatch.field for mismatch in found.mismatches] == [field]
    assert found.mismatches[0].sentence.startswith(f"{field} differs: transformer ")
    assert len(found.verdict) == 1
    assert "no verdict" in found.verdict[0].headline
    assert field in found.verdict[0].headline
    assert "lower" not in str(found.verdict[0])
    assert found.pairs, "the curves are still compared"


def test_other_held_out_tokens_are_not_comparable(tmp_path):
    rows = [
        {
            "kind": "eval", "step": step, "tokens": step * 4096, "flops": step * 1e9, "loss": 4.0, "bits_per_byte": 1.0,
            "target_tokens": 5_000, "whole": False, "clock": {"wall_s": float(step)},
        }
        for step in (25, 200)
    ]  # fmt: skip
    found = two(tmp_path, rows=rows)
    assert [mismatch.values for mismatch in found.mismatches] == [{"transformer": "180,000", "rmt": "5,000"}]


def test_another_tokenizer_turns_to_bits_per_byte(tmp_path):
    found = two(tmp_path, data={"tokenizer_sha256": "other", "fingerprint": "other"})
    assert [mismatch.field for mismatch in found.mismatches] == ["tokenizer"]
    assert found.metric == "bits_per_byte"
    for group in found.groups:
        assert group.finals == tuple(run.final.bits_per_byte for run in group.runs)


def test_another_tokenizer_and_another_text(tmp_path):
    found = two(tmp_path, data={"tokenizer_sha256": "other", "heldout_bytes": 7})
    assert [mismatch.field for mismatch in found.mismatches] == ["tokenizer", "held-out bytes"]


def test_one_shared_order_is_enough_and_what_is_left_out_is_said(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"t{seed}", "transformer", seed=seed, steps=200)
    for seed in (1, 2):
        write_run(tmp_path / f"r{seed}", "rmt", seed=seed, steps=200)
    found = compare([tmp_path])
    assert found.comparable
    assert list(found.pairs[0].by_seed) == ["1"]
    assert any("Some seeds were run for one model only" in line for line in found.cautions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"info": {"machine": {"cpu": "Another CPU", "threads": 2}}}, "wall times do not compare"),
        ({"info": {"precision": "float32"}}, "Precision differs"),
        ({"config": {"train.steps": 900}}, "different numbers of tokens"),
        ({"config": {"train.steps": None, "train.tokens": 1}}, "different numbers of tokens"),
        ({}, "One seed only of every model"),
    ],
)
def test_cautions(tmp_path, changes, words):
    found = two(tmp_path, **changes)
    assert found.comparable
    assert any(words in line for line in found.cautions)


def test_a_single_model_with_one_seed_is_named(tmp_path):
    folders = [write_run(tmp_path / f"t{seed}", "transformer", seed=seed, steps=50) for seed in (0, 1)]
    found = compare([*folders, write_run(tmp_path / "r", "rmt", steps=50)])
    assert any("One seed only (rmt)" in line for line in found.cautions)


def test_steps_and_the_same_number_of_tokens_are_the_same_plan(tmp_path):
    found = two(tmp_path, config={"train.steps": None, "train.tokens": 200 * 4096 - 5})
    assert not any("different numbers of tokens" in line for line in found.cautions)


def test_no_caution_about_decay_under_a_constant_rate(tmp_path):
    constant = {"schedule.kind": "constant"}
    write_run(tmp_path / "a", "transformer", steps=50, config=constant)
    write_run(tmp_path / "b", "rmt", steps=50, config=constant)
    assert not any("decay" in line for line in compare([tmp_path]).cautions)
