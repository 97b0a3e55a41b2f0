import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import prepare_bytes, texts

from widestream.data.batches import Batch, TrainBatches, eval_batches
from widestream.data.store import TokenStore
from widestream.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    folder = prepare_bytes(tmp_path_factory.mktemp("data"), texts(80), texts(7, seed=1), shard_tokens=3000)
    return TokenStore.open(folder, "train")


@pytest.fixture(scope="module")
def heldout(store) -> TokenStore:
    return TokenStore.open(store.folder, "heldout")


def rows(batch) -> list[tuple]:
    parts = (batch.tokens, batch.targets, batch.segments)
    return [tuple(tuple(part[i].tolist()) for part in parts) for i in range(batch.tokens.shape[0])]


def test_types_shapes_and_targets(store):
    batch = TrainBatches(store, 32, 4, seed=0).at(0)
    assert (batch.tokens.dtype, batch.targets.dtype, batch.segments.dtype) == (torch.int64, torch.int64, torch.int32)
    assert batch.tokens.shape == batch.targets.shape == batch.segments.shape == (4, 32)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.weights is None
    assert all(part.is_contiguous() for part in (batch.tokens, batch.targets, batch.segments))


def test_every_window_once_an_epoch_and_batches_run_on_across_epochs(store):
    batches = TrainBatches(store, 32, 7, seed=3)
    windows = batches.windows_per_epoch
    assert windows == (store.tokens - 1) // 32
    assert windows % 7, "the test wants batches that straddle two epochs"
    seen = np.concatenate([batches.window_indices(step) for step in range(-(-3 * windows // 7))])
    epochs = [seen[e * windows : (e + 1) * windows] for e in range(3)]
    assert all(np.array_equal(np.sort(epoch), np.arange(windows)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_larger_than_the_corpus_spans_several_epochs(tmp_path):
    small = TokenStore.open(prepare_bytes(tmp_path, ["abcdefgh"]), "train")
    batches = TrainBatches(small, 4, 7, seed=0)
    assert batches.windows_per_epoch == 2
    assert sorted(batches.window_indices(0)[:6].tolist()) == [0, 0, 0, 1, 1, 1]


@given(step=st.integers(0, 10**9), world=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_ranks_share_the_global_batch(store, step, world, seed):
    batches = TrainBatches(store, 16, 12, seed)
    shares = [row for rank in range(world) for row in rows(batches.at(step, rank, world))]
    assert shares == rows(batches.at(step))


@given(step=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_resuming_at_any_step_gives_the_same_batch(store, step):
    fresh = TrainBatches(TokenStore.open(store.folder, "train"), 16, 4, seed=5)
    worn = TrainBatches(store, 16, 4, seed=5)
    for earlier in range(step % 3):
        worn.at(earlier)
    assert rows(fresh.at(step)) == rows(worn.at(step))


def test_seed_changes_the_batches(store):
    assert rows(TrainBatches(store, 16, 8, seed=0).at(0)) != rows(TrainBatches(store, 16, 8, seed=1).at(0))


def test_uneven_share_is_refused(store):
    with pytest.raises(UserError, match="batch of 8 windows cannot be shared by 3"):
        TrainBatches(store, 16, 8, seed=0).at(0, rank=0, world=3)


def test_corpus_shorter_than_one_window(tmp_path):
    store = TokenStore.open(prepare_bytes(tmp_path, ["short"]), "train")
    assert TrainBatches(store, 5, 1, seed=0).windows_per_epoch == 1
    with pytest.raises(UserError, match=r"has 6 tokens, one window needs 7: .*sequence_length to 5"):
        TrainBatches(store, 6, 1, seed=0)


@given(length=st.integers(1, 300), batch_size=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_every_target_is_evaluated_exactly_once(heldout, length, batch_size):
    whole, _ = heldout.window(0, heldout.tokens)
    targets, seen = [], []
    for batch in eval_batches(heldout, length, batch_size):
        assert batch.tokens.shape == (batch_size, length)
        counted = batch.weights == 1
        assert ((batch.weights == 0) | counted).all()
        targets += batch.targets[counted].tolist()
        seen += batch.tokens[counted].tolist()
    assert targets == whole[1:].tolist()
    assert seen == whole[:-1].tolist()


def test_padding_is_a_segment_of_its_own(tmp_path):
    store = TokenStore.open(prepare_bytes(tmp_path, ["x"], ["abc", "de"]), "heldout")  # 4 + 3 tokens
    (batch,) = eval_batches(store, 4, 3)
    assert batch.segments.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch.weights is not None
    assert batch.weights.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.tokens[1].tolist() == [256, *b"d", 101, 256]


def test_a_boundary_in_any_window_is_seen():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    for rows, expected in (
        ([[0, 0, 0, 0]] * 2, False),
        ([[0, 0, 0, 0], [0, 0, 0, 1]], True),
        ([[0, 1, 1, 1]] * 2, True),
    ):
        assert Batch(tokens=tokens, targets=tokens, segments=torch.tensor(rows)).has_boundaries is expected


def test_limit_counts_windows(heldout):
    batches = list(eval_batches(heldout, 16, 2, limit=3))
    assert sum(int(batch.weights.sum()) for batch in batches if batch.weights is not None) == 3 * 16
    assert len(batches) == 2


def test_limit_spreads_windows_over_the_split(heldout):
    whole = torch.cat([batch.tokens for batch in eval_batches(heldout, 4, 1)])
    part = torch.cat([batch.tokens for batch in eval_batches(heldout, 4, 2, limit=3)])[:3]
    assert torch.equal(part, whole[[0, len(whole) // 3, 2 * len(whole) // 3]])


def test_split_without_a_target(heldout, monkeypatch):
    monkeypatch.setattr(heldout, "tokens", 1)
    with pytest.raises(UserError, match="has 1 token"):
        eval_batches(heldout, 4, 2)


def test_assembling_a_batch_is_quick(store):
    batches = TrainBatches(store, 256, 16, seed=0)
    batches.at(0)
    times = []
    for step in range(20):
        start = time.perf_counter()
        batches.at(step)
        times.append(time.perf_counter() - start)
    assert min(times) < 16 * 1e-3


def test_batch_moves_as_a_whole(heldout):
    batch = next(eval_batches(heldout, 8, 2)).to("meta")
    parts = (batch.tokens, batch.targets, batch.segments, batch.weights)
    assert all(part is not None and part.device.type == "meta" for part in parts)


def test_a_batch_is_pinned_for_a_gpu_alone(heldout, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batch = next(iter(eval_batches(heldout, 8, 2)))
    assert batch.ready_for(torch.device("cpu")) is batch
    assert not pinned
    batch.ready_for(torch.device("cuda"))
    assert [id(tensor) for tensor in pinned] == [
        id(tensor) for tensor in (batch.tokens, batch.targets, batch.segments, batch.weights)
    ]
