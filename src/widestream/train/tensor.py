"""Tensor parallelism: N processes that share every block's heads and neurons (Shoeybi et al., Megatron-LM, arXiv
1909.08053).

Each has H / N heads of queries, H_kv / N of keys and values and F / N neurons of every block that receives vectors, and
computes with these alone. Their outputs are added up before they are written, and in the backward pass the gradients of
what the block received. All else (embedding, stream, head) all N compute alike, from the same windows.

A block does not know of it: its parameters are smaller. What a process holds of one is a `Cut`. Both sums are the
operator `widestream::all_reduce`, as are those of squares where a norm is over heads of all processes. Of experts each
has a part of every one's neurons, and all choose alike.

Letters as in `blocks.split`, F neurons, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.distributed_c10d import GroupName

from widestream.blocks.attention import BareAttention, DenseAttention, ValueResidual, as_autocast
from widestream.blocks.context import Context
from widestream.blocks.experts import BALANCE, Experts
from widestream.blocks.mlp import MLP
from widestream.blocks.norm import Norm, without_norm
from widestream.blocks.qk_norm import QKNorm
from widestream.blocks.roles import Declared
from widestream.train.context import swap
from widestream.train.parallel import Neighbours, World, join_neighbours


@torch.library.custom_op("widestream::all_reduce", mutates_args=())
def all_reduce(x: Tensor, group: str) -> Tensor:
    """The sum of what the processes of a group hand in; its gradient is each one's, as all go on with the sum alike."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=_resolve_process_group(GroupName(group)))
    return total


@all_reduce.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


all_reduce.register_autograd(lambda _, grad: (grad, None))


class _Enter(torch.autograd.Function):
    """What all processes hand to their parts of a block: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        """The same."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The sum."""
        return all_reduce(grad, ctx.group), None


