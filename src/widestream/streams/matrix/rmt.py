"""The Residual Matrix Transformer's stream: an outer-product memory (Mak & Flanigan, arXiv 2506.22696, section 2.2).

    write   X <- X + sum_h w^(h) (x) y^(h)        R data vectors y^(h) in R^{D_v}, stored under keys w^(h) in R^{D_k}
    read    y^(h) = r^(h) . norm(X)               retrieved with keys r^(h) in R^{D_k}

Attention has no W_Q, W_K, W_V, W_O: its heads are reads and its outputs are writes. The MLP keeps its matrices and
reads and writes R data vectors. The state has D_k x D_v cells, so D_k widens it without widening any matrix. It does
not start as the plain transformer.

Letters: B batch, T tokens, R rank (= heads), K key axis D_k, V value axis D_v. The state is kept as [B, T, V, K] and
data vectors as [B, T, V, R], so that storing and retrieving are plain products with the keys as weights; that layout
is private. State and keys stay in their own precision under autocast: the products are small, and casting a wide
state costs more than it saves.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from widestream.blocks.norm import Norm, has_read_norm, read_norms_size
from widestream.blocks.roles import Axis, Roles, size
from widestream.errors import UserError
from widestream.kernels.autocasting import autocast_dtype, no_autocast
from widestream.kernels.exchange import Site
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import KernelCall, Reader, Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixFields(StreamConfig):
    """What every matrix stream is set by. Rank R is the model's num_heads and the value axis D_v its head_dim."""

    key_dim: int
    """[D_k] Length of the keys; the state has key_dim * head_dim cells."""
    norm_gain: Literal["full", "row", "none"] = "full"
    """Gain of the joint norm: one per cell (the paper), one per key row, or none."""
    depth_scale_site: Literal["w_FF", "W2"] = "w_FF"
    """Where depth scaling acts on the MLP's way out: its storage keys (the published code) or its last matrix."""

    def __post_init__(self):
        if self.key_dim < 1:
            raise UserError(f"model.stream.key_dim is {self.key_dim}; it must be at least 1.")


MatrixSettings = TypeVar("MatrixSettings", bound=MatrixFields)


