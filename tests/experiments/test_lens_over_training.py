"""`widestream lens RUN --over-training`: a wiring at every checkpoint."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from tiny_runs import tiny_config
from widestream.cli import main
from widestream.cli.app import build_app
from widestream.lens import flow, look, summarize
from widestream.runs.model import load_model
from widestream.train.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("over") / "rmt"
    train(tiny_config(data, train={"steps": 6, "save_every": 2, "keep": 3}, optimizer={"lr": 0.05}), folder)
    return folder


def test_every_checkpoint_is_summed_up(run, tmp_path):
    page = tmp_path / "lens.html"
    words = ["lens", str(run), "--prompt", "the head", "--over-training"]
    found = CliRunner().invoke(build_app(), [*words, "--json", "--out", str(page)], catch_exceptions=False)
    rows = json.loads(found.stdout)["over_training"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert len({row["entropy"] for row in rows}) == 3
    for row in rows:
        model, _ = load_model(run, torch.device("cpu"), row["step"])
        wanted = summarize(flow(look(model, torch.tensor([[256, *b"the head"]])), skip=1))
        assert row["largest"] == pytest.approx(wanted.largest)
        assert row["entropy"] == pytest.approx(wanted.entropy)
        assert row["by_distance"] == pytest.approx(wanted.by_distance)
    text = page.read_text()
    assert "<h2>The wiring over training</h2>" in text
    assert "--over-training" in text
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])["figures"]
    assert len(figures) == 1
    assert "rmt goes from" in text


def test_what_it_says(run):
    words = ["lens", str(run), "--prompt", "the head", "--over-training"]
    said = CliRunner().invoke(build_app(), words, catch_exceptions=False).stdout
    assert "Over training: from step 2 to 6 the largest 1 % of" in said
    without = CliRunner().invoke(build_app(), words[:-1], catch_exceptions=False).stdout
    assert "Over training" not in without


def test_a_stream_without_shares_is_refused(data, tmp_path, monkeypatch, capsys):
    train(tiny_config(data, model={"stream": {"kind": "depth_lstm"}}, train={"steps": 2}), tmp_path / "lstm")
    monkeypatch.setattr("sys.argv", ["widestream", "lens", str(tmp_path / "lstm"), "--prompt", "x", "--over-training"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "has no wiring to follow over training" in capsys.readouterr().err
