"""Bodies: what is understood, and one sentence for everything else."""

import json

import pytest

from widestream.errors import UserError
from widestream.serve.limits import Limits, Refusal
from widestream.serve.request import DEFAULT_TOKENS, read_request

LIMITS = Limits(tokens=32, rows=4, choices=4)


def read(body=None, **values):
    content = json.dumps({"model": "m", "prompt": "a", **values}).encode() if body is None else body
    return read_request(content, "m", LIMITS)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_come_in_four_forms(prompt, prompts):
    assert read(prompt=prompt).prompts == prompts


def test_what_is_left_out_is_as_openai_has_it():
    asked = read()
    assert (asked.temperature, asked.top_p, asked.n, asked.stop, asked.logprobs) == (1.0, 1.0, 1, (), None)
    assert [asked.echo, asked.stream, asked.include_usage] == [False] * 3
    assert asked.sampling(3, LIMITS).max_new_tokens == DEFAULT_TOKENS
    assert asked.sampling(30, LIMITS).max_new_tokens == 2
    assert read().seed != asked.seed
    assert read(max_tokens=None, stop=None, seed=None, stream_options=None).max_tokens is None


def test_choices_have_seeds_of_their_own():
    asked = read(n=2, seed=2**63 - 1)
    assert [asked.sampling(3, LIMITS, choice).seed for choice in range(2)] == [2**63 - 1, 0]


def test_settings_that_change_nothing_are_taken():
    read(suffix="", best_of=1, presence_penalty=0.0, frequency_penalty=0, logit_bias={}, user="me")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"[" * 100000, 400, "nested"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400, "JSON"),
    ],
)
def test_what_is_no_object_is_refused(body, status, word):
    with pytest.raises(Refusal, match=word) as refused:
        read(body)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("values", "status", "param", "word"),
    [
        ({"model": "other"}, 404, "model", "no model other"),
        ({"model": 3}, 400, "model", "a text"),
        ({"promt": "a"}, 400, "promt", "did you mean prompt"),
        ({"prompt": None}, 400, "prompt", "missing"),
        ({"prompt": 3}, 400, "prompt", "token ids"),
        ({"prompt": []}, 400, "prompt", "not empty"),
        ({"prompt": [[]]}, 400, "prompt", "not empty"),
        ({"prompt": ["a", 1]}, 400, "prompt", "token ids"),
        ({"prompt": [True]}, 400, "prompt", "token ids"),
        ({"prompt": "\ud800"}, 400, "prompt", "surrogate"),
        ({"prompt": ["a"] * 5}, 400, "prompt", "4 sequences"),
        ({"prompt": ["a"] * 3, "n": 2}, 400, "n", "4 sequences"),
        ({"n": 5}, 400, "n", "from 1 to 4"),
        ({"n": 0}, 400, "n", "from 1"),
        ({"max_tokens": 0}, 400, "max_tokens", "1 or more"),
        ({"max_tokens": 2.5}, 400, "max_tokens", "whole"),
        ({"max_tokens": True}, 400, "max_tokens", "whole"),
        ({"temperature": "hot"}, 400, "temperature", "a number"),
        ({"temperature": float("nan")}, 400, "temperature", "nan"),
        ({"temperature": float("inf")}, 400, None, "temperature"),
        ({"temperature": 10**400}, 400, "temperature", "a number"),
        ({"top_p": 1.5}, 400, None, "top-p"),
        ({"top_p": 0}, 400, None, "top-p"),
        ({"top_k": 0}, 400, "top_k", "1 or more"),
        ({"seed": -1}, 400, "seed", "from 0"),
        ({"seed": 2**63}, 400, "seed", "from 0"),
        ({"stop": ["a"] * 5}, 400, "stop", "4"),
        ({"stop": [""]}, 400, "stop", "letters"),
        ({"stop": "a" * 300}, 400, "stop", "letters"),
        ({"stop": [3]}, 400, "stop", "letters"),
        ({"logprobs": 6}, 400, "logprobs", "from 0 to 5"),
        ({"echo": "yes"}, 400, "echo", "true or false"),
        ({"stream": 1}, 400, "stream", "true or false"),
        ({"stream_options": {"usage": True}}, 400, "stream_options", "include_usage"),
        ({"best_of": 3}, 400, "best_of", "does not do"),
        ({"logit_bias": {"1": 3}}, 400, "logit_bias", "does not do"),
        ({"user": 3}, 400, "user", "a text"),
    ],
)
def test_what_is_wrong_is_named(values, status, param, word):
    with pytest.raises(Refusal, match=word) as refused:
        read(**values)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 300


def test_more_than_the_context_is_refused():
    for asked, prompt, param in ((read(), 32, "prompt"), (read(max_tokens=10), 23, "max_tokens")):
        with pytest.raises(Refusal, match="may have 32 together") as refused:
            asked.sampling(prompt, LIMITS)
        assert (refused.value.status, refused.value.param) == (400, param)
        assert refused.value.code == "context_length_exceeded"
    read(max_tokens=10).sampling(22, LIMITS)


@pytest.mark.parametrize("values", [{"rows": 0}, {"choices": 99}, {"seconds": 0}, {"seconds": float("inf")}])
def test_limits_that_cannot_be(values):
    with pytest.raises(UserError, match=r"limit|choices"):
        Limits(tokens=32, **values)
