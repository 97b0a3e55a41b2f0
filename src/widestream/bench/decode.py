"""Time decoding with the KV cache: tokens a second behind a prompt, eager and compiled, one sequence and several."""

from dataclasses import dataclass, field
from typing import Any

import torch

from widestream.bench.models import Candidate, ModelSettings, Sizes, list_candidates
from widestream.bench.paired import Seconds, Turn, medians, ratios, take_turns
from widestream.bench.plots import Panel
from widestream.bench.record import Outputs, make_record, require_counts
from widestream.errors import UserError
from widestream.generate.decoding import Decoding, cast_weights
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.report.figures.rows import BarChart

WARMUP = 3
"""Tokens before the timed ones; the first compiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """What is timed."""

    models: ModelSettings = field(default_factory=lambda: ModelSettings(sizes=Sizes(context=1024)))
    """The models; their `compile` adds the compiled step to the eager one."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Sequences side by side."""
    prompt: int = 128
    """Tokens of the prompt."""
    tokens: int = 64
    """Tokens that are timed, each a round."""

    def __post_init__(self):
        require_counts(self, batch_sizes=1, prompt=1, tokens=1)
        if self.prompt + self.tokens + WARMUP > self.models.sizes.context:
            raise UserError(
                f"A prompt of {self.prompt} and {self.tokens} tokens ({WARMUP} more to warm up) exceed the context of "
                f"{self.models.sizes.context}; set --context higher."
            )


def bench_decode(settings: DecodeSettings, outputs: Outputs) -> dict[str, Any]:
    """Time all models at all batch sizes, write what is asked for, and return the record.

    Models take turns at every token. Names are those of the models, with ` compiled` behind them for compiled steps;
    figures are by batch size, then name. `ratios` are of times, to the first model with the same kind of step.

    Raises:
        UserError: settings that cannot be used, or nowhere to write.
    """
    outputs.check()
    candidates = list_candidates(settings.models)
    device, precision = settings.models.resolve()
    models = {candidate.name: build_model(candidate.config, device=device).eval() for candidate in candidates}
    for model in models.values():
        cast_weights(model, precision)
    seconds = {str(size): _time(models, size, settings, precision) for size in settings.batch_sizes}
    middle = {size: medians(group) for size, group in seconds.items()}
    record = make_record(
        "decode", settings, device,
        precision=precision,
        seconds=seconds,
        medians=middle,
        ratios={size: _ratios(group, candidates) for size, group in seconds.items()},
        tokens_per_s={size: {name: int(size) / value for name, value in own.items()} for size, own in middle.items()},
    )  # fmt: skip
    outputs.write(record, _panels(record))
    return record


def _time(models: dict[str, Decoder], batch_size: int, settings: DecodeSettings, precision: str) -> Seconds:
    turns, device = {}, torch.device("cpu")
    for compiled in (False, True) if settings.models.compile else (False,):
        for name, model in models.items():
            device = model.head_weight().device
            length = settings.prompt + settings.tokens + WARMUP
            decoding = Decoding(model, batch_size, length, precision=precision, compiled=compiled)
            turns[name + " compiled" * compiled] = _turn(decoding, batch_size, settings.prompt)
    return take_turns(turns, settings.tokens, WARMUP, device)


def _turn(decode: Decoding, batch_size: int, prompt: int) -> Turn:
    """The likeliest next token, read back by the host, as in sampling."""
    generator, vocab = torch.Generator().manual_seed(0), decode.model.config.vocab_size
    tokens = torch.randint(vocab, (batch_size, prompt), generator=generator).to(decode.device)
    newest = decode(tokens).argmax(-1, keepdim=True)

    def run() -> None:
        nonlocal newest
        newest = decode(newest).argmax(-1, keepdim=True)
        newest.tolist()

    return lambda _: run


def _ratios(seconds: Seconds, candidates: list[Candidate]) -> dict[str, dict[str, float]]:
    first = candidates[0].name
    shares: dict[str, dict[str, float]] = {}
    for step in ("", " compiled"):
        group = {name: values for name, values in seconds.items() if name.endswith(" compiled") == bool(step)}
        shares |= ratios(group, [first + step]) if group else {}
    return shares


def _panels(record: dict[str, Any]) -> list[Panel]:
    return [
        BarChart(title=f"Decoding, {size} sequence{'s' * (size != '1')}", x_label="tokens per second", values=values)
        for size, values in record["tokens_per_s"].items()
    ]
