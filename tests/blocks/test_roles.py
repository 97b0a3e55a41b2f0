"""From axes to initial standard deviation, multiplier, learning-rate factor and decay."""

import math

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model

MUP = {
    "init": {"scheme": "mup", "std": 0.15},
    "mup": {
        "input_multiplier": 9.76, "attention_multiplier": 0.25, "output_multiplier": 5.52,
        "base_num_heads": 2, "base_head_dim": 4, "base_mlp_dim": 10, "base_key_dim": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (
            {"scheme": "lecun"},
            {"qkv": 1 / math.sqrt(32), "w2": 1 / math.sqrt(40), "head": 1 / math.sqrt(32), "token": 1.0},
        ),
        ({"scheme": "normal", "std": 0.02}, {"qkv": 0.02, "w2": 0.02, "head": 0.02, "token": 0.02}),
        (
            {"scheme": "xavier", "embedding_fan_in": "vocab"},
            {"qkv": math.sqrt(2 / 128), "w2": math.sqrt(2 / 72), "head": math.sqrt(2 / 82), "token": math.sqrt(2 / 82)},
        ),
        (
            {"scheme": "mup", "std": 0.15},
            {"qkv": 0.15 / math.sqrt(32), "w2": 0.15 / math.sqrt(40), "head": 0.15, "token": 0.15},
        ),
        ({"scheme": "lecun", "embedding_fan_in": "vocab"}, {"token": 1 / math.sqrt(50)}),
    ],
)  # fmt: skip
def test_initial_standard_deviations(scheme, expected):
    roles = meta_model(tiny("vector", init={**scheme, "depth_scale": False})).roles()
    names = {"qkv": "blocks.0.qkv", "w2": "blocks.1.w2", "head": "unembedding", "token": "embedding.token"}
    for key, std in expected.items():
        assert roles[names[key]].std == pytest.approx(std), key


@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_weights_have_the_declared_deviation(stream):
    model = build_model(tiny(stream, mlp_dim=400, vocab_size=500))
    for name, role in model.roles().items():
        values = model.get_parameter(name).detach()
        if role.std is None:
            assert torch.equal(values, torch.ones_like(values)), name
        else:
            assert values.std() == pytest.approx(role.std, rel=0.35), name
            assert abs(values.mean()) < 5 * role.std / math.sqrt(values.numel()), name


def test_mup_of_rmt():
    model = meta_model(tiny("matrix", **MUP))
    roles = model.roles()
    assert roles["stream.read_0"].lr_factor == pytest.approx(3 / 6)  # reads sum over D_k
    assert roles["stream.write_1"].lr_factor == pytest.approx(2 / 4)  # writes sum over R
    assert roles["blocks.1.w1"].lr_factor == pytest.approx((4 * 2) / (8 * 4))  # R * D_v
    assert roles["blocks.1.w2"].lr_factor == pytest.approx(10 / 40)
    for name in ("embedding.token", "embedding.position", "unembedding", "stream.norms.0.gain"):
        assert roles[name].lr_factor == 1.0
    assert model.embedding.multiplier == 9.76
    assert model.output_multiplier == pytest.approx(5.52 / 4)
    assert model.blocks[0].scale == pytest.approx(0.25 * math.sqrt(4) / 8)
    assert roles["unembedding"].std == 0.15  # does not shrink with width


def test_without_bases_mup_multipliers_are_the_standard_ones():
    model = meta_model(tiny("vector", init={"scheme": "mup"}))
    assert {role.lr_factor for role in model.roles().values()} == {1.0}
    assert model.blocks[0].core.scale == pytest.approx(1 / math.sqrt(8))
    assert model.blocks[2].core.scale == pytest.approx(1 / math.sqrt(8) / 2)  # inverse layer scaling
    assert model.output_multiplier == 1.0


def test_decay_and_muon():
    vector, matrix = (meta_model(tiny(stream)).roles() for stream in ("vector", "matrix"))
    kept = {name for name, role in vector.items() if role.decay == "none"}
    assert kept == {
        "embedding.token",
        "embedding.position",
        "unembedding",
        *(f"stream.norms.{i}.gain" for i in range(5)),
    }
    assert {name for name, role in matrix.items() if role.decay == "key"} == {
        name for name in matrix if name.startswith(("stream.read", "stream.write"))
    }
    for roles in (vector, matrix):
        assert {name for name, role in roles.items() if role.muon} == {
            name for name, role in roles.items() if role.decay != "none"
        }


