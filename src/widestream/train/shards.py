"""What a process holds of weights, gradients and moments that processes share out, as layout.py says.

Of a shared parameter it is a DTensor, which is dealt with in this file and nowhere else; of a block that processes
share (tensor.py), one of this process's part.
"""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from widestream.model.decoder import Decoder
from widestream.runs.tensor_files import Piece, Put, StoredTensor
from widestream.train.parallel import World
from widestream.train.tensor import Cut, SharedBlocks, find_cuts, find_partial


class Shares(Put):
    """What this process holds of a model's parameters, and of all that is shared out as these are.

    Names are those of parameters; moments have their kind before it (`exp_avg/NAME`).

    Args:
        model: whose parameters they are.
    """

    def __init__(self, model: Decoder):
        split = model.block_split
        assert split is None or isinstance(split, SharedBlocks)
        self._split = split
        self._cuts = {} if split is None else find_cuts(model.blocks)
        in_blocks = {f"blocks.{name}" for name, _ in model.blocks.named_parameters()}
        self._repeated = set[str]() if split is None else in_blocks - self._cuts.keys()

    def _cut(self, name: str, tensor: Tensor) -> tuple[Cut, SharedBlocks] | None:
        cut = self._cuts.get(_parameter(name)) if tensor.ndim else None  # AdamW's number of steps has no dimensions
        return None if cut is None or self._split is None else (cut, self._split)

    def shape(self, name: str, tensor: Tensor) -> list[int]:
        """See `Put`."""
        shape = list(tensor.shape)
        if (divided := self._cut(name, tensor)) is not None:
            shape[divided[0].dim] = sum(divided[0].parts)
        return shape

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor, values: Tensor) -> None:
        """Copy whole values into a tensor, or into the part of it that this process holds."""
        if (divided := self._cut(name, tensor)) is not None:
            cut, split = divided
            values = cut.own(values, split.rank, split.size)
        if isinstance(tensor, DTensor):
            values = values.to(tensor.device, tensor.dtype)
            part = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(part.to_local())
        else:
            tensor.copy_(values)

    @torch.no_grad()
    def put(self, tensor: Tensor, stored: StoredTensor) -> None:
        """Copy what files hold into a tensor; of a shared one those rows are read that this process holds."""
        if not isinstance(tensor, DTensor):
            super().put(tensor, stored)
            return
        local, first = tensor.to_local(), _first_row(tensor)
        if local.numel():
            local.copy_(self._rows(tensor, stored, first, first + len(local)))

    def _rows(self, tensor: Tensor, stored: StoredTensor, first: int, end: int) -> Tensor:
        divided = self._cut(stored.name, tensor)
        if divided is None:
            return stored.rows(first, end)
        cut, split = divided
        found = torch.cat([stored.rows(*run) for run in cut.rows(split.rank, split.size, first, end)])
        return cut.own(found, split.rank, split.size) if cut.dim else found

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as one process has it; of a shared one the parts of all, which all have to ask for at once."""
        joined = whole(tensor)
        if (divided := self._cut(name, tensor)) is None:
            return joined
        cut, split = divided
        return cut.join(split.gather(joined))

    @torch.no_grad()
    def pieces(self, tensors: Mapping[str, Tensor], world: World, parts: int) -> dict[str, Piece]:
        """What this process writes of tensors: the rows that it holds, where no other one holds them too.

        Of what a block's processes share, rows of the whole, which is put together for that. They are copies in the
        host's memory, which stay what they are while training goes on.

        Args:
            tensors: by name, the same in all processes.
            world: the processes.
            parts: shares of a copy of all weights.
        """
        found = ((name, self._piece(name, tensor, world, parts)) for name, tensor in tensors.items())
        return {
            name: Piece(piece.values.detach().to("cpu", copy=True), piece.first)
            for name, piece in found
            if piece is not None
        }

    def _piece(self, name: str, tensor: Tensor, world: World, parts: int) -> Piece | None:
        if not isinstance(tensor, DTensor):
            return Piece(tensor) if world.is_main else None
        if self._cut(name, tensor) is not None:
            all_rows = self.whole(name, tensor)
            rows = math.ceil(len(all_rows) / parts)
            first = world.rank % parts * rows
            held = all_rows[first : first + rows]
        else:
            held, first = tensor.to_local(), _first_row(tensor)
            if _parameter(name) in self._repeated and world.rank != world.first_alike:
                return None
        return Piece(held, first) if is_first_group(tensor) and held.numel() else None


def _parameter(name: str) -> str:
    """The parameter's name in that of a moment of it."""
    return name.rpartition("/")[2]


