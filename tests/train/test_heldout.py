import json
import math
import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy

from tiny_runs import tiny_config
from widestream.data.batches import divide_windows
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.train.evaluate import evaluate
from widestream.train.parallel import World

WORLD = World(torch.device("cpu"))


@pytest.fixture
def store(data):
    return TokenStore.open(data, "heldout")


@pytest.fixture
def model(data):
    return build_model(tiny_config(data).model, seed=2)


def nats(model, store, windows):
    """Cross-entropy of every target of so many windows, spread evenly over the split, one window at a time."""
    found = []
    count = -(-(store.tokens - 1) // 16)
    windows = min(windows, count)
    for start in [16 * (index * count // windows) for index in range(windows)]:
        tokens, segments = store.window(start, min(17, store.tokens - start))
        tokens, segments = torch.from_numpy(tokens)[None], torch.from_numpy(segments)[None]
        with torch.no_grad():
            logits = model.logits(model(tokens[:, :-1], segments[:, :-1]))
        found.append(cross_entropy(logits[0].double(), tokens[0, 1:], reduction="none"))
    return torch.cat(found)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_whole_split_counts_every_target_once_whatever_the_batch(model, store, batch_size):
    expected = nats(model, store, windows=10**9)
    got = evaluate(model, store, world=WORLD, sequence_length=16, batch_size=batch_size)
    assert got.whole
    assert got.target_tokens == len(expected) == store.tokens - 1
    assert got.loss == pytest.approx(expected.mean().item(), rel=1e-6)
    assert got.perplexity == pytest.approx(math.exp(got.loss))
    assert got.bits_per_byte == pytest.approx(expected.sum().item() / math.log(2) / store.source_bytes, rel=1e-6)


def test_part_of_a_split_estimates_its_bytes(model, store):
    expected = nats(model, store, windows=5)
    got = evaluate(model, store, world=WORLD, sequence_length=16, batch_size=3, limit=5)
    assert not got.whole
    assert got.target_tokens == len(expected) == 80
    assert got.loss == pytest.approx(expected.mean().item(), rel=1e-6)
    bytes_per_token = store.source_bytes / (store.tokens - 1)
    assert got.bits_per_byte == pytest.approx(got.loss / math.log(2) / bytes_per_token)
    assert evaluate(model, store, world=WORLD, sequence_length=16, batch_size=3, limit=10**6).whole


def test_no_bits_per_byte_where_tokens_do_not_tell_all_of_the_text(model, data, tmp_path):
    expected = TokenStore.open(data, "heldout")
    folder = shutil.copytree(data, tmp_path / "data")
    for key in ("lost_characters", "changed_documents"):
        raw = json.loads((data / "manifest.json").read_text())
        raw["splits"]["heldout"][key] = 1
        (folder / "manifest.json").write_text(json.dumps(raw))
        store = TokenStore.open(folder, "heldout")
        got = evaluate(model, store, world=WORLD, sequence_length=16, batch_size=7)
        assert got.bits_per_byte is None
        assert got.loss == evaluate(model, expected, world=WORLD, sequence_length=16, batch_size=7).loss


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_windows_are_divided_evenly_and_none_is_in_both_parts(store, share):
    reported, chosen = divide_windows(store, 16, share)
    count = -(-(store.tokens - 1) // 16)
    assert sorted([*reported, *chosen]) == list(range(count))
    assert len(chosen) == int(count * share)
    halves = [sum(index < count // 2 for index in chosen), sum(index >= count // 2 for index in chosen)]
    assert abs(halves[0] - halves[1]) <= 1
    assert divide_windows(store, 16, 0.0) == (list(range(count)), [])
    with pytest.raises(UserError, match=r"of which no 0\.01 can be kept for choosing"):
        divide_windows(store, 16, 0.01)


def test_a_part_of_the_windows_is_that_part(model, store):
    options = {"world": WORLD, "sequence_length": 16, "batch_size": 3}
    parts = [evaluate(model, store, **options, among=part) for part in divide_windows(store, 16, 0.4)]
    whole = evaluate(model, store, **options)
    assert sum(part.target_tokens for part in parts) == whole.target_tokens
    assert not any(part.whole for part in parts)
    mean = sum(part.loss * part.target_tokens for part in parts) / whole.target_tokens
    assert mean == pytest.approx(whole.loss, rel=1e-6)
    assert parts[0].loss != parts[1].loss


def test_evaluation_leaves_no_trace(model, store):
    model.train()
    evaluate(model, store, world=WORLD, sequence_length=16, batch_size=4, limit=2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
