"""Hidden states as transformers hands them out: a tensor in front of every layer, and what the head reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged


def hidden_states(model: Decoder, exchanges: Sequence[Exchanged], hidden: Tensor) -> tuple[Tensor, ...]:
    """num_layers + 1 tensors.

    The first ones are the stream as each layer's first block sees it, before its norm: [B, T, D]; of a matrix stream
    the whole state, [B, T, D_v * D_k]; of one that shows a block several vectors all, side by side. The last one is
    what the head reads, behind its norm. For the plain stream these are the hidden states of transformers' own models.

    Args:
        model: the decoder.
        exchanges: of a pass.
        hidden: what the pass has given.
    """
    first = [
        site for site, block in enumerate(model.layout) if site == 0 or block.layer != model.layout[site - 1].layer
    ]
    return (*(_seen(exchanges[site], model.stream.cuts_vectors) for site in first), hidden)


def _seen(exchanged: Exchanged, matrix: bool) -> Tensor:
    """The stream in front of a reader [B, T, ...] as rows."""
    state = exchanged.state
    if matrix and isinstance(state, Tensor) and state.ndim == 4:
        return state.flatten(2)
    return torch.cat([x.flatten(2) for x in exchanged.normed or tuple(exchanged.inputs.values())], dim=-1)