def is_first_group(tensor: DTensor) -> bool:
    """Whether this process belongs to the first of the groups that hold the same."""
    mesh = tensor.device_mesh
    return "replicate" not in (mesh.mesh_dim_names or ()) or mesh["replicate"].get_local_rank() == 0


def _first_row(tensor: DTensor) -> int:
    """Number of the first row that this process holds."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes have shares, or a part of one where they share blocks; all have to ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The processes that share it out, as PyTorch has them."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def is_shared(tensor: Tensor) -> bool:
    """Whether processes share it out, or hold the same copies of it."""
    return isinstance(tensor, DTensor)


def is_turn(turn: int) -> bool:
    """Whether work that one process does for all is this one's."""
    return turn % dist.get_world_size() == dist.get_rank()


def hand_out(tensors: Iterable[Tensor], turn: int) -> None:
    """Copy whole tensors of the process whose turn it is into those of all others; all have to call it."""
    for tensor in tensors:
        dist.broadcast(tensor, src=turn % dist.get_world_size())


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts that this process holds."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def settle(model: Decoder) -> None:
    """Let go of whole weights that a pass without a backward pass has left: parameters are parts again."""
    if isinstance(model, FSDPModule):
        model.reshard()


def average_when(model: Decoder, held: Tensor, last: bool) -> None:
    """Say whether the next backward pass averages gradients over the processes.

    Where all hold all of them, once for all micro-batches is enough; where they are shared out, none can hold them.

    Args:
        model: the decoder, some of whose parameters are whole at the time.
        held: a parameter as the optimizer knows it, which is never whole.
        last: whether it is the last backward pass of a step.
    """
    if isinstance(model, FSDPModule):
        # Those who share blocks share out what is not in blocks in any case.
        shared = model.block_split is not None or (isinstance(held, DTensor) and held.device_mesh["shard"].size() > 1)
        model.set_requires_gradient_sync(last or shared)
        model.set_requires_all_reduce(last)  # between groups, once for all: each process adds up its share till then


@torch.no_grad()
def join_gradients(model: Decoder) -> None:
    """Behind the last backward pass of a step: add up what the processes that share blocks found of one parameter.

    Of a parameter in a block that each of them has whole they found parts; of one behind it the same, whose mean keeps
    all of them at the same bits.
    """
    split = model.block_split
    if split is None:
        return
    assert isinstance(split, SharedBlocks)
    cuts, partial = find_cuts(model.blocks), find_partial(model.blocks)
    whole_here = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("blocks.") and name not in cuts and parameter.grad is not None
    }
    gradients = own(parameter.grad for parameter in whole_here.values() if parameter.grad is not None)
    if not gradients:
        return
    total = split.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for name, gradient, values in zip(whole_here, gradients, total.split(sizes), strict=True):
        gradient.copy_(values.view_as(gradient) / (1 if name in partial else split.size))


def gradient_norm(model: Decoder) -> Tensor:
    """Norm of a model's whole gradient, a float32 scalar on its device; all have to ask at once."""
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    split = model.block_split
    if split is None:
        return whole(torch.nn.utils.get_total_norm(list(gradients.values())))
    assert isinstance(split, SharedBlocks)
    cuts = find_cuts(model.blocks)
    # Of each kind together, as norms over other meshes cannot be: those cut, those whole in a block, the root's.
    kinds = [[one for name, one in gradients.items() if _kind(name, cuts) == kind] for kind in range(3)]
    squares = [whole(torch.nn.utils.get_total_norm(kind)).square() if kind else None for kind in kinds]
    cut, *others = (torch.zeros((), device=next(model.parameters()).device) if one is None else one for one in squares)
    return (split.sum(cut) + torch.stack(others).sum()).sqrt()


def _kind(name: str, cuts: Mapping[str, Cut]) -> int:
    return 0 if name in cuts else 1 if name.startswith("blocks.") else 2
