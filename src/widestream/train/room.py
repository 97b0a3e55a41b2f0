"""Whether a run fits into memory, as far as that can be told before its first step."""

from typing import Any

import torch

from widestream.errors import UserError
from widestream.machine import memory_total
from widestream.recipe.train import TrainConfig
from widestream.train.plan import Plan

BATCH_BYTES = 3 * 8
"""Of a token in a batch: its id, its target, its document."""


def require_memory(device: torch.device, train: TrainConfig, plan: Plan, summary: dict[str, Any]) -> None:
    """Make sure that batches can be held: where they cannot, a system may end a process without a word.

    What is counted is the least that a step keeps; one that just fails to fit is found by an allocation that fails.

    Args:
        device: computes.
        train: what is kept for the backward pass.
        plan: sizes of the batches.
        summary: of the model; see `model.costs.Summary.to_dict`.

    Raises:
        UserError: they cannot; names the setting to lower.
    """
    room = memory_total(device)
    tokens = plan.sequence_length * plan.micro_batch_size
    batch = BATCH_BYTES * tokens * plan.micro_batches
    if batch > room:
        raise UserError(
            f"A batch of train.batch_size={train.batch_size:,} takes {batch / 2**30:,.1f} GB before anything is "
            f"computed, and {device} has {room / 2**30:,.1f} GB of memory; lower train.batch_size."
        )
    # Of a window that processes share, each keeps its tokens; of a block, its heads and neurons at the least.
    sharing = train.parallel.context * train.parallel.tensor
    kept = min(summary["activation_bytes_per_token"].values()) * tokens / sharing
    if kept > room and not (train.compile or train.activation_checkpointing):  # which keep less
        raise UserError(
            f"{tokens:,} tokens at a time (train.micro_batch_size={plan.micro_batch_size:,}) keep at least "
            f"{kept / 2**30:,.1f} GB for the backward pass, and {device} has {room / 2**30:,.1f} GB of memory; lower "
            "train.micro_batch_size, or set train.activation_checkpointing=true."
        )
