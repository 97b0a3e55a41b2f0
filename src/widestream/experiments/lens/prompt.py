"""What a run's model does on a prompt: who wrote what the next token is read from, token by token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError
from widestream.lens import (
    Attribution,
    Gate,
    Held,
    Keys,
    LaneMixing,
    Seen,
    Wiring,
    attribute,
    flow,
    gates,
    held,
    keys,
    lane_mixing,
    logit_lens,
    look,
)
from widestream.machine import find_device
from widestream.runs.folder import load_config
from widestream.runs.model import load_model, load_run_tokenizer

MOST_TOKENS = 1024
"""Of a prompt: states of all sites and tokens are kept."""
NEXT = 10
"""Likeliest next tokens that are named."""


@dataclass(frozen=True)
class Guess:
    """A token and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class SiteLens:
    """What the head would make of the stream at a site, for every token of the prompt."""

    reader: str
    """Who reads there."""
    likeliest: list[int]
    """[T] tokens."""
    probability: list[float]
    """[T] of the likeliest."""
    of_target: list[float]
    """[T] of the token that is attributed."""


@dataclass(frozen=True)
class Inspection:
    """A model on a prompt."""

    run: Path
    step: int
    stream: str
    prompt: str
    seen: Seen
    """The pass."""
    tokens: list[str]
    """The document boundary in front, then the prompt's."""
    targets: list[int]
    """[T] the token whose logit is attributed at each position: the one that comes next; at the last position the
    likeliest, or the one asked for."""
    texts: dict[int, str]
    """Tokens that are named somewhere."""
    guesses: list[Guess]
    """What comes next."""
    attribution: Attribution | None
    """None where `refusal` says why."""
    wiring: Wiring | None
    lanes: LaneMixing | None
    """None: the stream has no lanes that are mixed."""
    gates: list[Gate]
    """Of the stream, by reader."""
    keys: Keys | None
    """None: the stream has no such coefficients."""
    refusal: str
    """Why there are no shares; empty where there are."""
    sites: list[SiteLens]
    """By site; fewer than all where the head cannot read earlier."""
    held: dict[str, Held]
    """By reader."""
    patterns: dict[str, Tensor]
    """Attention by block [H, T, T]."""


def inspect_prompt(
    run_dir: Path, prompt: str, *, target: str | None = None, step: int | None = None, device: str | None = None
) -> Inspection:
    """Run a model on a prompt and look at everything.

    Args:
        run_dir: folder of a run.
        prompt: text; a document boundary stands in front.
        target: whose logit is attributed at the end: text whose first token it is; None: the likeliest token.
        step: of the checkpoint; None: the newest.
        device: where to compute; None: where the run was trained.

    Raises:
        UserError: no run, no checkpoint; a prompt that is empty, too long, or no text.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in prompt + (target or "")):
        raise UserError("The prompt is not valid text; give it in UTF-8.")
    if not prompt:
        raise UserError("The prompt is empty; give some text with --prompt.")
    reading = see_prompt(run_dir, prompt, step, device)
    seen, tokenizer = reading.seen, reading.tokenizer
    ids = seen.tokens[0].tolist()
    likely = seen.logits[0, -1, : tokenizer.vocab_size].softmax(-1).topk(min(NEXT, tokenizer.vocab_size))
    guesses = [Guess(int(t), shown(tokenizer, int(t)), float(p)) for p, t in zip(*likely, strict=True)]
    targets = [*ids[1:], guesses[0].token if target is None else _first(tokenizer, target)]
    found: dict[str, Any] = {"attribution": None, "wiring": None, "refusal": ""}
    try:
        found |= {
            "attribution": attribute(seen, torch.tensor([targets])),
            "wiring": flow(seen, skip=min(1, len(ids) - 1)),
        }
    except UserError as error:
        found["refusal"] = str(error)
    readers = list(dict.fromkeys((one.site, one.whole.name) for one in seen.readers()))
    lenses = [lens for site, name in readers if (lens := _lens(seen, site, name, targets, tokenizer)) is not None]
    named = {*ids, *targets, *(guess.token for guess in guesses), *(token for one in lenses for token in one.likeliest)}
    return Inspection(
        run=run_dir,
        step=reading.step,
        stream=seen.model.config.stream.kind,
        prompt=prompt,
        seen=seen,
        tokens=[shown(tokenizer, token) for token in ids],
        targets=targets,
        texts={token: shown(tokenizer, token) for token in sorted(named)},
        guesses=guesses,
        lanes=lane_mixing(seen),
        gates=gates(seen),
        keys=_keys(seen),
        sites=lenses,
        held={name: held(seen, site) for site, name in readers},
        patterns={_block_at(seen, site): one.pattern()[0] for site, one in sorted(seen.heads.items())},
        **found,
    )


@dataclass(frozen=True)
class Reading:
    """A run's model, having read a prompt."""

    step: int
    """Of the checkpoint."""
    tokenizer: Tokenizer
    seen: Seen


def see_prompt(run_dir: Path, prompt: str, step: int | None, device: str | None) -> Reading:
    """Let a run's model read a prompt. For arguments and errors see `inspect_prompt`."""
    config, tokenizer = load_config(run_dir), load_run_tokenizer(run_dir)
    model, saved = load_model(run_dir, find_device(device or config.train.device), step)
    ids = [tokenizer.boundary_id, *tokenizer.encode_batch([prompt])[0].tolist()]
    limit = min(MOST_TOKENS, config.model.context) if config.model.positions == "learned" else MOST_TOKENS
    if len(ids) > limit:
        raise UserError(f"The prompt has {len(ids) - 1:,} tokens; at most {limit - 1:,} can be looked at.")
    return Reading(saved.step, tokenizer, look(model, torch.tensor([ids], device=model.head_weight().device)))


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; the boundary by its name, and what is no text by its number."""
    if token == tokenizer.boundary_id:
        return "<document>"
    if token >= tokenizer.vocab_size:
        return f"<{token}>"
    text = tokenizer.decode([token])
    return f"<{token}>" if not text or "\ufffd" in text else text


def _first(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode_batch([text])[0].tolist()
    if not ids:
        raise UserError("--target is empty; give the text whose first token's logit is attributed.")
    return int(ids[0])


def _block_at(seen: Seen, site: int) -> str:
    block = seen.model.layout[site - 1]
    return f"{block.layer}.{block.kind}"


def _keys(seen: Seen) -> Keys | None:
    try:
        return keys(seen)
    except UserError:
        return None


def _lens(seen: Seen, site: int, name: str, targets: list[int], tokenizer: Tokenizer) -> SiteLens | None:
    """The logit lens at a site; None where the head cannot read there."""
    try:
        logits = logit_lens(seen, site)[0, :, : tokenizer.vocab_size]
    except UserError:
        return None
    probabilities = logits.float().softmax(-1)
    best = probabilities.max(-1)
    index = torch.tensor(targets, device=logits.device)[:, None]
    of_target = probabilities.gather(1, index.clamp_max(probabilities.shape[1] - 1))[:, 0]
    return SiteLens(name, best.indices.tolist(), best.values.tolist(), of_target.tolist())
