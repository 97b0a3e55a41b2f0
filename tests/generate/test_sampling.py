"""Sampling: the cache changes no token, filters keep what they promise, prompts that cannot work are refused."""

import pytest
import torch

from models import STREAMS, tiny
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig, choose_token, generate, why_ended
from widestream.model.build import build_model


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("positions", ["learned", "alibi", "rotary"])
@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.5}]
)
def test_the_cache_changes_no_token(stream, positions, settings):
    model = build_model(tiny(stream, positions=positions), seed=5).eval()
    config = SamplingConfig(max_new_tokens=15, **settings)
    with_cache, without = (generate(model, [1, 2, 3], config, use_cache=cache) for cache in (True, False))
    assert with_cache == without
    assert len(with_cache) == 15


def test_seeds():
    model = build_model(tiny("matrix")).eval()
    draws = [generate(model, [1], SamplingConfig(max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_context_ends_the_text():
    model = build_model(tiny("vector")).eval()
    assert len(generate(model, list(range(20)), SamplingConfig(max_new_tokens=100))) == 4


def test_positions_without_a_table_go_on_beyond_the_context():
    for positions in ("rotary", "alibi", "none"):
        model = build_model(tiny("vector", positions=positions), seed=5).eval()
        config = SamplingConfig(max_new_tokens=40, temperature=0)
        long = generate(model, list(range(20)), config)
        assert len(long) == 40, "the context is 24"
        assert long == generate(model, list(range(20)), config, use_cache=False)
        assert why_ended(model, list(range(20)), long, config) == "length"


def test_why_a_text_ended():
    model = build_model(tiny("vector")).eval()
    config = SamplingConfig(max_new_tokens=100)
    assert why_ended(model, [0] * 20, [1] * 4, config) == "context"
    assert why_ended(model, [0] * 20, [1] * 3, config) == "document"
    assert why_ended(model, [0] * 2, [1] * 100, config) == "length"


def test_a_seed_that_no_generator_takes():
    with pytest.raises(UserError, match="below 2"):
        SamplingConfig(seed=10**20)
    with pytest.raises(UserError, match="must be a whole number"):
        SamplingConfig(seed="a")  # pyright: ignore[reportArgumentType]


def test_a_stop_token_ends_the_text_and_is_left_out():
    model = build_model(tiny("vector")).eval()
    greedy = SamplingConfig(max_new_tokens=10, temperature=0)
    text = generate(model, [1], greedy)
    cut = generate(model, [1], greedy, stop=text[4])
    assert cut == text[: text.index(text[4])]


def test_rows_beyond_the_tokenizer_are_never_drawn():
    model = build_model(tiny("vector")).eval()
    hot = SamplingConfig(max_new_tokens=20, temperature=100.0)
    assert max(generate(model, [1], hot)) >= 10
    assert max(generate(model, [1], hot, num_ids=10)) < 10


def draw(logits, count=400, **settings):
    generator = torch.Generator().manual_seed(0)
    config = SamplingConfig(temperature=1.0, **settings)
    return [choose_token(logits, config, generator) for _ in range(count)]


def test_filters():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert set(draw(logits)) == {0, 1, 2, 3}
    assert set(draw(logits, top_k=2)) == {1, 2}
    assert set(draw(logits, top_k=99)) == {0, 1, 2, 3}
    assert set(draw(logits, top_p=0.39)) == {1}
    assert set(draw(logits, top_p=0.41)) == {1, 2}
    assert set(draw(logits, top_p=1.0)) == {0, 1, 2, 3}
    assert draw(logits).count(1) == pytest.approx(160, abs=40)
    assert choose_token(logits, SamplingConfig(temperature=0), torch.Generator()) == 1


def test_any_temperature_above_zero_works():
    logits = torch.tensor([300.0, -200.0, 299.0])
    for temperature in (1e-300, 1e-40, 1e-3, 1e3, 1e300):
        assert choose_token(logits, SamplingConfig(temperature=temperature), torch.Generator()) in (0, 1, 2)
    assert choose_token(logits, SamplingConfig(temperature=1e-40), torch.Generator()) == 0


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "The prompt is empty"),
        (list(range(24)), "The prompt has 24 tokens, but the model's context is 24"),
        ([3, 50], "token id 50, outside the model's vocabulary of 50"),
    ],
)
def test_prompts_that_cannot_work(prompt, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(build_model(tiny("vector")), prompt, SamplingConfig())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError):
        SamplingConfig(**settings)
