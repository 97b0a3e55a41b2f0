"""Downstream tasks in `compare`: figures, intervals over items and over seeds, and results that are not compared."""

import json

import pytest
from typer.testing import CliRunner

from fake_runs import write_demo, write_task
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.report import compare
from widestream.report.compare_page import compare_page
from widestream.runs.tasks import Measure, read_results


def right(*answers):
    return Measure(form="mean", higher_is_better=True, values=[float(answer) for answer in answers])


@pytest.fixture
def runs(tmp_path):
    """Two models of two seeds: 20 items, of which the transformer has 10 and 12 right, RMT 14 and 14."""
    folder = tmp_path / "runs"
    write_demo(folder)
    for name, count in (("transformer-seed0", 10), ("transformer-seed1", 12), ("rmt-seed0", 14), ("rmt-seed1", 14)):
        acc = right(*[1] * count, *[0] * (20 - count))
        nats = Measure(form="perplexity", higher_is_better=False, values=[2.0 + at / 20 for at in range(20)])
        write_task(folder / name, "piqa", {"acc": acc, "perplexity": nats})
    return folder


def test_figures_with_intervals_over_items_and_over_seeds(runs):
    (task,) = compare([runs]).to_dict()["tasks"]
    acc = task["metrics"]["acc"]
    assert acc["chance"] == 0.5
    transformer, rmt = acc["models"]["transformer"], acc["models"]["rmt"]
    assert transformer["by_run"] == [0.5, 0.6]
    assert transformer["over_items"]["mean"] == pytest.approx(0.55)
    assert (transformer["over_items"]["n"], transformer["over_seeds"]["n"]) == (20, 2)
    assert transformer["over_seeds"]["low"] == 0.0, "two seeds tell little, and no share is below nothing"
    assert rmt["over_seeds"]["low"] == rmt["over_seeds"]["high"] == pytest.approx(0.7)
    assert task["metrics"]["perplexity"]["chance"] is None
    text = compare_page(compare([runs]))
    assert "Downstream tasks" in text
    assert "95 % over seeds" in text


def test_a_single_run_has_no_interval_over_seeds(runs):
    found = compare([runs / "rmt-seed0", runs / "transformer-seed0"]).to_dict()["tasks"][0]["metrics"]["acc"]["models"]
    assert found["rmt"]["over_seeds"]["low"] is None
    assert found["rmt"]["over_items"]["method"] == "wilson"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"harness": "0.4.9"}, "version of lm-evaluation-harness differ (0.4.13, 0.4.9)"),
        ({"fingerprint": "0" * 64}, "items or prompts differ"),
        ({"shots": 5}, "examples in front differ (0, 5)"),
        ({"version": "2.0"}, "version of the task differ"),
        ({"tokenizer": "0" * 64}, "tokenizer differ"),
    ],
)
def test_what_is_not_of_the_same_measurement_is_named_and_not_compared(runs, change, words):
    write_task(runs / "rmt-seed1", "piqa", {"acc": right(*[1] * 20)}, **change)
    found = compare([runs])
    assert found.tasks == ()
    (note,) = [note for note in found.notes if "piqa" in note]
    assert words in note
    assert "piqa is not compared" in note


def test_what_colours_a_figure_is_noted(runs):
    acc = {"acc": right(*[1] * 20)}
    write_task(runs / "rmt-seed1", "piqa", acc, precision="bf16")
    write_task(runs / "rmt-seed0", "arc_easy", acc, step=100)
    notes = "\n".join(compare([runs]).notes)
    assert "piqa was computed in different precisions" in notes
    assert "arc_easy was evaluated before the end of training" in notes
    assert "at step 100 of 1,700" in notes
    assert "arc_easy was not evaluated for" in notes


def test_a_damaged_record_is_named_and_the_rest_compared(runs):
    (runs / "rmt-seed1" / "tasks" / "piqa.json.xz").write_bytes(b"no xz")
    found = compare([runs])
    assert "are left out" in "\n".join(found.notes)
    assert len(found.tasks[0].sides[1].results) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"items": 19}, {"measures": {}, "items": 0}, {"measures": {"acc": {"form": "mean"}}}, {"format": 0},
        {"metrics": None, "of_items": {}},
    ],
)  # fmt: skip
def test_records_that_are_not_whole_are_one_sentence(runs, change):
    import lzma

    path = runs / "rmt-seed0" / "tasks" / "piqa.json.xz"
    values = json.loads(lzma.decompress(path.read_bytes())) | change
    path.write_bytes(lzma.compress(json.dumps(values).encode()))
    with pytest.raises(UserError, match="evaluate the run again"):
        read_results(runs / "rmt-seed0")


def test_the_terminal_shows_them(runs):
    told = CliRunner().invoke(build_app(), ["compare", str(runs)]).output
    assert "Downstream tasks" in told
    assert "55.0" in told
