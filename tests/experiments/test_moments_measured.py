"""Moment propagation at initialisation: closed forms on the real modules, and every stream over depth."""

import json
import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from models import tiny
from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.experiments.moments import ratios as moments_ratios
from widestream.experiments.moments.depth import DepthSizes, measure_depth
from widestream.experiments.moments.estimate import against_closed_form, geometric
from widestream.experiments.moments.ratios import WAYS, measure_ratios
from widestream.experiments.moments.section import moments_findings, moments_tables
from widestream.experiments.moments.sites import site_moments
from widestream.experiments.moments.training import covariance_rank, matrix_rank
from widestream.model.build import build_model
from widestream.model.record import record_exchanges
from widestream.paper.moments import Moments, Shape, closed_forms
from widestream.streams import OWN_KINDS

SMALL = Shape(rank=4, key_dim=16, value_dim=12, mlp_dim=128)
TINY = DepthSizes(num_heads=2, head_dim=8, mlp_dim=24, vocab_size=20, windows=1, tokens=6)


@pytest.fixture(scope="module")
def ratios():
    return [entry for scheme in ("xavier", "lecun") for entry in measure_ratios(SMALL, scheme, draws=24)]


def test_measured_ratios_hold_the_closed_forms(ratios):
    found = [entry[way] for entry in ratios for way in WAYS]
    assert len(found) == 2 * 2 * len(closed_forms(SMALL))
    assert all(abs(value["z"]) < 4 for value in found)
    assert sum(value["inside"] for value in found) >= 0.8 * len(
        found
    )  # rows share their draws, so misses come together
    assert all(value["high"] - value["low"] < 0.2 * value["mean"] for value in found)


def test_a_wrong_closed_form_is_caught(monkeypatch):
    forms = closed_forms(SMALL)
    wrong = {row: Moments(1.1 * moments.forward, 0.9 * moments.backward) for row, moments in forms.items()}
    monkeypatch.setattr(moments_ratios, "closed_forms", lambda *_: wrong)
    keys = [row for row in forms if row.model == "transformer" and row.operation in ("storage", "retrieval")]
    entries = measure_ratios(SMALL, "xavier", draws=24, rows=keys)
    assert not any(entry[way]["inside"] for entry in entries for way in WAYS)


def measured(mean, closed):
    values = [mean - 0.01, mean, mean + 0.01]
    return against_closed_form(values, closed)


def test_what_the_intervals_exclude_is_said():
    shape = {"rank": 4, "key_dim": 16, "value_dim": 12, "mlp_dim": 128}
    entries = [
        {
            "shape": shape,
            "scheme": "xavier",
            "row": {"layer": "feed-forward", "operation": "storage", "model": model},
            "printed": {"forward": printed, "backward": printed},
            "forward": measured(0.402, 0.4),
            "backward": measured(0.402, 0.4),
        }
        for model, printed in (("RMT", 1), ("transformer", 0.4))
    ]
    sentences = moments_findings({"ratios": entries})
    assert sentences[0].startswith("4 of 4 95 % intervals hold the closed form")
    assert "RMT, FF storage (R 4, D_k 16, forward: printed 1, measured 0.40)" in sentences[1]
    assert "transformer" not in sentences[1]
    rows = moments_tables({"ratios": entries})[0].rows
    assert [row[1:4] + row[-2:] for row in rows[::2]] == [
        ("forward", "1", "0.400", "yes", "no"),
        ("forward", "0.4", "0.400", "yes", "yes"),
    ]


def test_estimates():
    found = against_closed_form([1.0, 2.0, 3.0], 2.0)
    assert (found["mean"], found["z"], found["inside"]) == (2.0, 0.0, True)
    assert not against_closed_form([1.0, 1.1, 0.9], 2.0)["inside"]
    mean, low, high = geometric([1.0, 4.0])
    assert mean == 2.0
    assert low < 1
    assert high > 4
    assert geometric([0.0, 2.0]) == [1.0, None, None]
    assert geometric([math.nan, 2.0]) == [None, None, None]


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_every_stream_goes_through_the_depth_study(kind):
    entry = measure_depth(kind, 2, False, 2, TINY)
    sites = entry["sites"]
    assert {len(values) for values in sites.values()} == {len(entry["writers"])} == {len(entry["readers"])}
    for name in ("seen", "read", "written", "state"):
        assert all(value[0] > 0 for value in sites[name]), name
    assert all(value[0] > 0 for value in sites["read_gradient"][-1:])
    assert moments_tables({"depth": [entry]})[0].rows[0][0] == kind


def test_an_additive_stream_grows_by_what_is_written():
    """The plain transformer's stream is the sum of what is written, and the gradient of a write is the state's."""
    model = build_model(tiny(init={"depth_scale": False}), seed=3)
    with record_exchanges(model) as seen:
        hidden = model(torch.arange(20)[None])
    moments = site_moments(seen, hidden, torch.ones_like(hidden))
    torch.testing.assert_close(seen[-1].state, sum(x for found in seen for x in found.written))
    assert moments["written_gradient"][1:] == pytest.approx(moments["state_gradient"][1:])
    assert moments["seen"] == pytest.approx(moments["state"])
    assert moments["read_gradient"][-1] == pytest.approx(1.0)


def test_recording_changes_nothing_and_leaves_nothing_behind():
    model, tokens = build_model(tiny("matrix"), seed=3), torch.arange(20)[None]
    before = model(tokens)
    with record_exchanges(model) as seen:
        torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)
    assert [found.site for found in seen] == list(range(len(model.blocks) + 1))
    assert "exchange" not in vars(model.stream)
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, nn.Module))
    model(tokens)
    assert len(seen) == len(model.blocks) + 1


def test_effective_ranks():
    assert covariance_rank(torch.eye(4).repeat(50, 1)) == pytest.approx(3, abs=1e-3)
    assert covariance_rank(torch.randn(3, 1).repeat(40, 5)) == pytest.approx(1, abs=1e-6)
    assert matrix_rank(torch.eye(5)[None, None]) == pytest.approx(5)
    assert matrix_rank(torch.ones(1, 2, 5)) is None


def test_the_command_measures_initial_models(tmp_path):
    out = tmp_path / "moments.json"
    options = ["--shape", "small", "--draws", "2", "--scheme", "xavier", "--streams", "vector,rezero"]
    result = CliRunner().invoke(
        build_app(), ["study", "moments", *options, "--depths", "2,3", "--seeds", "2", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["settings"]["depths"] == [2, 3]
    assert {entry["shape"]["key_dim"] for entry in record["ratios"]} == {32, 8}
    assert [(e["stream"], e["layers"]) for e in record["depth"][:2]] == [("vector", 2), ("rezero", 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "1"], "gives no interval"),
        (["--streams", "vectr"], "vector"),
        (["--shape", "gpt5"], "gpt2-medium or small"),
        (["--depths", "six"], "numbers of layers"),
        (["--data", "x"], "--run"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(build_app(), ["study", "moments", *options], catch_exceptions=False)
