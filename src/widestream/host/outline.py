"""What lies between a stream's exchanges, found by going through them once with a single token.

A state is whatever its stream makes of it: a tensor, a tuple of tuples, something that holds documents. Outside it is
its tensors alone, flat, so that checkpointing, compiling and sharding by others see nothing but tensors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from widestream.blocks.context import Context
from widestream.blocks.roles import Roles, size
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Stream

Read = Tensor | tuple[Tensor, Tensor, Tensor]
"""What a branch gets: one vector per token, or those of q, k and v."""


@dataclass(frozen=True)
class Outline:
    """The state behind one exchange, and what is read there."""

    structure: TreeSpec
    """How the stream nests its state."""
    leaves: tuple[str, ...]
    """What each leaf of it is: `tensor`, `context`, or `nothing`."""
    roles: tuple[str, ...]
    """What is read: x, or q, k and v."""
    written: tuple[int, ...]
    """Sizes, behind batch and tokens, of what is written at this site."""

    def __deepcopy__(self, memo: object) -> "Outline":
        """Itself: nothing in it changes."""
        return self

    @property
    def num_tensors(self) -> int:
        """Tensors of a state."""
        return self.leaves.count("tensor")

    def flat(self, state: Any) -> tuple[Tensor, ...]:
        """The tensors of a state."""
        return tuple(leaf for leaf in tree_flatten(state)[0] if isinstance(leaf, Tensor))

    def nested(self, tensors: tuple[Tensor, ...], context: Context | None) -> Any:
        """The state of which these are the tensors."""
        given = iter(tensors)
        parts = {"context": lambda: context, "nothing": lambda: None, "tensor": lambda: next(given)}
        return tree_unflatten([parts[leaf]() for leaf in self.leaves], self.structure)

    def read(self, inputs: dict[str, Tensor], dtype: torch.dtype | None) -> Read:
        """What the branch gets, in `dtype` or as it is."""
        x = tuple(inputs[role] if dtype is None else inputs[role].to(dtype) for role in self.roles)
        return x[0] if len(x) == 1 else x  # pyright: ignore[reportReturnType]


class _Watched(Context):
    """A context that notes whether anything is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            object.__setattr__(self, "__asked__", True)
        return super().__getattribute__(name)


def outline(stream: Stream, config: ModelConfig) -> tuple[tuple[Outline, ...], bool]:
    """Of every exchange; and whether the design looks at other tokens than the one at hand."""
    roles, cls = Roles(config), type(stream)
    with torch.no_grad():
        context = _Watched(torch.arange(1), None, masks={})
        state, outlines = stream.empty(context), []
        sizes: list[tuple[int, ...]] = [(size(stream.embedding_axes(roles)),)]
        for block in stream.blocks(config):
            bare = cls.spec(config).attention == "bare" and block.kind == "attention"
            sizes.append((config.num_heads, config.head_dim) if bare else (size(stream.written_axes(roles, block)),))
        for site, written in enumerate(sizes):
            vectors = torch.zeros(1, 1, *written)
            state, inputs = stream.exchange(site, state, vectors if site else (vectors, None))
            leaves, structure = tree_flatten(state)
            outlines.append(Outline(structure, tuple(map(_name, leaves)), tuple(inputs), written))
    return tuple(outlines), "__asked__" in vars(context)


def _name(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return "tensor"
    assert leaf is None or isinstance(leaf, Context), f"a state holds {type(leaf).__name__}, which is no tensor"
    return "nothing" if leaf is None else "context"


def make_context(vectors: Tensor, segments: Tensor | None = None) -> Context:
    """What a stream that mixes tokens is told of those with these vectors [B, T, ...].

    Raises:
        UserError: segments of another shape.
    """
    if segments is not None and segments.shape != vectors.shape[:2]:
        raise UserError(
            f"segments are {[*segments.shape]}; for vectors {[*vectors.shape]} they must be {[*vectors.shape[:2]]}."
        )
    positions = torch.arange(vectors.shape[1], device=vectors.device)
    return Context(positions, segments, masks={}, documents=segments)
