"""What the charts of a comparison show: every model in view, however long, and diverged runs as what they are."""

import pytest
from test_diverged import diverge, three_seeds

from fake_runs import loss_at, write_run
from widestream.report import compare
from widestream.report.figures.comparison_charts import gap_chart, loss_chart, losses_in_view, ranking
from widestream.report.figures.small_charts import small_charts
from widestream.report.league import is_league


def lines(chart, model):
    return [line for line in chart.series if line.name == model]


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    root = tmp_path_factory.mktemp("lost")
    three_seeds(root, "transformer")
    three_seeds(root, "rmt", lost=(2,))
    return compare([root])


def test_a_diverged_seed_is_dashed_to_where_it_diverged_and_in_no_mean(lost):
    chart = loss_chart(lost, "tokens")
    first, second, mean, diverged = lines(chart, "rmt")
    assert [line.broken for line in (first, second, mean, diverged)] == [False, False, False, True]
    assert (diverged.seed, diverged.label) == ("2", None)
    assert diverged.points[-1][0] == 0.5 * mean.points[-1][0]
    assert [mark.text for mark in chart.marks] == ["diverged\nat step 107"]
    ends = [first.points[-1][1], second.points[-1][1]]
    assert mean.points[-1][1] == pytest.approx(sum(ends) / 2, abs=1e-6)
    assert all(min(ends) - 1e-9 <= edge <= max(ends) + 1e-9 for edge in mean.band[-1][1:])


def test_no_figure_of_survivors_stands_at_a_line_end(lost):
    assert [line.value for line in loss_chart(lost, "tokens").series if line.label == "rmt"] == ["(2 of 3 seeds)"]
    gap = gap_chart(lost)
    assert [line.value for line in gap.series if line.label] == ["(2 of 3 seeds)"]
    assert gap.marks == ()
    assert loss_chart(lost, "tokens").guide is None


def test_a_model_of_which_every_seed_diverged_is_drawn(tmp_path):
    three_seeds(tmp_path, "transformer")
    three_seeds(tmp_path, "rmt", lost=(0, 1, 2))
    chart = loss_chart(compare([tmp_path]), "tokens")
    assert [(line.broken, line.seed) for line in lines(chart, "rmt")] == [(True, seed) for seed in "012"]
    assert len(chart.marks) == 3


def test_what_was_measured_stands_beside_what_was_smoothed(lost):
    mean = next(line for line in loss_chart(lost, "tokens").series if line.label == "transformer")
    runs = lost.groups[0].runs
    for i, measured in enumerate(mean.measured):
        assert measured == pytest.approx(sum(run.curve[i].loss for run in runs) / 3)
    assert any(measured != loss for measured, (_, loss) in zip(mean.measured, mean.points, strict=True))


def test_losses_in_view_hold_every_model_after_its_first_fall_whatever_its_length():
    short = [(x, 6 - x / 10) for x in range(1, 11)]
    long = [(x, 4 - x / 1000) for x in range(1, 1001)]
    low, high = losses_in_view([short, long, [(5, 5.5)]])
    assert low < 3.0
    assert high > 5.9


def test_one_that_explodes_does_not_flatten_the_others():
    usual = [[(x, 3 + n / 10 + 1 / x) for x in range(1, 100)] for n in range(3)]
    exploded = [(x, 3 + 2.0**x) for x in range(1, 100)]
    low, high = losses_in_view([*usual, exploded])
    assert low < 3.0
    assert 3.3 < high < 8


def write_many(root):
    """Eight models of one length; one long, one of one point, one with a diverged seed, one with none left."""
    for number in range(8):
        write_run(root / f"m{number}", "rmt", steps=400, config={"name": f"m{number}", "model.num_heads": number + 1})
    for name, steps, every, heads in (("long", 4000, 100, 10), ("point", 25, 25, 11)):
        write_run(root / name, "rmt", steps=steps, every=every, config={"name": name, "model.num_heads": heads})
    for seed in range(2):
        config = {"name": "half", "model.num_heads": 12}
        write_run(root / f"half{seed}", "rmt", seed=seed, steps=400, finished=seed == 0, config=config)
    diverge(root / "half1", 201)
    config = {"name": "none", "model.num_heads": 13}
    diverge(write_run(root / "none", "rmt", steps=400, finished=False, config=config, loss=lambda step: 9.0), 201)
    write_run(root / "base", "transformer", steps=400, loss=lambda step: loss_at("transformer", step))
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return compare([write_many(tmp_path_factory.mktemp("many"))])


def test_the_ranking_names_who_is_out_of_it_and_why(many):
    assert is_league(many)
    figure = ranking(many)
    assert figure.remarks.keys() == {"point", "half", "none"}
    assert figure.remarks["half"] == "a seed diverged"
    assert figure.remarks["none"] == "diverged"
    assert figure.remarks["point"].startswith("only ")
    assert len(figure.names) == len(set(figure.names)) == 12
    assert not set(figure.remarks) & set(figure.panels["At equal tokens"])


def test_every_small_chart_has_its_model_in_view(many):
    charts = small_charts(many)
    assert {chart.name for chart in charts} == set(ranking(many).names)
    for one in charts:
        for chart in one.figure.charts.values():
            (left, right), (low, high) = chart.x_range, chart.y_range
            (mine,) = [line for line in lines(chart, one.name) if line.label or one.name == "none"]
            x, y = mine.points[-1]
            assert left <= x <= right, one.name
            assert x >= 0.45 * right, one.name
            assert low <= y <= high or one.name == "none"
    told = {chart.name: chart.says for chart in charts}
    assert told["half"].startswith("1 of 2 seeds diverged")
    assert "tokens" in told["point"]
    assert any(line.broken for chart in charts if chart.name == "half" for line in chart.figure.charts["tokens"].series)
