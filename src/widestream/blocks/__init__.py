"""What a decoder is built of beside its stream. Nothing here knows which stream it is, or that there is one.

attention.py        the two forms of attention block: dense (`x` in) and bare (heads in)
qk_norm.py          norms of queries and keys; alibi.py, rotary.py: positions inside attention
mlp.py              the MLP; activation.py: its non-linearities; experts.py, routing.py: a mixture of experts
norm.py, embedding.py, convolution.py
context.py          what one forward pass shares: positions, documents, masks, the cache
cache.py            keys and values of earlier tokens
attention_kind.py   what computes attention on a device; flex.py: FlexAttention
roles.py            parameters declared by their axes: initial values, muP, decay
"""

from widestream.blocks.attention import BareAttention, DenseAttention
from widestream.blocks.cache import KVCache
from widestream.blocks.context import Context, make_context
from widestream.blocks.mlp import MLP
from widestream.blocks.norm import Norm
from widestream.blocks.roles import Axis, Declared, Role, Roles

__all__ = [
    "MLP",
    "Axis",
    "BareAttention",
    "Context",
    "Declared",
    "DenseAttention",
    "KVCache",
    "Norm",
    "Role",
    "Roles",
    "make_context",
]
