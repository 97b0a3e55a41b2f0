"""Weights that processes share out: replicated, sharded, or sharded within groups that are replicated.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does it: a block's weights are whole while it computes, and gradients are
averaged as they come. Each block is a group of its own; embedding, head and all of the stream are the root's, because
exchanges between any two blocks need them. Model code knows nothing of this. What a parameter is here, a DTensor, is
dealt with in this file and nowhere else; of a block that processes share (tensor.py) it is one of this process's part.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from widestream.blocks.attention_kind import Attention
from widestream.blocks.roles import initialize
from widestream.errors import UserError
from widestream.model.build import build_model, count_weights, meta_model, require_room
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import ParallelConfig
from widestream.runs.tensor_files import Piece, Put, StoredTensor
from widestream.train.context import join_windows
from widestream.train.parallel import World
from widestream.train.tensor import Cut, SharedBlocks, find_cuts, find_partial, join_blocks

COPIES = 4
"""Numbers kept for every weight in training: itself, its gradient, two moments."""
ROOMY = 0.5
"""`auto` replicates weights, gradients and moments where they take no more than this share of a device's memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How many processes do what; their product is the number of processes."""

    replicate: int = 1
    """Groups that hold the same weights."""
    shard: int = 1
    """Processes of a group, each with its share of weights, gradients and moments."""
    gather: str = "float32"
    """`float32` or `bf16`: how a block's weights are sent to make them whole."""
    context: int = 1
    """Processes that share the tokens of a window, and their shares of weights out among them."""
    tensor: int = 1
    """Processes that share the blocks; what is not in blocks, they share out as those of `shard` do."""

    @property
    def parts(self) -> int:
        """Shares that one copy of weights, gradients and moments is cut into."""
        return self.shard * self.context * self.tensor

    @property
    def block_parts(self) -> int:
        """Shares of what one process has of a block."""
        return self.shard * self.context

    def describe(self) -> dict[str, int | str]:
        """For run.json."""
        within = {name: number for name in ("context", "tensor") if (number := getattr(self, name)) > 1}
        sent = {"gather": self.gather} if self.parts > 1 else {}
        return {"replicate": self.replicate, "shard": self.shard, **within, **sent}


def choose_layout(parallel: ParallelConfig, processes: int, weights: int, room: float, precision: str) -> Layout:
    """What `train.parallel` comes to.

    Args:
        parallel: the setting.
        processes: how many there are.
        weights: numbers in all parameters.
        room: bytes of memory of a device.
        precision: `bf16` or `float32`, of what is computed.

    Raises:
        UserError: the product is not the number of processes, or weights would be sent less exactly than computed with.
    """
    if parallel.gather == "bf16" and precision != "bf16":
        raise UserError(
            f"train.parallel.gather is bf16, and the precision {precision}: matrices would be rounded that are "
            "computed with as they are; set train.precision=bf16, or leave gather out."
        )
    replicate, shard, within = parallel.replicate, parallel.shard, parallel.context * parallel.tensor
    groups = processes // within
    if replicate is None and shard is None:
        shard = 1 if COPIES * 4 * weights / within <= ROOMY * room else max(groups, 1)
    replicate = groups // (shard or 1) if replicate is None else replicate
    shard = groups // replicate if shard is None else shard
    layout = Layout(replicate, shard, context=parallel.context, tensor=parallel.tensor)
    if replicate * layout.parts != processes:
        asked = {"replicate": parallel.replicate, "shard": parallel.shard}
        asked |= {name: number for name in ("context", "tensor") if (number := getattr(parallel, name)) > 1}
        given = " x ".join(f"{name} {number}" for name, number in asked.items() if number is not None)
        there = "there is 1 process" if processes == 1 else f"there are {processes} processes"
        raise UserError(
            f"train.parallel is {given}, and {there}; start as many with torchrun, or leave train.parallel out to have "
            "it worked out."
        )
    sent = precision if parallel.gather == "auto" else parallel.gather
    return replace(layout, gather=sent if layout.parts > 1 else "float32")


def build_shared(
    config: ModelConfig,
    seed: int,
    world: World,
    layout: Layout,
    depth: Depth | None = None,
    attention: Attention = "sdpa",
) -> Decoder:
    """Build and initialise a model whose weights the processes share out; for one process `build_model`.

    A weight is the same number whatever the layout: each is drawn whole, one at a time, and each process keeps its
    part, so that no process ever holds more than its share and the largest weight.

    Raises:
        UserError: a share does not fit a device.
    """
    if world.size == 1:
        require_room(world.device, count_weights(meta_model(config)), COPIES)
        return build_model(config, seed, world.device, depth=depth, attention=attention)
    share = math.ceil(count_weights(meta_model(config)) / layout.parts)
    world.everywhere(lambda: require_room(world.device, share, COPIES))
    model = meta_model(config, depth, attention, join_windows(world), join_blocks(world))
    share_out(model, layout, world.device.type)
    model.to_empty(device=world.device)
    initialize(model, seed, put=Shares(model).fill)
    return model


def share_out(model: Decoder, layout: Layout, device: str) -> None:
    """Make a model's parameters shares, block by block.

    Args:
        model: on the meta device, or any other.
        layout: who holds what.
        device: type of the device that processes compute on.
    """
    mesh, block_mesh = _meshes(layout, device)
    # Autocast would keep a bfloat16 copy of every matrix for the backward pass, whole, in each process. Those that come
    # in bfloat16 it takes as they are, and they are let go and sent again.
    kept = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = replace(kept, param_dtype=torch.bfloat16) if layout.gather == "bf16" else kept
    for block in model.blocks:
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=block_mesh, mp_policy=policy)
    # The head is needed behind the forward pass, and the stream from the backward pass's first exchange on.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _meshes(layout: Layout, device: str) -> tuple[DeviceMesh, DeviceMesh]:
    """Who shares out what is not in blocks, and a block, or this process's part of one."""
    mesh = _mesh(layout, device, {"shard": layout.parts})
    if layout.tensor == 1:
        return mesh, mesh
    divided = _mesh(layout, device, {"shard": layout.block_parts, "tensor": layout.tensor})
    return mesh, divided[tuple(name for name in divided.mesh_dim_names or () if name != "tensor")]


def _mesh(layout: Layout, device: str, inside: dict[str, int]) -> DeviceMesh:
    # Groups of one would be asked for sums all the same.
    sizes = {"replicate": layout.replicate, **inside} if layout.replicate > 1 else inside
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


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


def average_when(model: Decoder, last: bool) -> None:
    """Say whether the next backward pass averages gradients over the processes.

    Where all hold all of them, once for all micro-batches is enough; where they are shared out, none can hold them.
    """
    if isinstance(model, FSDPModule):
        # Of a block: what is not in blocks is whole here. Those who share blocks share that out in any case.
        mesh = next(parameter.device_mesh for parameter in model.parameters() if isinstance(parameter, DTensor))
        model.set_requires_gradient_sync(last or mesh["shard"].size() > 1 or model.block_split is not None)
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
        if name.startswith("blocks.") and name not in cuts and parameter.requires_grad
    }
    for parameter in whole_here.values():
        if parameter.grad is None:  # a bias that another process adds
            parameter.grad = torch.zeros_like(parameter)
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
