"""Parameter roles: every parameter says which axes it maps from and to, and everything else follows from that.

An axis is finite (vocabulary, positions, experts) or infinite (width, heads, head width, neurons, keys):
infinite ones are those that grow with the model. From the axes come, with no matching of names, the initial standard
deviation, the forward multiplier and the learning-rate factor under muP, whether weight decay applies, and whether
Muon may take the parameter (RMT paper C.2.1; "Tensor Programs V", arXiv 2203.03466, table 8).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn

from widestream.errors import UserError, shown
from widestream.recipe.model import ModelConfig


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter. `base` is its size at which the muP multipliers were tuned; finite axes have none."""

    size: int
    base: int | None = None


@dataclass(frozen=True)
class Role:
    """What a parameter is for, and what follows from it."""

    std: float | None
    """Initial standard deviation; None: ones (a gain)."""
    decay: Literal["none", "weight", "key"]
    """Which weight decay applies: none, that of weights, or that of the stream's keys.

    Decay pulls towards zero. A number that starts at a value of its own (a gate of 1, a mixing weight of 1 / n) means
    nothing neutral there, so it has none."""
    lr_factor: float = 1.0
    """muP: learning rate relative to the optimizer's."""
    multiplier: float = 1.0
    """muP: what the product with this parameter is multiplied by in the forward pass."""
    product: bool = False
    """Whether it is the weight of a matrix product: each entry that is used costs two FLOPs a token."""
    muon: bool = False
    """Whether Muon may take it: a matrix between infinite axes [out, in], or a stack of such [E, out, in]."""
    splits: tuple[int, ...] = ()
    """Rows of the matrices that it holds one above the other (of each one in a stack); (): it is one."""
    head: tuple[int, int] | None = None
    """Rows and columns that belong to one attention head, if it maps to heads or from them."""
    used: float = 1.0
    """Share of it that one token's path goes through; of experts, those picked."""
    zero_rows: int = 0
    """So many leading rows start at zero."""
    part: str = "other"
    """Heading under which summaries count it."""


class Roles:
    """Turns axes into roles for one model configuration."""

    def __init__(self, config: ModelConfig):
        self.config = config
        mup = config.mup
        self.vocab = Axis(config.vocab_size)
        self.positions = Axis(config.context)
        self.width = Axis(config.embed_dim, mup.base_width or config.embed_dim)
        self.heads = Axis(config.num_heads, mup.base_num_heads or config.num_heads)
        self.kv_heads = self.like_heads(config.kv_heads)
        self.head_dim = Axis(config.head_dim, mup.base_head_dim or config.head_dim)
        self.neurons = Axis(config.mlp_dim, mup.base_mlp_dim or config.mlp_dim)

    def like_heads(self, number: int) -> Axis:
        """So many heads or data vectors, whose number grows as that of the model's heads."""
        assert self.heads.base is not None
        return Axis(number, max(1, round(number * self.heads.base / self.heads.size)))

    def embedding(self, entries: Axis, out: tuple[Axis, ...], part: str) -> Role:
        """A look-up table: finite to infinite. It is never decayed."""
        fan_in = 1 if self.config.init.embedding_fan_in == "one" else entries.size
        std = self._std(fan_in, size(out))
        return Role(std, "none", multiplier=self.config.mup.input_multiplier, part=part)

    def hidden(
        self,
        in_: tuple[Axis, ...],
        out: tuple[Axis, ...],
        part: str,
        *,
        decay: Literal["weight", "key"] = "weight",
        output: bool = False,
        zero_rows: int = 0,
        splits: tuple[int, ...] = (),
    ) -> Role:
        """A map between infinite axes.

        Args:
            in_: axes that are summed over.
            out: the other axes.
            part: heading for summaries.
            decay: `key` for what the stream owns.
            output: whether it is the block's last map, which depth scaling makes smaller by 1/sqrt(number of blocks).
            zero_rows: so many leading rows start at zero.
            splits: see `Role`; each of them is a map from `in_` to `out`.
        """
        std = self._std(size(in_), size(out))
        if output and self.config.init.depth_scale:
            std /= math.sqrt(self.config.num_blocks)
        return Role(
            std,
            decay,
            lr_factor=1 / _ratio(in_),
            product=True,
            muon=True,
            splits=splits,
            head=self._head(in_, out),
            zero_rows=zero_rows,
            part=part,
        )

    def readout(self, in_: tuple[Axis, ...], out: Axis, part: str) -> Role:
        """A map from infinite axes to a finite one in a block (a router); under muP with the head's multiplier."""
        ratio = _ratio(in_)
        return Role(self._std(size(in_) / ratio, out.size), "weight", multiplier=1 / ratio, product=True, part=part)

    def unembedding(self, in_: tuple[Axis, ...]) -> Role:
        """Infinite to finite. Under muP its standard deviation does not shrink with width; its multiplier does."""
        init, mup = self.config.init, self.config.mup
        std = init.std if init.scheme == "mup" else self._std(size(in_), self.vocab.size)
        multiplier = mup.output_multiplier / _ratio(in_)
        return Role(0.0 if init.output_zero else std, "none", multiplier=multiplier, product=True, part="unembedding")

    def gain(self) -> Role:
        """A gain of a norm: ones, or zeros where it is added to 1; never decayed."""
        return Role(0.0 if self.config.norm_offset else None, "none", part="norm")

    def bias(self, part: str) -> Role:
        """A bias: zeros, never decayed."""
        return Role(0.0, "none", part=part)

    def attention_scale(self) -> float:
        """Factor on the attention logits: alpha_attn sqrt(base D_v) / D_v, which is 1/sqrt(D_v) at the base size."""
        assert self.head_dim.base is not None
        return self.config.mup.attention_multiplier * math.sqrt(self.head_dim.base) / self.head_dim.size

    def _head(self, in_: tuple[Axis, ...], out: tuple[Axis, ...]) -> tuple[int, int] | None:
        """Shape of one head's part of a map whose rows, or whose columns, are heads side by side."""
        if len(out) > 1 and out[-1] is self.head_dim:
            return self.head_dim.size, size(in_)
        if len(in_) > 1 and in_[-1] is self.head_dim:
            return size(out), self.head_dim.size
        return None

    def _std(self, fan_in: float, fan_out: int) -> float:
        init = self.config.init
        match init.scheme:
            case "lecun":
                return 1 / math.sqrt(fan_in)
            case "xavier":
                return math.sqrt(2 / (fan_in + fan_out))
            case "normal":
                return init.std
            case "mup":
                return init.std / math.sqrt(fan_in)


