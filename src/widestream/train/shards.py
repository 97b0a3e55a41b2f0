"""Weights that processes share out: replicated, sharded, or sharded within groups that are replicated.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does it: a block's weights are whole while it computes, and gradients are
averaged as they come. Each block is a group of its own; embedding, head and all of the stream are the root's, because
exchanges between any two blocks need them. Model code knows nothing of this. What a parameter is here, a DTensor, is
dealt with in this file and nowhere else.
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
from widestream.runs.tensor_files import Piece, StoredTensor, put_whole
from widestream.train.context import join_windows
from widestream.train.parallel import World

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

    @property
    def parts(self) -> int:
        """Shares that one copy of weights, gradients and moments is cut into."""
        return self.shard * self.context

    def describe(self) -> dict[str, int | str]:
        """For run.json."""
        context = {"context": self.context} if self.context > 1 else {}
        sent = {"gather": self.gather} if self.parts > 1 else {}
        return {"replicate": self.replicate, "shard": self.shard, **context, **sent}


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
    replicate, shard, context = parallel.replicate, parallel.shard, parallel.context
    groups = processes // context
    if replicate is None and shard is None:
        shard = 1 if COPIES * 4 * weights / context <= ROOMY * room else max(groups, 1)
    replicate = groups // (shard or 1) if replicate is None else replicate
    shard = groups // replicate if shard is None else shard
    layout = Layout(replicate, shard, context=context)
    if replicate * layout.parts != processes:
        asked = {"replicate": parallel.replicate, "shard": parallel.shard, "context": context if context > 1 else None}
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
    model = meta_model(config, depth, attention, join_windows(world))
    share = math.ceil(count_weights(model) / layout.parts)
    world.everywhere(lambda: require_room(world.device, share, COPIES))
    share_out(model, layout, world.device.type)
    model.to_empty(device=world.device)
    initialize(model, seed, put=fill)
    return model


def share_out(model: Decoder, layout: Layout, device: str) -> None:
    """Make a model's parameters shares, block by block.

    Args:
        model: on the meta device, or any other.
        layout: who holds what.
        device: type of the device that processes compute on.
    """
    mesh = _mesh(layout, device)
    # Autocast would keep a bfloat16 copy of every matrix for the backward pass, whole, in each process. Those that come
    # in bfloat16 it takes as they are, and they are let go and sent again.
    kept = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = replace(kept, param_dtype=torch.bfloat16) if layout.gather == "bf16" else kept
    for block in model.blocks:
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    # The head is needed behind the forward pass, and the stream from the backward pass's first exchange on.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _mesh(layout: Layout, device: str) -> DeviceMesh:
    sizes = {"replicate": layout.replicate, "shard": layout.parts}
    if layout.replicate == 1:  # groups of one would be asked for sums all the same
        del sizes["replicate"]
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor, or into the part of it that this process holds."""
    if isinstance(tensor, DTensor):
        values = values.to(tensor.device, tensor.dtype)
        part = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(values)


@torch.no_grad()
def fill_stored(tensor: Tensor, stored: StoredTensor) -> None:
    """Copy what files hold into a tensor; of a shared one those rows are read that this process holds."""
    if not isinstance(tensor, DTensor):
        put_whole(tensor, stored)
        return
    local, first = tensor.to_local(), _first_row(tensor)
    if local.numel():
        local.copy_(stored.rows(first, first + len(local)))


def held_pieces(tensors: Mapping[str, Tensor], world: World) -> dict[str, Piece]:
    """What this process writes of tensors: the rows that it holds, where no other one holds them too.

    They are copies in the host's memory, which stay what they are while training goes on.
    """
    found: dict[str, Piece] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local, first = tensor.to_local(), _first_row(tensor)
            if is_first_group(tensor) and local.numel():
                found[name] = Piece(local.detach().to("cpu", copy=True), first)
        elif world.is_main:
            found[name] = Piece(tensor.detach().to("cpu", copy=True))
    return found


def is_first_group(tensor: DTensor) -> bool:
    """Whether this process belongs to the first of the groups that hold the same."""
    mesh = tensor.device_mesh
    return "replicate" not in (mesh.mesh_dim_names or ()) or mesh["replicate"].get_local_rank() == 0


def _first_row(tensor: DTensor) -> int:
    """Number of the first row that this process holds."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0]


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process has it; of a shared one the parts of all, which all have to ask for at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


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
        mesh = next(parameter.device_mesh for parameter in model.parameters() if isinstance(parameter, DTensor))
        model.set_requires_gradient_sync(last or mesh["shard"].size() > 1)
        model.set_requires_all_reduce(last)  # between groups, once for all: each process adds up its share till then
