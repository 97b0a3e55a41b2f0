"""The coordinate check: flat under muP and not without, for both models; what grows, verdicts, bad input."""

import json

import pytest

from widestream.cli import main
from widestream.errors import UserError
from widestream.experiments.mup import measure as mup_check
from widestream.experiments.mup import section as report
from widestream.experiments.mup.measure import CheckOptions, at_width, default_axes, run_check
from widestream.experiments.mup.section import slope, verdict
from widestream.recipe import load_recipe

TINY = {
    "transformer": ("model.vocab_size=64", "model.num_layers=1", "model.head_dim=4", "model.mlp_dim=64"),
    # Few columns D_v and many heads: so the keys' updates are near their limits at small widths already.
    "rmt": (
        "model.vocab_size=64", "model.num_layers=1", "model.num_heads=16", "model.head_dim=2", "model.mlp_dim=64",
        "model.stream.key_dim=8",
    ),
}  # fmt: skip
WIDTHS = (32, 64, 128, 256)


def check(model):
    size = dict(widths=WIDTHS, steps=4, windows=8, length=32)
    return run_check(CheckOptions(recipe=f"tune/{model}", changes=TINY[model], **size))


@pytest.mark.parametrize("model", ["transformer", "rmt"])
def test_flat_with_mup_and_not_without(model):
    record = json.loads(json.dumps(check(model)))
    assert report.outcome(record, "mup") == "flat"
    assert report.outcome(record, "standard") == "not flat"
    standard = record["results"]["standard"]["slopes"]
    assert {"embedding", "attention", "mlp", "reads", "state", "logits"} == set(standard)
    first, second, *_ = report.sentences(record)
    assert "with muP: flat across widths (farthest: " in first
    assert "not flat" in second
    assert "grows" in second
    assert len(report.slopes_table(record).rows) == 6
    assert all(len(chart.series) == 6 for chart in report.charts(record).values())
    assert "Coordinate check" in report.page(record)


def test_a_rate_that_does_not_shrink_with_width_is_seen(monkeypatch):
    """The check must fail where muP is broken: here the hidden weights' rate keeps its size."""
    from widestream.blocks import roles

    monkeypatch.setattr(roles.Roles, "hidden", _without_factor(roles.Roles.hidden))
    assert report.outcome(check("transformer"), "mup") == "not flat"


def _without_factor(hidden):
    from dataclasses import replace

    return lambda *args, **options: replace(hidden(*args, **options), lr_factor=1.0)


def test_axes_that_grow():
    rmt, plain = load_recipe("tune/rmt"), load_recipe("tune/transformer")
    assert default_axes(rmt) == ("num_heads", "mlp_dim", "key_dim")
    assert default_axes(plain) == ("num_heads", "mlp_dim")
    grown = at_width(rmt, default_axes(rmt), 128, 32, "mup").model
    assert (grown.num_heads, grown.head_dim, grown.mlp_dim, grown.stream.key_dim) == (8, 16, 512, 32)
    assert grown.mup_bases == {"base_num_heads": 2, "base_head_dim": 16, "base_mlp_dim": 128, "base_key_dim": 8}
    square = at_width(plain, ("num_heads", "head_dim", "mlp_dim"), 256, 64, "mup").model
    assert (square.num_heads, square.head_dim, square.mlp_dim) == (8, 32, 1024)
    assert square.mup_bases["base_width"] == 64
    keys = at_width(rmt, ("key_dim",), 64, 16, "standard").model
    assert (keys.embed_dim, keys.stream.key_dim, keys.mup_bases, keys.init.scheme) == (64, 64, {}, "lecun")


def test_at_the_recipes_own_width_mup_changes_nothing():
    plain = load_recipe("tune/transformer")
    assert at_width(plain, default_axes(plain), 64, 64, "mup") == plain


