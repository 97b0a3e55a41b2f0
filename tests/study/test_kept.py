"""Evidence is not overwritten: by another study of the same name, a changed study, other data, or a page or archive."""

import json
import shutil
from dataclasses import replace

import pytest

from study_runs import finish, write_study
from tiny_runs import write_data
from widestream.errors import UserError
from widestream.files import write_page
from widestream.recipe.load import RECIPES
from widestream.study import run
from widestream.study.archive import pack_results
from widestream.study.page.results import load_result
from widestream.study.page.sections import begin
from widestream.study.run import StudyOptions, run_study
from widestream.study.zoo import search_zoo
from widestream.version import code_fingerprint

PLAIN = {"recipe": "study/cpu/transformer"}


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", finish)
    return StudyOptions(folder=tmp_path / "runs", workers=1)


def arms(**layers):
    return {name: PLAIN | {"set": {"model.num_layers": count}} for name, count in layers.items()}


def carry_out(folder, options, **changes):
    folder.mkdir(exist_ok=True)
    path = write_study(folder / "lr.yaml", **{"search": None, "reference": "base", "seeds": 1} | changes)
    return json.loads(run_study(str(path), options).read_text())


def runs_of(record):
    return {run["folder"] for arm in (*record["arms"], *record["earlier"]) for run in (*arm["trials"], *arm["runs"])}


@pytest.mark.parametrize("changes", [{"title": "Another"}, {"question": "Another?"}])
def test_another_study_of_the_same_name_does_not_replace_a_record(tmp_path, options, changes):
    first = carry_out(tmp_path / "q1", options, arms=arms(base=1, wide=2))
    with pytest.raises(UserError, match=r"is the record of another study called lr \('(A study|Which is better\?)'\)"):
        carry_out(tmp_path / "q2", options, arms=arms(base=1, deep=3), **changes)
    assert json.loads((options.folder / "cpu" / "lr.study.json").read_text()) == first
    again = carry_out(tmp_path / "q1", options, arms=arms(base=1, wide=2), **changes)
    assert runs_of(again) == runs_of(first), "the same file may call itself otherwise"


def test_another_file_that_asks_the_same_does_not_replace_a_record(tmp_path, options):
    first = carry_out(tmp_path / "q1", options, arms=arms(base=1, wide=2))
    with pytest.raises(UserError, match=r"is the record of another study file of this name, .*q1/lr\.yaml"):
        carry_out(tmp_path / "q2", options, arms=arms(base=1, deep=3))
    assert runs_of(carry_out(tmp_path / "q3", options, arms=arms(base=1, wide=2))) == runs_of(first), "a copy"
    shutil.rmtree(tmp_path / "q3")
    moved = carry_out(tmp_path / "q4", options, arms=arms(base=1, deep=3))
    assert [arm["name"] for arm in moved["earlier"]] == ["wide"], "what was moved may change"


@pytest.mark.parametrize("rows", [0, [""], [{"seed": 0}]])
def test_a_damaged_record_stays_as_it_is(tmp_path, options, rows):
    record = carry_out(tmp_path, options, arms=arms(base=1, wide=2))
    record["arms"][0]["runs"] = rows
    path = options.folder / "cpu" / "lr.study.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="is no record of the study lr, and stays as it is"):
        carry_out(tmp_path, options, arms=arms(base=1, wide=2))
    assert json.loads(path.read_text()) == record


def test_runs_of_an_older_search_are_not_shown_at_the_rates_of_a_new_one(tmp_path, options, monkeypatch):
    search = {"rates": [0.004, 0.01], "most": 2}
    carry_out(tmp_path, options, arms=arms(base=1), search=search | {"selection": 0})
    seen = []

    def look(jobs, *_, **__):
        seen.append(json.loads((options.folder / "cpu" / "lr.study.json").read_text()))
        finish(jobs, 1)

    monkeypatch.setattr(run, "run_jobs", look)
    last = carry_out(tmp_path, options, arms=arms(base=1), search=search)
    assert [(len(arm["trials"]), arm["runs"]) for arm in seen[0]["arms"]] == [(2, [])]
    assert [len(arm["runs"]) for arm in last["earlier"]] == [1], "once"
    again = carry_out(tmp_path, options, arms=arms(base=1), search=search)
    assert again["arms"] == last["arms"]
    assert len(seen[2]["arms"][0]["runs"]) == 1, "the same search goes on with its runs"


def test_a_changed_study_goes_on_and_loses_no_run(tmp_path, options):
    first = carry_out(tmp_path, options, arms=arms(base=1, wide=2), seeds=2)
    second = carry_out(tmp_path, options, arms=arms(base=1, deep=3))
    assert [arm["name"] for arm in second["arms"]] == ["base", "deep"]
    assert [run["seed"] for run in second["arms"][0]["runs"]] == [0, 1], "further seeds stay"
    assert [arm["name"] for arm in second["earlier"]] == ["wide"]
    third = carry_out(tmp_path, options, arms=arms(base=1, deep=4))
    assert [arm["name"] for arm in third["earlier"]] == ["deep", "wide"]
    assert runs_of(third) >= runs_of(second) >= runs_of(first)
    back = carry_out(tmp_path, options, arms=arms(base=1, wide=2), seeds=1)
    assert [[run["seed"] for run in arm["runs"]] for arm in back["arms"]] == [[0, 1], [0, 1]]
    assert [arm["name"] for arm in back["earlier"]] == ["deep", "deep"]
    page = begin(load_result(options.folder / "cpu" / "lr.study.json"))
    assert any("earlier forms of this study, not shown here: deep." in note for note in page.notes)