@pytest.mark.parametrize(("stream", "name", "rows"), [("vector", "blocks.0.qkv", 32), ("matrix", "stream.read_0", 4)])
def test_query_zero_init_really_zeroes_queries(stream, name, rows):
    weight = build_model(tiny(stream, init={"query_zero": True})).get_parameter(name)
    assert weight[:rows].norm() == 0
    assert weight[rows:].norm() > 0
    assert build_model(tiny(stream)).get_parameter(name)[:rows].norm() > 0


def test_base_sizes_need_the_mup_scheme():
    with pytest.raises(UserError, match=r"mup.base_width act only under init.scheme: mup"):
        tiny("vector", mup={"base_width": 16})


@pytest.mark.parametrize(("stream", "foreign"), [("vector", "base_key_dim"), ("matrix", "base_width")])
def test_base_sizes_of_axes_that_a_stream_lacks_are_refused(stream, foreign):
    config = tiny(stream, init={"scheme": "mup"}, mup={foreign: 4})
    with pytest.raises(UserError, match=f"no axis for model.mup.{foreign}"):
        meta_model(config)


@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_activations_keep_their_size_over_width_and_keys(stream):
    """Coordinate check at initialisation: hidden vectors and attention inputs are of order one at any size."""
    sizes = []
    for factor in (1, 4):
        own = {"kind": "vector"} if stream == "vector" else {"kind": "matrix", "key_dim": 8 * factor}
        model = build_model(tiny(own, num_heads=4 * factor, mlp_dim=64 * factor))
        sizes.append(model(torch.arange(20)[None]).square().mean().sqrt().item())
    assert sizes[1] / sizes[0] == pytest.approx(1, rel=0.25)


def test_a_parameter_says_which_matrices_it_holds():
    dense, matrix = (meta_model(tiny(stream)).roles() for stream in ("vector", "matrix"))
    assert dense["blocks.0.qkv"].splits == (32, 32, 32)
    assert matrix["stream.read_0"].splits == (4, 4, 4)
    one = ("blocks.0.out", "blocks.1.w1", "blocks.1.w2")
    assert all(dense[name].splits == () for name in one)
    assert matrix["stream.read_1"].splits == matrix["stream.write_1"].splits == ()
    shared = meta_model(tiny("vector", value_residual="shared")).roles()
    assert shared["blocks.2.qkv"].splits == (32, 32)
    for roles in (dense, matrix, shared):
        assert all(role.splits == () for role in roles.values() if not role.muon)


def test_with_grouped_queries_keys_and_values_are_smaller_parts():
    dense, matrix = (meta_model(tiny(stream, num_kv_heads=2)).roles() for stream in ("vector", "matrix"))
    assert dense["blocks.0.qkv"].splits == (32, 16, 16)
    assert matrix["stream.read_0"].splits == (4, 2, 2)
    kinds = {"matrix_softmax": "query_0", "matrix_dynamic": "map_read_0"}
    for kind, name in kinds.items():
        roles = meta_model(tiny({"kind": kind, "key_dim": 6}, num_kv_heads=2)).roles()
        assert roles[f"stream.{name}"].splits == (4, 2, 2), kind
    shared = meta_model(tiny({"kind": "matrix_dense", "key_dim": 6}, num_kv_heads=2)).roles()
    assert shared["stream.read_0"].splits == (), "one read for q, k and v"
    each = meta_model(tiny({"kind": "matrix_dense", "key_dim": 6, "reads": "qkv"}, num_kv_heads=2)).roles()
    assert each["stream.read_0"].splits == (4, 4, 4)


def test_what_belongs_to_one_head():
    roles = meta_model(tiny("vector")).roles()
    assert roles["blocks.0.qkv"].head == (8, 32)
    assert roles["blocks.0.out"].head == (32, 8)
    assert roles["blocks.1.w1"].head is roles["blocks.1.w2"].head is None
    assert all(role.head is None for role in meta_model(tiny("matrix")).roles().values())
