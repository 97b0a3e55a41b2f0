"""What a design is known to fail at is true, listed, and said when a recipe asks for it."""

import pytest
import torch

from models import tiny
from widestream.model import build
from widestream.model.build import build_model, meta_model
from widestream.model.catalog import list_streams
from widestream.streams import stream_class


def kept_apart(stream, num_layers):
    """Largest distance between any two lanes in front of the head, of each pair, after three steps."""
    model = build_model(tiny(stream, num_layers=num_layers), seed=1)
    optimizer, lanes = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(3):
        tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(step))
        model.loss(tokens, tokens.roll(-1, 1)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    read_out = model.stream.read_out
    model.stream.read_out = lambda H: lanes.append(H) or read_out(H)
    model(tokens)
    return [(a - b).abs().max().item() for i, a in enumerate(lanes[0].unbind(-2)) for b in lanes[0].unbind(-2)[:i]]


LANES = [
    {"kind": "hyper_connections"},
    {"kind": "hyper_connections", "dynamic": False},
    {"kind": "mhc"},
    {"kind": "mhc", "readout": "learned"},
]


@pytest.mark.parametrize("stream", LANES, ids=str)
def test_more_lanes_than_blocks_stay_equal_copies(stream):
    assert min(kept_apart(stream | {"lanes": 3}, num_layers=1)) < 1e-5  # two blocks
    assert min(kept_apart(stream | {"lanes": 2}, num_layers=1)) > 1e-3


def test_random_phi_tells_any_number_of_lanes_apart():
    stream = {"kind": "mhc", "lanes": 4, "phi": "random"}
    assert min(kept_apart(stream, num_layers=1)) > 1e-4
    assert not stream_class("mhc").warnings(tiny(stream, num_layers=1))


def test_slots_that_start_as_copies_stay_so():
    stream = {"kind": "generalized_hc", "segments": 2, "embedding": "expand", "readout": "plain"}
    assert min(kept_apart(stream | {"slots": 6}, num_layers=2)) < 1e-5
    assert min(kept_apart(stream | {"slots": 4}, num_layers=2)) > 1e-3


def growth(stream, num_layers, **sizes):
    """How much larger the embedding's gradient is than in a model of two layers."""
    norms = []
    for layers in (2, num_layers):
        model = build_model(tiny(stream, num_layers=layers, **sizes))
        tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
        model.loss(tokens, tokens.roll(-1, 1)).total.backward()
        norms.append(model.embedding.token.grad.norm().item())
    return norms[1] / norms[0]


def test_gradients_of_deep_delta_explode_where_it_is_deep_and_narrow():
    sizes = {"head_dim": 4, "mlp_dim": 64}
    assert growth({"kind": "deep_delta"}, 100, **sizes) > 1e5
    assert growth({"kind": "deep_delta", "write": "add"}, 100, **sizes) < 10
    assert growth({"kind": "deep_delta"}, 24, head_dim=16) < 10


def test_gradients_of_a_depthwise_lstm_grow_with_its_layers():
    assert growth({"kind": "depth_lstm"}, 48) > 10


@pytest.mark.parametrize(
    ("stream", "sizes", "sentence"),
    [
        ({"kind": "hyper_connections", "lanes": 5}, {}, "lanes is 5, more than the 4 blocks"),
        ({"kind": "mhc", "lanes": 5}, {}, "lanes is 5, more than the 4 blocks"),
        (
            {"kind": "generalized_hc", "segments": 2, "slots": 6, "embedding": "expand", "readout": "plain"},
            {},
            "equal copies of earlier ones",
        ),
        ({"kind": "deep_delta"}, {"num_layers": 100, "head_dim": 4}, "grow about 1e6-fold"),
        ({"kind": "depth_lstm"}, {"num_layers": 48}, "a hundredfold or more"),
    ],
)
def test_a_recipe_that_asks_for_it_is_told_once(stream, sizes, sentence, caplog):
    build.warn_once.cache_clear()
    meta_model(tiny(stream))
    if sizes:
        assert not caplog.messages
    for _ in range(2):
        meta_model(tiny(stream, **sizes))
    assert len(caplog.messages) == 1
    assert sentence in caplog.messages[0]


def test_listings_have_the_limits():
    rows = {row.kind: row for row in list_streams(tiny())}
    assert "equal copies" in rows["hyper_connections"].limits[0]
    assert "exploding gradients" in rows["deep_delta"].limits[0]
    assert rows["vector"].limits == ()
