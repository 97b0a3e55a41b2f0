"""Context parallelism: N processes that share the tokens of a window, so that long windows fit.

Each has T / N tokens that follow one another, and all of the model but attention computes with these. For attention the
processes change sides: from all heads of own tokens to own heads of all tokens, and back (Jacobs et al., DeepSpeed
Ulysses, arXiv 2309.14509). Masks, documents, windows and biases are so those of whole windows, whatever computes them.

Everything is sent by one operator, `widestream::swap`, whose derivative is itself.

Letters as in `blocks.split`.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.distributed_c10d import GroupName

from widestream.blocks.attention import for_all_heads
from widestream.train.parallel import Neighbours, World, join_neighbours


@torch.library.custom_op("widestream::swap", mutates_args=())
def swap(x: Tensor, group: str) -> Tensor:
    """Send part i of x [N, ...] to process i of a group, and receive one from each, in their order."""
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=_resolve_process_group(GroupName(group)))
    return received


@swap.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.group = inputs[1]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return swap(grad, ctx.group), None


swap.register_autograd(_differentiate, setup_context=_keep)


class SharedWindows(Neighbours):
    """A `TokenSplit`: processes of one group."""

    __slots__ = ()

    def own(self, x: Tensor, dim: int) -> Tensor:
        """The part of whole windows that this process has: T long along `dim` -> t long."""
        here = x.shape[dim] // self.size
        return x.narrow(dim, self.rank * here, here)

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of own tokens to own heads of all tokens; see `TokenSplit`.

        Keys and values of which several processes need the same heads are sent to each of them.
        """
        kv_heads = math.lcm(k.shape[2], self.size)
        k, v = (for_all_heads(x, kv_heads, dim=2) for x in (k, v))
        parts = [x.unflatten(2, (self.size, -1)) for x in (q, k, v)]
        received = swap(torch.cat(parts, dim=3).movedim(2, 0), self.group)  # [N, B, t, heads, K]
        q, k, v = received.movedim(0, 1).flatten(1, 2).split([x.shape[3] for x in parts], dim=2)
        return q, k, v

    def to_tokens(self, heads: Tensor) -> Tensor:
        """Own heads of all tokens [B, T, H / N, K] to all heads of own tokens [B, t, H, K]."""
        received = swap(heads.unflatten(1, (self.size, -1)).movedim(1, 0), self.group)
        return received.movedim(0, 2).flatten(2, 3)

    def before(self, x: Tensor, count: int) -> Tensor:
        """The `count` tokens before the own ones: x [B, t, ...] -> [B, count, ...], zeros before the window's first."""
        last = x[:, max(x.shape[1] - count, 0) :]
        received = swap(last.expand(self.size, *last.shape), self.group).movedim(0, 1).flatten(1, 2)
        # A piece of all that came, the first process too: backwards all must have the same to send.
        zeros = x.new_zeros(x.shape[0], count, *x.shape[2:])
        return torch.cat((zeros, received), dim=1).narrow(1, self.rank * last.shape[1], count)

    def total(self, x: Tensor) -> Tensor:
        """The sum of what the processes hand in, in any shape."""
        return swap(x.expand(self.size, *x.shape), self.group).sum(0)


def join_windows(world: World) -> SharedWindows | None:
    """The processes that share windows with this one; None where each has windows of its own."""
    return join_neighbours(SharedWindows, world, world.context, apart=world.tensor)
