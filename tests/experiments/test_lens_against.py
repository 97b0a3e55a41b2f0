"""`widestream lens RUN --against OTHER`: two wirings side by side."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lens_passes import seen_of
from tiny_runs import tiny_config
from widestream.cli import main
from widestream.cli.app import build_app
from widestream.lens import flow, look
from widestream.lens.wiring import by_block
from widestream.runs.model import load_model
from widestream.train.loop import train

RUNS = {
    "rmt": {"stream": {"kind": "matrix", "key_dim": 4}},
    "wider": {"stream": {"kind": "matrix", "key_dim": 6}},
    "plain": {"stream": {"kind": "vector"}, "positions": "rotary"},
    "deeper": {"num_layers": 2},
    "lstm": {"stream": {"kind": "depth_lstm"}},
}
PROMPT = "the matrix"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("against")
    for name, model in RUNS.items():
        train(tiny_config(data, model=model, train={"steps": 2}), folder / name)
    return folder


def wiring_of(run):
    model, _ = load_model(run, torch.device("cpu"))
    return flow(look(model, torch.tensor([[256, *PROMPT.encode()]])), skip=1)


def record(runs, one, other):
    words = ["lens", str(runs / one), "--prompt", PROMPT, "--against", str(runs / other), "--json"]
    return json.loads(CliRunner().invoke(build_app(), words, catch_exceptions=False).stdout)


def test_vector_by_vector_where_both_have_the_same(runs):
    found = record(runs, "rmt", "wider")["against"]
    assert (found["by"], found["stream"]) == ("vector", "matrix")
    own, other = wiring_of(runs / "rmt"), wiring_of(runs / "wider")
    for view in ("size", "part"):
        mine, theirs = (one.named(getattr(one, view)) for one in (own, other))
        assert mine.keys() == found[view]["difference"].keys()
        for reader, row in found[view]["difference"].items():
            assert row.keys() == mine[reader].keys()
            for writer, difference in row.items():
                assert difference == pytest.approx(mine[reader][writer] - theirs[reader][writer], abs=1e-9)


def test_block_by_block_where_vectors_are_not_alike(runs):
    found = record(runs, "rmt", "plain")["against"]
    assert found["by"] == "block"
    for reader, row in found["part"]["own"].items():
        assert sum(row.values()) == pytest.approx(1.0, abs=0.2), reader  # constants are what is left
        assert sum(found["part"]["other"][reader].values()) == pytest.approx(1.0, abs=0.2)
    assert [*found["size"]["own"]] == ["0.attention", "0.mlp", "head"]
    assert [*found["size"]["own"]["head"]] == ["position", "token", "0.attention", "0.mlp"]
    assert found["size"]["other"]["head"]["position"] == 0, "it has rotary positions"
    assert found["size"]["own"]["head"]["position"] > 0


def test_blocks_are_what_their_vectors_come_to():
    seen = seen_of("matrix")
    fine, blocks = flow(seen), by_block(seen)
    column, row = ([one.name for one in ones].index for ones in (blocks.writers, blocks.readers))
    for name in ("1.mlp", "2.attention", "head"):
        of = [i for i, reader in enumerate(fine.readers) if reader.whole.name == name]
        assert of
        summed = fine.part[of][:, [i for i, one in enumerate(fine.writers) if one.whole.name == "0.attention"]].sum(1)
        assert blocks.part[row(name), column("0.attention")].item() == pytest.approx(summed.mean().item(), abs=1e-6)
    assert blocks.part[row("0.mlp"), column("1.mlp")].isnan()


def test_the_page_shows_both_in_one_scale(runs, tmp_path):
    page = tmp_path / "lens.html"
    words = ["lens", str(runs / "rmt"), "--prompt", PROMPT, "--against", str(runs / "wider"), "--out", str(page)]
    found = CliRunner().invoke(build_app(), words, catch_exceptions=False)
    assert found.exit_code == 0
    assert "Beside wider (matrix, step 2), vector by vector" in found.stdout
    assert "Where the wirings differ most" in found.stdout
    text = page.read_text()
    assert f"--against {runs / 'wider'}" in text
    data = json.loads(re.search(r'id="lens">(.*?)</script>', text, re.DOTALL)[1])["against"]
    assert data["names"] == ["rmt", "wider"]
    maps = [
        np.frombuffer(base64.b64decode(one["bytes"]), "<i2").reshape(len(data["readers"]), -1) / 32767 * one["top"]
        for one in data["views"]["size"]
    ]
    assert data["views"]["size"][0]["top"] == data["views"]["size"][1]["top"]
    for found_there, run in zip(maps, ("rmt", "wider"), strict=True):
        wanted = wiring_of(runs / run).size.numpy()
        there = ~np.isnan(wanted)
        assert np.allclose(found_there[there], wanted[there], atol=1e-4)
    assert np.abs(maps[0] - maps[1])[there].max() > 0.01


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        ("rmt", "deeper", "has 3 readers (0.attention, 0.mlp, head) and"),
        ("rmt", "lstm", "the same blocks in the same order"),
        ("lstm", "lstm", "has no wiring to compare"),
        ("rmt", "nowhere", "is no run folder"),
    ],
)
def test_what_cannot_be_set_side_by_side_is_one_sentence(runs, monkeypatch, capsys, one, other, sentence):
    words = ["lens", str(runs / one), "--prompt", PROMPT, "--against", str(runs / other)]
    monkeypatch.setattr("sys.argv", ["widestream", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
