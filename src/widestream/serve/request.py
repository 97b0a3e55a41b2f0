"""The body of a request for completions, checked: what OpenAI documents, and `top_k`."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from widestream.errors import UserError, shown, unknown_name
from widestream.generate.sampling import SamplingConfig
from widestream.serve.limits import Limits, Refusal

DEFAULT_TOKENS = 16
"""Tokens of an answer where a request does not say; OpenAI's number."""
MOST_LOGPROBS = 5
"""Likeliest tokens that are told beside the drawn one; OpenAI's number."""
MOST_STOPS = 4
"""Texts that end an answer; OpenAI's number."""
LONGEST_STOP = 256
"""Letters of such a text."""
SEEDS = 2**63
"""Seeds lie below it."""

Prompt = str | list[int]
"""Text, before which a boundary is put, or token ids as they are."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    prompts: list[Prompt]
    """At least one."""
    max_tokens: int | None
    """Tokens of every answer at most; None: the default, or what the model has room for."""
    temperature: float
    """See `SamplingConfig`."""
    top_p: float
    """See `SamplingConfig`."""
    top_k: int | None
    """See `SamplingConfig`."""
    seed: int
    """Of the first choice of every prompt; the others have the numbers behind it."""
    n: int
    """Choices for every prompt."""
    stop: tuple[str, ...]
    """Texts that end an answer and are not part of it."""
    logprobs: int | None
    """So many likeliest tokens are told, with their log-probabilities; None: nothing is."""
    echo: bool
    """Whether the prompt stands in front of the answer."""
    stream: bool
    """Whether pieces are sent as they come."""
    include_usage: bool
    """Whether a stream ends with the numbers of tokens."""

    def sampling(self, prompt_tokens: int, limits: Limits, choice: int = 0) -> SamplingConfig:
        """How a choice is drawn.

        Raises:
            Refusal: the prompt and what is asked for are longer than the limit.
        """
        room = limits.tokens - prompt_tokens
        if room < 1 or (self.max_tokens or 1) > room:
            more = f", and {self.max_tokens} more are asked for" if self.max_tokens and room >= 1 else ""
            raise Refusal(
                400,
                f"The prompt has {prompt_tokens} tokens{more}, but prompt and answer may have {limits.tokens} "
                "together; shorten the prompt or ask for fewer.",
                "prompt" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        return SamplingConfig(
            max_new_tokens=self.max_tokens or min(DEFAULT_TOKENS, room),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=(self.seed + choice) % SEEDS,
        )


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
"""Keys that OpenAI knows and this server does not act on, and the values with which they change nothing."""
KEYS = (
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop", "logprobs", "echo"),
    *("stream", "stream_options", "user", *NEUTRAL),
)


def read_request(body: bytes, model: str, limits: Limits) -> Asked:
    """What a body asks for.

    Args:
        body: JSON.
        model: name of the model that is served.
        limits: of the server.

    Raises:
        Refusal: it is no JSON, a key or a value is wrong, another model is asked for, or more than the limits allow.
    """
    values = _object(body)
    for key in values:
        if key not in KEYS:
            raise Refusal(400, str(unknown_name(f"key {shown(key)}", key, KEYS)), shown(key), "unknown_parameter")
    for key, neutral in NEUTRAL.items():
        if values.get(key) not in neutral:
            raise Refusal(400, f"This server does not do {key}; leave it out.", key, "unsupported_parameter")
    asked_model = _text(values, "model", model)
    if asked_model != model:
        raise Refusal(
            404, f"There is no model {shown(asked_model)} here; this server has {model}.", "model", "model_not_found"
        )
    _text(values, "user", "")
    options = values.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        _wrong("stream_options", 'an object with the key "include_usage"', options)
    asked = Asked(
        prompts=_prompts(values.get("prompt")),
        max_tokens=_number(values, "max_tokens", int, None, 1),
        temperature=_number(values, "temperature", float, 1.0, 0),
        top_p=_number(values, "top_p", float, 1.0, 0),
        top_k=_number(values, "top_k", int, None, 1),
        seed=_number(values, "seed", int, secrets.randbelow(SEEDS), 0, SEEDS - 1),
        n=_number(values, "n", int, 1, 1, limits.choices),
        stop=_stops(values.get("stop")),
        logprobs=_number(values, "logprobs", int, None, 0, MOST_LOGPROBS),
        echo=_flag(values, "echo"),
        stream=_flag(values, "stream"),
        include_usage=_flag(options, "include_usage"),
    )
    if len(asked.prompts) * asked.n > limits.choices:
        raise Refusal(
            400,
            f"{len(asked.prompts)} prompts with {asked.n} choices each are more than the {limits.choices} sequences "
            "of a request; send several requests.",
            "prompt" if len(asked.prompts) > limits.choices else "n",
        )
    try:
        SamplingConfig(max_new_tokens=1, temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k)
    except UserError as error:
        raise Refusal(400, str(error)) from None
    return asked


def _object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers of thousands of digits, nested too deep
        reason = shown(str(error)) if isinstance(error, ValueError) else "nested too deeply"
        raise Refusal(400, f"The body is no JSON ({reason}); send an object.", None, "invalid_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, f"The body must be a JSON object, not {shown(values)}.", None, "invalid_json")
    return values


def _wrong(key: str, wanted: str, value: Any) -> NoReturn:
    raise Refusal(400, f"{key} must be {wanted}, not {shown(repr(value))}.", key, "invalid_value")


def _number(values: dict[str, Any], key: str, kind: type, default: Any, least: int, most: int | None = None) -> Any:
    """A number in its range; `default` where there is none."""
    value = values.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < SEEDS else value
    if not isinstance(value, kind) or isinstance(value, bool) or not value >= least or (most and value > most):
        what = "a whole number" if kind is int else "a number"
        _wrong(key, f"{what} from {least} to {most}" if most else f"{what}, {least} or more", value)
    return value


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool | None):
        _wrong(key, "true or false", value)
    return bool(value)


def _text(values: dict[str, Any], key: str, default: str) -> str:
    value = values.get(key)
    if value is None:
        return default
    return _checked(value, key) if isinstance(value, str) else _wrong(key, "a text", value)


def _checked(text: str, key: str) -> str:
    """A text that can be encoded.

    Raises:
        Refusal: it holds halves of characters.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Refusal(400, f"{key} is no valid text: it holds half of a surrogate pair.", key, "invalid_value")
    return text


def _list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(kind(entry) for entry in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _prompts(value: Any) -> list[Prompt]:
    """Prompts of any of the four forms: a text, ids, or a list of either."""
    if value is None:
        raise Refusal(400, "The prompt is missing; give a text or token ids.", "prompt", "missing_parameter")
    if isinstance(value, str) or _list_of(value, _is_id):
        value = [value]
    if _list_of(value, _is_text):
        return [_checked(text, "prompt") for text in value]
    if _list_of(value, lambda entry: _list_of(entry, _is_id)):
        return value
    _wrong("prompt", "a text, token ids, or a list of texts or of token ids, and not empty", value)


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if stops == []:
        return ()
    fine = _list_of(stops, lambda entry: _is_text(entry) and 0 < len(entry) <= LONGEST_STOP)
    if not fine or len(stops) > MOST_STOPS:
        _wrong("stop", f"a text of 1 to {LONGEST_STOP} letters, or up to {MOST_STOPS} of them", value)
    return tuple(_checked(text, "stop") for text in stops)
