"""The health of streams on the page of a comparison."""

import json

import pytest

from fake_runs import TOKENS_PER_STEP, write_run
from widestream.report import compare
from widestream.report.compare_page import compare_page
from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.health_charts import health_charts
from widestream.report.figures.line_spec import line_spec
from widestream.runs.metrics import finite


def watch(folder, gain=lambda step: 2.0, every=100, steps=1700, **more):
    """Put rows of a watched stream into a run's metrics, behind the other rows of their steps."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows += [
        {
            "kind": "stream", "step": step, "tokens": step * TOKENS_PER_STEP, "state_rms": [0.5, 1.0, 0.5 * gain(step)],
            "update": [1.0, 0.5, 0.25], "written_grad_rms": [3.0, 2.0, 1.0], "forward_gain": finite(gain(step)),
            "backward_gain": 3.0, "largest_logit": 7.0, **more,
        }
        for step in range(every, steps + 1, every)
    ]  # fmt: skip
    rows.sort(key=lambda row: row["step"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path):
    """A transformer that was not watched, two watched seeds of an RMT, and one that diverged."""
    write_run(tmp_path / "transformer", "transformer")
    for seed, gain in enumerate((2.0, 4.0)):
        watch(
            write_run(tmp_path / f"rmt{seed}", "rmt", seed=seed),
            lambda step, gain=gain: gain,
            rows_in_use=[0.1, 0.4, 0.8],
        )
    lost = write_run(tmp_path / "rmt2", "rmt", seed=2, steps=400, finished=False, config={"train.steps": 1700})
    (lost / "nonfinite_step_200.safetensors").write_bytes(b"")
    watch(lost, lambda step: 10.0 * step if step < 200 else float("inf"), steps=200)
    return tmp_path


def test_runs_that_nobody_watched_have_no_section(tmp_path):
    write_run(tmp_path / "a", "rmt")
    comparison = compare([tmp_path])
    assert health_charts(comparison) == []
    assert "Health of the stream" not in compare_page(comparison)


def test_seeds_their_mean_and_a_run_that_diverged(runs):
    charts = {chart.name: chart.figure.charts for chart in health_charts(compare([runs]))}
    assert list(charts) == [
        "Size of the stream", "Gain of the depth", "Gradient by what is written", "Size of a write",
        "Largest logit", "Rows in use",
    ]  # fmt: skip
    assert list(charts["Gain of the depth"]) == ["forward", "backward"]
    forward = charts["Gain of the depth"]["forward"]
    mean = [line for line in forward.series if line.thick]
    assert [line.label for line in mean] == ["rmt"]
    assert len(mean[0].points) == 17
    assert {y for _, y in mean[0].points} == {3.0}
    assert mean[0].points[-1][0] == pytest.approx(1700 * TOKENS_PER_STEP / 1e6)
    (lost,) = (line for line in forward.series if line.broken)
    assert [y for _, y in lost.points] == [1000.0], "what is not finite is not drawn"
    seeds = [line for line in forward.series if not line.thick and not line.broken]
    assert [line.points[0][1] for line in seeds] == [2.0, 4.0]
    assert forward.log_y, "a diverging gain does not flatten the others"
    assert not charts["Gain of the depth"]["backward"].log_y


def test_sites_are_those_of_the_list(runs):
    charts = {chart.name: chart.figure.charts for chart in health_charts(compare([runs]))}
    ends = {
        (name, view): next(line.points[-1][1] for line in chart.series if line.thick)
        for name in ("Rows in use", "Gradient by what is written", "Size of a write")
        for view, chart in charts[name].items()
    }
    assert ends["Rows in use", "first"] == 0.1
    assert ends["Rows in use", "middle"] == 0.4
    assert ends["Rows in use", "last site"] == 0.8
    assert ends["Gradient by what is written", "first"] == 3.0
    assert ends["Gradient by what is written", "last site"] == 1.0
    assert ends["Size of a write", "last site"] == 0.25


def test_lanes_are_drawn_where_there_are_some(tmp_path):
    watch(write_run(tmp_path / "a", "rmt"), lanes_alike=[1.0, 0.2, 0.6])
    (lanes,) = (
        chart.figure.charts for chart in health_charts(compare([tmp_path])) if chart.name == "Likeness of lanes"
    )
    assert {view: chart.series[0].points[0][1] for view, chart in lanes.items()} == {
        "least over sites": 0.2,
        "last site": 0.6,
    }


def test_the_section_stands_on_the_page(runs):
    page = compare_page(compare([runs]))
    section = page.partition("<h2>Health of the stream</h2>")[2].partition("</section>")[0]
    assert section.count('class="chart"') == section.count("<figcaption>") == 6
    assert "Gain of the depth, forward, over training tokens: rmt goes from 3 to 3." in section
    assert "A gain that runs away, up or down, is a warning." in section


def test_odd_rows_of_a_monitor_are_no_reason_to_refuse_a_run(tmp_path):
    run = write_run(tmp_path / "a", "rmt")
    watch(run, largest_logit=None, note="words", lanes_alike=[None, 0.5])
    (found,) = compare([tmp_path]).runs
    assert "note" not in found.looks[0].values
    names = [chart.name for chart in health_charts(compare([tmp_path]))]
    assert "Largest logit" not in names
    assert "Likeness of lanes" in names


def test_a_logarithmic_axis_at_first():
    line = Series(points=((1, 0.01), (2, 100.0)), colour=0, label="a")
    chart = Chart(title="gain", x_label="x", y_label="y", series=(line,), y_range=(0.008, 125.0), log_y=True)
    spec = line_spec(chart).spec
    assert spec["encoding"]["y"]["scale"] == {"domain": [0.0098, 125.0], "type": "log", "nice": False}
    (ends,) = (layer for layer in spec["layer"] if layer.get("name") == "ends")
    assert ends["encoding"]["y"]["field"] == "log_place"
