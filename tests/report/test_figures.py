"""Every kind of figure becomes a specification that compiles and draws without a warning, whatever it holds."""

import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.report.figures import pictures
from widestream.report.figures.axes import SMALL
from widestream.report.figures.chart import Chart, Guide, Mark, Series, Switched, with_room
from widestream.report.figures.columns import datasets
from widestream.report.figures.drawing import Drawer
from widestream.report.figures.line_spec import _apart, line_spec
from widestream.report.figures.names import shorten
from widestream.report.figures.pictures import picture_spec, write_pictures
from widestream.report.figures.row_spec import bar_rows, forest_rows
from widestream.report.figures.rows import BarChart, Forest, forest_of
from widestream.report.figures.themes import BROKEN, COLOURS, CONFIG, THEMES, in_theme, look
from widestream.report.figures.thin import MOST, room_for_each, thinned
from widestream.report.stats.intervals import Interval

vl_convert = pytest.importorskip("vl_convert")

NAN = math.nan
LONG = "hyper-connections-with-dynamic-gates-and-a-lane-count-of-{}-and-more"


def chart(*series, **changes):
    fields = {"title": "loss", "x_label": "tokens", "y_label": "held-out loss", "y_range": (2.0, 5.0)}
    return Chart(series=series, **(fields | changes))


def line(number=0, points=((1, 5.0), (2, 4.0), (4, 3.5)), **changes):
    return Series(points=points, colour=number, **({"label": f"model {number}"} | changes))


def gap(mean, half=0.05):
    return Interval(
        mean=mean, low=None if half is None else mean - half, high=None if half is None else mean + half, n=3
    )


def many(count):
    return chart(
        *(
            line(i, tuple((x, 5 - math.log(x) - i / 50) for x in range(1, 40)), label=LONG.format(i))
            for i in range(count)
        )
    )


FIGURES = {
    "two": chart(
        line(0, label=None, model="model 0", seed="0", thick=False),
        line(0, band=((1, 4.8, 5.1), (4, 3.4, 3.6)), measured=(5.0, 4.1, 3.5), value="3.500"),
        line(1, titles=("a", "b", "c")),
        guide=Guide(y=3.5, start=3, end=4, text="model 1: 75 % of the tokens", colour=1),
        marks=(Mark(x=2, y=4.0, text="half", colour=0, model="model 0"),),
    ),
    "around zero": chart(line(points=((1, -0.5), (2, 0.5))), y_range=(-1.0, 1.0), zero=True),
    "logarithmic": chart(line(points=((1e-4, 3.0), (1e-1, 4.0))), log_x=True),
    "one point": chart(line(points=((5, 3.0),))),
    "one x": chart(line(points=((5, 3.0),)), line(1, points=((5, 4.0),)), log_x=True, y_range=(3.0, 3.0)),
    "no points": chart(line(points=())),
    "no lines": chart(),
    "not finite": chart(
        line(points=((1, NAN), (2, math.inf), (3, 3.0))),
        y_range=(NAN, NAN),
        marks=(Mark(x=1, y=NAN, text="lost", colour=0),),
    ),
    "diverged": chart(line(), line(1, label=None, model="other", seed="1", thick=False, broken=True)),
    "fourteen": many(14),
    "thirty": many(30),
    "switched": Switched(charts={"tokens": chart(line()), "time": chart(line(points=((1, 2.0), (9, 3.0))))}),
    "bars": BarChart(title="times", x_label="s", values={LONG.format(1): 0.5, "b": 2.0, "none": 0.0}, line_at=1.0),
    "no bars": BarChart(title="times", x_label="s", values={}),
    "forest": forest_of([("a", gap(-0.2)), ("a", gap(0.3, None)), ("b", gap(NAN, None))]),
    "panels": Forest(
        title="differences",
        x_label="nats",
        names=tuple(LONG.format(i) for i in range(30)),
        panels={
            heading: {LONG.format(i): gap(i / 20 - 0.5) for i in range(29)}
            for heading in ("At equal tokens", "At equal time")
        },
        x_range=(-0.3, 0.5),
        unseen={"At equal tokens": frozenset([LONG.format(0)])},
        remarks={LONG.format(29): "diverged"},
    ),
}  # fmt: skip


def compiled(spec, capfd):
    """The Vega specification, made without a warning."""
    vega = vl_convert.vegalite_to_vega(in_theme(spec, "light"), show_warnings=True)
    assert "WARN" not in "".join(capfd.readouterr())
    return vega


def drawn(figure):
    return ET.fromstring(vl_convert.vegalite_to_svg(in_theme(picture_spec([figure]), "light")))


