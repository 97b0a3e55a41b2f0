"""DL and SwDL: selectors around the plain stream."""

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.costs import summarize
from widestream.recipe import load_recipe, recipe_names
from widestream.testing.streams import check_plain_start

D, E = 32, 12


def lane(**fields):
    return {"kind": "data_lane", "embedding_dim": E, **fields}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("positions", ["full", "lane"])
@pytest.mark.parametrize("head_norm", ["norm_then_slice", "slice_then_norm"])
@pytest.mark.parametrize("output", ["same", "opposite"])
def test_equations_with_selector_matrices(output, head_norm, positions, tied):
    """The plain model whose embedding is padded and whose unembedding is zero outside the slice."""
    fields = lane(output=output, head_norm=head_norm, positions=positions)
    ours = build_model(tiny(fields, tied_head=tied), seed=1)
    plain = build_model(tiny(), seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.stream.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            if name in dict(plain.stream.named_parameters()):
                plain.stream.get_parameter(name).copy_(parameter)
        plain.blocks.load_state_dict(ours.blocks.state_dict())
        plain.embedding.token.copy_(ours.embedding.token @ torch.eye(E, D))
        position = ours.embedding.position
        plain.embedding.position.copy_(position if positions == "full" else position @ torch.eye(E, D))
    tokens = torch.randint(50, (2, 20), generator=generator)
    states = []
    plain.stream.norms[-1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    plain(tokens)
    chosen = slice(D - E, D) if output == "opposite" else slice(0, E)
    x = states[0]
    normed = (
        F.layer_norm(x[..., chosen], (E,)) if head_norm == "slice_then_norm" else F.layer_norm(x, (D,))[..., chosen]
    )
    torch.testing.assert_close(ours(tokens), normed * ours.stream.head_gain, rtol=1e-4, atol=1e-5)
    weight = ours.embedding.token if tied else ours.unembedding
    torch.testing.assert_close(ours.head_weight(), weight)
    assert weight.shape == (50, E)


@pytest.mark.parametrize("output", ["same", "opposite"])
@pytest.mark.parametrize("head_norm", ["norm_then_slice", "slice_then_norm"])
def test_the_whole_width_is_the_plain_stream(output, head_norm):
    check_plain_start({"kind": "data_lane", "embedding_dim": D, "output": output, "head_norm": head_norm}, {})


def test_blocks_use_the_lane():
    """The head reads coordinates that no token vector was written to: everything it knows came through blocks."""
    stream = {"kind": "data_lane", "embedding_dim": 16, "output": "opposite", "positions": "lane"}
    model = build_model(tiny(stream, norm="rmsnorm"))
    with torch.no_grad():
        tokens = torch.randint(50, (1, 12))
        assert model(tokens).abs().max() > 0.1
        for block in model.blocks:
            (block.out if hasattr(block, "out") else block.w2).zero_()
        assert model(tokens).abs().max() < 1e-6


def test_the_lane_keeps_its_share_of_a_base_width():
    mup = {"init": {"scheme": "mup"}, "mup": {"base_width": 8, "output_multiplier": 3.0}}
    model = meta_model(tiny(lane(embedding_dim=16), **mup))
    assert model.output_multiplier == pytest.approx(3.0 * 8 / 32)
    model = meta_model(tiny(lane(embedding_dim=16)))
    assert model.output_multiplier == 1.0


def test_counts_of_the_post():
    """768-96 at four layers: 33.1M tied and without positions, 34.7M with 2048 of them, 38.0M untied without."""
    sizes = {"vocab_size": 50257, "context": 2048, "num_layers": 4, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}
    stream = {"kind": "data_lane", "embedding_dim": 96}
    for changes, wanted in (
        ({"positions": "none", "tied_head": True}, 33_142_464),
        ({"tied_head": True}, 34_715_328),
        ({"positions": "none"}, 37_967_136),
    ):
        count = sum(p.numel() for p in meta_model(tiny(stream, **sizes, **changes)).parameters())
        assert count == wanted


def test_recipes_differ_in_their_stream_only():
    names = [name for name in recipe_names() if name.startswith("zoo/tinystories/")]
    assert {"zoo/tinystories/nodl-768", "zoo/tinystories/dl-768-96", "zoo/tinystories/swdl-768-96"} <= set(names)
    totals = {}
    for name in names:
        config, kind = load_recipe(name), name.split("/")[-1].split("-")
        assert config.model.num_layers == 4
        assert config.model.embed_dim == int(kind[1])
        if kind[0] != "nodl":
            assert config.model.stream.embedding_dim == int(kind[2])
            assert config.model.stream.output == ("opposite" if kind[0] == "swdl" else "same")
        totals[kind[0], *kind[1:]] = sum(p.numel() for p in meta_model(config.model).parameters())
    gain = 768 - 96  # of the head's norm
    assert totals["nodl", "768"] - totals["dl", "768", "96"] == 50257 * (768 - 96) + gain
    assert totals["dl", "768", "96"] == totals["swdl", "768", "96"]


def test_cost_is_the_plain_stream_s_with_a_smaller_head():
    plain, ours = summarize(tiny()), summarize(tiny(lane()))
    assert ours.flops == plain.flops | {"logits": 2 * 50 * E}
    gained = 4 * plain.stream_size  # what the gain in front of the head multiplies is kept
    assert ours.stream_bytes == plain.stream_bytes | {"saved": plain.stream_bytes["saved"] + gained}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0; it must be at least 1"),
        ({"embedding_dim": 33}, "embedding_dim is 33, but the stream is 32 wide"),
    ],
)
def test_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        meta_model(tiny({"kind": "data_lane", **fields}))