def test_a_study_on_other_data_has_other_runs_and_names_the_former_ones(tmp_path, options):
    folder = tmp_path / "data"
    for seed in (0, 1):
        shutil.rmtree(folder, ignore_errors=True)
        write_data(folder)
        held = write_data(tmp_path / f"held{seed}", seed=seed)
        manifest, other = (json.loads((place / "manifest.json").read_text()) for place in (folder, held))
        manifest["splits"]["heldout"] = other["splits"]["heldout"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        record = carry_out(tmp_path, replace(options, data=folder), arms=arms(base=1), seeds=1 + seed)
    assert len({run["folder"] for run in record["arms"][0]["runs"]}) == 2
    assert len(runs_of(record)) == 3


def test_seeds_on_other_data_do_not_join_an_arm(tmp_path, options):
    one, other = (write_data(tmp_path / f"data{seed}", seed=seed) for seed in (0, 1))
    carry_out(tmp_path, replace(options, data=one), arms=arms(base=1), seeds=3)
    record = carry_out(tmp_path, replace(options, data=other), arms=arms(base=1), seeds=2)
    assert [run["seed"] for run in record["arms"][0]["runs"]] == [0, 1]
    assert [run["seed"] for run in record["earlier"][0]["runs"]] == [0, 1, 2]


def test_a_plain_run_is_not_taken_for_one_on_other_heldout_text(tmp_path, options):
    data = write_data(tmp_path / "data")
    carry_out(tmp_path, replace(options, data=data), arms=arms(base=1), runs="plain")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["heldout"]["shards"][0]["sha256"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"base-seed0 holds another run; it differs in tokens\.heldout"):
        carry_out(tmp_path, replace(options, data=data), arms=arms(base=1), runs="plain")


def test_what_comes_with_the_package_is_not_written_to(tmp_path, options):
    shipped = RECIPES.folder / "zoo" / "search.json"
    before = shipped.read_bytes()
    options = replace(options, record=shipped, search_only=True, data=write_data(tmp_path / "data"))
    with pytest.raises(UserError, match=r"search\.json comes with the package, and stays as it is"):
        search_zoo(options, ["zoo/mudd"])
    assert shipped.read_bytes() == before
    assert not options.folder.exists()


def test_runs_made_by_other_code_are_taken_and_named(tmp_path, options, capsys):
    carry_out(tmp_path, options, arms=arms(base=1), seeds=2)
    assert "made by other code" not in capsys.readouterr().out
    carry_out(tmp_path, options, arms=arms(base=1, wide=2), seeds=2)
    assert "2 of 2 runs that are there already were made by other code" in capsys.readouterr().out


def test_the_fingerprint_of_the_code_is_that_of_what_computes(tmp_path):
    own = tmp_path / "stream.py"
    own.write_text("a = 1")
    one = code_fingerprint(own)
    own.write_text("a = 2")
    code_fingerprint.cache_clear()
    assert len({one, code_fingerprint(own), code_fingerprint()}) == 3
    assert len(one) == 12


def test_a_page_replaces_a_page_only(tmp_path):
    page, notes = tmp_path / "page.html", tmp_path / "notes.yaml"
    notes.write_text("title: mine")
    for _ in range(2):
        write_page(page, "<!doctype html>")
    with pytest.raises(UserError, match="is no page and no picture, and stays as it is"):
        write_page(notes, "<!doctype html>")
    assert notes.read_text() == "title: mine"


def test_an_archive_is_replaced_only_where_nothing_is_lost(tmp_path, options):
    archive = tmp_path / "kept.tar.xz"
    carry_out(tmp_path, options, arms=arms(base=1))
    assert pack_results(options.folder / "cpu", archive) == 1
    carry_out(tmp_path, options, arms=arms(base=1, wide=2))
    assert pack_results(options.folder / "cpu", archive) == 2
    before = archive.read_bytes()
    others = replace(options, folder=tmp_path / "others")
    carry_out(tmp_path / "q2", others, arms=arms(base=1, wide=3))
    with pytest.raises(UserError, match="lacks; give another file"):
        pack_results(others.folder / "cpu", archive)
    shutil.rmtree(others.folder)
    carry_out(tmp_path / "q2", others, arms=arms(base=1, wide=2), title="Another")
    with pytest.raises(UserError, match=r"holds another study as lr\.study\.json"):
        pack_results(others.folder / "cpu", archive)
    (tmp_path / "mine.tar.xz").write_text("not an archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        pack_results(options.folder / "cpu", tmp_path / "mine.tar.xz")
    assert archive.read_bytes() == before
