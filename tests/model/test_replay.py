"""States that the backward pass finds by going once more from an anchor: which, how often, and what that keeps."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from models import tiny
from widestream.model.build import build_model
from widestream.model.depth import Eager, Rebuilt, plan_depth
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing.memory import bytes_kept, saved_by_writes

CPU = torch.device("cpu")
KINDS = [
    {"kind": kind, **stream_class(kind).examples[0]}
    for kind in OWN_KINDS
    if stream_class(kind).spec(tiny({"kind": kind, **stream_class(kind).examples[0]})).undo == "replay"
]


def watched(stream, depth, **changes):
    """A model, and a list of its exchanges to come: site, leaves of the state behind it, what was read."""
    model, seen = build_model(tiny(stream, **changes), depth=depth), []
    exchange = model.stream.exchange

    def record(site, state, written):
        state, inputs = exchange(site, state, written)
        seen.append(
            (site, [None if x is None else x.detach().clone() for x in (*tree_leaves(state), *inputs.values())])
        )
        return state, inputs

    model.stream.exchange = record
    return model, seen


def loss_of(model):
    tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    return model.loss(tokens, tokens).total


@pytest.mark.parametrize("stream", KINDS, ids=lambda stream: stream["kind"])
def test_states_come_back_to_the_bit(stream):
    model, seen = watched(stream, Rebuilt(anchors=1))
    loss_of(model).backward()
    sites = len(model.stream.readers)
    forward, again = dict(seen[:sites]), dict(seen[sites:])
    assert sorted(again) == sorted(forward) == list(range(sites))
    for site, tensors in forward.items():
        for a, b in zip(tensors, again[site], strict=True):
            assert (a is None and b is None) or torch.equal(a, b), f"site {site}"


@pytest.mark.parametrize("anchors", [0, 1, 2, 3])
def test_the_backward_pass_goes_once_through_each_stretch_from_the_last_one_on(anchors):
    model, seen = watched({"kind": "hyper_connections"}, Rebuilt(anchors=anchors))
    loss = loss_of(model)
    del seen[:]
    loss.backward()
    stretches = {0: [[0, 1, 2, 3, 4]], 1: [[3, 4], [0, 1, 2]], 2: [[4], [3], [0, 1, 2]], 3: [[4], [3], [2], [0, 1]]}
    assert [site for site, _ in seen] == [site for stretch in stretches[anchors] for site in stretch]


def test_no_exchange_is_repeated_without_a_backward_pass():
    model, seen = watched({"kind": "mhc"}, Rebuilt(anchors=1))
    with torch.no_grad():
        loss_of(model)
    assert [site for site, _ in seen] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lanes", "layers", "anchors"),
    [(4, 12, 5), (4, 30, 9), (4, 61, 13), (1, 12, 7), (8, 12, 5), (4, 1, 1)],  # every 4, 6, 9, 3, 4, 1 blocks
)
def test_anchors_lie_as_mhc_places_them(lanes, layers, anchors):
    stream = {"kind": "hyper_connections", "lanes": lanes}
    depth = plan_depth(tiny(stream, num_layers=layers), CPU, "writes")
    assert isinstance(depth, Rebuilt)
    assert depth.anchors == anchors
    asked = plan_depth(tiny(stream, num_layers=layers), CPU, "writes", anchors=1)
    assert isinstance(asked, Rebuilt)
    assert asked.anchors == 1


def test_rebuilding_is_a_choice():
    assert type(plan_depth(tiny({"kind": "mhc"}), CPU)) is Eager
    depth = plan_depth(tiny({"kind": "mhc"}), CPU, anchors=2)
    assert isinstance(depth, Rebuilt)
    assert depth.anchors == 2


@pytest.mark.parametrize(
    ("stream", "share"),
    [
        ({"kind": "mhc"}, 0.25),
        ({"kind": "hyper_connections"}, 0.3),
        ({"kind": "depth_attention"}, 0.25),
        ({"kind": "depth_lstm"}, 0.3),
        ({"kind": "matrix_carry", "key_dim": 64}, 0.25),
        ({"kind": "attn_res"}, 0.55),
    ],
    ids=str,
)
def test_what_is_kept_is_a_part_of_what_states_take(stream, share):
    sizes = {"num_layers": 8, "num_heads": 4, "head_dim": 16}
    assert saved_by_writes(stream, sizes) < share * bytes_kept(stream, sizes, lambda _: Eager())
