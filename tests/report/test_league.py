"""Many models against one reference: ranking, sentences, page, picture."""

import io
import xml.etree.ElementTree as ElementTree

import pytest
from test_compare_page import Page, figures

from fake_runs import loss_at, write_run
from widestream.report import compare, print_table, write_picture, write_report
from widestream.report.comparison import Choice
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
        "At equal tokens (1.64M) 3 of 7 models have a lower held-out loss than transformer, 3 a higher one, and for 1 "
        "no difference is seen, also when corrected for their number (Holm). In front: wider (−0.299), wide (−0.199) "
        "and late (−0.049)."
    )
    assert "Not counted" not in str(verdict)
    single = league_verdict(compare([write_league(tmp_path, seeds=(0,))]))
    assert single.headline.startswith("At equal tokens (1.64M) none of 7 models has an interval beside transformer. In")
    assert "Not counted: 7 with too few seeds for an interval." in str(single)


def test_only_what_reached_one_number_of_tokens_is_ranked_and_counted(tmp_path):
    """Some with one seed, one far longer, one far shorter, one unfinished, some diverged."""
    leads = {"sure": -0.2, "worse": 0.2, "lone": -0.3, "far": -0.1}
    leads |= {"short": -0.9, "stuck": -0.5, "lost": -0.4, "gone": 0.0}
    seeds = dict.fromkeys(leads, (0, 1, 2)) | {"lone": (0,), "far": (0,)}
    steps, luck = {"far": 4000, "short": 40}, (0.004, -0.004, 0.004)
    for name, lead in {"transformer": 0.0, **leads}.items():
        for seed in seeds.get(name, (0, 1, 2)):
            stopped = name in ("stuck", "gone") or (name == "lost" and seed == 1)
            folder = write_run(
                tmp_path / f"{name}-{seed}",
                "transformer" if name == "transformer" else "rmt",
                seed=seed,
                steps=steps.get(name, 400),
                every=20,
                finished=not stopped,
                config={"name": name, "model.num_layers": 4 + list(leads).index(name) if name in leads else 4},
                loss=lambda step, seed=seed, lead=lead + luck[seed]: loss_at("transformer", step, seed) + lead,
            )
            if name == "gone" or (name == "lost" and seed == 1):
                (folder / "nonfinite_step_207.safetensors").write_bytes(b"")
    found = compare([tmp_path])
    assert {pair.tokens for pair in found.pairs} == {400 * 4096}
    assert [pair.other.label for pair in ranked(found)] == ["lone", "sure", "far", "worse"]
    assert {pair.other.label: pair.tokens / 4096 for pair in found.unranked} == {"short": 40, "stuck": 200, "lost": 400}
    assert [one.label for one in found.apart] == ["gone"]
    told = str(league_verdict(found))
    assert (
        "2 of 8 models have an interval: 1 of them has a lower held-out loss than transformer, 1 a higher one" in told
    )
    assert "In front: lone (−0.30" in told
    assert ", no interval), sure (−0.2" in told
    assert (
        "Not counted: 2 with too few seeds for an interval, 2 that ended earlier and stand apart (short at 164k, stuck "
        "at 819k), 1 beside which seeds diverged and 1 that diverged." in told
    )
    assert "lost: 1 of 3 seeds diverged (seed 1 at step 207)." in told
    assert "gone: all 3 seeds diverged" in told
    table = league_table(found)
    assert [row[0] for row in table.rows][-4:] == ["lost", "short", "stuck", "gone"]
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert cells["lost"]["at equal tokens"] == "not claimed"
    assert cells["lost"]["seeds"] == "2 of 3"
    assert cells["gone"]["held-out loss"] == "diverged"
    assert cells["short"]["at equal tokens"].endswith("at 164k")
    assert cells["far"]["held-out loss"].endswith("at 16.4M")


def test_counts_before_and_after_the_correction_for_their_number(tmp_path):
    """With many models a small p is no surprise: what the intervals say and what is left of it are both told."""
    leads = {f"m{number}": 0.0 for number in range(7)}
    noisy = write_league(tmp_path, leads=leads)
    found = compare([noisy])
    p = [pair.difference.p for pair in found.pairs]
    corrected = [pair.corrected["tokens"] for pair in found.pairs]
    assert all(after >= before for before, after in zip(p, corrected, strict=True) if before is not None)
    assert min(corrected) == pytest.approx(min(1.0, 7 * min(p)))


def test_who_shares_no_stretch_with_the_reference_stays_in_the_table(tmp_path):
    write_league(tmp_path)
    write_run(tmp_path / "late", "rmt", steps=600, every=600, config={"name": "late-one"})
    found = compare([tmp_path])
    assert [group.label for group in found.unmatched] == ["late-one"]
    row = next(row for row in league_table(found).rows if row[0] == "late-one")
    assert set(row[4:8]) == {"–"}
    assert "1 that share no stretch of training with it" in str(league_verdict(found))


def test_nobody_who_is_behind_the_reference_stands_in_front(league):
    """With the best model as the reference nobody leads at equal tokens."""
    headline = league_verdict(compare([league], Choice(reference="wider"))).headline
    assert "In front" not in headline
    assert "None is in front of wider; next behind it: wide (+0.1" in headline


def test_a_reference_of_which_a_seed_diverged_leaves_no_claim(league, tmp_path):
    write_league(tmp_path)
    (tmp_path / "transformer-1" / "done.json").unlink()
    (tmp_path / "transformer-1" / "nonfinite_step_399.safetensors").write_bytes(b"")
    found = compare([tmp_path])
    verdict = league_verdict(found)
    assert found.pairs == ()
    assert verdict.headline == "transformer: 1 of 3 seeds diverged (seed 1 at step 399). No difference is claimed."
    assert "lower" not in str(verdict)


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
