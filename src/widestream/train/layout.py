"""Which process holds what weights: replicated, sharded, or sharded within groups that are replicated.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does it: a block's weights are whole while it computes, and gradients are
averaged as they come. Each block is a group of its own; embedding, head and all of the stream are the root's, because
exchanges between any two blocks need them. Model code knows nothing of this.
"""

import math
import warnings
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from widestream.blocks.attention_kind import Attention
from widestream.blocks.roles import initialize
from widestream.errors import UserError
from widestream.model.build import build_model, count_weights, meta_model, require_room
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import ParallelConfig
from widestream.train.context import join_windows
from widestream.train.parallel import World
from widestream.train.shards import Shares
from widestream.train.tensor import join_blocks

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
    share_out(model, layout, world)
    model.to_empty(device=world.device)
    initialize(model, seed, put=Shares(model).fill)
    return model


def share_out(model: Decoder, layout: Layout, world: World) -> None:
    """Make a model's parameters shares, block by block.

    Args:
        model: on the meta device, or any other.
        layout: who holds what.
        world: the processes.
    """
    mesh, block_mesh = _meshes(layout, world)
    # Autocast would keep a bfloat16 copy of every matrix for the backward pass, whole, in each process. Those that come
    # in bfloat16 it takes as they are, and they are let go and sent again.
    kept = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = replace(kept, param_dtype=torch.bfloat16) if layout.gather == "bf16" else kept
    for block in model.blocks:
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=block_mesh, mp_policy=policy)
    # FSDP2 warns of writing into what the decoder puts out, which nothing does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # The head is needed behind the forward pass, and the stream from the backward pass's first exchange on.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _meshes(layout: Layout, world: World) -> tuple[DeviceMesh, DeviceMesh]:
    """Who shares out what is not in blocks, and a block, or this process's part of one."""
    mesh = _mesh(layout, world, {"shard": layout.parts})
    if layout.tensor == 1:
        return mesh, mesh
    divided = _mesh(layout, world, {"shard": layout.block_parts, "tensor": layout.tensor})
    return mesh, divided[tuple(name for name in divided.mesh_dim_names or () if name != "tensor")]


def _mesh(layout: Layout, world: World, inside: dict[str, int]) -> DeviceMesh:
    # Groups of one would be asked for sums all the same.
    sizes = {"replicate": layout.replicate, **inside} if layout.replicate > 1 else inside
    mesh = init_device_mesh(world.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for group in mesh.get_all_groups():  # PyTorch would have these wait for half an hour
        _set_pg_timeout(timedelta(seconds=world.timeout_s), group)
    return mesh
