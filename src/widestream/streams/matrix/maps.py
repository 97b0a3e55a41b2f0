"""RMT whose heads are mixed within D_v again, on today's blocks (ours; not published).

    q_h = sum_i M_hi (r_hi . X)               i = 1..j reads a head, each through a map M_hi in R^{D_v x D_v}, as k, v
    X <- X + sum_hi w_hi (x) (N_hi head_h)    attention's heads are stored j times, each through a map N_hi
    X_0 = sum_h w_E^(h) (x) e_t + sum_h w_P^(h) (x) e_(t-1)      `previous`: the token before, under keys of its own

and, with `norms: reads`, no norm of the state but RMSNorm with gain behind the reads: of v (all heads jointly), of the
MLP's input and of the head's.

What it changes: RMT's heads share one D_v space; W_Q, W_K, W_V, W_O, which mix it, are gone with attention's matrices.
Maps bring that mixing back at a fraction of the parameters. What it costs: per layer j (2 R + 2 R_kv) D_v^2 parameters
and 2 j (2 R + 2 R_kv) D_v^2 FLOPs per token, and j times RMT's keys in front of and behind attention; `previous`
another R D_k keys and 2 R D_k D_v FLOPs, and one token vector in the cache; j vectors a head are saved in front of the
maps, and as many behind them.

RMT exactly: maps: 0, previous: false, norms: state. With maps it starts like RMT with j keys a head: M = I / sqrt(j),
N = I. It does not start as the plain transformer.

Evidence: ours, small (lab/2026-11-27-modern-blocks.md). Letters: as in rmt.py; j maps, R_kv vectors for k and v.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from widestream.blocks.context import Context
from widestream.blocks.convolution import token_before
from widestream.blocks.norm import Norm, norm_size
from widestream.blocks.roles import Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixMapsConfig(MatrixFields):
    """RMT with maps within D_v."""

    kind: Literal["matrix_maps"] = "matrix_maps"
    """This stream."""
    maps: int = 3
    """[j] Reads, and stored vectors, a head, each through a map of its own; 0: RMT's one read without a map."""
    previous: bool = True
    """Store the vector of the token before beside the token's own, under keys of its own."""
    norms: Literal["reads", "state"] = "reads"
    """Where norms are: behind the reads of v, MLP and head, or in front of all reads (RMT)."""

    def __post_init__(self):
        MatrixFields.__post_init__(self)  # super() does not work in dataclasses with slots
        if self.maps < 0:
            raise UserError(f"model.stream.maps is {self.maps}; it must be at least 0.")
        if self.norms == "reads" and self.norm_gain != "full":
            raise UserError(
                f"model.stream.norm_gain is {self.norm_gain}, and with norms: reads the state has no norm; "
                "leave it out."
            )


