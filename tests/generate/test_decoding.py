"""Decoding: the compiled step is the eager one, its shapes never change, and bfloat16 casts the matrices once."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.generate.decoding import Decoding, cast_weights
from widestream.generate.sampling import SamplingConfig, generate
from widestream.model.build import build_model
from widestream.testing.models import random_model, tokens_of

STREAMS = {
    "vector": {"kind": "vector"},
    "matrix": {"kind": "matrix", "key_dim": 6},
    "mudd": {"kind": "mudd"},
    "matrix_history": {"kind": "matrix_history", "key_dim": 8},
    "token_memory": {"kind": "deep_delta", "compressor": "token", "value_channels": 3},
}
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def greedy(decode: Decoding, prompt: torch.Tensor, num_tokens: int) -> list[list[int]]:
    tokens = [decode(prompt).argmax(-1, keepdim=True)]
    for _ in range(num_tokens - 1):
        tokens.append(decode(tokens[-1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1).tolist()


@pytest.mark.parametrize("stream", STREAMS)
def test_compiled_tokens_are_the_eager_ones(stream):
    model = random_model(STREAMS[stream], {}).eval()
    prompt = tokens_of(2, 5)
    compiled = Decoding(model, 2, 20, compiled=True, backend="aot_eager")
    assert greedy(compiled, prompt, 15) == greedy(Decoding(model, 2, 20), prompt, 15)


def test_one_graph_serves_all_tokens():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    decode = Decoding(build_model(tiny("matrix")).eval(), 1, 20, compiled=True, backend=count)
    greedy(decode, tokens_of(1, 4), 16)
    assert len(graphs) == 1
    assert decode.cache.length == 19


def test_any_number_of_lengths_can_be_compiled():
    model = build_model(tiny("vector", num_layers=1)).eval()
    for length in range(8, 20):
        decode = Decoding(model, 1, length, compiled=True, backend="eager")
        assert len(greedy(decode, tokens_of(1, 4), 3)[0]) == 3


@pytest.mark.slow
def test_sampling_with_a_compiled_step():
    model = build_model(tiny("matrix"), seed=5).eval()
    assert generate(model, [1, 2, 3], GREEDY, compiled=True) == generate(model, [1, 2, 3], GREEDY)


def test_a_compiled_step_needs_the_cache():
    with pytest.raises(UserError, match="needs the cache"):
        generate(build_model(tiny("vector")).eval(), [1], GREEDY, compiled=True, use_cache=False)


def test_the_room_is_kept():
    decode = Decoding(build_model(tiny("vector")).eval(), 1, 6, compiled=True, backend="eager")
    with pytest.raises(UserError, match="do not fit a cache of 6"):
        greedy(decode, tokens_of(1, 4), 8)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_cast_weights_compute_as_autocast_does(stream, tied):
    model = build_model(tiny(stream, tied_head=tied, upcast_attention=False), seed=5).eval()
    with torch.no_grad():
        model.embedding.token.copy_(model.embedding.token.bfloat16())  # a tied table is rounded as an embedding too
    tokens = tokens_of(2, 9)
    pieces = [slice(0, 5), *(slice(at, at + 1) for at in range(5, 9))]
    before = [decode(tokens[:, piece]) for decode in [Decoding(model, 2, 9, precision="bf16")] for piece in pieces]
    cast_weights(model, "bf16")
    after = [decode(tokens[:, piece]) for decode in [Decoding(model, 2, 9, precision="bf16")] for piece in pieces]
    assert model.head_weight().dtype == torch.bfloat16
    assert {p.dtype for p in model.blocks.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.stream.parameters()} == {torch.float32}
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_wider_weights_stay_wide():
    model = build_model(tiny("matrix", upcast_attention=False)).double().eval()
    assert Decoding(model, 1, 5)(tokens_of(1, 4)).dtype == torch.float64


def test_float32_casts_nothing():
    model = build_model(tiny("vector"))
    cast_weights(model, "float32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
