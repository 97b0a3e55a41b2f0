"""Continue a prompt token by token, with a KV cache that changes no token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.errors import UserError, shown
from widestream.generate.decoding import Decoding
from widestream.machine import autocast
from widestream.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    """Tokens to add at most."""
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p (at least one)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"The number of tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"The temperature must be 0 or more, not {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k must be at least 1, not {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p must lie in (0, 1], not {self.top_p}.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"The seed must be a whole number, at least 0 and below 2^63, not {shown(self.seed)}.")


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: list[int],
    config: SamplingConfig,
    *,
    stop: int | None = None,
    num_ids: int | None = None,
    use_cache: bool = True,
    precision: str = "float32",
    compiled: bool = False,
) -> list[int]:
    """New tokens after `prompt`.

    Args:
        model: in evaluation mode, on any device.
        prompt: token ids, at least one.
        config: how tokens are chosen.
        stop: a token that ends the text; it is not returned.
        num_ids: ids of the tokenizer, where the model has more rows than that; the others are never drawn.
        use_cache: keep keys and values of earlier tokens; without it every token is computed afresh.
        precision: `float32` or `bf16`; for the latter, `cast_weights` saves casting them for every token.
        compiled: see `Decoding`.

    Returns:
        At most `config.max_new_tokens` ids; fewer where `stop` is drawn, or where a table of positions ends at the
        context (`longest`). `why_ended` tells which.

    Raises:
        UserError: the prompt is empty, leaves no room in the context, or holds an unknown id.
    """
    check_prompt(model, prompt)
    if compiled and not use_cache:
        raise UserError("A compiled step needs the cache; leave out --no-cache or --compile.")
    room = config.max_new_tokens
    if (most := longest(model)) is not None:
        room = min(room, most - len(prompt))
    generator = torch.Generator().manual_seed(config.seed)
    device = model.head_weight().device
    decode = _uncached(model, precision)
    if use_cache:
        decode = Decoding(model, 1, len(prompt) + room, precision=precision, compiled=compiled)
    tokens, fresh = list(prompt), list(prompt)
    for _ in range(room):
        ids = torch.tensor([fresh if use_cache else tokens], device=device)
        logits = decode(ids)[0, :num_ids].float().cpu()
        token = choose_token(logits, config, generator)
        if token == stop:
            break
        tokens.append(token)
        fresh = [token]
    return tokens[len(prompt) :]


def longest(model: Decoder) -> int | None:
    """Most tokens that a model can read; None where its positions go on beyond the context (rotary, ALiBi, none)."""
    return model.config.context if model.config.positions == "learned" else None


def why_ended(model: Decoder, prompt: list[int], new: list[int], config: SamplingConfig) -> str:
    """Why `generate` ended, in words: `length` (as many as asked for), `context` (full) or `document` (its end)."""
    if len(new) == config.max_new_tokens:
        return "length"
    return "context" if len(prompt) + len(new) == longest(model) else "document"


def _uncached(model: Decoder, precision: str) -> Callable[[Tensor], Tensor]:
    """Logits [B, V] behind the last of tokens [B, T], which are all there are."""

    def decode(tokens: Tensor) -> Tensor:
        with autocast(tokens.device, precision):
            return model.logits(model(tokens)[:, -1])

    return decode


def check_prompt(model: Decoder, prompt: list[int]) -> None:
    """Refuse prompts that the model cannot continue.

    Raises:
        UserError: says why, and what to do.
    """
    context, vocab = longest(model), model.config.vocab_size
    if not prompt:
        raise UserError("The prompt is empty; give at least one token.")
    if context is not None and len(prompt) >= context:
        raise UserError(
            f"The prompt has {len(prompt)} tokens, but the model's context is {context} and one must stay free; "
            "shorten the prompt."
        )
    if (worst := max(prompt)) >= vocab or min(prompt) < 0:
        raise UserError(
            f"The prompt holds the token id {worst}, outside the model's vocabulary of {vocab}; use its tokenizer."
        )


def choose_token(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
    """One token id from logits [V], float32 on the CPU."""
    if config.temperature == 0:
        return int(logits.argmax())
    logits = (logits.double() - logits.max()) / config.temperature  # the likeliest is 0 at any temperature
    if config.top_k is not None and config.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[-1], float("-inf"))
    if config.top_p is not None:
        ordered, order = logits.sort(descending=True)
        p = ordered.softmax(0)
        outside = p.cumsum(0) - p >= config.top_p  # the mass before a token has reached p already
        logits = logits.index_fill(0, order[outside], float("-inf"))
    return int(torch.multinomial(logits.softmax(0), 1, generator=generator))
