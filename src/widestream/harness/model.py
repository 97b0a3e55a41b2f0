"""A model of this package as one of lm-evaluation-harness, without transformers.

Choices of one question share their prefix: it goes through the model once, and what its attention has left behind
serves all of them. All else goes in batches of like length, and the head reads only where something is asked.

A boundary token stands in front of every text, as in training, so that numbers are those of the harness's own `hf`
model on the exported folder (`widestream export hf`).

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from torch import Tensor
from tqdm import tqdm

from widestream.data.tokenizer import Tokenizer
from widestream.generate.decoding import Decoding
from widestream.machine import autocast
from widestream.model.decoder import Decoder

Request = tuple[Any, list[int], list[int]]
"""What is asked: anything, the ids of the context, those of the continuation."""
Score = tuple[float, bool, Tensor]
"""Log-likelihood in nats, whether the continuation is what greedy decoding gives, and the former token by token."""
LONGEST = 256
"""Tokens that are generated where a task does not say."""


class HarnessModel(TemplateLM):
    """Scores and continues texts.

    Args:
        model: in evaluation mode.
        tokenizer: the one it was trained with.
        batch_size: rows of a forward pass.
        precision: `float32` or `bf16`.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, batch_size: int = 16, precision: str = "float32"):
        super().__init__()
        self.model, self.own, self.batch_size, self.precision = model, tokenizer, batch_size, precision
        self.max_length = model.config.context
        self.where = model.head_weight().device
        self.rolled: dict[str, list[list[float]]] = {}
        """Of every whole text that was scored: (nats, tokens) at places 1, 2-3, 4-7, ... of the windows."""

    @property
    def eot_token_id(self) -> int:
        """The boundary."""
        return self.own.boundary_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in caches of requests."""
        return self.own.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, behind a boundary unless it is told to be left out."""
        ids = [int(i) for i in self.own.encode_batch([string])[0]]
        return ids if add_special_tokens is False else [self.eot_token_id, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        return [score[:2] for score in self._scores(requests, disable_tqdm)]

    def _scores(self, requests: Sequence[Request], disable_tqdm: bool) -> list[Score]:
        scores: list[Score | None] = [None] * len(requests)
        bar = tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm or None)
        alone = []
        order = sorted(range(len(requests)), key=lambda i: requests[i][1])
        for _context, together in groupby(order, key=lambda i: requests[i][1]):
            group = list(together)
            if len(group) == 1 or any(self._too_long(requests[i]) for i in group):
                alone += group
                continue
            for at in range(0, len(group), self.batch_size):
                part = group[at : at + self.batch_size]
                for i, score in zip(part, self._choices([requests[i] for i in part]), strict=True):
                    scores[i] = score
            bar.update(len(group))
        alone.sort(key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        for at in range(0, len(alone), self.batch_size):
            part = alone[at : at + self.batch_size]
            for i, score in zip(part, self._rows([requests[i] for i in part]), strict=True):
                scores[i] = score
            bar.update(len(part))
        bar.close()
        return [score for score in scores if score is not None]

    def _too_long(self, request: Request) -> bool:
        return len(request[1]) + len(request[2]) > self.max_length + 1

    @torch.no_grad()
    def _choices(self, requests: Sequence[Request]) -> list[Score]:
        """Continuations of one context, which goes through the model once."""
        context, continuations = requests[0][1], [continuation for _, _, continuation in requests]
        longest = max(map(len, continuations)) - 1
        with autocast(self.where, self.precision):
            dtype = torch.bfloat16 if self.precision == "bf16" else None
            cache = self.model.new_cache(1, len(context) + longest, dtype)
            first = self.model(self._tensor([context]), cache=cache)[:, -1:]
            hidden = first.expand(len(requests), -1, -1)
            if longest:
                rows = [row[:-1] + [0] * (longest + 1 - len(row)) for row in continuations]
                behind = self.model(self._tensor(rows), cache=cache.repeated(len(requests)))
                hidden = torch.cat((hidden, behind), dim=1)
            return [self._score(own[: len(row)], row) for own, row in zip(hidden, continuations, strict=True)]

    @torch.no_grad()
    def _rows(self, requests: Sequence[Request]) -> list[Score]:
        """A batch of texts. Attention is causal: what stands behind a shorter one changes nothing."""
        rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        longest = max(map(len, rows)) - 1
        with autocast(self.where, self.precision):
            hidden = self.model(self._tensor([row[:-1] + [0] * (longest + 1 - len(row)) for row in rows]))
            scores = []
            for own, row, (_, _, continuation) in zip(hidden, rows, requests, strict=True):
                end, wanted = len(row) - 1, continuation[-(len(row) - 1) :]
                scores.append(self._score(own[end - len(wanted) : end], wanted))
        return scores

    def _score(self, hidden: Tensor, continuation: list[int]) -> Score:
        """Of hidden vectors [T, D] in front of a continuation of T tokens."""
        logs = self.model.logits(hidden).float().log_softmax(-1)
        wanted = torch.tensor(continuation, device=self.where)
        by_token = logs.gather(1, wanted[:, None])[:, 0].double()
        return float(by_token.sum()), bool((logs.argmax(-1) == wanted).all()), by_token

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.where)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into windows of which each token is scored once."""
        windows: list[Request] = []
        counts = []
        texts = [request.args[0] for request in requests]
        for text in texts:
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            own = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        scores = iter(zip(windows, self._scores(windows, disable_tqdm), strict=True))
        totals = []
        for text, count in zip(texts, counts, strict=True):
            own = [next(scores) for _ in range(count)]
            totals.append(sum(score[0] for _, score in own))
            self.rolled[text] = _by_place([(len(context), score[2]) for (_, context, _), score in own])
        return totals

    @torch.no_grad()
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop or the boundary, one after the other."""
        return [
            self._continue(context, list(how.get("until", [])), int(how.get("max_gen_toks", LONGEST)))
            for context, how in tqdm([request.args for request in requests], disable=disable_tqdm or None)
        ]

    def _continue(self, context: str, stops: list[str], most: int) -> str:
        room = min(most, self.max_length - 1)
        ids = self.tok_encode(context)[-(self.max_length - room) :]
        decode = Decoding(self.model, 1, len(ids) + room, precision=self.precision)
        fresh, new, text = ids, [], ""
        for _ in range(room):
            token = int(decode(self._tensor([fresh]))[0].argmax())
            if token == self.eot_token_id:
                break
            new.append(token)
            fresh, text = [token], self.own.decode(new)
            if any(stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text


def _by_place(windows: Sequence[tuple[int, Tensor]]) -> list[list[float]]:
    """(nats, tokens) by how many tokens stand in front in the window, in the bounds 1, 2-3, 4-7, ...

    Args:
        windows: of a text, in order: tokens in front, and log-likelihoods of those that are scored. The first begins
            with a boundary behind a boundary, as the harness asks for it, which tells nothing of the text.
    """
    found: list[list[float]] = []
    for number, (before, scores) in enumerate(windows):
        first = 1 if number == 0 else 0
        places = range(1 if first else before, len(scores) + before)
        for place, score in zip(places, scores[first:].tolist(), strict=False):
            bucket = place.bit_length() - 1
            found += [[0.0, 0.0] for _ in range(bucket + 1 - len(found))]
            found[bucket][0] -= score
            found[bucket][1] += 1
    return found
