"""Memory that a training step takes beside weights, gradients and moments: measured without contents, layer by layer.

Storages are watched from their birth to their death, as an allocator sees them, in a forward and a backward pass of a
few shallow models; a deep one is told from these (see `kept.py`).
"""

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from widestream.blocks.split import BlockSplit, TokenSplit
from widestream.kernels.cross_entropy import cut_as_on_gpu
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.model.kept import told_by_depth
from widestream.recipe.model import ModelConfig


class Live(NamedTuple):
    """Bytes of a micro-batch."""

    kept: int
    """Alive between the forward and the backward pass."""
    most: int
    """Most that is alive at any time, with these."""


def live_bytes(
    config: ModelConfig,
    way: Callable[[ModelConfig], Depth],
    windows: int,
    precision: str,
    gathered: torch.dtype = torch.float32,
    gpu: bool = False,
    split: TokenSplit | None = None,
    block_split: BlockSplit | None = None,
) -> Live:
    """What a forward and a backward pass have alive beside weights and gradients.

    Copies of weights that autocast makes are counted, and so are a weight's gradients until they are added to those
    that are there.

    Args:
        config: the model's; its context is the length of the windows.
        way: the way through the depth of such a model with any number of layers.
        windows: of the micro-batch, B.
        precision: `float32`, or `bf16` under autocast.
        gathered: type in which a block's weights are there while it computes.
        gpu: whether head and loss are cut as on a GPU.
        split: the processes that share windows, if several do.
        block_split: the processes that share blocks, if several do.
    """
    found: dict[int, Live] = {}

    def at(layers: int) -> Live:
        if layers not in found:
            with cut_as_on_gpu() if gpu else contextlib.nullcontext():
                shallow = replace(config, num_layers=layers)
                found[layers] = _measure(shallow, way, windows, precision, gathered, split, block_split)
        return found[layers]

    return Live(
        told_by_depth(lambda layers: at(layers).kept, config)[0],
        told_by_depth(lambda layers: at(layers).most, config)[0],
    )


def _measure(
    config: ModelConfig,
    way: Callable[[ModelConfig], Depth],
    windows: int,
    precision: str,
    gathered: torch.dtype,
    split: TokenSplit | None,
    block_split: BlockSplit | None = None,
) -> Live:
    with FakeTensorMode(), torch.device("cpu"):
        model = Decoder(config, way(config), split=split, block_split=block_split)
        for parameter in model.blocks.parameters():
            parameter.data = parameter.data.to(gathered)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        tokens = torch.empty(windows, config.context, dtype=torch.int64)
        segments = torch.zeros_like(tokens)
        with _Watch() as watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model.loss(tokens, tokens, segments if config.document_mask else None)
            kept = watch.now
            loss.total.backward()
    return Live(kept, watch.most)


class _Watch(TorchDispatchMode):
    """Counts the bytes of storages that are made under it, until they are freed."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Compute, and count what is new."""
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        given = {_identity(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _identity(leaf) not in given | self._seen:
                self._begin(leaf)
        return result

    def _begin(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        self._seen.add(number)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._end, number, size)

    def _end(self, number: int, size: int) -> None:
        self._seen.discard(number)
        self.now -= size


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
