"""Deep Delta Learning: every block's output is a direction that is rewritten, not a vector that is added.

(Zhang et al., arXiv 2601.00417; code yifanzhang-pro/deep-delta-learning.)

    X' = X + beta k (v^T - k^T X) = (I - beta k k^T) X + beta k v^T                                         (1)
    k = h / sqrt(|h|^2 + eps^2)        h: the block's output                                                (2)
    beta = 2 sigmoid(w_beta . c + b_beta)        c = norm(x_in): what the block received                    (3)
    v = 4 sigmoid(W_v x_in + b_v) (the published code)   or   W_v x_in + b_v (the paper)                    (4)

beta = 0 leaves X alone, 1 erases what X holds along k and writes v there, 2 reflects. The linear part has the
eigenvalue 1 (D - 1 times) and 1 - beta. `write: add` leaves the erasure out, X' = X + beta k v^T, and keeps all else:
the control with an expanded state that the authors say they did not run.

With V = 1 value channel, x_in = X. With more, a compressor makes x_in from X; both blocks of a layer share one, and one
more stands before the head. Each is a kernel of J taps per feature, then a sum over channels with weights r:

    channel (CC)   x_in[t, d] = sum_v r_v sum_j w[j, d] X[t, v + j - floor((J - 1) / 2), d]                 (5)
    token (TC)     x_in[t, d] = sum_v r_v sum_j w[j, v, d] X[t - j, v, d]                                   (6)

X_0 is the embedding, repeated V times, or with `expand_embedding` (EC) X_0[t, v, d] = sum_j w[j, v, d] e[t - j, d] (7),
which starts as a repetition. TC and EC see earlier tokens, of the same document only.

Cost: (D + 1)(1 + V) parameters per block and J D + V (TC: J V D + V) per compressor; the state is V times as wide.
It does not start as the plain transformer, at any beta: k has length one however large h is.

Gradients grow with depth where the model is narrow: at the initialisation by lecun, the embedding's gradient grows from
2 to 100 layers by 1.5e6 at width 16, 1.8e3 at 32 and 22 at 64, about exp(1.1 S / D) for S blocks and width D (with
compressors as much; `write: add` hardly at all).

Evidence (FineWeb-Edu, 49B tokens, one seed each), validation loss:
    124M parameters   plain 2.8543   V = 1 2.8482   CC 2.8321   TC 2.8355   CC + EC 2.8329   TC + EC 2.8299
    353M parameters   plain 2.6053   V = 1 2.6039   CC 2.5790   TC 2.5927   CC + EC 2.5758   TC + EC 2.5905
at 1510K (plain), 1331K (V = 1) and 1158K (CC) tokens/s for 124M. Most of the gain comes with the expanded state.

Paper and code part in v, see (4); the code gives W_v a bias in both forms, as here. It draws kernels uniformly from
+-1/sqrt(J), then overwrites them, as all matrices, with 0.5/sqrt(D) normal: here kernels keep the former's standard
deviation, and w_beta and W_v have the latter. Its TC kernels run from old to new; here tap j is j tokens back.

Letters: B batch, T tokens, D width, V value channels (the paper's d_v), J taps. X is kept as [B, T, V, D].
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.context import Context
from widestream.blocks.convolution import causal_convolution
from widestream.blocks.norm import read_norms, read_norms_size
from widestream.blocks.roles import Axis, Declared, Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Stream, StreamCost, StreamSpec

MOST_CHANNELS = 1024
"""Value channels at most; the paper has 4, and each is a step of the convolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepDeltaConfig(StreamConfig):
    """One value channel without a compressor; several with one."""

    kind: Literal["deep_delta"] = "deep_delta"
    """This stream."""
    compressor: Literal["none", "channel", "token"] = "none"
    """What makes the blocks' input from several value channels: a convolution over channels (CC) or tokens (TC)."""
    value_channels: int | None = None
    """[d_v] Columns of the state; default: 4 with a compressor, 1 without."""
    taps: int | None = None
    """[J] Length of the kernels of compressor and embedding; default: 4, but over channels no more than there are."""
    expand_embedding: bool = False
    """EC: make the first state by a convolution over tokens, in place of repeating the embedding."""
    write: Literal["delta", "add"] = "delta"
    """delta: erase along k, then write. add: write only."""
    beta0: float = 1.0
    """beta at initialisation, between 0 and 2."""
    value_bound: float | None = 4.0
    """v = value_bound * sigmoid(W_v x_in + b_v) (the published code); null: v = W_v x_in + b_v (the paper)."""
    key_eps: float = 1e-5
    """eps of the normalised key."""

    def __post_init__(self):
        if self.compressor == "none":
            if self.value_channels not in (None, 1) or self.taps is not None or self.expand_embedding:
                raise UserError(
                    "model.stream.value_channels above 1, taps and expand_embedding need a compressor; "
                    "set model.stream.compressor to channel or token."
                )
        elif not 2 <= self.channels <= MOST_CHANNELS:
            raise UserError(
                f"model.stream.value_channels is {self.channels}; with a compressor it must be from 2 to "
                f"{MOST_CHANNELS}."
            )
        if self.num_taps < 1 or (self.compressor == "channel" and self.num_taps > self.channels):
            most = f"from 1 to value_channels, {self.channels}" if self.compressor == "channel" else "at least 1"
            raise UserError(f"model.stream.taps is {self.taps}; it must be {most}.")
        if not 0 < self.beta0 < 2:
            raise UserError(f"model.stream.beta0 is {self.beta0}; it must lie between 0 and 2, both excluded.")
        for name in ("value_bound", "key_eps"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"model.stream.{name} is {value}; it must be positive.")

    @property
    def channels(self) -> int:
        """V."""
        default = 1 if self.compressor == "none" else 4
        return default if self.value_channels is None else self.value_channels

    @property
    def num_taps(self) -> int:
        """J."""
        default = min(4, self.channels) if self.compressor == "channel" else 4
        return default if self.taps is None else self.taps


