"""Many models against one reference: ranking, sentences, page, picture."""

import io
import xml.etree.ElementTree as ElementTree

import pytest
from test_compare_page import Page, figures

from fake_runs import loss_at, write_run
from widestream.report import compare, print_table, write_picture, write_report
from widestream.report.figures.comparison_charts import ranking
from widestream.report.league import is_league, league_table, league_verdict, ranked

LEADS = {"wide": -0.2, "wider": -0.3, "even": 0.0, "behind": 0.15, "far": 2.0, "late": -0.05, "last": 0.3}


def write_league(root, seeds=(0, 1, 2), leads=LEADS):
    for seed in seeds:
        write_run(root / f"transformer-{seed}", "transformer", seed=seed, steps=400)
        for number, (name, lead) in enumerate(leads.items()):
            write_run(
                root / f"{name}-{seed}",
                "rmt",
                seed=seed,
                steps=400,
                config={"name": f"zoo/{name}", "description": f"Stream <{name}>.", "model.stream.key_dim": 8 + number},
                # a seed's own small luck, so that intervals have a width
                loss=lambda step, seed=seed, lead=lead: (
                    loss_at("transformer", step, seed) + lead * step / 400 + 0.004 * (-1) ** seed
                ),
            )
    return root


@pytest.fixture(scope="module")
def league(tmp_path_factory):
    return write_league(tmp_path_factory.mktemp("league"))


def test_six_models_are_no_league(league, tmp_path):
    few = write_league(tmp_path, leads=dict(list(LEADS.items())[:5]))
    assert not is_league(compare([few]))
    assert is_league(compare([league]))


def test_the_lowest_loss_stands_first(league):
    names = [pair.other.label for pair in ranked(compare([league]))]
    assert names == ["wider", "wide", "late", "even", "behind", "last", "far"]


def test_the_verdict_counts_only_what_the_intervals_show(league, tmp_path):
    verdict = league_verdict(compare([league]))
    assert verdict.headline.startswith(
        "At equal tokens 3 of 7 models have a lower held-out loss than transformer, 3 a higher one, and for 1 no "
        "difference is seen. In front: wider (−0.299), wide (−0.199) and late (−0.049)."
    )
    assert "interval over seeds" in str(verdict)
    single = league_verdict(compare([write_league(tmp_path, seeds=(0,))]))
    assert "no difference is seen" not in single.headline
    assert "One seed each" in str(single)


def test_the_table_has_every_model_and_the_reference_in_its_place(league):
    table = league_table(compare([league]))
    names = [row[0] for row in table.rows]
    assert len(names) == 8
    assert names.index("late") < names.index("transformer") < names.index("behind")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["wide"]["at equal tokens"].startswith("−0.1")
    assert rows["far"]["tokens to its best"] == "not reached"
    assert rows["wide"]["state"] == "1,024"
    assert rows["transformer"]["step time"] == rows["transformer"]["peak memory"] == "100\N{NO-BREAK SPACE}%"
    assert rows["wide"]["step time"] == f"{100 * 9100 / 6900:.0f}\N{NO-BREAK SPACE}%"


def test_the_page_nests_and_holds_every_model(league, tmp_path):
    write_report([league], tmp_path / "report.html", title="League")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.text)
    for name in LEADS:
        assert f"Stream <{name}>." in words
    drawn = figures(text)
    assert len(drawn) == 1 + len(LEADS)
    assert all(list(figure["views"]) == ["tokens", "training FLOPs", "wall time"] for figure in drawn[1:])


def test_what_lies_far_behind_is_told_at_the_edge(league):
    figure = ranking(compare([league]))
    assert list(figure.panels) == ["At equal tokens", "At equal training FLOPs", "At equal wall time"]
    tokens = figure.panels["At equal tokens"]
    assert tokens["far"].mean > figure.x_range[1] > tokens["last"].mean
    assert all(
        figure.x_range[0] < gap.low < gap.high < figure.x_range[1] for name, gap in tokens.items() if name != "far"
    )


def test_picture_and_terminal(league, tmp_path):
    comparison = compare([league])
    for path in write_picture(comparison, tmp_path / "picture"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert "At equal tokens" in root.get("aria-label")
    out = io.StringIO()
    print_table(comparison, file=out)
    assert "All models" in out.getvalue()
    assert all(name in out.getvalue() for name in LEADS)
