"""Multi-way connections: separate sums of the history as a layer's queries, keys, values and residual.

Each of these sums is a way (MUDDFormer's word). A layer has four of them or, where one serves for all, a single one;
the head reads one.

Letters: B batch, T tokens, D width, C ways.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from widestream.blocks.norm import read_norms
from widestream.blocks.roles import Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Settings
from widestream.streams.depth_sums import layer_ends, layer_starts
from widestream.streams.vector.plain import VectorBase


class State(NamedTuple):
    """The history, and what the layer at hand makes of it."""

    past: tuple[Tensor, ...]
    """Sources [B, T, D], oldest first."""
    ways: list[Tensor]
    """In front of attention: one [B, T, D] for all, or those of q, k, v and the residual. Else: the residual alone."""


class MultiwayBase(VectorBase[Settings]):
    """Layers of attention and MLP around a residual that is made anew at the end of every layer.

    In front of attention, queries, keys and values each have a pre-norm of their own if there are several ways; `norms`
    holds that of the queries.

    Args:
        config: the model's.
        roles: for the roles of its parameters.
        separate: whether attention has several ways.
    """

    def __init__(self, config: ModelConfig, roles: Roles, separate: bool):
        super().__init__(config, roles)
        blocks = self.blocks(config)
        self.layer_starts, self.layer_ends = layer_starts(blocks), layer_ends(blocks)
        if separate:
            self.require_attention(self.layer_starts)
            readers = ["attention"] * config.num_layers
            self.key_norms, self.value_norms = (read_norms(config, roles, readers, (self.width,)) for _ in range(2))

    def require_attention(self, sites: Iterable[int]) -> None:
        """Make sure that attention reads where there are vectors for q, k and v.

        Raises:
            UserError: something else does, in a model that is not ours.
        """
        if any(self.readers[site] != "attention" for site in sites):
            raise UserError(
                f"A {self.settings.kind} stream has vectors of their own for q, k and v of the attention that a layer "
                "begins with; name the sites, as in sites=['attention', 'mlp', ...], or choose another kind."
            )

    def from_plain(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Attention's norm, for queries, keys and values each."""
        own = dict(self.named_parameters())
        sites = [site for site, reader in enumerate(self.readers) if reader == "attention"]
        copies = {
            f"{norms}.{layer}.{part}": plain[f"norms.{site}.{part}"]
            for layer, site in enumerate(sites)
            for norms in ("key_norms", "value_norms")
            for part in ("gain", "bias")
            if f"{norms}.{layer}.{part}" in own
        }
        return {**plain, **copies}

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise the ways of q, k and v, or the residual."""
        if len(state.ways) > 1:
            layer, (q, k, v, _) = self.layer_starts[site], state.ways
            return {"q": self.norms[site](q), "k": self.key_norms[layer](k), "v": self.value_norms[layer](v)}
        return {"x": self.norms[site](state.ways[-1])}