def words(root):
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_it_compiles_and_draws_without_a_warning(name, capfd):
    compiled(picture_spec([FIGURES[name]]), capfd)
    text = "".join(words(drawn(FIGURES[name])))
    assert "NaN" not in text
    assert "undefined" not in text


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_page_draws_compiles_too(name, capfd):
    """The script puts together the same parts: lines, sizes, and logarithmic axes where there may be some."""
    figure = FIGURES[name]
    if isinstance(figure, BarChart | Forest):
        make = bar_rows if isinstance(figure, BarChart) else forest_rows
        for narrow in (False, True):
            compiled({**make(figure, narrow).wide(358 if narrow else 1072), "config": CONFIG}, capfd)
        return
    for one in figure.charts.values() if isinstance(figure, Switched) else [figure]:
        for lines in (line_spec(one), line_spec(one, SMALL)):
            for axis, log in lines.logs.items():
                if log is not None:
                    assert 0 < log["domain"][0] < log["domain"][1]
                    lines.spec["encoding"][axis]["scale"] |= {"type": "log", "domain": log["domain"]}
                    lines.spec["encoding"][axis]["axis"]["labelExpr"] = log["numbers"]
            spec = {**lines.spec, "datasets": {**datasets(lines.series), "hover": []}, "config": CONFIG}
            names = {signal["name"] for signal in compiled(spec, capfd)["signals"]}
            assert {"zoom_x", "zoom_y", "hidden", "seeds"} <= names


def test_lines_lie_where_the_numbers_say():
    figure = chart(line(points=((0, 5.0), (50, 3.5), (100, 2.0))))
    paths = [
        node.get("d") or ""
        for node in drawn(figure).iter("{http://www.w3.org/2000/svg}path")
        if node.get("stroke-width") == "2.5"
    ]
    assert [tuple(map(float, point.split(","))) for point in re.findall(r"[\d.]+,[\d.]+", paths[0])] == [
        (0, 0), (210, 140), (420, 280)
    ]  # fmt: skip


def test_seeds_are_thin_and_diverged_runs_dashed():
    columns = line_spec(FIGURES["diverged"]).series
    assert [(one["t"], one["d"], one["s"]) for one in columns] == [(1, 0, ""), (0, BROKEN, "1")]


def test_names_stand_at_line_ends_where_there_is_room_for_them():
    assert [row["text"] for row in ends(FIGURES["two"])] == ["model 0 3.500", "model 1"]
    assert ends(FIGURES["fourteen"]) == ends(FIGURES["thirty"]) == []
    short = [row["text"] for row in ends(many(8))]
    assert len(set(short)) == 8
    assert max(map(len, short)) <= 20


def ends(figure):
    return [
        row
        for layer in line_spec(figure).spec["layer"]
        if layer.get("name") == "ends"
        for row in layer["data"]["values"]
    ]


def test_thirty_models_look_different():
    assert len({look(number) for number in range(30)}) == 30
    assert len({look(number)[0] for number in range(COLOURS)}) == COLOURS


@given(st.lists(st.floats(0.1, 300), min_size=1, max_size=8), st.booleans())
def test_names_do_not_overlap(values, log):
    moved = _apart(values, (0.1, 300), log, 280)
    low, high = (math.log(0.1), math.log(300)) if log else (0.1, 300)
    places = sorted(((math.log(value) if log else value) - low) / (high - low) * 280 for value in moved)
    assert all(after - before >= 16 - 1e-6 for before, after in pairwise(places))
    assert places[0] >= -1e-6
    assert places[-1] <= 280 + 1e-6


def test_a_difference_beyond_the_frame_is_an_arrow_with_its_figure():
    rows = forest_rows(FIGURES["panels"]).spec["hconcat"][0]["data"]["values"]
    assert [row["beyond"] for row in rows[:29]] == [-1] * 4 + [0] * 17 + [1] * 8
    assert rows[28]["text"] == "+0.900"
    assert rows[28]["at"] == 0.5
    assert rows[29]["remark"] == "diverged"
    assert all(-0.3 <= row[end] <= 0.5 for row in rows for end in ("from", "to") if end in row)


def test_what_is_not_claimed_is_grey():
    first, second = (panel["data"]["values"] for panel in forest_rows(FIGURES["panels"]).spec["hconcat"])
    assert (first[0]["c"], second[0]["c"]) == (5, 0)
    assert [row["c"] for row in forest_rows(FIGURES["forest"]).spec["hconcat"][0]["data"]["values"][:2]] == [0, 5]


def test_names_that_occur_twice_are_told_apart():
    assert FIGURES["forest"].names == ("a", "a (2)", "b")


