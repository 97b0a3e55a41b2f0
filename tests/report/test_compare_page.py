import json
import re
from html.parser import HTMLParser

import pytest

from fake_runs import write_run, write_search
from widestream.errors import UserError
from widestream.report import compare, write_picture, write_report
from widestream.report.compare_page import compare_page

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report([demo], folder / "report.html", search=write_search(folder / "search.json"))
    return (folder / "report.html").read_text(encoding="utf-8")


NAMES = {
    "http://www.w3.org/2000/svg", "http://www.w3.org/2000/xmlns/", "http://www.w3.org/1999/xlink",
    "https://vega.github.io/schema/vega/v6.json", "https://vega.github.io/schema/vega-lite/v6.json",
    "https://github.com/vega/vega-lite/issues/2415",
}  # fmt: skip
"""Addresses that stand in a page as names, or in words of a library, and are not fetched."""


def test_it_loads_nothing(report):
    for tag, attributes in Page(report).seen:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "data", "xlink:href"} & attributes.keys()
    assert "url(" not in without_scripts(report)
    assert "@import" not in report
    assert "sourceMappingURL" not in report
    assert set(re.findall(r"https?://[\w./-]+", report)) <= NAMES


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def figures(page):
    """What the page's script draws, references resolved."""
    found = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)[1])
    shared = []

    def whole(node):
        if isinstance(node, dict):
            return shared[node["$"]] if "$" in node else {name: whole(value) for name, value in node.items()}
        return [whole(value) for value in node] if isinstance(node, list) else node

    for part in found["shared"]:
        shared.append(whole(part))
    return whole(found["figures"])


def test_it_is_made_for_phones_and_for_the_dark(report):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in report
    assert "@media (prefers-color-scheme: dark)" in report
    tables = [i for i, (tag, _) in enumerate(Page(report).seen) if tag == "table"]
    boxes = [
        i for i, (tag, attributes) in enumerate(Page(report).seen) if tag == "div" and attributes.get("class") == "box"
    ]
    assert [box + 1 for box in boxes] == tables, "every table scrolls inside its own box"
    assert "main { overflow-wrap: break-word;" in report, "a long path in the text does not widen the page"


def test_verdict_comes_before_pictures_and_pictures_before_tables(report):
    assert 0 < report.index('class="headline"') < report.index('class="chart"') < report.index("<table")


def test_every_run_folder_is_named(report, demo):
    for folder in demo.iterdir():
        assert f">{folder}</th>" in report


def test_charts_are_named_for_those_who_hear_them(report):
    names = [attributes["aria-label"] for _, attributes in Page(report).seen if attributes.get("role") == "img"]
    assert len(names) == 3  # loss, the gap, the search
    assert "transformer goes from" in names[0]


def test_a_chart_has_every_seed_over_every_resource(report):
    loss, gap, search = figures(report)
    assert list(loss["views"]) == list(gap["views"]) == ["tokens", "training FLOPs", "wall time"]
    for view in loss["views"].values():
        assert sum(not line["t"] for line in view["series"]) == 4
        assert {line["m"] for line in view["series"]} == {"transformer", "rmt"}
        assert all(line["x"] for line in view["series"])
    assert list(search["views"]) == [""]


def test_a_page_without_scripts_says_so_and_has_its_tables(report):
    assert "<noscript>" in report
    assert "scripts are off here" in report
    assert without_scripts(report).count("<table") > 4


def test_samples_of_one_prompt_stand_side_by_side(report):
    rows = re.findall(r'<div class="samples">(.*?)</div>\n</div>', report, flags=re.S)
    assert len(rows) == 2
    assert all(">transformer</h3>" in row and ">rmt</h3>" in row for row in rows)
    assert "<b>When he came back</b> she saw" in report


def test_the_search_is_shown_with_the_rates_that_won(report):
    text = " ".join(Page(report).text)
    assert "had the same grid" in text
    assert "4.600 ✓" in text
    assert "diverged" in text
    assert "use the best rate of each" in text


def test_not_comparable_gets_a_banner_and_no_verdict(tmp_path):
    write_run(tmp_path / "a", "transformer", steps=100)
    write_run(tmp_path / "b", "rmt", steps=100, data={"tokenizer_sha256": "other"})
    text = compare_page(compare([tmp_path]))
    assert 'class="banner"' in text
    assert "tokenizer differs" in text
    assert "Bits per byte are shown in place of loss" in text
    assert "Resources to reach" not in text
    assert "The gap over tokens" not in text
    Page(text)


def test_a_single_unfinished_run_makes_a_page(tmp_path):
    write_run(tmp_path / "a", "rmt", steps=50, finished=False)
    text = compare_page(compare([tmp_path / "a"]))
    assert "unfinished" in text
    assert "The gap over tokens" not in text
    Page(text)


def test_partial_evaluations_are_told_apart_from_the_last_whole_one(tmp_path):
    rows = [
        {
            "kind": "eval", "step": step, "tokens": step * 4096, "flops": step * 1e9, "loss": 5 - step / 100,
            "bits_per_byte": 1.0, "target_tokens": 900 if step < 100 else 8000, "whole": step == 100,
            "clock": {"wall_s": float(step)},
        }
        for step in (25, 50, 75, 100)
    ]  # fmt: skip
    for model in ("transformer", "rmt"):
        write_run(tmp_path / model, model, rows=rows)
    comparison = compare([tmp_path])
    assert comparison.pairs[0].tokens == 100 * 4096
    assert "They are made on 900 held-out tokens; the last evaluation, on 8,000." in compare_page(comparison)


def test_the_report_replaces_an_older_one_whole(demo, tmp_path):
    (tmp_path / "report.html").write_text("<!doctype html>old")
    write_report([demo], tmp_path / "report.html", title="A title")
    assert "<title>A title</title>" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_bad_run_leaves_the_older_report_alone(tmp_path):
    (tmp_path / "report.html").write_text("<!doctype html>old")
    with pytest.raises(UserError):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "<!doctype html>old"


def test_places_that_cannot_be_written_to(demo, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        write_report([demo], tmp_path / "no" / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([demo], tmp_path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(demo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_text("<!doctype html>old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_report([demo], tmp_path / "report.html")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "<!doctype html>old")]


def test_the_picture_for_a_readme(demo, tmp_path):
    light, dark = write_picture(compare([demo]), tmp_path / "result")
    assert (light.name, dark.name) == ("result-light.svg", "result-dark.svg")
    lines = [len(re.findall(r'stroke-width="2.5"', path.read_text())) for path in (light, dark)]
    assert lines == [3, 3], "the means of loss and gap"
