import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from widestream.report.figures.scales import linear_ticks, log_ticks
from widestream.report.figures.svg import THEMES, Chart, Guide, Mark, Series, _apart, render, standalone

SVG = "{http://www.w3.org/2000/svg}"


def chart(**changes):
    lines = (
        Series(points=((1, 5.0), (2, 4.0), (4, 3.5)), colour=0, thick=False),
        Series(
            points=((1, 5.1), (2, 4.2), (4, 3.4)), colour=0, label="one <a>", value="3.4", titles=("x", "y & z", "w")
        ),
        Series(points=((1, 4.9), (4, 3.2)), colour=1, label="two", band=((1, 4.8, 5.0), (4, 3.1, 3.3))),
    )
    fields = {
        "title": 'loss of "one" & two',
        "x_label": "tokens <m>",
        "y_label": "loss",
        "series": lines,
        "y_range": (3.0, 4.5),
    }
    return Chart(**{**fields, **changes})


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(3, 9))
def test_linear_ticks_are_round_few_and_inside(low, span, most):
    ticks = linear_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-3


@given(st.floats(-6, 18), st.floats(0.4, 12), st.integers(3, 8))
def test_log_ticks_are_few_and_inside(start, decades, most):
    low, high = 10**start, 10 ** (start + decades)
    ticks = log_ticks(low, high, most)
    assert 1 <= len(ticks) <= most
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize("width", [360, 520])
def test_a_chart_is_well_formed_and_says_what_it_shows(width):
    root = ET.fromstring(render(chart(), width, 300))
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'loss of "one" & two'
    text = [node.text for node in root.iter(f"{SVG}text")]
    assert "tokens <m>" in text
    assert "one <a> 3.4" in text
    assert [node.text for node in root.iter(f"{SVG}title")] == ["w", "y & z"]  # the first point is above the frame
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    assert len(list(root.iter(f"{SVG}polygon"))) == 1


def test_a_narrow_chart_breaks_a_long_legend_into_rows():
    many = tuple(
        Series(points=((1, 4.0), (2, 3.5)), colour=i, label=f"a model of number {i}", value="3.5") for i in range(4)
    )
    labels = [
        node for node in ET.fromstring(render(chart(series=many), 360, 300)).iter(f"{SVG}text") if node.get("class")
    ]
    assert len({node.get("y") for node in labels}) > 1
    assert all(float(node.get("x", 0)) + 7 * len(node.text or "") <= 360 for node in labels)


def test_seeds_are_thin_and_means_thick():
    kinds = [node.get("class") for node in ET.fromstring(render(chart(), 520, 300)).iter(f"{SVG}polyline")]
    assert kinds == ["line thin", "line thick", "line thick"]


def test_lines_lie_where_the_numbers_say():
    root = ET.fromstring(render(chart(), 520, 300))
    frame = next(node for node in root.iter(f"{SVG}svg") if node is not root)
    width, height = float(frame.get("width", 0)), float(frame.get("height", 0))
    last = list(root.iter(f"{SVG}polyline"))[-1].get("points", "").split()[-1]
    x, y = map(float, last.split(","))
    assert x == pytest.approx(width)
    assert y == pytest.approx(height * (4.5 - 3.2) / 1.5, abs=0.1)


def test_a_logarithmic_axis_gives_equal_ratios_equal_room():
    root = ET.fromstring(render(chart(log_x=True), 520, 300))
    line = list(root.iter(f"{SVG}polyline"))[1].get("points", "").split()
    xs = [float(point.split(",")[0]) for point in line]
    assert xs[0] == 0
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.2)


def test_guide_marks_and_the_zero_line_are_drawn():
    drawn = render(
        chart(
            guide=Guide(y=3.5, start=3, end=4, text="two: 75 %", colour=1),
            marks=(Mark(x=2, y=4.2, text="half", colour=0),),
        ),
        520,
        300,
    )
    text = [node.text for node in ET.fromstring(drawn).iter(f"{SVG}text")]
    assert {"two: 75 %", "half"} <= set(text)
    around_zero = render(chart(y_range=(-1.0, 1.0), zero=True), 520, 300)
    assert 'class="zero"' in around_zero


@given(st.lists(st.floats(0, 300), min_size=1, max_size=8))
def test_names_do_not_overlap(places):
    moved = _apart(places, 17, 300)
    order = sorted(range(len(places)), key=lambda i: places[i])
    heights = [moved[i] for i in order]
    assert all(b - a >= 17 - 1e-6 for a, b in pairwise(heights))
    assert max(heights) <= 300 + 1e-6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_file_of_its_own_brings_its_colours_and_loads_nothing(theme):
    text = standalone([render(chart(), 520, 300)] * 2, 520, 300, theme, "result <1>")
    root = ET.fromstring(text)
    assert root.get("aria-label") == "result <1>"
    assert THEMES[theme]["s1"] in text
    assert text.replace('"http://www.w3.org/2000/svg"', "").count("http") == 0


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