@given(st.lists(st.text("ab-", min_size=1, max_size=60), min_size=1, max_size=12, unique=True), st.integers(12, 40))
def test_short_names_are_short_and_stay_different(names, most):
    short = shorten(names, most)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert all(len(form) <= most for form in short.values())
    assert all(short[name] == name for name in names if len(name) <= most)


def test_a_short_name_keeps_what_differs():
    middle = [f"transformer-with-a-long-name-{word}-and-the-same-long-ending" for word in ("gold", "flux")]
    assert all(word in form for word, form in zip(("gold", "flux"), shorten(middle, 24).values(), strict=True))
    assert shorten([LONG.format(1)], 20)[LONG.format(1)].startswith("hyper-c")


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=2000), st.integers(10, 100))
def test_fewer_points_keep_the_ends_and_the_extremes(values, most):
    kept = thinned(values, most)
    assert len(kept) <= most or len(kept) == len(values)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    assert {min(values), max(values)} <= {values[i] for i in kept}


def test_a_long_line_is_drawn_through_measured_points():
    points = tuple((float(x), math.sin(x / 7)) for x in range(10_000))
    lines = line_spec(chart(line(points=points), y_range=(-1.0, 1.0)))
    (columns,) = lines.series
    assert lines.cut
    assert len(columns["x"]) <= MOST
    assert {(x, y) for x, y in zip(columns["x"], columns["y"], strict=True)} <= {
        (x, float(f"{y:.6g}")) for x, y in points
    }
    assert 30 * room_for_each(30) <= 30 * MOST / 1.5


def test_what_figures_share_stands_once():
    points = tuple((float(x), 1 / (x + 1)) for x in range(100))
    drawer = Drawer()
    for _ in range(5):
        drawer.draw(chart(line(points=points)))
    one = Drawer()
    one.draw(chart(line(points=points)))
    assert len(drawer.data()) < len(one.data()) + 200


def test_data_hold_no_markup_and_no_number_that_json_lacks():
    drawer = Drawer()
    for figure in FIGURES.values():
        drawer.draw(figure)
    drawer.draw(chart(line(label="</script><b>"), y_label="<i>"))
    assert "<" not in drawer.data()
    found = json.loads(drawer.data(), parse_constant=lambda word: pytest.fail(word))
    assert len(found["figures"]) == len(FIGURES) + 1


def test_figures_are_told_to_those_who_hear_them():
    text = Drawer().draw(FIGURES["two"])
    assert 'role="img"' in text
    assert "loss: model 0 goes from 5 to 3.5; model 1 goes from 5 to 3.5." in text
    assert "a -0.200; a (2) +0.300" in Drawer().draw(FIGURES["forest"])


def test_a_picture_brings_its_colours_and_loads_nothing(tmp_path):
    light, dark = write_pictures(tmp_path / "result", [FIGURES["two"], FIGURES["bars"]], 'result "1" <b>')
    for path, theme in ((light, "light"), (dark, "dark")):
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.get("aria-label") == 'result "1" <b>'
        assert THEMES[theme]["s1"] in text
        assert "var(--" not in text
        assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", text)


def test_figures_beside_each_other_keep_their_own_names_and_lines():
    one, other = chart(line(0, label="left", value="1")), chart(line(1, ((1, 2.0), (4, 2.5)), label="right", value="2"))
    root = ET.fromstring(vl_convert.vegalite_to_svg(in_theme(picture_spec([one, other]), "light")))
    assert [word for word in words(root) if word in ("left 1", "right 2")] == ["left 1", "right 2"]
    paths = [node for node in root.iter("{http://www.w3.org/2000/svg}path") if node.get("stroke-width") == "2.5"]
    assert [node.get("stroke") for node in paths] == [THEMES["light"]["s0"], THEMES["light"]["s1"]]


def test_without_the_extra_a_sentence_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(pictures.sys.modules, "vl_convert", None)
    assert write_pictures(tmp_path / "result", [FIGURES["two"]], "result") == []
    assert capsys.readouterr().err == f"{pictures.MISSING}\n"
    assert "pip install 'widestream[pictures]'" in pictures.MISSING
    assert not list(tmp_path.iterdir())


def test_a_range_of_nothing_is_a_range():
    assert with_room([], 0.1, 0.1) == with_room([NAN], 0.1, 0.1) == (-0.1, 0.1)


def test_both_themes_have_the_same_variables():
    assert THEMES["light"].keys() == THEMES["dark"].keys()


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "s0", "s1", "s2", "s3", "s4", "s5"])
def test_text_and_lines_have_enough_contrast(theme, name):
    one, other = sorted((luminance(THEMES[theme][name]), luminance(THEMES[theme]["paper"])))
    assert (other + 0.05) / (one + 0.05) >= 4.5
