"""Reference and filters of `compare`, and its tidy table."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fake_runs import loss_at, write_run
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.report import Choice, compare, to_csv


def run(*arguments):
    return CliRunner().invoke(build_app(), ["compare", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path):
    """A transformer, and RMT at two rates, two seeds each."""
    for seed in (0, 1):
        write_run(tmp_path / f"t-{seed}", "transformer", seed=seed, steps=100)
        for lr in (0.01, 0.02):
            write_run(tmp_path / f"r{lr}-{seed}", "rmt", seed=seed, steps=100, config={"optimizer.lr": lr})
    return tmp_path


def labels(found):
    return [group.label for group in found.groups]


@pytest.mark.parametrize("name", ["rmt (lr 0.02)", "r0.02-1", "{root}/r0.02-0"])
def test_a_reference_of_ones_own_choice_by_label_or_folder(runs, name):
    found = compare([runs], Choice(reference=name.format(root=runs)))
    assert labels(found) == ["rmt (lr 0.02)", "transformer", "rmt (lr 0.01)"]
    assert {pair.reference.label for pair in found.pairs} == {"rmt (lr 0.02)"}
    assert "lower than rmt (lr 0.02)'s" in found.verdict[0].headline or "higher" in found.verdict[0].headline


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"only": ("rmt*",)}, ["rmt (lr 0.01)", "rmt (lr 0.02)"]),
        ({"only": ("t-*", "r0.02-*")}, ["transformer", "rmt (lr 0.02)"]),
        ({"only": ("optimizer.lr=2e-2",)}, ["rmt (lr 0.02)"]),
        ({"without": ("optimizer.lr=0.01",)}, ["transformer", "rmt (lr 0.02)"]),
        ({"only": ("model.stream.kind=mat*",), "without": ("r0.01-*",)}, ["rmt (lr 0.02)"]),
    ],
)
def test_filters_on_label_folder_and_setting(runs, choice, expected):
    assert labels(compare([runs], Choice(**choice))) == expected


def test_a_filter_takes_single_runs_of_a_model(runs):
    found = compare([runs], Choice(without=("*-1",)))
    assert [len(group.runs) for group in found.groups] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--reference", "rtm"), "Unknown reference rtm; known are: transformer, rmt (lr 0.01), rmt (lr 0.02)."),
        (("--only", "optimizer.lrr=1"), "No run is like optimizer.lrr=1; there are: transformer, rmt (lr 0.01), rmt"),
        (("--without", "nobody*"), "No run is like nobody*; there are: transformer"),
        (("--without", "*"), "Nothing is left to compare; there are: transformer"),
        (("--json", "--csv", "-"), "Both --json and --csv - print to standard output"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(runs, options, words):
    result = run(runs, *options)
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)


def test_a_reference_that_diverged_cannot_be_one(runs):
    lost = write_run(runs / "lost", "rmt", steps=100, finished=False, config={"optimizer.lr": 9.0})
    (lost / "nonfinite_step_60.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"rmt \(lr 9\) cannot be the reference: 1 seed diverged.*Choose another"):
        compare([runs], Choice(reference="lost"))


def test_the_page_says_how_to_compare_with_the_same_reference_again(runs, here):
    run(runs, "--reference", "r0.02-0", "--out", "report.html")
    assert f"--reference {runs}/r0.02-0 --out report.html" in (here / "report.html").read_text()


def table_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_tidy_table_has_a_row_for_every_run(runs):
    lost = write_run(runs / "lost", "rmt", seed=2, steps=100, finished=False, config={"optimizer.lr": 0.02})
    (lost / "nonfinite_step_60.safetensors").write_bytes(b"")
    found = compare([runs])
    rows = {row["folder"].rpartition("/")[2]: row for row in table_of(to_csv(found))}
    assert len(rows) == 7
    first = rows["r0.01-0"]
    assert (first["model"], first["state"], first["counted"], first["optimizer.lr"]) == (
        "rmt (lr 0.01)", "done", "true", "0.01",
    )  # fmt: skip
    assert float(first["loss"]) == found.groups[1].finals[0]
    assert int(first["tokens"]) == 100 * 4096
    assert first["model.stream.key_dim"] == "32"
    assert rows["t-0"]["model.stream.key_dim"] == "", "what a recipe does not have is empty"
    assert first["torch"] == "2.13.0"
    gone = rows["lost"]
    assert (gone["state"], gone["diverged_at"], gone["counted"]) == ("diverged", "60", "false")
    assert gone["loss"] == gone["perplexity"] == "", "what does not count is in no mean over rows"
    means = [float(row["loss"]) for row in rows.values() if row["model"] == "rmt (lr 0.02)" and row["loss"]]
    assert sum(means) / len(means) == pytest.approx(found.groups[2].final.mean)


def test_the_table_goes_to_a_file_or_alone_to_standard_output(runs, here):
    alone = run(runs, "--csv", "-").output
    assert len(table_of(alone)) == 6
    beside = run(runs, "--csv", "runs.csv", "--json").output
    assert json.loads(beside)["metric"] == "loss"
    assert (here / "runs.csv").read_text() == alone
    assert run(runs, "--csv", "runs.csv").output.rstrip().endswith("Table: runs.csv")


def test_a_table_replaces_no_other_file(runs, here):
    (here / "notes.txt").write_text("mine")
    result = run(runs, "--csv", "notes.txt")
    assert isinstance(result.exception, UserError)
    assert (here / "notes.txt").read_text() == "mine"


def test_names_with_commas_and_lines_stay_in_their_cells(tmp_path):
    name = 'a, "quoted"\nname'
    write_run(tmp_path / "a", "rmt", steps=50, config={"name": name})
    (row,) = table_of(to_csv(compare([tmp_path])))
    assert row["name"] == name


def test_the_page_names_every_column_of_the_table(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "compare.md").read_text()
    table = page.partition("## The tidy table")[2]
    named = {name for row in table.splitlines() if row.startswith("| `") for name in re.findall("`([a-z0-9_.]+)`", row)}
    write_run(tmp_path / "a", "rmt", steps=50)
    (row,) = table_of(to_csv(compare([tmp_path])))
    assert named - {"done", "unfinished", "diverged"} == row.keys() - {"model", "counted"}


def test_each_model_against_a_reference_of_its_own(runs):
    for seed in (0, 1):
        for name, kind, better in (("a", "transformer", 0.3), ("b", "rmt", 0.2)):
            config = {"model.norm": "rmsnorm", "name": f"new/{name}"}

            def loss(step, kind=kind, better=better, seed=seed):
                return loss_at(kind, step, seed) - better

            write_run(runs / f"{name}-{seed}", kind, seed=seed, steps=100, config=config, loss=loss)
    found = compare([runs], Choice(reference="t-0", against=(("b-0", "a-0"),), only=("t-*", "r0.02*", "a-*", "b-*")))
    pairs = {(pair.other.label, pair.reference.label): pair.difference.mean for pair in found.pairs}
    first, second = found.groups[0].label, next(g.label for g in found.groups if g.runs[0].path.name.startswith("a"))
    assert {reference for _, reference in pairs} == {first, second}
    assert [reference for other, reference in pairs if "b" in other] == [second]
    assert found.verdict[0].headline.startswith("Each against its own reference, ")
    assert f"Between the references, {second} is " in found.verdict[0].headline
    assert found.pairs[0].family == 3
    page = run(runs, "--reference", "t-0", "--against", "b-0=a-0", "--out", runs / "page.html")
    assert page.exit_code == 0
    assert "--against b-0=a-0" in (runs / "page.html").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("r0.02-0", "--against r0.02-0 is not MODEL=OTHER"),
        ("r0.02-0=r0.02-1", "cannot be compared with itself"),
        ("t-0=r0.02-1", "is what all others are compared with"),
        ("r0.02-0=nobody", "Unknown model nobody"),
    ],
)
def test_references_that_cannot_be(runs, given, words):
    result = run(runs, "--against", given)
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
