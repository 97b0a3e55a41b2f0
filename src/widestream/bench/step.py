"""Time the training step: forward, backward, clipping to norm 1 and AdamW, on random tokens."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from widestream.bench.models import Candidate, ModelSettings, Sizes, build_measured, list_candidates
from widestream.bench.paired import Seconds, Turn, medians, ratios, take_turns
from widestream.bench.plots import Panel, lines
from widestream.bench.record import Outputs, make_record, require_counts
from widestream.errors import UserError
from widestream.machine import autocast, matmul_peak
from widestream.model.costs import summarize
from widestream.model.decoder import Decoder
from widestream.recipe.train import OptimizerConfig
from widestream.report.figures.rows import BarChart
from widestream.train.optim import build_optimizer, clip_gradients

Step = Callable[[torch.Tensor, torch.Tensor], None]
"""A training step on tokens and targets [B, T]."""

MATMUL = "matmul"
"""The candidate that no model is."""
MATMUL_SECONDS = 0.2
"""How long matrix products are timed in every round."""
MOST_COMPILED = 8
"""Variants that torch.compile keeps of one function; it would run further ones uncompiled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """What is timed."""

    models: ModelSettings = field(default_factory=ModelSettings)
    """The models."""
    rounds: int = 9
    """Timed rounds."""
    warmup: int = 2
    """Rounds before."""
    together: int = 6
    """Models held at a time. More than that are timed in groups, each beside the first model."""

    def __post_init__(self):
        require_counts(self, rounds=1, warmup=0, together=2)
        if self.models.compile and self.together > MOST_COMPILED:
            raise UserError(f"--together is {self.together}; with --compile it must be at most {MOST_COMPILED}.")


def bench_step(settings: StepSettings, outputs: Outputs) -> dict[str, Any]:
    """Time the step of all models, write what is asked for, and return the record.

    Its `seconds` are those of every group of models that took turns, and `matmul_flops_per_s` how fast the machine
    multiplied in each of the rounds, at the same precision. `medians`, `ratios` (to the first model) and `mfu` (of that
    speed) are by model, the latter two medians of what was found within a round.

    Raises:
        UserError: settings that cannot be used, or nowhere to write.
    """
    outputs.check()
    candidates = list_candidates(settings.models)
    device, precision = settings.models.resolve()
    first, others, share = candidates[0], candidates[1:], settings.together - 1
    groups = [[first, *others[i : i + share]] for i in range(0, max(1, len(others)), share)]
    timed = [_time_group(group, settings, device, precision) for group in groups]
    seconds, peaks = [group for group, _ in timed], [group for _, group in timed]
    middle = {name: value for group in reversed(seconds) for name, value in medians(group).items()}
    relative = {name: value for group in seconds for name, value in ratios(group, [first.name]).items()}
    sizes = settings.models.sizes
    tokens = sizes.batch_size * sizes.context
    flops = {candidate.name: summarize(candidate.config).train_flops * tokens for candidate in candidates}
    names = [candidate.name for candidate in candidates]
    record = make_record(
        "step", settings, device,
        precision=precision,
        matmul_flops_per_s=peaks,
        key_dims={candidate.name: candidate.key_dim for candidate in candidates},
        seconds=seconds,
        medians={name: middle[name] for name in names},
        ratios={name: relative[name] for name in names},
        flops_per_step=flops,
        mfu={name: _utilisation(name, flops[name], timed) for name in names},
    )  # fmt: skip
    outputs.write(record, _panels(record, candidates))
    return record


def _time_group(
    group: list[Candidate], settings: StepSettings, device: torch.device, precision: str
) -> tuple[Seconds, list[float]]:
    """What every model of a group took in every round, and the FLOPs per second of a matrix product in it."""
    if settings.models.compile:
        torch._dynamo.reset()  # the variants of earlier groups
    steps = {
        candidate.name: own_step(build_measured(candidate.config, settings.models, device), precision)
        for candidate in group
    }
    peaks: list[float] = []

    def multiply(round_: int) -> Callable[[], None]:
        return lambda: peaks.append(matmul_peak(device, precision, MATMUL_SECONDS))

    seconds = time_steps(steps, settings.models.sizes, settings.rounds, settings.warmup, device, {MATMUL: multiply})
    del seconds[MATMUL]
    return seconds, peaks[settings.warmup :]


def _utilisation(name: str, flops: int, timed: list[tuple[Seconds, list[float]]]) -> float:
    """Median over the rounds of a model's share of the FLOPs that products of matrices would have done."""
    shares = [
        flops / own / peak
        for seconds, peaks in timed
        if name in seconds
        for own, peak in zip(seconds[name], peaks, strict=True)
    ]
    return statistics.median(shares)


def own_step(model: Decoder, precision: str) -> Step:
    """A step of a model of this package."""
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-4))
    parameters, device = list(model.parameters()), model.head_weight().device

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        with autocast(device, precision):
            loss = model.loss(tokens, targets).total
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_steps(
    steps: dict[str, Step],
    sizes: Sizes,
    rounds: int,
    warmup: int,
    device: torch.device,
    others: dict[str, Turn] | None = None,
) -> Seconds:
    """Time steps that take turns, with `others` among them; in a round all steps see the same random tokens."""

    def turn(step: Step) -> Turn:
        def ready(round_: int) -> Callable[[], None]:
            generator = torch.Generator().manual_seed(round_ + warmup)
            shape = (sizes.batch_size, sizes.context + 1)
            ids = torch.randint(sizes.vocab_size, shape, generator=generator).to(device)
            return partial(step, ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

        return ready

    return take_turns({name: turn(step) for name, step in steps.items()} | (others or {}), rounds, warmup, device)


def _panels(record: dict[str, Any], candidates: list[Candidate]) -> list[Panel]:
    """Step time against D_k, relative to the first model, and the share of the matmul peak."""
    middle, first = record["medians"], candidates[0]
    level = None if first.key_dim else (first.name, middle[first.name])
    curves = by_key_dim(candidates, middle)
    panels = lines("Training step against the key dim D_k", "seconds per step (median)", curves, level)
    relative = {name: next(iter(own.values()), 1.0) for name, own in record["ratios"].items()}
    title = f"Step time relative to {first.name}"
    panels.append(BarChart(title=title, x_label="median of paired rounds", values=relative, line_at=1.0))
    shares = {name: 100 * share for name, share in record["mfu"].items()}
    panels.append(BarChart(title="Model FLOPs utilisation", x_label="% of the machine's matmul peak", values=shares))
    return panels


def by_key_dim(candidates: list[Candidate], values: dict[str, float]) -> dict[str, list[tuple[float, float]]]:
    """For every kind of stream with a key dim, (D_k, value) in order of D_k."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for candidate in candidates:
        if candidate.key_dim is not None:
            curves.setdefault(candidate.kind, []).append((candidate.key_dim, values[candidate.name]))
    return {kind: sorted(points) for kind, points in curves.items()}
