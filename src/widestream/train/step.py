"""One optimizer step: forward and backward over micro-batches, reduce, clip, check, update."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from widestream.data.batches import Batch
from widestream.machine import autocast
from widestream.model.decoder import Decoder, LossTerms
from widestream.train.optim import clip_gradients
from widestream.train.parallel import World
from widestream.train.shards import average_when, gradient_norm, join_gradients


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean cross-entropy of the whole batch before the update, in nats per token, without z-loss."""
    z_loss: float
    """Mean of (log sum exp logits)^2, not multiplied by its weight."""
    grad_norm: float
    """Global gradient norm before clipping."""
    applied: bool
    """False when loss or gradient was not finite: the weights are as they were before."""
    ending: bool
    """Whether some process was told to end; all of them see it at the same step."""
    losses: torch.Tensor
    """[processes, micro-batches] cross-entropy of each micro-batch."""
    balance: float
    """How unequally experts were picked (`LossTerms.balance`); zero without experts."""
    largest_load: float
    """Largest share that an expert took of its layer's picks in the whole batch; zero without experts."""


def optimizer_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    world: World,
    micro_batches: int = 1,
    precision: str = "float32",
    z_loss: float = 0.0,
    grad_clip: float | None = None,
    ending: bool = False,
) -> StepResult:
    """Train on one batch.

    The result does not depend on how the batch is cut into micro-batches, but for rounding: each counts by its tokens.

    Args:
        model: a decoder in training mode.
        optimizer: over its parameters, rates already set.
        batch: this process's windows. With several processes all must have the same number of target tokens.
        world: the processes that hold the other slices of the batch.
        micro_batches: equal parts that the batch is cut into.
        precision: `bf16` computes under autocast.
        z_loss: weight of (log sum exp logits)^2 in what is minimised.
        grad_clip: largest global gradient norm.
        ending: whether this process was told to end.

    Returns:
        Losses and gradient norm, read back from the device: the one point at which the host waits for it.
    """
    assert batch.weights is None or world.size == 1, "processes with unequal token counts would be averaged wrongly"
    optimizer.zero_grad(set_to_none=True)
    shares = _shares(batch, micro_batches)
    rows = torch.zeros(world.size, micro_batches, 3, device=world.device)
    loads: list[torch.Tensor] = []
    for index, part in enumerate(split(batch, micro_batches)):
        terms = batch_loss(model, part, world.device, precision, z_loss)
        average_when(model, optimizer.param_groups[0]["params"][0], index == micro_batches - 1)
        (terms.total * shares[index]).backward()
        rows[world.rank, index] = torch.stack((terms.cross_entropy, terms.z_loss, terms.balance))
        loads.append(terms.load)

    join_gradients(model)
    world.sum_(rows)
    load = world.sum_(torch.stack(loads).sum(0))
    norm = clip_gradients(model.parameters(), grad_clip, gradient_norm(model))
    parts = [share * part for share, part in zip(shares, rows.unbind(1), strict=True)]
    means = torch.stack(parts).sum((0, 1)) / world.size
    # Summed over the processes, so that all of them see what is not finite in any of them, and decide alike.
    others = torch.stack((norm, _largest_share(load), torch.tensor(float(ending), device=world.device)))
    loss, z, balance, grad_norm, largest_load, told = (world.sum_(torch.cat((means, others))) / world.size).tolist()
    applied = math.isfinite(loss) and math.isfinite(grad_norm)
    if applied:
        optimizer.step()
        for experts, tokens in zip(model.experts, load, strict=True):
            experts.move_bias(tokens)
    return StepResult(loss, z, grad_norm, applied, told > 0, rows[..., 0].contiguous(), balance, largest_load)


def batch_loss(
    model: Decoder, batch: Batch, device: torch.device, precision: str = "float32", z_loss: float = 0.0
) -> LossTerms:
    """Loss of one forward pass.

    Where no window holds a document boundary, attention is causal alone, and that needs no mask.

    Args:
        model: a decoder on `device`.
        batch: on the host, where looking at it makes nobody wait.
        device: where to compute.
        precision: `bf16` computes under autocast.
        z_loss: weight of (log sum exp logits)^2.
    """
    # Compiled blocks keep to one form: the other would be compiled in the middle of a run, in some process while the
    # others wait, for batches that are rare where compiling pays (many windows in a batch, long ones).
    masked = model.depth.compiled or batch.has_boundaries
    batch = batch.to(device)
    with autocast(device, precision):
        return model.loss(batch.tokens, batch.targets, batch.segments if masked else None, batch.weights, z_loss=z_loss)


def _largest_share(load: torch.Tensor) -> torch.Tensor:
    """Of the picks [layers, E] in one layer."""
    return (load / load.sum(-1, keepdim=True)).max() if len(load) else torch.zeros((), device=load.device)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into equal parts along its windows."""
    weights = [None] * parts if batch.weights is None else batch.weights.chunk(parts)
    pieces = (batch.tokens.chunk(parts), batch.targets.chunk(parts), batch.segments.chunk(parts), weights)
    for tokens, targets, segments, weight in zip(*pieces, strict=True):
        yield Batch(tokens=tokens, targets=targets, segments=segments, weights=weight)


def _shares(batch: Batch, parts: int) -> list[float]:
    """Each part's fraction of the batch's target tokens."""
    if batch.weights is None:
        return [1 / parts] * parts
    return [part.sum().item() / batch.weights.sum().item() for part in batch.weights.chunk(parts)]