class JointNorm(Norm):
    """An RMS norm over the numbers of all processes of a group, each of which has its part of them and of the gain.

    Args:
        norm: in whose place it stands; of this process's part of the gain.
        blocks: the group.
    """

    def __init__(self, norm: Norm, blocks: "SharedBlocks"):
        super(Declared, self).__init__()
        self.__dict__.update(norm.__dict__)
        self._blocks = blocks

    def over_rms(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """See `Norm`."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = self._blocks.sum(x.square().sum(-1, keepdim=True))
        # Each process's numbers go by the sum, so that its gradient is the sum of what each finds.
        mean = _Enter.apply(squares, self._blocks.group) / (self._blocks.size * x.shape[-1])
        out = x * (mean + self.eps).rsqrt()
        return out if gain is None else out * gain


@dataclass(frozen=True, slots=True)
class Cut:
    """How N processes share a parameter out: along one dimension, part by part.

    Process i has the i-th of N equal pieces of every part, one behind the other: of W_Q, W_K and W_V in one parameter,
    its rows of each.
    """

    dim: int
    """The dimension."""
    parts: tuple[int, ...]
    """Lengths of the parts along it."""

    def shape(self, whole: Sequence[int], size: int) -> torch.Size:
        """Of what each of `size` processes has of a parameter of this shape."""
        return torch.Size(length // size if dim == self.dim else length for dim, length in enumerate(whole))

    def own(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """What process `rank` of `size` has of a whole parameter."""
        pieces = (part.tensor_split(size, self.dim)[rank] for part in whole.split(self.parts, self.dim))
        return torch.cat(tuple(pieces), self.dim)

    def join(self, held: list[Tensor]) -> Tensor:
        """The whole parameter of what each process has."""
        lengths = [part // len(held) for part in self.parts]
        parts = zip(*(one.split(lengths, self.dim) for one in held), strict=True)
        return torch.cat([piece for part in parts for piece in part], self.dim)

    def rows(self, rank: int, size: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Rows of the whole parameter, in runs [first, end), that are the rows [first, end) of what a process has."""
        if self.dim:
            yield first, end
            return
        here = there = 0
        for part in self.parts:
            length = part // size
            begin, stop = max(first, here), min(end, here + length)
            if begin < stop:
                shift = there + rank * length - here
                yield begin + shift, stop + shift
            here, there = here + length, there + part


class SharedBlocks(Neighbours):
    """A `BlockSplit`: processes of one group."""

    __slots__ = ()

    def divide(self, blocks: nn.ModuleList) -> None:
        """Leave this process's heads and neurons in each block."""
        for block in _divided(blocks):
            for module, name, cut in _cuts(block):
                parameter = module.get_parameter(name)
                here = parameter.new_empty(cut.shape(parameter.shape, self.size))
                module.register_parameter(name, nn.Parameter(here))
            if isinstance(block, DenseAttention):
                block.rows = {role: number // self.size for role, number in block.rows.items()}
            block.bias_share = 1 / self.size
            for norms in filter(_is_joint, block.modules()):
                norms.queries, norms.keys = JointNorm(norms.queries, self), JointNorm(norms.keys, self)
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """What each process of the group has; all have to ask."""
        return list(swap(tensor.expand(self.size, *tensor.shape), self.group))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of what the processes of the group hand in; all have to ask."""
        return all_reduce(tensor, self.group)

    def _enter(self, block: nn.Module, given: tuple[dict[str, Tensor], Context]) -> Any:
        # Cast before, as the products would cast it, so that its gradient is sent in that precision. A router has it in
        # float32, or would choose other experts.
        inputs, context = given
        as_needed = as_autocast if not isinstance(block, Experts) else lambda x: x
        # One that is handed over in several roles has one gradient to be added up.
        entered = {id(x): _Enter.apply(as_needed(x), self.group) for x in inputs.values()}
        return {role: entered[id(x)] for role, x in inputs.items()}, context

    def _leave(self, block: nn.Module, given: tuple[dict[str, Tensor], Context], written: Tensor) -> Tensor:
        if isinstance(block, Experts) and torch.is_grad_enabled():
            # All find the same balance, so that the gradient of each is a part; its value stays.
            shared, key = given[1].shared, f"{BALANCE}/{block.layer}"
            balance = shared[key]
            shared[key] = balance.detach() + (balance - balance.detach()) / self.size
        return all_reduce(written, self.group)


def find_cuts(blocks: nn.ModuleList) -> dict[str, Cut]:
    """How blocks' parameters are cut where processes share blocks, by their names in a decoder; others are whole."""
    prefixes = {module: prefix for prefix, module in blocks.named_modules()}
    return {
        f"blocks.{prefixes[module]}.{name}": cut for block in _divided(blocks) for module, name, cut in _cuts(block)
    }


def find_partial(blocks: nn.ModuleList) -> set[str]:
    """Names of the parameters that each process has whole, and of whose gradient it finds a part: its own heads'.

    Biases behind the sum are among them, of which each adds a part.
    """
    prefixes = {module: prefix for prefix, module in blocks.named_modules()}
    inside = {f"blocks.{prefixes[one]}.{name}" for one in _divided(blocks) for name, _ in one.named_parameters()}
    return inside - find_cuts(blocks).keys()


def join_blocks(world: World) -> SharedBlocks | None:
    """The processes that share blocks with this one; None where each has all of every block."""
    return join_neighbours(SharedBlocks, world, world.tensor)


def _divided(blocks: nn.ModuleList) -> Iterator[DenseAttention | MLP | Experts]:
    """What is divided of blocks: not the norm behind one, and no non-linearity alone, between products of a stream."""
    for inner in map(without_norm, blocks):
        if isinstance(inner, DenseAttention | Experts) or (isinstance(inner, MLP) and not inner.bare):
            yield inner


def _cuts(block: nn.Module) -> Iterator[tuple[Declared, str, Cut]]:
    """Module by module the parameters of a block that are cut."""
    for module in block.modules():
        match module:
            case DenseAttention():
                yield from _along(module, module.own_roles["qkv"].splits, qkv=0)
                yield from _along(module, out=1)
            case MLP():
                yield from _along(module, module.own_roles["w1"].splits, w1=0, b1=0)
                yield from _along(module, w2=1)
            case Experts():
                yield from _along(module, module.own_roles["w1"].splits, w1=1, b1=1)
                yield from _along(module, w2=2)
            case BareAttention():
                yield from _along(module, bias_q=0, bias_k=0, bias_v=0, taps_q=1, taps_k=1, taps_v=1)
            case ValueResidual():
                yield from _along(module, gate=0)
            case QKNorm():
                for norm in (module.queries, module.keys):
                    if module.full or len(norm.own_shapes.get("gain", ())) == 2:  # not one of a head for all of them
                        yield from _along(norm, gain=0)
            case _:
                pass


def _is_joint(module: nn.Module) -> TypeGuard[QKNorm]:
    """Whether it norms all heads jointly, of which a process has some."""
    return isinstance(module, QKNorm) and module.full


def _along(module: Declared, parts: tuple[int, ...] = (), /, **dims: int) -> Iterator[tuple[Declared, str, Cut]]:
    """Cuts of those of these parameters that a module has, along the given dimensions."""
    for name, dim in dims.items():
        if name in module.own_shapes:
            yield module, name, Cut(dim, parts or (module.own_shapes[name][dim],))