class DeltaState(NamedTuple):
    """What one exchange leaves for the next."""

    X: Tensor
    """The state [B, T, V, D]."""
    x_in: Tensor
    """The state as one vector [B, T, D]."""
    normed: Tensor
    """c = norm(x_in), what the block at this site receives [B, T, D]."""
    context: Context
    """Documents and cache, for kernels over tokens."""


def unit_key(h: Tensor, eps: float) -> Tensor:
    """The key k of (2): h [..., D] -> [..., D], in float32 or wider."""
    h = h.float() if h.itemsize < 4 else h
    return h * torch.rsqrt(h.square().sum(-1, keepdim=True) + eps**2)


def delta_write(X: Tensor, k: Tensor, beta: Tensor, v: Tensor, erase: bool = True) -> Tensor:
    """The new state [B, T, V, D]: X + beta k (v^T - k^T X) as in (1), or the same without k^T X.

    Args:
        X: [B, T, V, D].
        k: unit keys [B, T, D].
        beta: [B, T, 1].
        v: [B, T, V].
        erase: whether what X holds along k is taken away.
    """
    return add_along(X, k, delta_change(X, k, beta, v, erase))


def delta_change(X: Tensor, k: Tensor, beta: Tensor, v: Tensor, erase: bool) -> Tensor:
    """What is added along k, beta (v - X^T k) or beta v [B, T, V]; as in `delta_write`."""
    return beta * (v - torch.einsum("btvd,btd->btv", X, k) if erase else v)


def add_along(X: Tensor, k: Tensor, change: Tensor) -> Tensor:
    """X + k change^T: X [B, T, V, D], k [B, T, D], change [B, T, V]."""
    return X + change.unsqueeze(-1) * k.unsqueeze(-2)


