"""The thread that owns the model. Requests wait in a bounded queue; what runs is computed side by side, token by token.

A prompt joins as soon as there is room for all its choices, between two tokens of the others; one prompt at a time, so
that a row of long ones does not hold the others up. Whoever has hung up or run out of time leaves before the next one.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.data.tokenizer import Tokenizer
from widestream.generate import Batch
from widestream.model.decoder import Decoder
from widestream.serve.continuing import Continuing, Piece, prompt_scores
from widestream.serve.limits import Limits, Refusal
from widestream.serve.request import Asked

SCORED = 64
"""Tokens of a prompt whose logits are at hand at once."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it."""

    ids: list[int]
    """With a boundary in front where it was given as text."""
    text: str
    """What echo says."""
    own: int
    """Ids in front that are not of the prompt: the boundary."""


@dataclass(eq=False)
class Job:
    """A request on its way."""

    asked: Asked
    """What is wanted."""
    prompts: list[Prompt]
    """Not empty."""
    tell: Callable[[Piece | Refusal], None]
    """Is called with every piece, from the engine's thread."""
    until: float
    """When its time is up, on the monotonic clock."""
    gone: bool = False
    """Whether nobody listens any more."""
    begun: int = 0
    """Prompts that have been read."""
    answered: int = 0
    """Tokens of all answers so far."""


@dataclass(eq=False)
class _Row:
    job: Job
    answer: Continuing


class Engine:
    """Answers jobs, in the order in which they come.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        limits: of the server.
        precision: see `Batch`.
        numerics: what holds while the thread computes.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        limits: Limits,
        precision: str = "float32",
        numerics: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.tokenizer, self.limits = tokenizer, limits
        self._batch, self._numerics = Batch(model, precision), numerics
        self._waiting: deque[Job] = deque()
        self._rows: list[_Row] = []
        self._change = threading.Condition()
        self._stopped = False
        self._last = float("inf")
        self._thread = threading.Thread(target=self._run, name="widestream-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the token that it is at."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Sequences that are being written."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            Refusal: the queue is full, or the server is ending.
        """
        with self._change:
            if self._last < float("inf") or self._stopped:
                raise Refusal(503, "The server is ending; ask another one.", code="ending")
            if len(self._waiting) >= self.limits.waiting:
                raise Refusal(
                    429, f"{self.limits.waiting} requests are waiting already; try again in a while.", code="queue_full"
                )
            self._waiting.append(job)
            self._change.notify()

    def leave(self, job: Job) -> None:
        """Nobody listens to a job any more: its place is free at once."""
        with self._change:
            job.gone = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._change.notify()

    def end_by(self, moment: float) -> None:
        """Take no more jobs, and give those that are there no more time than until `moment`."""
        with self._change:
            self._last = moment
            self._change.notify()

    def _run(self) -> None:
        with self._numerics():
            while True:
                with self._change:
                    while not (self._stopped or self._rows or self._waiting):
                        self._change.wait()
                    if self._stopped:
                        return
                try:
                    self._turn()
                except Exception:  # whatever it is, others are served on
                    log.exception("A turn has failed; its requests are ended.")
                    self._drop()

    def _drop(self) -> None:
        """End what was running with an error."""
        for job in {row.job for row in self._rows}:
            self.leave(job)
            job.tell(Refusal(500, "The server has failed while it was answering; its log says how.", code="failed"))
        self._rows = []
        self._batch.change([])

    def _turn(self) -> None:
        """Let go who is done, take one prompt in, and draw one token for each."""
        self._time_is_up()
        kept = [i for i, row in enumerate(self._rows) if not (row.answer.done or row.job.gone)]
        rows = [self._rows[i] for i in kept]
        found = self._next(len(rows))
        # Before anything can fail: who is in `_rows` is told.
        self._rows = rows
        self._batch.change(kept)
        if found is not None:
            self._begin(*found)
        going = [row for row in self._rows if not row.answer.done]
        if len(going) < len(self._rows):
            return  # who has ended with the first token leaves first
        if going:
            logits = self._batch.step([row.answer.token for row in going])
            for row, own in zip(going, logits, strict=True):
                self._draw(row, own)

    def _time_is_up(self) -> None:
        now = time.monotonic()
        for row in self._rows:
            if not row.answer.done and not row.job.gone and now >= min(row.job.until, self._last):
                row.job.tell(row.answer.end("length"))
        with self._change:
            late = [job for job in self._waiting if now >= min(job.until, self._last)]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            job.gone = True
            job.tell(
                Refusal(
                    503, "The request has waited for as long as it may take; try again in a while.", code="timed_out"
                )
            )

    def _next(self, taken: int) -> tuple[Job, int] | None:
        """The next prompt, if there is room for its choices, and its number."""
        with self._change:
            if not self._waiting:
                return None
            job = self._waiting[0]
            if taken + job.asked.n > self.limits.rows:
                return None
            place, job.begun = job.begun, job.begun + 1
            if job.begun == len(job.prompts):
                self._waiting.popleft()
            return job, place

    def _begin(self, job: Job, place: int) -> None:
        """Read a prompt, and draw the first token of each of its answers."""
        asked, prompt = job.asked, job.prompts[place]
        echoed = len(prompt.text) if asked.echo else 0
        rows = []
        for choice in range(asked.n):
            sampling = asked.sampling(len(prompt.ids), self.limits, choice)
            number = place * asked.n + choice
            answer = Continuing(number, prompt.ids, sampling, self.tokenizer, asked.stop, asked.logprobs, echoed)
            rows.append(_Row(job, answer))
        self._rows = [*self._rows, *rows]
        cache, hidden = self._batch.read(prompt.ids)
        if asked.echo:
            self._echo(job, prompt, hidden, [row.answer.index for row in rows])
        logits = self._batch.logits(hidden[-1:])[0]
        for row in rows:
            self._draw(row, logits)
        self._batch.change(range(len(self._batch)), [cache] * len(rows))

    def _draw(self, row: _Row, logits: Tensor) -> None:
        before = row.answer.count
        piece = row.answer.draw(logits[: self.tokenizer.vocab_size])
        row.job.answered += row.answer.count - before
        if piece is not None:
            row.job.tell(piece)

    def _echo(self, job: Job, prompt: Prompt, hidden: Tensor, indices: list[int]) -> None:
        scores = []
        if (most := job.asked.logprobs) is not None:
            logs = self._logs(hidden, skipped=not prompt.own)
            scores = prompt_scores(self.tokenizer, prompt.ids[prompt.own :], logs, most)
        for index in indices:
            job.tell(Piece(index, prompt.text, scores))

    def _logs(self, hidden: Tensor, skipped: bool) -> Iterator[Tensor | None]:
        """Log-probabilities of what stands behind each token but the last; before them, where the first is its own."""
        if skipped:
            yield None
        for part in hidden[:-1].split(SCORED):
            logits = self._batch.logits(part)[:, : self.tokenizer.vocab_size]
            yield from torch.log_softmax(logits, -1)
