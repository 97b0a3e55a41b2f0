"""Short causal convolutions over tokens, feature by feature, inside documents, in training and in decoding alike."""

import torch
from torch import Tensor

from widestream.blocks.context import Context


def causal_convolution(x: Tensor, taps: Tensor, context: Context, name: str, add_channels: bool = False) -> Tensor:
    """y[t, v, d] = sum_j taps[j, v, d] x[t - j, v, d] over those tokens t - j that are of token t's document.

    In decoding the values before these tokens come from the cache, where the last ones are left for the next call.

    Args:
        x: [B, T, V, D], or V = 1 for all channels of `taps`.
        taps: [J, V, D], tap j for j tokens back.
        context: of the forward pass.
        name: under which the cache keeps values; another one at every place of use.
        add_channels: return the sum over v, without ever holding y.

    Returns:
        [B, T, V, D], or [B, T, D].
    """
    num_tokens, num_past = x.shape[1], len(taps) - 1
    memory = {} if context.cache is None else context.cache.memory
    past = memory.get(name)
    if past is None and context.split is not None:
        past = context.split.before(x, num_past)
    elif past is None:
        past = x.new_zeros(x.shape[0], num_past, *x.shape[2:])
    both = torch.cat([past, x], dim=1)
    if context.cache is not None:
        context.cache.remember(name, both[:, num_tokens:])
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for lag, tap in enumerate(taps):
        piece = both[:, num_past - lag : num_past - lag + num_tokens] * tap
        piece = piece.sum(-2) if add_channels else piece
        if lag and context.documents is not None:  # before the first token there is nothing but zeros
            same = context.documents.index_select(1, (context.positions - lag).clamp(min=0)) == context.segments
            piece = torch.where(same.view(*same.shape, *[1] * (piece.dim() - 2)), piece, 0.0)
        total = total + piece
    return total


def token_before(x: Tensor, context: Context, name: str) -> Tensor:
    """What the token before has [B, T, D], zero at the first token of a document; `name` as in `causal_convolution`."""
    taps = x.new_tensor([0.0, 1.0])[:, None, None]
    return causal_convolution(x.unsqueeze(2), taps, context, name).squeeze(2)
