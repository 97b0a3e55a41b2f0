"""RMSNorm of queries and keys (Henry et al., arXiv 2010.04245; Dehghani et al., arXiv 2302.05442).

Letters: B batch, T tokens, H heads of queries, H_kv of keys, K head width.
"""

import torch
from torch import Tensor, nn

from widestream.blocks.norm import Norm
from widestream.blocks.roles import Roles
from widestream.blocks.rotary import Angles, rotate
from widestream.recipe.model import ModelConfig


class QKNorm(nn.Module):
    """Normalises queries and keys, each over its head, or over all of its heads jointly.

    Args:
        config: the model's; `qk_norm` says how.
        roles: for the gains' roles.
    """

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__()
        self.full = config.qk_norm.over == "full"
        self.queries, self.keys = (_norm(config, roles, heads) for heads in (config.num_heads, config.kv_heads))

    def forward(
        self, q: Tensor, k: Tensor, angles: Angles | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of q [B, T, H, K] and k [B, T, H_kv, K]; the same shapes.

        Args:
            q: queries.
            k: keys.
            angles: to turn both by, once they are normalised.
            dtype: of what is turned; default: the norm's.
        """
        if self.full:
            q, k = self.queries(q.flatten(2)).view_as(q), self.keys(k.flatten(2)).view_as(k)
            return (q, k) if angles is None else (rotate(q, angles, dtype=dtype), rotate(k, angles, dtype=dtype))
        if angles is None:
            return self.queries(q), self.keys(k)
        return rotate(q, angles, self.queries, dtype), rotate(k, angles, self.keys, dtype)


def _norm(config: ModelConfig, roles: Roles, heads: int) -> Norm:
    width, gain = config.head_dim, config.qk_norm.gain
    if config.qk_norm.over == "full":
        return Norm(config, roles, (heads * width,), has_gain=gain != "none", kind="rmsnorm")
    gain_shape = (heads, width) if gain == "head" else (width,)
    return Norm(config, roles, (width,), gain_shape, has_gain=gain != "none", kind="rmsnorm")
