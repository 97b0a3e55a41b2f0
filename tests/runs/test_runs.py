import json
import math
import tracemalloc

import pytest
import yaml

from fake_runs import write_run
from widestream.errors import UserError
from widestream.runs.folder import TAIL, steps_done
from widestream.runs.opened import RunFolder
from widestream.runs.read import find_runs, load_run
from widestream.runs.row import train_figures


def evaluation(step, loss, target_tokens=1000, whole=True):
    return {
        "kind": "eval", "step": step, "tokens": step * 10, "flops": step * 1e6, "loss": loss, "bits_per_byte": 1.0,
        "target_tokens": target_tokens, "whole": whole, "clock": {"wall_s": step * 1.0},
    }  # fmt: skip


def test_a_finished_run(tmp_path):
    run = load_run(write_run(tmp_path / "a", "rmt", seed=3, steps=100))
    assert run.name == "demo/rmt"
    assert run.seeds == (3, 3)
    assert [row.step for row in run.evals] == [25, 50, 75, 100]
    assert run.final.tokens == 100 * 4096
    assert list(run.clock["tokens_per_s"]) == [6900.0] * 4
    assert run.notes == ()


def test_an_unfinished_run_says_so(tmp_path):
    run = load_run(write_run(tmp_path / "a", "rmt", steps=100, finished=False))
    assert run.done is None
    assert run.notes == ("unfinished: its last evaluation is at step 50 of 100",)


def test_a_half_written_last_line_is_left_out_with_a_note(tmp_path):
    folder = write_run(tmp_path / "a", "rmt", steps=100)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    run = load_run(folder)
    assert [row.step for row in run.evals] == [25, 50, 75]
    assert any("half written" in note for note in run.notes)


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    folder = write_run(tmp_path / "a", "rmt", steps=100)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl"):
        load_run(folder)


def test_evaluations_that_are_not_finite_are_left_out_with_a_note(tmp_path):
    rows = [evaluation(1, 5.0), evaluation(2, None), evaluation(3, math.nan)]
    run = load_run(write_run(tmp_path / "a", "rmt", rows=rows))
    assert [row.step for row in run.evals] == [1]
    assert run.notes[-1] == "2 held-out evaluations without a finite loss are left out"
    assert (run.state, run.diverged_at) == ("diverged", 3)
    later = load_run(write_run(tmp_path / "b", "rmt", rows=[*rows, evaluation(4, 4.5)]))
    assert later.state == "done", "one that was lost on the way is no divergence"


def test_the_curve_keeps_to_one_set_of_tokens_and_the_last_evaluation_is_the_whole_one(tmp_path):
    rows = [evaluation(step, 5.0 - step, 100, whole=False) for step in (1, 2, 3)] + [evaluation(3, 2.5)]
    run = load_run(write_run(tmp_path / "a", "rmt", rows=rows))
    assert [(row.step, row.target_tokens) for row in run.curve] == [(1, 100), (2, 100), (3, 100)]
    assert run.final.loss == 2.5
    assert run.final.whole


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([evaluation(1, 5.0), evaluation(1, 4.0)], "Line 2 of .* is a second one of kind eval of step 1"),
        ([evaluation(2, 5.0), evaluation(1, 4.0)], "Line 2 of .* is of step 1 and stands behind one of step 2"),
        ([evaluation(1, 5.0), {}], "Line 2 of .* has no kind or no step"),
        ([evaluation(1, 5.0), {"kind": "train"}], "Line 2 of .* has no kind or no step"),
    ],
)
def test_rows_that_are_doubled_misplaced_or_emptied_are_named(tmp_path, rows, fault):
    folder = write_run(tmp_path / "a", "rmt", finished=False)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=fault):
        load_run(folder)


def test_a_byte_that_is_no_text_is_named(tmp_path):
    folder = write_run(tmp_path / "a", "rmt", steps=100)
    content = bytearray((folder / "metrics.jsonl").read_bytes())
    content[content.find(b"kind", 300)] ^= 0x80
    (folder / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"Line 3 of .*metrics.jsonl is no JSON object"):
        load_run(folder)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, name):
    folder = write_run(tmp_path / "a", "rmt", steps=25)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UserError, match=name):
        load_run(folder)


def test_a_million_rows_take_no_more_memory_than_their_columns(tmp_path):
    folder = write_run(tmp_path / "a", "rmt", steps=100, finished=False)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row | {"step": step}) + "\n" for step in range(1, 100_001))
    tracemalloc.start()
    run = load_run(folder)
    columns = RunFolder(folder).metrics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.steps == len(columns["step"]) == 100_000
    assert peak < 45e6


def test_samples_may_hold_any_character(tmp_path):
    text = "one\u2028two\x85three"
    run = load_run(write_run(tmp_path / "a", "rmt", steps=25, samples=[{"prompt": "", "text": text}]))
    assert run.samples[0]["text"] == text


