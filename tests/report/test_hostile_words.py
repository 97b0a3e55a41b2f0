"""What runs, recipes, studies and models say reaches pages, pictures and terminals as words, and as nothing else."""

import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_compare_page import Page

import widestream
from fake_runs import write_run, write_search
from study_runs import finish, write_study
from widestream.experiments.mup import section as mup
from widestream.experiments.tune import section as tuning
from widestream.files import read_json
from widestream.report import compare, print_table, write_picture, write_report
from widestream.report.figures.drawing import Drawer
from widestream.report.formats import visible
from widestream.report.page import render_page
from widestream.study import run
from widestream.study.page.studies_page import write_studies
from widestream.study.run import StudyOptions, run_study

HOSTILE = (
    "</title></style><script>alert('x')</script><i>\" onload=\"alert(1) & &lt; {{ 7 * 7 }} {% raw %}"
    "\x00\x07\x1b[31m\x7f\x9b"
)
SHOWN = visible(HOSTILE)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ROOT = Path(__file__).parents[2]


def check(html, least):
    """The page nests, holds the hostile words as text at least so often, and has no element or attribute of theirs."""
    page = Page(html)
    assert {tag for tag, _ in page.seen}.isdisjoint({"i", "iframe", "img"})
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.S)
    assert sum(tag == "script" for tag, _ in page.seen) == len(scripts) == 1 + len(Drawer.scripts())
    assert "<" not in scripts[0], "data can end no script"
    assert scripts[1:] == Drawer.scripts(), "nothing runs but the libraries and our own"
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)
    assert not CONTROLS.search(html)
    assert sum(SHOWN in text for text in page.text) >= least
    html.encode("utf-8")
    return page


def write_hostile(root, seeds=(0,), models=("rmt", "transformer")):
    for number, model in enumerate(models):
        for seed in seeds:
            write_run(
                root / f"{number}<i>&'\" \udcff {seed}",  # a folder's name need not be UTF-8
                "transformer" if model == "transformer" else "rmt", seed=seed, steps=200,
                config={"name": f"{model} {HOSTILE}", "description": HOSTILE, "model.num_heads": 8 + number},
                info={"torch": HOSTILE, "machine": {"cpu": HOSTILE}},
                samples=[{"prompt": HOSTILE, "text": f" so {HOSTILE}", "temperature": HOSTILE}],
            )  # fmt: skip
    return root


def test_signs_stand_for_characters_that_are_swallowed_or_obeyed():
    assert visible("a\x00\x1b\x7f\x9b\ud800b") == "a␀␛␡\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"
    assert visible("two\nlines\tand − 📈 \u2028 אב") == "two\nlines\tand − 📈 \u2028 אב"


def test_a_comparison(tmp_path):
    write_hostile(tmp_path / "runs")
    search = write_search(tmp_path / "search.json")
    search.write_text(search.read_text().replace('"rmt"', '"<script>\\u0000"'))
    write_report([tmp_path / "runs"], tmp_path / "report.html", search=search, title=HOSTILE)
    page = check((tmp_path / "report.html").read_text(), least=20)
    assert page.text.count(f" so {SHOWN}") == 2, "samples"


def test_a_league(tmp_path):
    write_hostile(tmp_path / "runs", models=("transformer", *(f"rmt {number}" for number in range(7))))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    check((tmp_path / "report.html").read_text(), least=20)


def test_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_jobs", finish)
    words = CONTROLS.sub("", HOSTILE)  # control characters are refused in a study, yet a record may be of any origin
    arms = {"transformer": {"recipe": "study/cpu/transformer"}, words: {"recipe": "study/cpu/rmt", "about": words}}
    path = write_study(tmp_path / "mine.yaml", title=words, question=words, mirrors=words, arms=arms)
    record = run_study(str(path), StudyOptions(folder=tmp_path / "runs", workers=1))
    record.write_text(record.read_text().replace(json.dumps(words)[1:-1], json.dumps(HOSTILE)[1:-1]))
    shutil.rmtree(next((record.parent / "runs").iterdir()))
    write_studies([record.parent], tmp_path / "studies.html")
    check((tmp_path / "studies.html").read_text(), least=10)


@pytest.mark.parametrize(("section", "name"), [(mup, "mup-rmt"), (tuning, "tune-rmt")])
def test_a_record(section, name):
    record = read_json(ROOT / "lab" / f"{name}.json.xz")
    check(section.page(record | {"recipe": HOSTILE, "command": HOSTILE}), least=4)


def test_a_picture_is_well_formed(tmp_path):
    for path in write_picture(compare([write_hostile(tmp_path / "runs")]), tmp_path / "result"):
        assert {node.tag.partition("}")[2] for node in ElementTree.parse(path).iter()}.isdisjoint({"script", "i"})


def test_the_terminal_obeys_nothing(tmp_path):
    out = io.StringIO()
    print_table(compare([write_hostile(tmp_path / "runs")]), file=out)
    assert "␛[31m" in out.getvalue()
    assert not CONTROLS.search(out.getvalue())


def test_templates_escape_everything_and_only_drawings_are_markup():
    source = Path(widestream.__file__).parent
    for path in source.glob("report/templates/*.html"):
        assert not re.search(r"\|\s*safe|autoescape", path.read_text()), path
    makers = {path.name for path in source.rglob("*.py") if "Markup(" in path.read_text()}
    assert makers == {"drawing.py"}


def test_a_template_does_not_make_do_without_its_data():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="sections"):
        render_page("studies_page.html", paper=True)