class DeltaWrite(Declared):
    """The write behind one block: beta and v of (3) and (4), then (1)."""

    w_beta: Tensor
    """[1, D]."""
    b_beta: Tensor
    """[1]."""
    w_v: Tensor
    """W_v [V, D]."""
    b_v: Tensor
    """[V]."""

    def __init__(self, settings: DeepDeltaConfig, roles: Roles):
        super().__init__()
        self.settings = settings
        width = roles.width.size
        for name, rows in (("beta", 1), ("v", settings.channels)):
            # From the width to an axis that does not grow: no job for Muon.
            role = roles.hidden((roles.width,), (Axis(rows),), "stream", decay="key")
            self.declare(f"w_{name}", (rows, width), replace(role, std=0.5 / math.sqrt(width), muon=False))
            self.declare(f"b_{name}", (rows,), Role(0.0, "none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """b_beta = logit(beta0 / 2)."""
        return {"b_beta": torch.full((1,), math.log(self.settings.beta0 / (2 - self.settings.beta0)))}

    def forward(self, X: Tensor, h: Tensor, x_in: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """State [B, T, V, D]; the block's output h, x_in and c, each [B, T, D] -> the new state, and what was added."""
        with no_autocast(X.device):
            beta = 2 * torch.sigmoid(F.linear(normed, self.w_beta, self.b_beta))
            v = F.linear(x_in, self.w_v, self.b_v)
            v = v if self.settings.value_bound is None else self.settings.value_bound * torch.sigmoid(v)
            k = unit_key(h, self.settings.key_eps)
            change = delta_change(X, k, beta, v, erase=self.settings.write == "delta")
            return add_along(X, k, change), change

    def undo(self, X: Tensor, h: Tensor, change: Tensor) -> Tensor:
        """The state before, from that after, the block's output and what was added."""
        return add_along(X, unit_key(h, self.settings.key_eps), -change)


class Compressor(Declared):
    """Kernels and channel weights of one compressor, (5) or (6)."""

    taps: Tensor
    """w: over channels [J, D]; over tokens [J, V, D], tap j for j tokens back."""
    read: Tensor
    """r [V]."""

    def __init__(self, settings: DeepDeltaConfig, width: int):
        super().__init__()
        self.channels = settings.channels
        taps, over_channels = settings.num_taps, settings.compressor == "channel"
        shape = (taps, width) if over_channels else (taps, self.channels, width)
        self.declare("taps", shape, Role(1 / math.sqrt(3 * taps), "key", part="stream"))
        self.declare("read", (settings.channels,), Role(0.0, "none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """r: the mean of the channels."""
        return {"read": torch.full((self.channels,), 1 / self.channels)}

    def forward(self, X: Tensor, context: Context, name: str) -> Tensor:
        """X [B, T, V, D] -> x_in [B, T, D]; `name` is that of what the cache keeps."""
        if self.taps.dim() == 2:
            return (X * self.channel_weights()).sum(-2)
        return causal_convolution(X, self.taps * self.read[:, None], context, name, add_channels=True)

    def channel_weights(self) -> Tensor:
        """Weight of every cell [V, D]: channel v sees channel u through tap u - v + left, all of them summed with r."""
        V, left = self.channels, (len(self.taps) - 1) // 2
        padded = F.pad(self.taps, (0, 0, V, V))
        shifted = [padded[V + left - v : 2 * V + left - v] for v in range(V)]
        return (torch.stack(shifted) * self.read[:, None, None]).sum(0)


class DeepDeltaStream(Stream[DeepDeltaConfig]):
    """X [B, T, V, D]; one norm per reader as in the plain stream, in front of which the compressor acts."""

    Config = DeepDeltaConfig
    limits = (
        "Deep and narrow models have exploding gradients: the embedding's grows by about exp(1.1 S / D) over S blocks "
        "at width D, a millionfold at 100 layers of width 16 (write: add has no such growth).",
    )
    examples = (
        {},
        {"value_bound": None, "beta0": 0.5, "write": "add"},
        {"compressor": "channel"},
        {"compressor": "channel", "expand_embedding": True, "value_channels": 3, "taps": 2, "value_bound": None},
        {"compressor": "channel", "write": "add"},
        {"compressor": "token"},
        {"compressor": "token", "expand_embedding": True, "value_channels": 2, "taps": 3},
    )

    expand: Tensor
    """EC's kernel w [J, V, D], tap j for j tokens back."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.width, shape = config.embed_dim, (config.embed_dim,)
        self.norms = read_norms(config, roles, self.readers, shape)
        self.layer_of = [*(block.layer for block in self.blocks(config)), config.num_layers]
        self.writes = nn.ModuleList(DeltaWrite(settings, roles) for _ in self.readers[1:])
        if settings.compressor != "none":
            self.compressors = nn.ModuleList(Compressor(settings, self.width) for _ in range(config.num_layers + 1))
        if settings.expand_embedding:
            self.declare("expand", (settings.num_taps, settings.channels, self.width), Role(0.0, "none", part="stream"))

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Gradients that start nearly a hundred times as large at the bottom."""
        growth = 1.1 * config.num_blocks / config.embed_dim
        if growth < 4.4 or cls.settings_of(config).write == "add":
            return []
        return [
            f"A deep_delta stream of {config.num_blocks} blocks at width {config.embed_dim} starts with gradients that "
            f"grow about 1e{growth / math.log(10):.0f}-fold towards the embedding; make it wider, shallower, or use "
            "write: add."
        ]

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """A D x d_v matrix."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(config.embed_dim, settings.channels), starts_plain=False, undo="steps", papers=("2601.00417",)
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 L (D + 1)(1 + V), (L + 1)(J D + V) for CC or (L + 1)(J V D + V) for TC, J V D for EC; (2 L + 1) D gains."""
        settings = cls.settings_of(config)
        D, V, J, L = config.embed_dim, settings.channels, settings.num_taps, config.num_layers
        kernel = {"none": 0, "channel": J * D + V, "token": J * V * D + V}[settings.compressor]
        expand = J * V * D if settings.expand_embedding else 0
        return config.num_blocks * (D + 1) * (1 + V) + (L + 1) * kernel + expand + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Products w_beta c, W_v x_in, k^T X. Saved: X, x_in per read, h, k, c per write; for TC a padded X too.

        Where states are rebuilt, h and what was added along k.
        """
        D, V, exchanges, writes = self.width, self.settings.channels, len(self.readers), len(self.writes)
        erased = V if self.settings.write == "delta" else 0
        read = V if self.settings.compressor == "none" else V + 1
        padded = erased if self.settings.compressor == "token" else 0
        return StreamCost(
            flops=2 * D * (1 + V + erased) * writes,
            bytes_moved=2 * 4 * V * D * exchanges,
            bytes_saved=4 * D * (read * exchanges + (3 + padded) * writes),
            bytes_saved_writes=4 * (D * exchanges + V * writes),
        )

    def initial_values(self) -> dict[str, Tensor]:
        """EC starts as a repetition."""
        if not self.settings.expand_embedding:
            return {}
        now, before = torch.ones(1, self.settings.channels, self.width), torch.zeros(self.expand.shape)[1:]
        return {"expand": torch.cat([now, before])}

    def empty(self, context: Context) -> Context:
        """No state yet, only what kernels over tokens must know."""
        return context

    def write_embedding(self, state: Context, token: Tensor, position: Tensor | None) -> DeltaState:
        """The embedding in every channel, or spread over them by EC (7)."""
        x = (token if position is None else token + position).unsqueeze(-2)
        if self.settings.expand_embedding:
            X = causal_convolution(x, self.expand, state, "expand")
        else:
            X = x.expand(*x.shape[:-2], self.settings.channels, self.width)
        return self.look(0, X, state)

    def write(self, site: int, state: DeltaState, written: Tensor) -> DeltaState:
        """(1) to (4), with x_in and c as the block before `site` received them."""
        return self.write_keeping(site, state, written)[0]

    def write_keeping(self, site: int, state: DeltaState, written: Tensor) -> tuple[DeltaState, tuple[Tensor, ...]]:
        """The same, and beta (v - X^T k) [B, T, V]."""
        X, change = self.writes[site - 1](state.X, written, state.x_in, state.normed)
        return self.look(site, X, state.context), (change,)

    def undo(self, site: int, state: DeltaState, written: Tensor, kept: tuple[Tensor, ...]) -> DeltaState:
        """X - beta k (v^T - k^T X), and what the reader before saw of it."""
        write = self.writes[site - 1]
        assert isinstance(write, DeltaWrite)
        return self.look(site - 1, write.undo(state.X, written, kept[0]), state.context)

    def look(self, site: int, X: Tensor, context: Context) -> DeltaState:
        """Compress and normalise for the reader at `site`; the next write needs both as well."""
        plain = self.settings.compressor == "none"  # else the sites of a layer share its compressor
        x_in = X.squeeze(-2) if plain else self.compressors[self.layer_of[site]](X, context, f"compress_{site}")
        return DeltaState(X, x_in, self.norms[site](x_in), context)

    def read(self, site: int, state: DeltaState) -> dict[str, Tensor]:
        """What `look` has normalised."""
        return {"x": state.normed}
