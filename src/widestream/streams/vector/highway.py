"""Highway Transformer: a self-gate beside every block (SDU; Chai, Jin and Hou, ACL 2020, arXiv 2004.08178).

    T(x) = psi(W_g x),  v(x) = W_v x
    sdu_tanh, sdu_sigmoid    x <- x + block(norm x) + T * v               (1)
    highway                  x <- (1 - T) * x + T * v + block(norm x)     (2) psi = sigmoid (the code's glu_type 3)
    gated_attention          x <- x + T * v + (1 - T) * block(norm x)     (3) psi = sigmoid (the code's glu_type 4)

The gate reads the stream as it was in front of the block, not normalised, and acts behind attention and MLP alike. It
costs 2 D^2 parameters and 4 D^2 FLOPs per gated block, a third of a layer's own, and no state. The forms of equation 1
start as the plain transformer if W_v starts at zero; the others never do, since T = 1/2 takes away half of something.

Evidence: faster convergence and fewer bits per character for a 6-layer Transformer-XL on enwik8 (the authors); at
GPT2-small dimensions 3.41 against 3.43 of the plain transformer, with 17 % more parameters (RMT paper, Table 10, one
run, whose 191M are those of all layers gated without biases; it does not say which psi).

Paper and code (cyk1337/Highway-Transformer): the code gates with tanh by default, has biases, and makes
both matrices in layers that it does not gate, too, where they do nothing; here those have none. Its list of gated
layers ends at the first layer left out, so it is a number of leading layers here. W_v is the last map of an added
branch, so depth scaling acts on it where it starts at random: the code has no depth scaling at all.

Letters: D width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import read_norms, read_norms_size
from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HighwayConfig(StreamConfig):
    """Which gate, and where."""

    kind: Literal["highway"] = "highway"
    """This stream."""
    form: Literal["sdu_tanh", "sdu_sigmoid", "highway", "gated_attention"] = "sdu_tanh"
    """psi, and how the gate enters."""
    layers: int | None = None
    """So many first layers are gated; default: all (the RMT paper's comparison)."""
    bias: bool = False
    """Biases on both maps, zero at first (the published code has them)."""
    zero_value: bool = True
    """Start W_v at zero."""

    def __post_init__(self):
        if self.layers is not None and self.layers < 1:
            raise UserError(f"model.stream.layers is {self.layers}; it must be at least 1 (kind: vector has no gates).")


class HighwayStream(Stream[HighwayConfig]):
    """x [B, T, D], gated behind the first layers' blocks; one pre-norm in front of every block and of the head."""

    Config = HighwayConfig
    examples = (
        {},
        {"form": "sdu_sigmoid", "layers": 2, "bias": True},
        {"zero_value": False, "layers": 1},
        {"form": "highway"},
        {"form": "highway", "zero_value": False, "bias": True},
        {"form": "gated_attention"},
    )

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.width = config.embed_dim
        self.psi = F.tanh if settings.form == "sdu_tanh" else F.sigmoid
        self.gated_sites = _num_gated(settings, config)
        axes, square = (roles.width,), (self.width, self.width)
        value = roles.hidden(axes, axes, "stream", output=True)
        value = replace(value, std=0.0) if settings.zero_value else value
        for site in range(1, self.gated_sites + 1):
            self.declare(f"gate_{site}", square, roles.hidden(axes, axes, "stream"))
            self.declare(f"value_{site}", square, value)
            if settings.bias:
                for name in ("gate", "value"):
                    self.declare(f"{name}_bias_{site}", (self.width,), Role(0.0, "none", part="stream"))
        shape = (self.width,)
        self.norms = read_norms(config, roles, self.readers, shape)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=settings.form in ("sdu_tanh", "sdu_sigmoid") and settings.zero_value,
            undo="replay",
            papers=("2004.08178",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 D^2 per gated block (2 D more with biases), and D gains per read."""
        settings = cls.settings_of(config)
        D = config.embed_dim
        gate = 2 * D * (D + 1 if settings.bias else D)
        return _num_gated(settings, config) * gate + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Two D x D products per gate; what the plain stream moves; saved: the norms' inputs, and T and v."""
        state = 4 * self.width
        return StreamCost(
            flops=4 * self.width**2 * self.gated_sites,
            bytes_moved=2 * state * len(self.readers),
            bytes_saved=state * len(self.readers) + 2 * state * self.gated_sites,
            bytes_saved_writes=state * (len(self.readers) + len(self.anchored)),
        )

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """Add, beside the gate."""
        if state is None:
            return written
        if site > self.gated_sites:
            return state + written
        T, v = self.psi(self._map("gate", site, state)), self._map("value", site, state)
        match self.settings.form:
            case "highway":
                return state + T * (v - state) + written  # eq. 2
            case "gated_attention":
                return state + written + T * (v - written)  # eq. 3
            case _:
                return state + written + T * v  # eq. 1

    def _map(self, name: str, site: int, state: Tensor) -> Tensor:
        """W x, plus its bias, in the state's precision."""
        bias = getattr(self, f"{name}_bias_{site}") if self.settings.bias else None
        return F.linear(state, getattr(self, f"{name}_{site}"), bias).to(state.dtype)

    def read(self, site: int, state: Tensor) -> dict[str, Tensor]:
        """Normalise."""
        return {"x": self.norms[site](state)}


def _num_gated(settings: HighwayConfig, config: ModelConfig) -> int:
    """How many blocks have a gate: all those of the first layers."""
    layers = config.num_layers if settings.layers is None else settings.layers
    if layers > config.num_layers:
        raise UserError(f"model.stream.layers is {layers}, but the model has {config.num_layers} layers.")
    return sum(block.layer < layers for block in HighwayStream.blocks(config))
