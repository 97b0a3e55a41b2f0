"""Two models item by item: tests over items, chance over seeds, slices, and what is refused."""

import csv
import io
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from fake_runs import write_demo, write_run, write_task
from widestream.cli.app import build_app
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.experiments.dissect.frequency import count_tokens
from widestream.experiments.dissect.pairs import dissect
from widestream.experiments.dissect.section import sentences, to_dict, write_dissection
from widestream.runs.tasks import Items, Measure

COUNT = 400


def answers(dice, share):
    return [float(right) for right in dice.random(COUNT) < share]


def items(dice, **changes):
    values = {
        "choices": [4] * COUNT,
        "context": [int(length) for length in dice.integers(5, 100, COUNT)],
        "answer": [[int(one) for one in dice.integers(97, 122, 3)] for _ in range(COUNT)],
        "echo": [int(back) if back > 30 else None for back in dice.integers(0, 60, COUNT)],
        "positions": [[] for _ in range(COUNT)],
    }
    return Items(**(values | changes))


@pytest.fixture
def runs(tmp_path):
    """RMT is better on arc_easy, and on lambada_openai in long contexts only; piqa tells nothing."""
    folder, dice = tmp_path / "runs", np.random.default_rng(0)
    write_demo(folder)
    of_arc, of_lambada = items(dice), items(dice, choices=[1] * COUNT)
    for run in sorted(folder.iterdir()):
        rmt = run.name.startswith("rmt")
        arc = Measure(form="mean", higher_is_better=True, values=answers(dice, 0.55 if rmt else 0.35))
        piqa = Measure(form="mean", higher_is_better=True, values=answers(dice, 0.5))
        gain = [0.02 * (length - 50) if rmt else 0.0 for length in of_lambada.context]
        nats = [4.0 + dice.normal(0, 0.3) - one for one in gain]
        write_task(run, "arc_easy", {"acc": arc}, items=of_arc)
        write_task(run, "piqa", {"acc": piqa}, items=of_arc)
        write_task(
            run, "lambada_openai", {"perplexity": Measure(form="perplexity", higher_is_better=False, values=nats)},
            items=of_lambada,
        )  # fmt: skip
    return folder


def pair_of(found, task):
    return next(pair for pair in found.pairs if pair.task.name == task)


def test_a_pair_of_single_runs_has_mcnemars_test_and_no_interval_over_seeds(runs):
    found = dissect([runs / "rmt-seed0", runs / "transformer-seed0"])
    assert found.labels == ("transformer", "rmt")
    pair = pair_of(found, "arc_easy")
    lost, gained = pair.alone
    assert pair.over_items.p == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert pair.over_items.mean == pytest.approx((gained - lost) / COUNT)
    assert pair.seen
    assert pair.winner == "rmt"
    assert pair.over_seeds.low is None
    assert not pair_of(found, "piqa").seen
    assert any("has one run" in line for line in sentences(found))


def test_several_seeds_are_averaged_by_item_and_have_an_interval_of_their_own(runs):
    found = dissect([runs])
    pair = pair_of(found, "arc_easy")
    first, second = (side.values("acc") for side in pair.sides)
    assert set(first) <= {0.0, 0.5, 1.0}
    assert pair.over_items.mean == pytest.approx(np.mean(second) - np.mean(first))
    assert pair.alone is None
    assert pair.over_seeds.n == 2
    assert pair.over_seeds.method == "paired"
    low, high = pair.bootstrap
    assert low < pair.over_items.mean < high
    assert any("over seeds the interval is" in line for line in sentences(found))


def test_p_values_are_corrected_for_all_figures(runs):
    found = dissect([runs])
    raw = sorted((pair.over_items.p, pair.corrected) for pair in found.pairs)
    assert raw[0][1] == pytest.approx(len(found.pairs) * raw[0][0])


def test_where_one_wins_is_found_and_nothing_else(runs):
    found = dissect([runs])
    told = [line for line in sentences(found) if "rank correlation" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "lambada_openai, perplexity: the more tokens in front of the right answer, the better for rmt"
    )
    slices = {one.feature: one for one in pair_of(found, "lambada_openai").slices}
    gaps = [gap.mean for _, gap in slices["context"].parts]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(gap.n for _, gap in slices["context"].parts) == COUNT
    assert slices["echo"].parts[-1][0] == "nowhere"
    assert "frequency" not in slices, "the training data of these runs is not there"
    assert any("the training data is not there" in note for note in found.notes)