def test_slopes():
    assert slope((1, 2, 4), (3, 6, 12)) == pytest.approx(1)
    assert slope((16, 64), (2, 1)) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (0.0, -0.1, 0.1, "flat"),
        (0.35, -1.03, 1.74, "unclear"),
        (0.05, -0.01, 0.11, "unclear"),
        (0.2, 0.11, 0.29, "grows"),
        (-0.2, -0.29, -0.11, "shrinks"),
        (0.0, None, None, "unclear"),
        (None, None, None, "diverged"),
    ],
)
def test_a_verdict_is_the_intervals_not_the_means(mean, low, high, expected):
    assert verdict({"mean": mean, "low": low, "high": high}, (-0.1, 0.1)) == expected


@pytest.mark.parametrize("out", ["mup.html", "mup"])
def test_a_check_that_diverges_says_so_and_leaves_a_record(tmp_path, monkeypatch, capsys, out):
    small = ["--widths", "32,64", "--rate", "1e38", "--steps", "3", "--seeds", "2", "--windows", "1", "--length", "8"]
    files = ["--json", str(tmp_path / "mup.json"), "--out", str(tmp_path / out)]
    monkeypatch.setattr("sys.argv", ["widestream", "mup", "check", "tune/rmt", *TINY["rmt"], *small, *files])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "with muP: training diverged at width 32 and 64, so that nothing can be judged" in capsys.readouterr().out
    record = json.loads((tmp_path / "mup.json").read_text())
    assert report.outcome(record, "mup") == "diverged"
    assert record["results"]["mup"]["slopes"]["logits"]["change"]["mean"] is None
    assert report.charts(record) == {}


def test_a_check_that_diverges_at_one_width_shows_the_others():
    quick = dict(recipe="tune/rmt", changes=TINY["rmt"], widths=(32, 64, 128), steps=1, seeds=2, windows=1, length=8)
    record = run_check(CheckOptions(**quick))
    record["results"]["mup"]["size"]["state"][-1][2][0] = None
    assert report.diverged_at(record, "mup") == [128]
    assert report.outcome(record, "mup") == "diverged"
    lines = {line.label: line.points for line in report.charts(record, "size")["with muP"].series}
    assert [width for width, _ in lines["state"]] == [32, 64]
    assert "diverged" in report.page(record)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (64,)}, "at least two"),
        ({"widths": (50, 100)}, "choose other --widths"),
        ({"grow": ("key_dim",)}, "no key_dim"),
        ({"grow": ("keydim",)}, "did you mean key_dim"),
        ({"grow": ("num_heads", "head_dim"), "widths": (64, 128)}, "square"),
        ({"steps": 0}, "at least 1"),
        ({"data": "none"}, "random or recipe"),
    ],
)
def test_what_cannot_be_checked(options, words):
    with pytest.raises(UserError, match=words):
        run_check(CheckOptions(recipe="tune/transformer", **options))


@pytest.mark.parametrize("flat", [True, False])
def test_the_command(tmp_path, monkeypatch, capsys, flat):
    quick = dict(recipe="tune/rmt", changes=TINY["rmt"], widths=(32, 64), steps=1, seeds=1, windows=1, length=8)
    record = run_check(CheckOptions(**quick))
    wide = {kind: (-9.0, 9.0) if flat else (-9.0, -8.0) for kind in report.KINDS}
    record["bounds"] = wide
    for row in record["results"]["mup"]["slopes"].values():
        for kind in report.KINDS:
            row[kind] |= {"low": row[kind]["mean"] - 0.01, "high": row[kind]["mean"] + 0.01}
    monkeypatch.setattr(mup_check, "run_check", lambda options: record)
    files = ["--json", str(tmp_path / "mup.json"), "--out", str(tmp_path / "mup")]
    monkeypatch.setattr("sys.argv", ["widestream", "mup", "check", "tune/rmt", *files])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == (0 if flat else 1)
    assert json.loads((tmp_path / "mup.json").read_text())["widths"] == [32, 64]
    assert {path.name for path in tmp_path.iterdir()} == {"mup.json", "mup-light.svg", "mup-dark.svg"}
    assert "tune/rmt with muP" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--widths", "a,b"], ["--json", "no/such/folder/x.json"], ["--data", "x"]])
def test_bad_input_exits_with_2(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["widestream", "mup", "check", "tune/rmt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("widestream: ")
