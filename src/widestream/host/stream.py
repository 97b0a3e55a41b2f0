"""A stream for branches of any kind, without recipe, roles or blocks of ours.

    stream = residual("mhc", dim=512, sites=2 * num_layers, lanes=4)
    state, x = stream.start(embedding)                                  # [B, T, dim]
    for site, branch in enumerate(branches, 1):
        state, x = stream.exchange(site, state, branch(x))
    logits = head(x)

Letters: B batch, T tokens (words, patches, frames, ...), S sites.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from widestream.blocks.context import Context
from widestream.blocks.roles import Roles, initialize, named_roles, size
from widestream.errors import UserError, shown
from widestream.host.config import SMALLER, HostConfig, Norm, host_config, host_words, in_host_words, stream_settings
from widestream.host.outline import Outline, make_context, outline
from widestream.kernels.autocasting import autocast_dtype
from widestream.kernels.exchange import KernelSetting
from widestream.machine import memory_errors
from widestream.model.build import require_room, warn_once
from widestream.model.depth import Depth, plan_depth
from widestream.model.depth.plan import Memory, Precision
from widestream.streams import stream_class
from widestream.streams.base import Stream, StreamSpec

State = Tensor | tuple[Tensor, ...]
"""A stream's state: its tensors, batch and tokens first where they belong to tokens."""
Branch = Callable[[Any], Tensor]
"""From what is read to what is written; see `ResidualStream.exchange`."""


