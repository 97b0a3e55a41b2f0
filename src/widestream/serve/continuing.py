"""One sequence of an answer: the next token is drawn, text comes out as it is certain, and stops end it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.data.tokenizer_base import Tokenizer
from widestream.generate.sampling import SamplingConfig, choose_token
from widestream.runs.sample import continuation

BEFORE = 8
"""Tokens of the prompt that are decoded with the first new ones, for tokens that look different at a text's start."""
INCOMPLETE = "\ufffd"
"""What bytes that are no whole character yet are decoded to."""


@dataclass(frozen=True)
class TokenScore:
    """A token and how likely it was, before temperature and the like."""

    token: str
    """Decoded alone: part of a character is U+FFFD."""
    logprob: float | None
    """In nats; None: nothing stands before it."""
    top: dict[str, float] | None
    """The likeliest tokens, the likeliest first; of those that look alike the likeliest."""
    offset: int
    """Letters of the text in front of it."""


@dataclass(frozen=True)
class Piece:
    """What has become certain of an answer."""

    index: int
    """Of the choice."""
    text: str
    """May be empty at the end."""
    scores: list[TokenScore]
    """Of its tokens, where they are asked for."""
    finish: str | None = None
    """Why there is no more: `stop` (the document's end, or a stop) or `length`; None: it goes on."""


class Decoded:
    """The text of ids as they come; only the last few are decoded each time.

    Args:
        tokenizer: of the ids.
        before: what stands in front of the text, and is not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int]):
        self._tokenizer, self._ids = tokenizer, before[-BEFORE:]
        self._read = len(self._ids)

    def take(self, token: int) -> str:
        """One more id -> the text that is certain now: none within a character."""
        self._ids.append(token)
        fresh = self.rest()
        if fresh.endswith(INCOMPLETE):
            return ""
        self._ids = self._ids[self._read :]  # the next text is decoded behind this one
        self._read = len(self._ids)
        return fresh

    def rest(self) -> str:
        """What has not become certain."""
        return continuation(self._tokenizer, self._ids[: self._read], self._ids[self._read :])


class Continuing:
    """An answer that is being written.

    Args:
        index: of the choice.
        prompt: its token ids.
        sampling: how tokens are drawn.
        tokenizer: the model's.
        stop: texts that end it.
        logprobs: so many likeliest tokens are told; None: no scores.
        echoed: letters of the prompt that stand in front of the text.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: SamplingConfig,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        logprobs: int | None = None,
        echoed: int = 0,
    ):
        self.index, self.sampling, self.tokenizer, self.stop, self.logprobs = index, sampling, tokenizer, stop, logprobs
        self.count = 0
        """Tokens so far; a boundary that ends the text is not one of them."""
        self.done = False
        """Whether there will be no more."""
        self.token = prompt[-1]
        """The last one."""
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._decoded = Decoded(tokenizer, prompt)
        self._held, self._offset = "", echoed
        self._scores: list[TokenScore] = []

    def draw(self, logits: Tensor) -> Piece | None:
        """Choose the next token.

        Args:
            logits: behind the last one [V], of the tokenizer's ids, float32 on the CPU.

        Returns:
            What has become certain, if anything has.
        """
        token = choose_token(logits, self.sampling, self._generator)
        if token == self.tokenizer.boundary_id:
            return self.end("stop")
        if self.logprobs is not None:
            offset = self._offset + len(self._held)
            self._scores.append(score(self.tokenizer, logits.log_softmax(-1), token, self.logprobs, offset))
        self.token = token
        self.count += 1
        fresh = self._decoded.take(token)
        if self.count == self.sampling.max_new_tokens:
            return self._release(fresh or self._decoded.rest(), "length")
        return self._release(fresh, None) if fresh else None

    def end(self, finish: str) -> Piece:
        """Give out what was held back."""
        return self._release(self._decoded.rest(), finish)

    def _release(self, fresh: str, finish: str | None) -> Piece:
        held = self._held + fresh
        found = [place for stop in self.stop if (place := held.find(stop)) >= 0]
        if found:
            held, finish = held[: min(found)], "stop"
        kept = 0 if finish else max((_overlap(held, stop) for stop in self.stop), default=0)
        text, self._held = held[: len(held) - kept], held[len(held) - kept :]
        self._offset += len(text)
        whole = finish is not None and not found
        scores = [s for s in self._scores if whole or s.offset < self._offset]
        self._scores = self._scores[len(scores) :]
        self.done = finish is not None
        return Piece(self.index, text, scores, finish)


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of a text with which a stop may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def score(tokenizer: Tokenizer, logs: Tensor | None, token: int, most: int, offset: int) -> TokenScore:
    """How likely a token was.

    Args:
        tokenizer: the model's.
        logs: log-probabilities of all [V]; None: nothing stands before the token.
        token: which.
        most: so many likeliest ones are told.
        offset: letters in front of it.
    """
    if logs is None:
        return TokenScore(tokenizer.decode([token]), None, None, offset)
    values, ids = logs.topk(min(most, len(logs)))
    top: dict[str, float] = {}
    for value, i in zip(values.tolist(), ids.tolist(), strict=True):
        top.setdefault(tokenizer.decode([i]), value)
    return TokenScore(tokenizer.decode([token]), float(logs[token]), top, offset)


def prompt_scores(
    tokenizer: Tokenizer, prompt: list[int], logs: Iterable[Tensor | None], most: int
) -> list[TokenScore]:
    """Scores of a prompt that stands in front of its answer.

    Args:
        tokenizer: the model's.
        prompt: ids [T].
        logs: for each of them, log-probabilities of all ids that may stand there; None: nothing stands before.
        most: so many likeliest ones are told.
    """
    scores, offset, decoded = [], 0, Decoded(tokenizer, [])
    for token, before in zip(prompt, logs, strict=True):
        scores.append(score(tokenizer, before, token, most, offset))
        offset += len(decoded.take(token))
    return scores