class MatrixMapsStream(MatrixBase[MatrixMapsConfig]):
    """X [B, T, V, K]."""

    Config = MatrixMapsConfig
    examples = (
        {"key_dim": 16},
        {"key_dim": 6, "maps": 2, "previous": False, "norms": "state"},
        {"key_dim": 8, "maps": 0},
    )

    write_previous: Tensor
    """Storage keys of the token before [K, R]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        if settings.previous:
            self.declare_storage("write_previous", (roles.heads,), roles)
        for site, reader in enumerate(self.readers):
            if reader == "attention" and settings.maps:
                self._declare_maps(site, roles)
        if settings.norms == "reads":
            self.norms = nn.ModuleList(nn.Identity() for _ in self.readers)
            shapes = {"attention": config.kv_heads * config.head_dim, "mlp": config.embed_dim, "head": config.embed_dim}
            self.read_norms = nn.ModuleList(Norm(config, roles, (shapes[reader],)) for reader in self.readers)
        self._choose_casts()

    def _declare_maps(self, site: int, roles: Roles) -> None:
        """M of q, k and v [R + 2 R_kv, j, V, V], and N [R, j, V, V]. What starts at the identity is not decayed."""
        square = roles.hidden((roles.head_dim,), (roles.head_dim,), "stream", decay="key")
        role = replace(square, std=0.0, decay="none")
        for name, heads in ((f"map_read_{site}", sum(self.attention_heads)), (f"map_write_{site + 1}", self.rank)):
            self.declare(name, (heads, self.settings.maps, self.value_dim, self.value_dim), role)

    def _choose_casts(self) -> None:
        """A map begins with a product in low precision, a norm in float32."""
        normed = self.settings.norms == "reads"
        for site, reader in enumerate(self.readers):
            if reader == "attention" and self.settings.maps:
                self.casts[site] = True
            elif normed:
                self.casts[site] = False

    def initial_values(self) -> dict[str, Tensor]:
        """M = I / sqrt(j), N = I."""
        scale = {"map_read": max(1, self.settings.maps) ** -0.5, "map_write": 1.0}
        return {
            name: scale[name.rpartition("_")[0]] * torch.eye(self.value_dim).expand(self.get_parameter(name).shape)
            for name in self.own_roles
            if name.startswith("map_")
        }

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """Attention and MLP, which read in ways of their own.

        Raises:
            UserError: in a model that is not ours, branches without names, or norms that leave those of reads no place.
        """
        if any("branch" in layer for layer in config.layer_blocks):
            raise UserError(
                "A matrix_maps stream treats attention and MLP differently; name the sites, as in sites=['attention', "
                "'mlp', ...]."
            )
        if cls.settings_of(config).norms == "reads" and not config.norm_places[1]:
            raise UserError(
                "A matrix_maps stream has norms behind its reads, which branches with norms of their own leave no "
                "place for; use norms='state'."
            )
        return super().blocks(config)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(super().spec(config), papers=("2506.22696",))

    @classmethod
    def attention_parts(cls, config: ModelConfig) -> tuple[int, ...]:
        """J times RMT's."""
        return tuple(max(1, cls.settings_of(config).maps) * part for part in super().attention_parts(config))

    @classmethod
    def attention_stored(cls, config: ModelConfig) -> int:
        """J R."""
        return max(1, cls.settings_of(config).maps) * config.num_heads

    @classmethod
    def vectors_stored(cls, config: ModelConfig) -> int:
        """RMT's, and the token before."""
        return super().vectors_stored(config) + (config.num_heads if cls.settings_of(config).previous else 0)

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """Keys of all vectors that are read and stored, j (2 R + 2 R_kv) D_v^2 for maps a layer, gains of norms."""
        settings, attentions = cls.settings_of(config), config.num_attentions
        maps = attentions * settings.maps * 2 * (config.num_heads + config.kv_heads) * config.head_dim**2
        if settings.norms == "state":
            return super().parameter_formula(config) + maps
        keys = settings.key_dim * (cls.vectors_read(config) + cls.vectors_stored(config))
        gains = attentions * config.kv_heads * config.head_dim + (config.num_blocks - attentions + 1) * config.embed_dim
        return keys + maps + norm_size(config, gains)

    def cost(self) -> StreamCost:
        """RMT's with more vectors; two FLOPs per entry of a map. Maps keep what goes into them, and so do norms."""
        cost = super().cost()
        maps = sum(self.get_parameter(name).numel() for name in self.own_roles if name.startswith("map_"))
        inside, vector = 4 * self._kept_inside(), 4 * self.value_dim * self.rank
        stored = vector if self.settings.previous else 0
        state = 4 * self.key_dim * self.value_dim * len(self.readers)
        # Without a norm of the state what is read from is the state itself.
        saved = cost.bytes_saved - (state if self.settings.norms == "reads" else 0)
        assert cost.bytes_saved_fused is not None
        assert cost.bytes_saved_writes is not None
        return replace(
            cost,
            flops=cost.flops + 2 * maps,
            bytes_saved=saved + inside + stored,
            bytes_saved_fused=cost.bytes_saved_fused + inside + stored,
            bytes_saved_writes=cost.bytes_saved_writes + inside + stored,
        )

    def _kept_inside(self) -> int:
        """Numbers of a token that maps and norms behind reads keep."""
        kept, width = 0, self.rank * self.value_dim
        normed = {"attention": self.attention_heads[1] * self.value_dim, "mlp": width, "head": width}
        statistics = 2 if self.config.norm == "layernorm" else 1
        for site, reader in enumerate(self.readers):
            if reader == "attention" and self.settings.maps:
                kept += getattr(self, f"read_{site}").shape[0] * self.value_dim + width
            if self.settings.norms == "reads":
                kept += normed[reader] + statistics
        return kept

    def empty(self, context: Context) -> Context:
        """What the first write asks for the token before."""
        return context

    def write_embedding(self, state: Context | None, token: Tensor, position: Tensor | None) -> Any:
        """X_0, with the token before beside the token."""
        X = super().write_embedding(None, token, position)
        if not self.settings.previous:
            return X
        assert state is not None
        before = token_before(token, state, "previous")
        return X + self.store(self.write_previous, self.data(before))

    def written_data(self, site: int, written: Tensor) -> Tensor:
        """Heads through their maps [B, T, V, j R], or R vectors."""
        if self.readers[site - 1] != "attention" or not self.settings.maps:
            return super().written_data(site, written)
        mapped = torch.einsum("bthi,hjoi->bthjo", written, getattr(self, f"map_write_{site}"))
        return mapped.flatten(2, 3).transpose(2, 3)

    def hand_over(self, site: int, data: Tensor) -> dict[str, Tensor]:
        """Heads through their maps, or R vectors side by side; normalised with `norms: reads`."""
        if self.readers[site] != "attention":
            x = super().hand_over(site, data)["x"]
            return {"x": self.read_norms[site](x) if self.settings.norms == "reads" else x}
        q, k, v = self._heads(site, data)
        if self.settings.norms == "reads":
            v = self.read_norms[site](v.flatten(2).clone()).view_as(v)  # else all of q and k would be kept for it
        return {"q": q, "k": k, "v": v}

    def _heads(self, site: int, data: Tensor) -> Sequence[Tensor]:
        """Q [B, T, R, V] and k, v [B, T, R_kv, V] of the vectors read [B, T, V, Q]."""
        if not self.settings.maps:
            return data.transpose(2, 3).split(self.attention_heads, dim=2)
        read = data.transpose(2, 3).unflatten(2, (-1, self.settings.maps))  # [B, T, heads, j, V]
        heads = torch.einsum("bthji,hjoi->btho", read, getattr(self, f"map_read_{site}"))
        return heads.split(self.attention_heads, dim=2)
