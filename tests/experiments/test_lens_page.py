"""`widestream lens`: what it prints, its JSON, its page, and what it refuses."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tiny_runs import tiny_config
from widestream.cli import main
from widestream.cli.app import build_app
from widestream.experiments.lens import section
from widestream.experiments.lens.prompt import inspect_prompt
from widestream.runs.model import load_model
from widestream.train.loop import train

STREAMS = {
    "rmt": {"kind": "matrix", "key_dim": 4},
    "plain": {"kind": "vector"},
    "lanes": {"kind": "mhc", "lanes": 2},
    "history": {"kind": "mudd"},
    "lstm": {"kind": "depth_lstm"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("lens")
    for name, stream in STREAMS.items():
        train(tiny_config(data, model={"stream": stream}), folder / name)
    return folder


def lens(*words):
    return CliRunner().invoke(build_app(), ["lens", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize("name", STREAMS)
def test_prints_what_comes_next_and_who_wrote_it(runs, name):
    found = lens(runs / name, "--prompt", "the matrix")
    assert found.exit_code == 0
    assert "What comes next" in found.stdout
    if name == "lstm":
        assert "not linear" in found.stdout
        assert "Who wrote it" not in found.stdout
    else:
        assert "Who wrote it" in found.stdout
        assert "Where most flows" in found.stdout


@pytest.mark.parametrize("name", ["rmt", "plain", "lanes", "history"])
def test_its_json_adds_up_to_the_models_logit(runs, name):
    found = json.loads(lens(runs / name, "--prompt", "what head", "--target", "k", "--json").stdout)
    model, _ = load_model(runs / name, torch.device("cpu"))
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[256, *b"what head"]])))[0, -1]
    parts = found["attribution"]
    assert found["target"] == {"token": ord("k"), "text": "k"}
    assert parts["logit"] == pytest.approx(logits[ord("k")].item(), abs=1e-4)
    assert sum(parts["writers"].values()) + parts["constants"] == pytest.approx(parts["logit"], abs=1e-4)
    assert found["next"][0]["token"] == logits[:257].argmax().item()
    for reader in found["wires"]["part"].values():
        assert sum(reader.values()) == pytest.approx(1.0, abs=0.2)  # constants are what is left
    for rows in found["attention"].values():
        assert np.allclose(np.sum(rows, axis=1), 1, atol=1e-5)


def test_the_page_holds_the_same_numbers_and_loads_nothing(runs, tmp_path):
    page = tmp_path / "lens.html"
    prompt = "key <b>&\u2028"
    found = lens(runs / "rmt", "--prompt", prompt, "--out", page)
    assert found.exit_code == 0
    assert f"Page: {page}" in found.stdout
    text = page.read_text()
    assert "<b>&" not in text
    assert not re.search(r"(src|href)=|@import|url\(", text)
    data = json.loads(re.search(r'id="lens">(.*?)</script>', text, re.DOTALL)[1])
    inspected = inspect_prompt(runs / "rmt", prompt)
    values = np.frombuffer(base64.b64decode(data["attribution"]["values"]), "<f4").reshape(-1, len(data["tokens"]))
    assert np.allclose(values, inspected.attribution.values[:, 0].numpy())
    assert np.allclose(values.sum(0) + data["attribution"]["constants"], data["attribution"]["logit"], atol=1e-3)
    sizes = np.frombuffer(base64.b64decode(data["wiring"]["views"]["size"]["bytes"]), "<i2")
    sizes = sizes.reshape(len(data["wiring"]["readers"]), -1)
    assert ((sizes == -32768) == inspected.wiring.size.isnan().numpy()).all()
    top = data["wiring"]["views"]["size"]["top"]
    assert np.allclose(sizes[-1] / 32767 * top, inspected.wiring.size[-1].numpy(), atol=1e-4 * top)
    assert {*data["wiring"]["views"]} == {"size", "part", "coefficient"}
    attention = np.frombuffer(base64.b64decode(data["attention"]["bytes"]), np.uint8) / 255
    assert data["attention"]["whole"]
    tokens = len(data["tokens"])
    pattern = inspected.patterns["0.attention"].numpy()
    assert np.allclose(attention.reshape(2, tokens, tokens), pattern, atol=1 / 255)


def test_lanes_and_gates_stand_on_the_page_where_there_are_some(runs, tmp_path):
    page = tmp_path / "lens.html"
    said = lens(runs / "lanes", "--prompt", "the matrix", "--out", page).stdout
    assert "lanes are mixed with a gain of" in said
    assert "lower quartile" in page.read_text()
    data = json.loads(re.search(r'id="lens">(.*?)</script>', page.read_text(), re.DOTALL)[1])["lanes"]
    assert data["names"] == [f"{reader}, lane {lane}" for reader in ("0.attention", "0.mlp", "head") for lane in (0, 1)]
    cells = np.frombuffer(base64.b64decode(data["bytes"]), "<i2").reshape(6, 6) / 32767 * data["top"]
    assert np.allclose(cells[:2, :2], np.eye(2), atol=1e-4)
    assert np.allclose(cells[4:, :2].sum(1), 1, atol=1e-3), "rows of what mHC mixes with sum to 1"
    found = json.loads(lens(runs / "lanes", "--prompt", "the matrix", "--json").stdout)
    assert np.allclose(found["lanes"]["composite"]["head"]["0.attention"], cells[4:, :2], atol=1e-4)
    assert found["lanes"]["gain"]["forward"] == pytest.approx(1, abs=1e-3)
    assert {(gate["reader"], gate["gate"]) for gate in found["gates"]} == {
        (reader, gate) for reader in ("0.attention", "0.mlp") for gate in ("read", "write")
    }
    assert all(0 < gate["least"] <= gate["median"] <= gate["largest"] < 2 for gate in found["gates"])
    plain = json.loads(lens(runs / "plain", "--prompt", "the matrix", "--json").stdout)
    assert (plain["lanes"], plain["gates"]) == (None, [])


def test_a_long_prompt_keeps_the_last_tokens_rows_alone(runs, monkeypatch):
    monkeypatch.setattr(section, "CELLS", 10)
    found = inspect_prompt(runs / "rmt", "the head")
    data = section.page_data(found)
    assert not data["attention"]["whole"]
    assert len(base64.b64decode(data["attention"]["bytes"])) == 2 * len(data["tokens"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "x" * 40], "at most 15 can be looked at"),
        (["--prompt", "x", "--target", ""], "--target is empty"),
        (["--prompt", "x", "--step", "3"], "step 3"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(runs, monkeypatch, capsys, words, sentence):
    monkeypatch.setattr("sys.argv", ["widestream", "lens", str(runs / "rmt"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_file_of_another_kind_stays(runs, tmp_path, monkeypatch, capsys):
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    monkeypatch.setattr("sys.argv", ["widestream", "lens", str(runs / "rmt"), "--prompt", "x", "--out", str(other)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert other.read_text() == "mine"
    assert "is no page" in capsys.readouterr().err
