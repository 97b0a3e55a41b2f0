"""Depth-wise LSTM: the layers are the time of an LSTM (Xu et al., LREC-COLING 2024, arXiv 2007.06257).

    h_0 = c_0 = embedding
    a = attention(norm h)                                           z = [a ; h]
    i, f, o = sigma(norm W_i z), sigma(norm W_f z + b), sigma(norm W_o z)      (1)
    g = W_2 GELU(norm W_1 z)                                        the MLP, inside the candidate (2)
    c <- f * c + i * g                                              (3)
    h <- o * c                                                      (4) no tanh, as in the published code

One cell per layer takes the place of residual connections and MLP; the blocks are attention alone. Its matrices belong
to the stream: 6 D^2 for the gates and 2 D F + D F for the candidate, 10 D^2 more per layer than the MLP at F = 4 D, and
two FLOPs for each. The state is (h, c), twice that of the plain stream. It never starts as the plain transformer: what
leads from the embedding to the head goes through the gates of every layer.

Evidence: better translation than residual connections at 6 and more layers (the authors); at GPT2-small dimensions
3.54 against 3.43 of the plain transformer, with 233M parameters against 163M (RMT paper, Table 10, one run). This form
of the cell has 233,301,504 without gains.

The paper does not say what c_0 is. Zero would leave the first layer's forget gate nothing to forget, 2 D^2 parameters
without effect; so it is the embedding, or a learned vector (`learned_cell`).

Gradients grow with depth, since every cell normalises what it reads. Initial models of width 32, three seeds: from 6 to
12 layers the embedding's gradient grows 2 to 4 times, from 6 to 48 about 100 times with a forget bias of 1, and 500 to
2000 times without (the plain transformer's does not grow). With a gate in the candidate (`activation: swiglu`, ...; the
norm is over gate and values together) or squared ReLU it grows faster: 50 to 200 at 24 layers of width 32.

Paper and code: the placement of norms in the paper could not be checked. The authors' cell (hfxunlp/transformer,
LSTMCell4RNMT) normalises the three gates and a plain candidate jointly; here every gate is normalised for itself, and
the candidate where its hidden layer is. The norm in front of attention is kept by default, and can be left out, since
the paper says that the cell absorbs it. Depth scaling does not act on W_2: a cell forgets, it is no sum over depth. On
attention's W_O it does act; `init.depth_scale: false` leaves it out.

Letters: B batch, T tokens, D width, F neurons.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.activation import activate, gate_splits, inputs_per_neuron
from widestream.blocks.norm import Norm, has_read_norm, norm_size
from widestream.blocks.roles import Axis, Role, Roles
from widestream.recipe.model import Activation, ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthLSTMConfig(StreamConfig):
    """Options of the cell."""

    kind: Literal["depth_lstm"] = "depth_lstm"
    """This stream."""
    forget_bias: float = 1.0
    """b, a constant in the forget gate; 0: the published cell. 1: layers start by keeping 73 % of c, not 50 %."""
    learned_cell: bool = False
    """c_0 is one learned vector for all tokens, zero at first, instead of the embedding."""
    attention_norm: bool = True
    """A norm in front of attention; false: the cell's norms are the only ones, beside the head's."""


class DepthState(NamedTuple):
    """What one layer hands to the next."""

    h: Tensor
    """Output of the cell [B, T, D], which attention reads."""
    c: Tensor
    """The cell [B, T, D]."""


class DepthLSTMStream(Stream[DepthLSTMConfig]):
    """(h, c) [B, T, D] each; an LSTM cell behind every attention block."""

    Config = DepthLSTMConfig
    limits = ("Gradients grow with depth: the embedding's about 100 times from 6 to 48 layers, 1e4 times at 100.",)
    cell_0: Tensor | None
    """c_0 [D], if it is learned."""
    examples = ({}, {"learned_cell": True}, {"attention_norm": False})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.width, self.neurons = config.embed_dim, config.mlp_dim
        self.activation: Activation = config.activation
        self.hidden, splits = _hidden(config), gate_splits(config.activation, config.mlp_dim)
        width, neurons, both = (roles.width,), (roles.neurons,), (Axis(2), roles.width)

        def norm(size: int) -> Norm:
            return Norm(config, roles, (size,))

        if settings.learned_cell:
            self.declare("cell_0", (self.width,), Role(0.0, "none", part="stream"))
        else:
            self.register_parameter("cell_0", None)
        for site in range(1, len(self.readers)):
            for gate in "ifo":
                self.declare(f"gate_{gate}_{site}", (self.width, 2 * self.width), roles.hidden(both, width, "stream"))
            w1 = roles.hidden(both, neurons, "stream", splits=splits)
            self.declare(f"w1_{site}", (self.hidden, 2 * self.width), w1)
            self.declare(f"w2_{site}", (self.width, self.neurons), roles.hidden(neurons, width, "stream"))
        cells = range(len(self.readers) - 1)
        self.gate_norms = nn.ModuleList(nn.ModuleDict({gate: norm(self.width) for gate in "ifo"}) for _ in cells)
        self.candidate_norms = nn.ModuleList(norm(self.hidden) for _ in cells)
        self.norms = nn.ModuleList(
            norm(self.width) if _has_norm(settings, config, reader) else nn.Identity() for reader in self.readers
        )

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """Attention alone."""
        return [block for block in super().blocks(config) if block.kind != "mlp"]

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Gradients that start about a hundred times as large at the bottom."""
        if config.num_layers < (48 if config.activation in ("gelu", "gelu_tanh") else 24):
            return []
        return [
            f"A depth_lstm stream of {config.num_layers} layers starts with gradients that grow a hundredfold or more "
            "towards the embedding; take fewer layers."
        ]

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Two vectors of width D."""
        return StreamSpec(state_shape=(2, config.embed_dim), starts_plain=False, undo="replay", papers=("2007.06257",))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """6 D^2 + 3 D F weights and 3 D + F gains per cell, with a gate 5 D F and 2 F; D per norm and learned c_0."""
        settings = cls.settings_of(config)
        cells, D, neurons, hidden = len(cls.blocks(config)), config.embed_dim, config.mlp_dim, _hidden(config)
        norms = cells * _has_norm(settings, config, "attention") + _has_norm(settings, config, "head")
        gains = norm_size(config, cells * (3 * D + hidden) + norms * D)
        return cells * (6 * D * D + 2 * D * hidden + D * neurons) + gains + settings.learned_cell * D

    def cost(self) -> StreamCost:
        """Two FLOPs per entry of the cells' matrices; saved: inputs of products, norms, gates and their products."""
        D, cells = self.width, len(self.readers) - 1
        inside = 2 * self.hidden + self.neurons * (2 if self.hidden > self.neurons else 1)  # before and behind the gate
        return StreamCost(
            flops=2 * cells * (6 * D * D + 2 * D * self.hidden + D * self.neurons),
            bytes_moved=2 * 4 * 2 * D * len(self.readers),
            bytes_saved=4 * (cells * ((11 if self.settings.attention_norm else 10) * D + inside) + D),
            bytes_saved_writes=4 * D * (len(self.readers) + 2 * len(self.anchored)),
        )

    def write(self, site: int, state: DepthState | None, written: Tensor) -> DepthState:
        """One step of the cell."""
        if state is None:
            return DepthState(h=written, c=written if self.cell_0 is None else self.cell_0.expand_as(written))
        z = torch.cat((written.to(state.h.dtype), state.h), dim=-1)
        i, f, o = (self._gate(gate, site, z) for gate in "ifo")
        hidden = self.candidate_norms[site - 1](F.linear(z, getattr(self, f"w1_{site}")))
        g = F.linear(activate(self.activation, hidden), getattr(self, f"w2_{site}"))  # eq. 2
        c = f * state.c + i * g  # eq. 3
        return DepthState(h=o * c, c=c)  # eq. 4

    def _gate(self, gate: str, site: int, z: Tensor) -> Tensor:
        """A gate between 0 and 1 (eq. 1), from z [B, T, 2 D]."""
        norms = self.gate_norms[site - 1]
        assert isinstance(norms, nn.ModuleDict)
        logits = norms[gate](F.linear(z, getattr(self, f"gate_{gate}_{site}")))
        return F.sigmoid(logits + self.settings.forget_bias if gate == "f" else logits)

    def read(self, site: int, state: DepthState) -> dict[str, Tensor]:
        """h, normalised."""
        return {"x": self.norms[site](state.h)}


def _hidden(config: ModelConfig) -> int:
    """Rows of W_1: F, or with a gate 2 F."""
    return inputs_per_neuron(config.activation) * config.mlp_dim


def _has_norm(settings: DepthLSTMConfig, config: ModelConfig, reader: str) -> bool:
    """Whether a reader has a norm in front."""
    return (reader == "head" or settings.attention_norm) and has_read_norm(config, reader)
