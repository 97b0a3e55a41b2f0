"""A stream's health while it trains."""

import json

import pytest
import torch

from lens_passes import CASES, seen_of, seen_with
from tiny_runs import tiny_config
from widestream import RunFolder
from widestream.lens.monitor import Health, Watch, check_health
from widestream.model.build import build_model
from widestream.testing.models import small_config, tokens_of
from widestream.train.loop import train


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind, number in CASES if number == 0])
def test_every_kind_is_looked_at_and_left_as_it_was(kind, number):
    model = seen_of(kind, number).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = check_health(model, tokens_of(1, 20), tokens_of(1, 20, seed=1), torch.zeros(1, 20, dtype=torch.int32))
    assert (
        len(found.state_rms) == len(found.update) == len(found.written_grad_rms) == len(seen_of(kind, number).exchanges)
    )
    row = json.loads(json.dumps(found.to_row(), allow_nan=False))
    assert row["forward_gain"] == pytest.approx(found.state_rms[-1] / found.state_rms[0])
    assert row["backward_gain"] > 0
    assert row["largest_logit"] > 0
    assert ("lanes_alike" in row) == (kind in {"altup", "gated_residual", "hyper_connections", "mhc"})
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_its_numbers_are_those_of_the_pass():
    seen = seen_of("vector")
    found = check_health(seen.model, seen.tokens, seen.tokens)
    states = [seen["embed"] + seen["pos_embed"]]
    for layer in range(3):
        states += [states[-1] + seen[f"blocks.{layer}.attn_out"]]
        states += [states[-1] + seen[f"blocks.{layer}.mlp_out"]]
    assert found.state_rms == pytest.approx([state.square().mean().sqrt().item() for state in states], rel=1e-5)
    assert found.largest_logit == pytest.approx(seen.logits.abs().max().item(), rel=1e-5)
    written = seen["blocks.2.mlp_out"].square().mean().sqrt().item()
    assert found.update[-1] == pytest.approx(written / found.state_rms[-1], rel=1e-5)


def test_gradients_by_what_was_written_are_those_of_a_difference():
    seen = seen_with({"kind": "matrix", "key_dim": 8}, {"num_layers": 1})
    found = check_health(seen.model, seen.tokens, seen.tokens)
    hidden = seen.exchanges[-1].written[0].detach().clone().requires_grad_()  # the last write, read by the head alone
    stream, state = seen.model.stream, seen.exchanges[-2].state.detach()
    x = stream.read(2, stream.write(2, state, hidden))["x"]
    logits = seen.model.logits(x)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), seen.tokens.flatten())
    (wanted,) = torch.autograd.grad(loss, hidden)
    assert found.written_grad_rms[-1] == pytest.approx(wanted.square().mean().sqrt().item() * 40, rel=1e-4)


def test_equal_lanes_are_alike_and_others_are_not():
    equal = build_model(small_config({"kind": "hyper_connections", "dynamic": False}, {}))
    apart = seen_of("hyper_connections").model
    alike = [check_health(model, tokens_of(1, 20), tokens_of(1, 20)).lanes_alike for model in (equal, apart)]
    assert alike[0][0] == pytest.approx(1.0, abs=1e-6)
    assert min(alike[1][1:]) < 0.999


def health(**changes):
    fields = {"state_rms": [1.0, 2.0], "update": [1.0, 0.5], "written_grad_rms": [1.0, 1.0], "forward_gain": 2.0}
    fields |= {"backward_gain": 1.0, "largest_logit": 3.0, "lanes_alike": None, "rows_in_use": None}
    return Health(**(fields | changes))


def test_lanes_that_stay_equal_are_named_once_and_in_time():
    watch = Watch()
    said = [watch.take(health(lanes_alike=[1.0, 1.0])) for _ in range(8)]
    assert [len(sentences) for sentences in said] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert "lanes of the stream are still equal" in said[4][0]
    fresh = Watch()
    assert not any(fresh.take(health(lanes_alike=[1.0, 0.9])) for _ in range(8))


def test_a_gain_that_runs_away_is_named():
    watch = Watch()
    assert watch.take(health()) == []
    assert watch.take(health(forward_gain=90.0)) == []
    assert "gain over the depth runs away: 500 forward" in watch.take(health(forward_gain=500.0))[0]
    assert watch.take(health(forward_gain=600.0)) == []
    vanishing = Watch()
    vanishing.take(health())
    assert "0.001 backward" in vanishing.take(health(backward_gain=0.001))[0]


def test_a_run_writes_rows_and_trains_as_without(data, tmp_path):
    settings = {"steps": 4, "batch_size": 2, "watch_every": 2}
    for name, changes in {"with": settings, "without": settings | {"watch_every": None}}.items():
        train(tiny_config(data, train=changes), tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if row["kind"] == "stream"]
    assert [row["step"] for row in looks] == [2, 4]
    assert len(looks[0]["state_rms"]) == 3
    assert 0 < looks[0]["last_rows_in_use"] <= 1
    others = [json.loads(line) for line in (tmp_path / "without" / "metrics.jsonl").read_text().splitlines()]

    def plain(rows):
        return [{k: v for k, v in row.items() if k != "clock"} for row in rows if row["kind"] != "stream"]

    assert plain(rows) == plain(others)
    columns = RunFolder(tmp_path / "with").metrics("stream")
    assert columns["forward_gain"].shape == (2,)


def test_it_looks_at_states_that_are_rebuilt_too(data, tmp_path):
    train(tiny_config(data, train={"steps": 2, "watch_every": 1, "stream_memory": "writes"}), tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").metrics("stream")["forward_gain"]) == 2