@dataclass(frozen=True, kw_only=True, slots=True)
class WidenedFields(MatrixFields):
    """What streams are set by that `widestream widen` widens."""

    norm_eps: float | None = None
    """Added to the mean square of the state in place of the model's norm_eps. A state that is widened by empty rows has
    a smaller mean square, and this is made smaller by as much; norms of blocks keep theirs."""

    def __post_init__(self):
        MatrixFields.__post_init__(self)
        if self.norm_eps is not None and not self.norm_eps > 0:
            raise UserError(f"model.stream.norm_eps is {self.norm_eps}; it must be above 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixConfig(WidenedFields):
    """The Residual Matrix Transformer as published."""

    kind: Literal["matrix"] = "matrix"
    """This stream."""


class MatrixBase(Stream[MatrixSettings]):
    """X [B, T, V, K]; a joint norm over (V, K) in front of every read. RMT's relatives change parts of it.

    States are `Any` here: some relatives keep more than X, or keep it in parts.
    """

    cuts_vectors = True
    own_bases = ("base_key_dim",)

    write_0: Tensor
    """Storage keys of the token embedding [K, R]; those of site i are `write_<i>`, its retrieval keys `read_<i>`."""
    write_position: Tensor
    """Storage keys of learned positions [K, R]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        if config.width not in (None, config.num_heads * config.head_dim):
            raise UserError("A matrix stream has model.width = num_heads * head_dim; leave model.width out.")
        check_joint_norms(config)
        self.config = config
        self.rank, self.key_dim, self.value_dim = config.num_heads, settings.key_dim, config.head_dim
        self.keys = Axis(settings.key_dim, config.mup.base_key_dim or settings.key_dim)
        self.declare_keys(config, roles)
        spec = type(self).spec(config)
        self.bare_attention, self.is_kernel = spec.attention == "bare", spec.undo == "kernel"
        # Under autocast these blocks begin with a product in low precision, so they cast what they read.
        casting = {"attention": begins_with_product(config) or not self.bare_attention, "mlp": True, "branch": False}
        self.casts = [casting[block.kind] and block.num_neurons != 0 for block in self.blocks(config)] + [False]
        self.attention_heads = [config.num_heads, config.kv_heads, config.kv_heads]
        """Vectors that are read for q, k and v."""
        shape = (self.value_dim, self.key_dim)
        self.row_gain = settings.norm_gain == "row"
        gain = {"full": shape, "row": (self.key_dim,), "none": None}[settings.norm_gain]
        eps = self.eps_of(config)
        self.norms = nn.ModuleList(
            Norm(config, roles, shape, gain, has_gain=gain is not None, eps=eps)
            if has_read_norm(config, reader)
            else nn.Identity()
            for reader in self.readers
        )

    @classmethod
    def eps_of(cls, config: ModelConfig) -> float:
        """What is added to the mean square of X."""
        settings = cls.settings_of(config)
        own = settings.norm_eps if isinstance(settings, WidenedFields) else None
        return config.norm_eps if own is None else own

    def declare_keys(self, config: ModelConfig, roles: Roles) -> None:
        """Keys of all sites. One storage set per write; embedding and positions have their own (eqs. 18, 19)."""
        spec = type(self).spec(config)
        # Depth scaling acts once on a block's way out: on its last matrix, or here.
        bare, others = spec.attention == "bare", spec.scales_mlp_write
        scaled = {"attention": bare, "mlp": others, "branch": others}
        self.declare_storage("write_0", (roles.heads,), roles)
        if config.positions == "learned":
            self.declare_storage("write_position", (roles.heads,), roles)
        for site, reader in enumerate(self.readers):
            vectors = self.vectors(reader, roles)
            parts = self.read_parts(site)
            self.declare_retrieval(site, vectors, roles, parts[0] if parts and config.init.query_zero else 0)
            if reader != "head":
                written = (roles.like_heads(self.attention_stored(config)),) if reader == "attention" else vectors[-1:]
                self.declare_storage(f"write_{site + 1}", written, roles, scaled[reader])

    def declare_storage(self, name: str, vectors: tuple[Axis, ...], roles: Roles, scaled: bool = False) -> None:
        """Storage keys w: R -> D_k."""
        role = roles.hidden(vectors, (self.keys,), "keys", decay="key", output=scaled)
        self.declare(name, (self.key_dim, size(vectors)), role)

    def declare_retrieval(self, site: int, vectors: tuple[Axis, ...], roles: Roles, zero_rows: int) -> None:
        """Retrieval keys r: D_k -> R, or R + 2 R_kv for q, k, v together, of which the query's may start at zero."""
        parts = self.read_parts(site)
        role = roles.hidden((self.keys,), vectors, "keys", decay="key", zero_rows=zero_rows, splits=parts)
        self.declare(f"read_{site}", (size(vectors), self.key_dim), role)

    def read_parts(self, site: int) -> tuple[int, ...]:
        """How the vectors that a site reads divide into q, k and v; empty where they do not."""
        return self.attention_parts(self.config) if self.readers[site] == "attention" else ()

    def vectors(self, reader: Reader, roles: Roles) -> tuple[Axis, ...]:
        """Axis of the data vectors that a reader takes: R of them, or R for q and R_kv each for k and v."""
        if reader != "attention":
            return (roles.heads,)
        return (roles.like_heads(self.attention_vectors(roles.config)),)

    @classmethod
    def attention_parts(cls, config: ModelConfig) -> tuple[int, ...]:
        """Data vectors that attention reads for q, k and v; empty where these share R."""
        return config.num_heads, config.kv_heads, config.kv_heads

    @classmethod
    def attention_vectors(cls, config: ModelConfig) -> int:
        """Data vectors that attention reads."""
        return sum(cls.attention_parts(config)) or config.num_heads

    @classmethod
    def attention_stored(cls, config: ModelConfig) -> int:
        """Data vectors that are stored of what attention puts out."""
        return config.num_heads

    @classmethod
    def vectors_read(cls, config: ModelConfig) -> int:
        """Data vectors of all reads."""
        attentions = config.num_attentions
        others = config.num_blocks - attentions + 1
        return attentions * cls.attention_vectors(config) + config.num_heads * others

    @classmethod
    def vectors_stored(cls, config: ModelConfig) -> int:
        """Data vectors of all writes, those of learned positions among them."""
        attentions = config.num_attentions
        others = config.num_blocks - attentions + (2 if config.positions == "learned" else 1)
        return attentions * cls.attention_stored(config) + config.num_heads * others

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """A D_k x D_v matrix."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(settings.key_dim, config.head_dim),
            attention="bare",
            starts_plain=False,
            scales_mlp_write=settings.depth_scale_site == "w_FF",
            undo="kernel",
            papers=("2506.22696",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """R D_k (6 L + 3) keys (one set fewer without learned positions), and (2 L + 1) D_k D_v gains.

        With ShortSWA 4 L sets of keys and L norms more. Where k and v have R_kv vectors, 2 (R - R_kv) D_k fewer an
        attention block.
        """
        settings = cls.settings_of(config)
        gain = {"full": config.head_dim * settings.key_dim, "row": settings.key_dim, "none": 0}[settings.norm_gain]
        vectors = cls.vectors_read(config) + cls.vectors_stored(config)
        return settings.key_dim * vectors + read_norms_size(config, gain)

    def cost(self) -> StreamCost:
        """Two FLOPs per key entry and value column.

        What autograd saves is the state and its norm at every read (with a gain per row, before and after it), of an
        operator the state alone, and the vectors that were written; or these only.
        """
        key_entries = sum(self.get_parameter(n).numel() for n, role in self.own_roles.items() if role.part == "keys")
        state = 4 * self.key_dim * self.value_dim
        exchanges, writes = len(self.readers), 4 * self.value_dim * self.vectors_written()
        kept = 3 if self.row_gain else 2
        return StreamCost(
            flops=2 * key_entries * self.value_dim,
            bytes_moved=2 * state * exchanges,
            bytes_saved=kept * state * exchanges + writes,
            bytes_saved_fused=state * exchanges + writes if self.is_kernel else None,
            bytes_saved_writes=writes,
        )

    def vectors_written(self) -> int:
        """Data vectors of a token, over all sites; learned positions are the same for all windows."""
        return sum(self.get_parameter(f"write_{site}").shape[-1] for site in range(len(self.readers)))

    def width_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """R data vectors of width D_v."""
        return (roles.head_dim, roles.heads)

    def store(self, keys: Tensor, data: Tensor) -> Tensor:
        """sum_h w^(h) (x) y^(h): keys [K, R], data [B, T, V, R] -> [B, T, V, K] (eq. 12).

        Keys [B, T, K, R] are every token's own.
        """
        with no_autocast(data.device):
            return data.to(keys.dtype) @ keys.mT

    def retrieve(self, keys: Tensor, normed: Tensor) -> Tensor:
        """r^(h) . X for every h: keys [R, K] or [B, T, R, K], normed state [B, T, V, K] -> [B, T, V, R] (eq. 13)."""
        with no_autocast(normed.device):
            return normed @ keys.mT

    def data(self, written: Tensor) -> Tensor:
        """A block's output as data vectors [B, T, V, R]: heads [B, T, R, V], or all side by side [B, T, V * R]."""
        return written.transpose(2, 3) if written.ndim == 4 else written.unflatten(-1, (self.value_dim, -1))

    def written_data(self, site: int, written: Tensor) -> Tensor:
        """What the block before `site` has put out, as data vectors to be stored there."""
        return self.data(written)

    def hand_over(self, site: int, data: Tensor) -> dict[str, Tensor]:
        """Retrieved vectors as the reader wants them: heads q, k, v, or all side by side (inverse of `data`)."""
        if self.readers[site] == "attention":
            q, k, v = data.transpose(2, 3).split(self.attention_heads, dim=2)  # [B, T, R or R_kv, V] each
            return {"q": q, "k": k, "v": v}
        return {"x": data.flatten(2)}

    def write_embedding(self, state: None, token: Tensor, position: Tensor | None) -> Any:
        """X_0 = sum_h w_E^(h) (x) W_E^(h) s + sum_h w_P^(h) (x) W_P^(h) p (eqs. 14, 18, 19)."""
        X = self.store(self.write_0, self.data(token))
        return X if position is None else X + self.store(self.write_position, self.data(position))

    def write(self, site: int, state: Any, written: Tensor) -> Any:
        """X <- X + sum_h w_O^(h) (x) head_h (eqs. 15, 20); likewise an MLP's output in R parts (eqs. 16, 23)."""
        return state + self.store(getattr(self, f"write_{site}"), self.written_data(site, written))

    def read(self, site: int, state: Any) -> dict[str, Tensor]:
        """Heads q, k, v for attention (eq. 22); R data vectors side by side for MLP and head (eqs. 25, 27)."""
        return self.hand_over(site, self.retrieve(getattr(self, f"read_{site}"), self.norms[site](state)))

    def undo(self, site: int, state: Any, written: Tensor, kept: tuple[Tensor, ...]) -> Any:
        """X - sum_h w^(h) (x) y^(h)."""
        return state - self.store(getattr(self, f"write_{site}"), self.written_data(site, written))

    def retrieval_keys(self, site: int) -> Tensor:
        """R of all data vectors read at `site` [Q, K]."""
        return getattr(self, f"read_{site}")

    def as_kernel(self, site: int, written: Tensor | None) -> KernelCall:
        """The write, norm and read above; vectors are handed over in the precision that the reader casts them to."""
        norm, keys = self.norms[site], self.retrieval_keys(site)
        bare = not isinstance(norm, Norm)
        dtype = autocast_dtype(keys.device) if self.casts[site] else None
        write_keys = None if written is None else getattr(self, f"write_{site}")
        return KernelCall(
            site=Site(write_keys, keys, None, "none", 0.0)
            if bare
            else Site(write_keys, keys, norm.factor(), norm.kind, norm.eps),
            data=None if written is None else self.written_data(site, written),
            by_heads=self.readers[site] == "attention" and self.bare_attention,
            dtype=torch.promote_types(keys.dtype, torch.float32) if dtype is None else dtype,
            hand_over=lambda data: self.hand_over(site, data),
        )


def begins_with_product(config: ModelConfig) -> bool:
    """Whether an attention block without projections does nothing with its heads before q k^T."""
    between = config.positions == "rotary", config.qk_norm.over != "none", config.attention_bias != "none"
    return not (config.upcast_attention or config.value_residual != "none" or any(between))


def check_joint_norms(config: ModelConfig) -> None:
    """Refuse forms of norms that a joint norm in front of keys does not have.

    Raises:
        UserError: names the setting.
    """
    early = config.norm_cast == "before_gain"
    for name, given in (("norm_bias: true", config.norm_bias), ("norm_cast: before_gain", early)):
        if given:
            raise UserError(
                f"A {config.stream.kind} stream has no place for model.{name}: its keys compute in float32, "
                "between the norm and the blocks; leave it out."
            )


class MatrixStream(MatrixBase[MatrixConfig]):
    """X [B, T, V, K]."""

    Config = MatrixConfig
    examples = (
        {"key_dim": 32},
        {"key_dim": 6, "norm_gain": "row"},
        {"key_dim": 6, "norm_gain": "none", "depth_scale_site": "W2"},
    )