def test_frequencies_are_counted_in_the_runs_own_shards(tmp_path, data):
    store = TokenStore.open(data, "train")
    tokens, _ = store.window(0, store.tokens)
    counts = count_tokens(store)
    assert counts.sum() == store.tokens
    assert dict(Counter(tokens.tolist())) == {token: int(count) for token, count in enumerate(counts) if count}
    dice = np.random.default_rng(0)
    described = items(dice, answer=[[ord("e")] if at % 2 else [ord("q"), ord("e")] for at in range(COUNT)])
    for name in ("transformer", "rmt"):
        run = write_run(tmp_path / name, name, config={"data.path": str(data)}, data={"fingerprint": store.fingerprint})
        write_task(
            run,
            "piqa",
            {"acc": Measure(form="mean", higher_is_better=True, values=answers(dice, 0.5))},
            items=described,
        )
    found = dissect([tmp_path / "transformer", tmp_path / "rmt"])
    assert found.frequencies.of([ord("e")]) == pytest.approx((counts[ord("e")] + 1) / store.tokens * 1e6)
    assert found.frequencies.of([]) is None
    slices = {one.feature: one for one in found.pairs[0].slices}
    assert len(slices["frequency"].parts) == 2


def test_whole_texts_are_told_by_place_in_the_window(tmp_path):
    folder = tmp_path / "runs"
    write_demo(folder)
    for run in sorted(folder.iterdir()):
        rmt = run.name.startswith("rmt")
        places = [[[2.0, 1.0], [4.0, 2.0], [4.0 - rmt * (1 + at % 2), 4.0]] for at in range(30)]
        nats = [sum(one for one, _ in text) for text in places]
        described = Items(choices=[1] * 30, context=[0] * 30, answer=[[]] * 30, echo=[None] * 30, positions=places)
        measure = Measure(form="perplexity", higher_is_better=False, values=nats, weights=[7.0] * 30)
        write_task(run, "wikitext", {"token_perplexity": measure, "bits_per_byte": measure}, items=described)
    found = dissect([folder])
    (pair,) = found.pairs
    (one,) = pair.slices
    assert [words for words, _ in one.parts] == ["1", "2 to 3", "4 to 7"]
    assert [gap.mean for _, gap in one.parts] == pytest.approx([0.0, 0.0, -1.5 / 4])


def test_page_json_and_csv(runs, tmp_path):
    call = ["dissect", str(runs), "--out", str(tmp_path / "d.html"), "--csv", str(tmp_path / "d.csv"), "--json"]
    told = CliRunner().invoke(build_app(), call)
    found = json.loads(told.stdout)
    assert found["reference"] == "transformer"
    assert {pair["task"] for pair in found["pairs"]} == {"arc_easy", "piqa", "lambada_openai"}
    page = (tmp_path / "d.html").read_text()
    for words in (
        "Item by item",
        "Tables 5 and 6",
        "are no attempt at the paper&#39;s",
        "44.3",
        "25.2",
        "by bootstrap",
    ):
        assert words in page, words
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert len(rows) == 3 * COUNT
    arc = [row for row in rows if row["task"] == "arc_easy"]
    gap = np.mean([float(row["other"]) - float(row["reference"]) for row in arc])
    assert gap == pytest.approx(
        next(pair["over_items"]["mean"] for pair in found["pairs"] if pair["task"] == "arc_easy")
    )
    printed = CliRunner().invoke(build_app(), ["dissect", str(runs), "--csv", "-"]).output
    assert next(csv.reader(io.StringIO(printed)))[0] == "task"
    assert "Beside the RMT paper's" in CliRunner().invoke(build_app(), ["dissect", str(runs)]).output


def test_hostile_names_are_words(runs, tmp_path):
    found = dissect([runs])
    for run in runs.iterdir():
        write_task(run, "piqa", {"<b>acc": Measure(form="mean", higher_is_better=True, values=[1.0, 0.0])})
    found = dissect([runs])
    write_dissection(found, tmp_path / "d.html")
    assert "<b>acc" not in (tmp_path / "d.html").read_text()
    assert json.dumps(to_dict(found), allow_nan=False)


def test_what_cannot_be_dissected_is_one_sentence(runs, tmp_path):
    with pytest.raises(UserError, match=r"runs of 1 model \(rmt\)"):
        dissect([runs / "rmt-seed0", runs / "rmt-seed1"])
    with pytest.raises(UserError, match="neither transformer nor rmt"):
        dissect([runs], reference="mhc")
    assert dissect([runs], reference="rmt").labels == ("rmt", "transformer")
    (tmp_path / "d.csv").write_text("mine\n")
    found = CliRunner().invoke(build_app(), ["dissect", str(runs), "--csv", str(tmp_path / "d.csv")])
    assert "is no table of items" in str(found.exception)
    write_demo(tmp_path / "bare")
    with pytest.raises(UserError, match="no task in common"):
        dissect([tmp_path / "bare"])
