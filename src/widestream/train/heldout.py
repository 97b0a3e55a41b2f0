"""Held-out loss, perplexity and bits per byte."""

import math
from dataclasses import dataclass

import torch

from widestream.data.batches import eval_batches
from widestream.data.store import TokenStore
from widestream.model.decoder import Decoder
from widestream.train.parallel import World
from widestream.train.step import batch_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """How well a model predicts a split."""

    loss: float
    """Mean cross-entropy in nats per target token."""
    perplexity: float
    """exp(loss); comparable only between models with the same tokenizer."""
    bits_per_byte: float
    """Total cross-entropy in bits over the UTF-8 bytes of the source text; comparable between tokenizers."""
    target_tokens: int
    """Tokens the loss is a mean over."""
    whole: bool
    """Whether that is the whole split. If not, its bytes are estimated from the split's bytes per token."""


@torch.no_grad()
def evaluate(
    model: Decoder,
    store: TokenStore,
    *,
    world: World,
    sequence_length: int,
    batch_size: int,
    precision: str = "float32",
    limit: int | None = None,
) -> Heldout:
    """Evaluate a model on a split.

    Every token of the split but its first is a target exactly once.

    Args:
        model: the decoder; its mode is put back afterwards.
        store: the split.
        world: processes that share the work; all get the result.
        sequence_length: tokens per window, T.
        batch_size: windows per forward pass.
        precision: `bf16` computes under autocast.
        limit: only so many windows, spread evenly over the split.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for index, batch in enumerate(eval_batches(store, sequence_length, batch_size, limit)):
        if index % world.size != world.rank:
            continue
        terms = batch_loss(model, batch, world.device, precision)
        sums += torch.stack((terms.cross_entropy.double() * terms.tokens, terms.tokens.double()))
    model.train(training)
    nats, targets = world.sum_(sums).tolist()
    source_bytes = store.source_bytes * targets / (store.tokens - 1)
    loss = nats / targets
    return Heldout(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / (math.log(2) * source_bytes),
        target_tokens=int(targets),
        whole=int(targets) == store.tokens - 1,
    )