@pytest.mark.parametrize("rows", ["", json.dumps({"kind": "train", "step": 7}) + "\n"])
def test_a_run_without_an_evaluation_is_still_a_run(tmp_path, rows):
    folder = write_run(tmp_path / "a", "rmt", steps=100, finished=False)
    (folder / "metrics.jsonl").write_text(rows)
    run = load_run(folder)
    assert run.evals == ()
    assert run.steps == (7 if rows else 0)
    assert run.notes == (f"unfinished: it has no evaluation yet, at step {run.steps} of 100",)


def test_a_run_that_stopped_at_a_loss_that_is_not_finite_diverged(tmp_path):
    folder = write_run(tmp_path / "a", "rmt", steps=100, finished=False)
    (folder / "nonfinite_step_61.safetensors").write_bytes(b"")
    run = load_run(folder)
    assert (run.state, run.diverged_at) == ("diverged", 61)
    assert run.notes == ("diverged at step 61 of 100: its last evaluation is at step 50 of 100",)


def test_skipped_steps_are_counted(tmp_path):
    skips = [
        {"kind": "event", "event": "nonfinite_skipped", "step": step, "skipped": step - 1} for step in range(2, 40)
    ]
    run = load_run(write_run(tmp_path / "a", "rmt", rows=[*skips, evaluation(40, 5.0)]))
    assert (run.skipped, run.state) == (38, "done")
    assert "38 of 40 steps moved nothing" in run.notes[0]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_run(tmp_path / "a", "rmt", steps=25)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.yaml", text) for text in ("a: [1", "7", "train: null", "model: [1]", "model: {stream: gru}")),
        *(("run.json", text) for text in ("{", "{}", "null", "[]", '"text"', '{"data": null, "summary": []}')),
        *(
            ("metrics.jsonl", text)
            for text in (
                "null\n",
                "[1]\n",
                '"text"\n',
                '{"kind": "eval", "step": 1, "loss": "low"}\n',
                '{"step": Infinity}\n',
            )
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = write_run(tmp_path / "a", "rmt", steps=25)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        load_run(folder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.yaml", ("train", "steps"), []),
        ("run.json", ("data", "tokenizer_sha256"), []),
        ("run.json", ("data", "seed"), math.inf),
        ("run.json", ("machine", "memory_gb"), "much"),
        ("run.json", ("peak_flops_per_s",), 10**400),
        ("run.json", ("resumed",), ["elsewhere"]),
        *(("metrics.jsonl", ("tokens",), value) for value in (math.nan, 10**400, "many", True)),
        *(("metrics.jsonl", ("clock", "wall_s"), value) for value in (math.nan, math.inf)),
        ("metrics.jsonl", ("bits_per_byte",), "few"),
    ],
)
def test_a_figure_that_cannot_be_counted_with_is_named(tmp_path, name, key, value):
    folder = write_run(tmp_path / "a", "rmt", rows=[evaluation(1, 5.0)])
    content = yaml.safe_load((folder / name).read_text())
    *path, last = key
    inner = content
    for part in path:
        inner = inner[part]
    inner[last] = value
    (folder / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=name):
        load_run(folder)


def test_tokens_that_fall_are_damage(tmp_path):
    rows = [evaluation(2, 5.0), evaluation(1, 4.0) | {"step": 3}]
    with pytest.raises(UserError, match="its tokens fall"):
        load_run(write_run(tmp_path / "a", "rmt", rows=rows))


def test_speeds_that_are_no_numbers_are_left_out(tmp_path):
    rows = [
        {"kind": "train", "step": step, "clock": {"mfu": value}}
        for step, value in enumerate(("fast", math.nan, None, 0.5, []))
    ]
    figures = train_figures(load_run(write_run(tmp_path / "a", "rmt", rows=rows)))
    assert figures == {"tokens_per_s": None, "mfu": 0.5, "memory_bytes": None}


def test_a_row_that_lacks_a_field_is_named(tmp_path):
    row = evaluation(1, 5.0)
    del row["flops"]
    with pytest.raises(UserError, match="'flops'"):
        load_run(write_run(tmp_path / "a", "rmt", rows=[row]))


def test_no_run_at_all(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="no run folder"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="no run folder"):
        find_runs([tmp_path / "nowhere"])


def test_a_folder_of_runs_is_expanded_and_every_run_taken_once(tmp_path):
    for name in ("b", "a", "a.old-1"):
        write_run(tmp_path / name, "rmt", steps=25)
    (tmp_path / "data").mkdir()
    (tmp_path / "report.html").write_text("")
    assert find_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs([tmp_path / "a.old-1"]) == [tmp_path / "a.old-1"]


def test_the_steps_of_a_long_file_are_those_of_its_last_whole_line(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert steps_done(tmp_path) == 0
    lines = [json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 9000)]
    metrics.write_text("".join(lines) + '{"kind": "tra')
    assert metrics.stat().st_size > 2 * TAIL
    assert steps_done(tmp_path) == 8999
    metrics.write_text(lines[0][:-1])
    assert steps_done(tmp_path) == 0