def residual(
    kind: str,
    dim: int,
    sites: int | Sequence[str],
    *,
    layer_size: int = 2,
    norm: Norm | None = "rmsnorm",
    norm_eps: float = 1e-6,
    heads: int | None = None,
    neurons: int | None = None,
    init: dict[str, Any] | None = None,
    mup: dict[str, int] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> "ResidualStream":
    """A residual stream of any kind, for a model of your own.

    Args:
        kind: a name that `widestream streams` lists, or `module:Class`.
        dim: width of the vectors that branches receive and put out.
        sites: how many branches write to the stream, one after the other; or their kinds in order: `branch` (anything
            that takes one vector and puts out one), or `attention` and `mlp` for designs that treat these differently.
            A `mudd`, `dca` or `matrix` stream hands over vectors for q, k and v where attention is named.
        layer_size: branches of a layer, for designs that do something between layers; the last may have fewer.
        norm: in front of every read, the last one too; None: your branches and your head have their own.
        norm_eps: of all norms, those inside a design too.
        heads: parts that a matrix stream cuts vectors into [R], each dim / R wide, which is also the default width of
            depth attention's keys. Default: at least 4 parts, of up to 64 numbers.
        neurons: hidden neurons of designs that compute an MLP themselves (depth_lstm); default: 4 dim.
        init: initialisation, as in a recipe's `model.init`: {"scheme": "mup", "std": 0.02}.
        mup: base sizes for muP's rates, as in a recipe's `model.mup`: {"base_width": 256}; needs init scheme mup.
        seed: of the initial values, which depend on nothing else.
        device: where the float32 parameters are put.
        settings: of the kind: `lanes=4`.

    Raises:
        UserError: unknown kind or setting, values out of range, or branches that the design has no place for.
    """
    config = host_config(
        kind, dim, sites, layer_size=layer_size, heads=heads, norm=norm, norm_eps=norm_eps, neurons=neurons, init=init,
        mup=mup, settings=settings,
    )  # fmt: skip
    cls = stream_class(kind)
    if torch.device(device).type == "meta":
        raise UserError("A stream's values are made with it; give a device that has memory, and move it from there.")
    with host_words():
        for sentence in cls.warnings(config):
            warn_once(in_host_words(sentence))
        with torch.device("meta"), memory_errors("The stream", SMALLER):
            core = cls(config, Roles(config))
        require_room(torch.device(device), sum(parameter.numel() for parameter in core.parameters()))
        with torch.device(device), memory_errors("The stream", SMALLER):
            core = core.to_empty(device=device)
            with torch.device("cpu"):  # values depend on no device
                initialize(core, seed)
            outlines, mixes_tokens = outline(core, config)
    return ResidualStream(core, config, outlines, mixes_tokens)


class ResidualStream(nn.Module):
    """A stream between branches that are not ours. Make one with `residual`.

    A state is one tensor or a flat tuple of tensors, never changed in place, so that activation checkpointing around a
    branch and its exchange, `torch.compile` and sharding see tensors only. Sites are numbered from 1; site 0 is the
    embedding's. Parameters stay in float32; under autocast, too.
    """

    def __init__(self, core: Stream, config: HostConfig, outlines: tuple[Outline, ...], mixes_tokens: bool):
        super().__init__()
        self.core, self.config, self.outlines = core, config, outlines
        roles = Roles(config)
        self.kind, self.dim, self.num_sites = config.stream.kind, config.embed_dim, len(outlines) - 1
        self.embedding_dim = size(core.embedding_axes(roles))
        """Width of what `start` takes; of most kinds `dim`."""
        self.output_dim = size(core.head_axes(roles))
        """Width of what the last exchange hands over; of most kinds `dim`."""
        self.mixes_tokens = mixes_tokens
        """Whether the design looks at other tokens than the one at hand (causally)."""

    @property
    def spec(self) -> StreamSpec:
        """What the design says of itself; `spec.starts_plain`: whether it begins as x + branch(norm(x))."""
        return type(self.core).spec(self.config)

    def extra_repr(self) -> str:
        """Kind, sizes and settings."""
        settings = "".join(f", {name}={value!r}" for name, value in stream_settings(self.config.stream).items())
        return f"{self.kind!r}, dim={self.dim}, sites={self.num_sites}{settings}"

    def start(self, embedding: Tensor, segments: Tensor | None = None) -> tuple[State, Any]:
        """Write the embedding, read for the first branch.

        Args:
            embedding: [B, T, dim].
            segments: document of every token [B, T], for designs that look at earlier tokens; others need none.

        Returns:
            The state, and what the first branch gets: see `exchange`.

        Raises:
            UserError: another shape; parameters in half precision.
        """
        self._check_embedding(embedding)
        context = self._context(embedding, segments)
        state, inputs = self.core.exchange(0, self.core.empty(context), (_wide(embedding), None))
        tensors = self.outlines[0].flat(state)
        if self.mixes_tokens and segments is not None:
            tensors = (*tensors, segments)
        return _state(tensors), self.outlines[0].read(inputs, _precision(embedding))

    def exchange(self, site: int, state: State, written: Tensor) -> tuple[State, Any]:
        """Write what the branch before `site` has put out, and read for the next branch, or at last for the head.

        Args:
            site: from 1 to the number of sites.
            state: from the exchange before.
            written: [B, T, dim]. Of attention in a stream that hands over heads (`matrix`): heads [B, T, R, dim / R].

        Returns:
            The state, and x [B, T, dim]. In front of attention, where the design has vectors of their own for q, k and
            v: a tuple of these three, each [B, T, dim], or heads [B, T, R, dim / R]. In the precision of what was
            written; under autocast as the stream has it, mostly float32.

        Raises:
            UserError: no such site, a state of another one, or something of another shape.
        """
        if not 1 <= site <= self.num_sites:
            raise UserError(f"There is no site {site}; this stream's are numbered from 1 to {self.num_sites}.")
        before, after = self.outlines[site - 1], self.outlines[site]
        tensors = state if isinstance(state, tuple | list) else (state,)
        extra = len(tensors) - before.num_tensors
        if extra not in ((0, 1) if self.mixes_tokens else (0,)):
            raise UserError(
                f"The state has {len(tensors)} tensors, and in front of site {site} it is {before.num_tensors}; sites "
                "go in order, from 1, each with the state of the one before."
            )
        if written.shape[2:] != after.written:
            raise UserError(
                f"What is written at site {site} is {[*written.shape]}; it must be [B, T, "
                f"{', '.join(map(str, after.written))}]."
            )
        segments = tensors[-1] if extra else None
        nested = before.nested(tuple(tensors), self._context(written, segments))
        nested, inputs = self.core.exchange(site, nested, written)
        tensors = after.flat(nested)
        return _state((*tensors, segments) if segments is not None else tensors), after.read(
            inputs, _precision(written)
        )

    def run(
        self,
        embedding: Tensor,
        branches: Iterable[Branch],
        segments: Tensor | None = None,
        *,
        memory: Memory = "auto",
        anchors: int = 0,
        kernels: KernelSetting = "auto",
        state_precision: Precision = "float32",
        recompute: bool = False,
    ) -> Tensor:
        """The whole row: start, every branch and its exchange, and what the head reads [B, T, dim].

        It is the loop of `start` and `exchange`, with the same gradients up to rounding, by any of the ways through the
        depth: an exchange of matrix streams is one fused operator where there is a kernel; with `memory="writes"` only
        what branches put out is kept, and states are rebuilt in the backward pass, which then can be gone through once.

        Args:
            embedding: [B, T, dim].
            branches: one for each site, in order; each gets what `exchange` hands over.
            segments: see `start`.
            memory: `states`, `writes`, or `auto`: writes where a fused kernel makes that the faster way too.
            anchors: exact copies of the state, with writes; 0: the design's number.
            kernels: `auto`, `reference` (torch operations) or `fused`.
            state_precision: of a matrix stream's live state, with writes.
            recompute: compute again in the backward pass what is inside layers (inside branches, with writes).

        Raises:
            UserError: another number of branches, another shape, or settings that this design cannot serve.
        """
        self._check_embedding(embedding)
        branches = list(branches)
        if len(branches) != self.num_sites:
            raise UserError(f"There are {len(branches)} branches, and this stream has {self.num_sites} sites.")
        with host_words():
            depth: Depth = plan_depth(
                self.config, embedding.device, memory, anchors, kernels, state_precision, recompute=recompute
            )
        context, precision = make_context(embedding, segments), _precision(embedding)
        reads = zip(branches, self.outlines, strict=False)  # the last is the head's
        blocks = [_as_block(branch, outline, precision) for branch, outline in reads]
        x = depth(self.core, blocks, (_wide(embedding), None), context)
        return x if precision is None else x.to(precision)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0, decay_keys: bool = True) -> list[dict[str, Any]]:
        """Groups for an optimizer such as AdamW, by what every parameter is for.

            optimizer = torch.optim.AdamW([*stream.parameter_groups(3e-4, 0.1), {"params": of_the_rest}], lr=3e-4)

        Gates, mixing weights and gains that start at a value of their own are not decayed, which would take the stream
        away. Under muP (`residual(mup=...)`) rates fall with the width.

        Args:
            lr: at the base sizes.
            weight_decay: of what is decayed.
            decay_keys: whether the stream's keys and maps are.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        roles, decayed = named_roles(self.core), ("weight", "key") if decay_keys else ("weight",)
        for name, parameter in self.core.named_parameters():
            role = roles[name]
            key = lr * role.lr_factor, weight_decay if role.decay in decayed else 0.0
            groups.setdefault(key, []).append(parameter)
        return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]

    def _check_embedding(self, embedding: Tensor) -> None:
        if embedding.dim() != 3 or embedding.shape[-1] != self.embedding_dim or not embedding.is_floating_point():
            raise UserError(
                f"The embedding is {str(embedding.dtype).removeprefix('torch.')} {[*embedding.shape]}; a {self.kind} "
                f"stream set like this takes vectors [B, T, {self.embedding_dim}]."
            )
        narrow = next((parameter.dtype for parameter in self.parameters() if parameter.itemsize < 4), None)
        if narrow is not None:
            raise UserError(
                f"The stream's parameters are {shown(narrow)}, but its keys, gates and norms compute in float32; cast "
                "your own modules alone, or call the stream's float() afterwards."
            )

    def _context(self, x: Tensor, segments: Tensor | None) -> Any:
        return make_context(x, segments) if self.mixes_tokens else NO_TOKENS


NO_TOKENS = Context(torch.empty(0), None, masks={})
"""What a design that looks at no other token is told of them."""


def _state(tensors: tuple[Tensor, ...]) -> State:
    return tensors[0] if len(tensors) == 1 else tensors


def _wide(embedding: Tensor) -> Tensor:
    """In float32 at least: a stream adds up what is small beside itself."""
    return embedding.float() if embedding.itemsize < 4 else embedding


def _precision(given: Tensor) -> torch.dtype | None:
    """In which precision a branch gets what is read; None: as it is, since autocast sees to it."""
    return given.dtype if autocast_dtype(given.device) is None else None


def _as_block(
    branch: Branch, outline: Outline, precision: torch.dtype | None
) -> Callable[[dict[str, Tensor], Context], Tensor]:
    """A branch as the ways through the depth call it."""
    return lambda inputs, context: branch(outline.read(inputs, precision))
