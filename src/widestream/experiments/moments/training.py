"""What training does to the moments: every checkpoint of a run beside its own initial weights, on held-out text."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widestream.data.batches import Batch, eval_batches
from widestream.errors import UserError
from widestream.experiments.moments.sites import describe_sites, mean_square, site_moments
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged, record_exchanges
from widestream.runs import checkpoint
from widestream.runs.folder import load_config, read_info
from widestream.runs.identity import require_own
from widestream.train.evaluate import open_heldout
from widestream.train.plan import make_plan

RANK_TOKENS = 256
"""Tokens whose matrices are decomposed one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What of a run is measured."""

    windows: int = 8
    """Held-out windows, the same for all runs on the same data, evenly spread over the split."""
    data: Path | None = None
    """Another prepared folder than the run's own."""


def measure_run(run_dir: Path, settings: RunSettings) -> dict[str, Any]:
    """Measure a run at step 0, which its configuration and seed give again, and at every complete checkpoint.

    Gradients are those of the summed loss over the tokens, so that they do not depend on how many there are.

    Returns:
        Of the run: name, stream, seed, sites. Of every step: loss, second moments and effective ranks by site, and the
        ratios of Table 1 with the second moment that each map's weights have. Of every two steps that follow each
        other: by part, the norm of the change of its parameters over the norm that they had.

    Raises:
        UserError: no run folder, no checkpoint, or no data of its tokenizer.
    """
    config = load_config(run_dir)
    checkpoints = checkpoint.complete(run_dir)
    if not checkpoints:
        raise UserError(f"{run_dir} has no checkpoint yet; let it train to its first one (train.save_every).")
    info = read_info(run_dir)
    store, length = open_heldout(run_dir, settings.data), make_plan(config).sequence_length
    batch = next(eval_batches(store, length, settings.windows, settings.windows))
    model = build_model(config.model, config.train.seed)
    steps, updates = [{"step": 0, **_measure(model, batch)}], []
    for saved in checkpoints:
        require_own(saved, config, info)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        checkpoint.load_weights(saved.path, model)
        updates.append({"from": steps[-1]["step"], "to": saved.step, "relative": _relative_change(model, before)})
        steps.append({"step": saved.step, **_measure(model, batch)})
    return {
        "run": str(run_dir),
        "name": config.name,
        "stream": config.model.stream.kind,
        "seed": config.train.seed,
        "tokens_per_step": make_plan(config).tokens_per_step,
        "measured_tokens": batch.tokens.numel(),
        **describe_sites(model),
        "steps": steps,
        "updates": updates,
    }


def effective_rank(spectrum: Tensor) -> float:
    """Exponential of the entropy of a spectrum that is made to sum to one: n for n equal values, 1 for one value.

    Args:
        spectrum: values >= 0 [..., n]; the mean over leading axes is returned (Roy & Vetterli 2007).
    """
    shares = spectrum / spectrum.sum(-1, keepdim=True).clamp_min(torch.finfo(spectrum.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp().mean().item()


def covariance_rank(vectors: Tensor) -> float:
    """Effective rank of the covariance of vectors [N, n] over N tokens."""
    centred = vectors.double() - vectors.double().mean(0)
    tall = centred.shape[0] >= centred.shape[1]
    gram = centred.mT @ centred if tall else centred @ centred.mT
    return effective_rank(torch.linalg.eigvalsh(gram).clamp_min(0))


def matrix_rank(states: Tensor) -> float | None:
    """Mean effective rank, by singular values, of the states of tokens [B, T, a, b]; None for vectors [B, T, n]."""
    if states.ndim < 4:
        return None
    every = states.flatten(0, 1)
    chosen = every[:: max(1, len(every) // RANK_TOKENS)]
    return effective_rank(torch.linalg.svdvals(chosen.double()))


def _measure(model: Decoder, batch: Batch) -> dict[str, Any]:
    model.eval()
    with record_exchanges(model) as exchanges:
        terms = model.loss(batch.tokens, batch.targets, batch.segments, batch.weights)
    moments = site_moments(exchanges, terms.total * terms.tokens)
    return {
        "loss": terms.cross_entropy.item(),
        "sites": {name: [_finite(value) for value in values] for name, values in moments.items()},
        "ranks": _ranks(exchanges),
        "maps": _maps(model),
    }


@torch.no_grad()
def _ranks(exchanges: list[Exchanged]) -> dict[str, list[float | None]]:
    """By site: of the stream as the reader sees it, over tokens and inside a token's matrix; and of what is read."""
    streams = [exchanged.normed[0] for exchanged in exchanges]
    inputs = [torch.cat([x.flatten(2) for x in exchanged.inputs.values()], dim=-1) for exchanged in exchanges]
    return {
        "seen": [covariance_rank(x.flatten(0, 1).flatten(1)) for x in streams],
        "matrix": [matrix_rank(x) for x in streams],
        "read": [covariance_rank(x.flatten(0, 1)) for x in inputs],
    }


def _maps(model: Decoder) -> dict[str, list[float]]:
    """Of every map between infinite axes [out, in]: in and out times the mean square of its weights (Table 1)."""
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name] for name, role in model.roles().items() if role.muon}
    return {
        name: [weight.shape[-1] * mean_square([weight]), weight.shape[-2] * mean_square([weight])]
        for name, weight in chosen.items()
        if weight.ndim == 2
    }


def _relative_change(model: Decoder, before: dict[str, Tensor]) -> dict[str, float | None]:
    """By part: |change| / |before|; None where it was zero."""
    roles, sums = model.roles(), {}
    for name, value in model.named_parameters():
        change, norm = sums.setdefault(roles[name].part, [0.0, 0.0])
        change += (value.detach() - before[name]).double().square().sum().item()
        sums[roles[name].part] = [change, norm + before[name].double().square().sum().item()]
    return {part: math.sqrt(change / norm) if norm else None for part, (change, norm) in sums.items()}


def _finite(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
