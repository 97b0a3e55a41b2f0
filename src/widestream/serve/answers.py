"""What is sent back, in the shapes that OpenAI documents for completions."""

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

from widestream.serve.continuing import Piece, TokenScore
from widestream.serve.limits import Refusal

KINDS = {404: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""Types of errors by status; of others `invalid_request_error`."""


class Head:
    """What all parts of one answer begin with.

    Args:
        model: name of the model.
        logprobs: whether choices carry scores.
    """

    def __init__(self, model: str, logprobs: bool):
        created = int(time.time())
        self._values = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": created}
        self._values["model"] = model
        self._logprobs = logprobs

    def whole(self, pieces: Iterable[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """All of an answer."""
        choices: dict[int, list[Piece]] = {}
        for piece in pieces:
            choices.setdefault(piece.index, []).append(piece)
        return self._values | {"choices": [self._choice(choices[i]) for i in sorted(choices)], "usage": usage}

    def part(self, piece: Piece, with_usage: bool) -> str:
        """A piece as an event of a stream."""
        return event(self._values | {"choices": [self._choice([piece])]} | ({"usage": None} if with_usage else {}))

    def usage(self, usage: dict[str, int]) -> str:
        """The numbers of tokens as an event of a stream."""
        return event(self._values | {"choices": [], "usage": usage})

    def _choice(self, pieces: list[Piece]) -> dict[str, Any]:
        scores = [score for piece in pieces for score in piece.scores]
        return {
            "index": pieces[0].index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": _logprobs(scores) if self._logprobs else None,
            "finish_reason": pieces[-1].finish,
        }


def _logprobs(scores: list[TokenScore]) -> dict[str, Any]:
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [score.top for score in scores],
        "text_offset": [score.offset for score in scores],
    }


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The numbers of tokens of a request."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def error(refusal: Refusal) -> dict[str, Any]:
    """Why there is no answer."""
    kind = KINDS.get(refusal.status, "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def event(values: dict[str, Any]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(values)}\n\n"


END = "data: [DONE]\n\n"
"""The last event of a stream that has come to its end."""