class Declared(nn.Module):
    """A module whose parameters are declared with a role."""

    def __init__(self):
        super().__init__()
        self.own_roles: dict[str, Role] = {}
        self.own_shapes: dict[str, tuple[int, ...]] = {}
        """Of whole parameters, whatever part of one this process holds."""

    def declare(self, name: str, shape: tuple[int, ...], role: Role) -> None:
        """Register the parameter `name` [shape] with its role; `initialize` fills it."""
        self.own_roles[name], self.own_shapes[name] = role, shape
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def initial_values(self) -> dict[str, Tensor]:
        """Values of own parameters that start neither at zero, at one, nor at random, and of all buffers, by name."""
        return {}


def named_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter, by the parameter's full name, in the model's own order."""
    return {name: owner.own_roles[own] for name, owner, own in _declared(model)}


def named_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The whole shape of every parameter, by its full name, whatever part of it this process holds."""
    return {name: owner.own_shapes[own] for name, owner, own in _declared(model)}


def _declared(model: nn.Module) -> Iterator[tuple[str, Declared, str]]:
    """Every parameter in the model's own order: its full name, the module that declared it, its name there."""
    owners = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in model.named_modules()
        if isinstance(module, Declared)
        for name in module.own_roles
    }
    return ((name, *owners[name]) for name, _ in model.named_parameters())


def require_seed(seed: object) -> None:
    """Make sure that initial values can be drawn with a seed.

    Raises:
        UserError: it is no whole number, or one out of range.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**31:
        raise UserError(f"The seed is {shown(seed)}; it must be a whole number, at least 0 and below 2^31.")


@torch.no_grad()
def initialize(model: nn.Module, seed: int, put: Callable[[str, Tensor, Tensor], object] | None = None) -> None:
    """Fill every parameter from its role, each from a generator of its own, so that a new one changes no other.

    Args:
        model: its parameters and buffers are filled.
        seed: of random numbers.
        put: copies values into the parameter or buffer of a name, of which a process may hold a part;
            default: all of them.

    Raises:
        UserError: see `require_seed`.
    """
    require_seed(seed)
    put = put or (lambda _, tensor, values: tensor.copy_(values))
    parameters, shapes = dict(model.named_parameters()), named_shapes(model)
    for name, role in named_roles(model).items():
        parameter = parameters[name]
        if role.std is None:
            parameter.fill_(1.0)
            continue
        # A name's hash must not differ between processes, so Python's own will not do.
        key = int.from_bytes(name.encode(), "little") % (2**31 - 1)
        generator = torch.Generator().manual_seed(seed * (2**31 - 1) + key)
        values = torch.empty(shapes[name]).normal_(0, 1, generator=generator).mul_(role.std)
        values[: role.zero_rows] = 0
        put(name, parameter, values)
    tensors = parameters | dict(model.named_buffers())
    for prefix, module in model.named_modules():
        if isinstance(module, Declared):
            for name, value in module.initial_values().items():
                full = f"{prefix}.{name}" if prefix else name
                put(full, tensors[full], value)


def size(axes: tuple[Axis, ...]) -> int:
    """Product of the axes' sizes."""
    return math.prod(axis.size for axis in axes)


def _ratio(axes: tuple[Axis, ...]) -> float:
    """width_ratio: size over base size of the infinite axes."""
    return math.prod(axis.size / axis.base for axis in axes if axis.base is not None)
