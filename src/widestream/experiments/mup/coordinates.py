"""Coordinate sizes of a model over a few training steps: the measurement behind `widestream mup check`.

A coordinate size is the mean absolute value of an activation. Quantities are what crosses the seams of the decoder, so
that they exist for every stream: the token vectors, what each block puts out, what the stream hands to each reader, the
stream's state, the logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from widestream.data.batches import TrainBatches
from widestream.data.store import TokenStore
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.record import record_exchanges
from widestream.recipe import RunConfig
from widestream.train.optim import build_optimizer

Sizes = dict[str, float]
"""By quantity and place: `embedding 0`, `attention 1`, `reads 1 q`, `state 1`, `logits 5`, ..."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The one batch that all models see at every step."""

    inputs: Tensor
    """[B, T] int64."""
    targets: Tensor
    """[B, T] int64."""


def random_tokens(vocab_size: int, windows: int, length: int) -> Tokens:
    """Tokens drawn by Zipf's law, as those of text are distributed, always the same.

    With uniform ones the gradients of different tokens have little in common, and sums over them approach their
    behaviour at large width slowly.
    """
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, vocab_size + 1)
    tokens = torch.multinomial(weights.expand(windows, -1), length + 1, replacement=True, generator=generator)
    return Tokens(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def recipe_tokens(config: RunConfig, windows: int, length: int) -> Tokens:
    """The first windows of a recipe's prepared data.

    Raises:
        UserError: the data cannot be opened.
    """
    store = TokenStore.open(config.data.path, config.data.train_split)
    batch = TrainBatches(store, length, windows, config.data.seed).at(0)
    return Tokens(batch.tokens, batch.targets)


def measure(config: RunConfig, tokens: Tokens, steps: int, seed: int) -> list[tuple[Sizes, Sizes]]:
    """Train on one batch at the optimizer's rate and measure before every step and after the last.

    Args:
        config: model and optimizer.
        tokens: the batch.
        steps: optimizer steps, without schedule and clipping.
        seed: of the initial weights.

    Returns:
        After 0, 1, ..., `steps` steps: the size of every quantity, and the size of its change from initialisation.
    """
    model = build_model(config.model, seed)
    optimizer = build_optimizer(model, config.optimizer)
    first: dict[str, Tensor] = {}
    measured = []
    for step in range(steps + 1):
        vectors = activations(model, tokens.inputs)
        first = first or vectors
        changes = {name: (value - first[name]).abs().mean().item() for name, value in vectors.items()}
        measured.append(({name: value.abs().mean().item() for name, value in vectors.items()}, changes))
        if step < steps:
            optimizer.zero_grad()
            model.loss(tokens.inputs, tokens.targets).total.backward()
            optimizer.step()
    return measured


@torch.no_grad()
def activations(model: Decoder, inputs: Tensor) -> dict[str, Tensor]:
    """Everything that crosses the decoder's seams in one forward pass."""
    with record_exchanges(model) as exchanges:
        hidden = model(inputs)
    vectors: dict[str, Tensor] = {}
    for exchanged in exchanges:
        writer = "embedding" if exchanged.site == 0 else model.layout[exchanged.site - 1].kind
        vectors[f"{writer} {exchanged.site}"] = exchanged.written[0]
        for number, part in enumerate(leaf for leaf in tree_leaves(exchanged.state) if isinstance(leaf, Tensor)):
            if part.is_floating_point():
                vectors[f"state {exchanged.site}" + (f" {number}" if number else "")] = part
        vectors.update({f"reads {exchanged.site} {role}": value for role, value in exchanged.inputs.items()})
    vectors[f"logits {len(model.layout) + 1}"] = model.logits(hidden)
    return {name: value.detach().clone() for name, value in vectors.items()}
