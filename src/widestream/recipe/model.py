"""Configuration of a model: sizes, norm, positions, initialisation, muP. The stream brings its own (streams/)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from widestream.errors import UserError
from widestream.recipe.stream import StreamConfig

SIZES = ("vocab_size", "context", "num_layers", "num_heads", "head_dim", "mlp_dim", "width", "short_swa")

LARGEST, MOST_LAYERS = 2**31 - 1, 4096
"""Largest size of an axis, and most layers: beyond, a mistype is likelier than a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Initial standard deviation of every weight, from the axes it was declared with."""

    scheme: Literal["mup", "lecun", "xavier", "normal"] = "lecun"
    """mup: std/sqrt(fan_in), output std. lecun: 1/sqrt(fan_in). xavier: sqrt(2/(fan_in+fan_out)). normal: std."""
    std: float = 1.0
    """s of the mup scheme; the standard deviation itself under normal; unused by lecun and xavier."""
    embedding_fan_in: Literal["one", "vocab"] = "one"
    """Fan-in of a look-up table: `one` (a look-up adds one row; the published code) or the size of the vocabulary."""
    query_zero: bool = False
    """Start the query projection (RMT: the query read keys) at zero."""
    output_zero: bool = False
    """Start the unembedding at zero."""
    depth_scale: bool = True
    """Scale the output maps of every block by 1/sqrt(number of blocks), 2 L of them (GPT-2); on which weights, the
    stream says."""

    def __post_init__(self):
        if not self.std > 0:
            raise UserError(f"model.init.std is {self.std}; it must be above 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class MupConfig:
    """muP (paper C.2.1): multipliers, and the sizes at which they were tuned. A base left out: the model's own."""

    input_multiplier: float = 1.0
    """alpha_in, on the embedding."""
    attention_multiplier: float = 1.0
    """alpha_attn, on the attention logits."""
    output_multiplier: float = 1.0
    """alpha_out, on the logits."""
    base_width: int | None = None
    """Base of the width D of a vector stream."""
    base_num_heads: int | None = None
    """Base of the number of heads (RMT: rank R)."""
    base_head_dim: int | None = None
    """Base of the head width (RMT: value_dim D_v)."""
    base_mlp_dim: int | None = None
    """Base of the number of MLP neurons F."""
    base_key_dim: int | None = None
    """Base of the stream's key axis D_k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only language model. Symbols of the RMT paper (arXiv 2506.22696) in brackets."""

    vocab_size: int
    """[V] Rows of the embedding and unembedding."""
    context: int = 512
    """[N] Longest sequence."""
    num_layers: int
    """[L] One layer is attention and MLP."""
    num_heads: int
    """[H; RMT: R] Attention heads, which is also RMT's rank."""
    head_dim: int
    """[D_h; RMT: D_v] Width of a head, which is also RMT's value axis."""
    mlp_dim: int
    """[F] Neurons of an MLP."""
    width: int | None = None
    """[D] Width of a vector stream; default num_heads * head_dim. Streams with heads of their own do not take it."""
    stream: StreamConfig
    """The residual stream: `kind` and that kind's own fields."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Norm in front of every read."""
    norm_eps: float = 1e-6
    """Added to the variance (mean square) inside the norm."""
    positions: Literal["learned", "alibi", "rotary", "none"] = "learned"
    """Position information. learned: a table added to (RMT: stored beside) the embedding."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    document_mask: bool = True
    """Attention stays inside a document."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """Non-linearity of the MLP; gelu_tanh is the tanh approximation (the published code)."""
    upcast_attention: bool = True
    """Queries, keys and softmax in float32 under autocast."""
    inverse_layer_scaling: bool = True
    """Divide the attention logits of layer l = 0, 1, ... by l + 1."""
    short_swa: int | None = None
    """[w] Attention over the last w tokens as a block of its own at the entry of every layer; None: no such block."""
    value_residual: Literal["none", "fixed", "learned", "shared"] = "none"
    """What attention makes of V_1, the values of the first attention block (arXiv 2410.17897). fixed: (V_1 + V) / 2;
    learned: lambda_1 V_1 + lambda_2 V, from (0, 1) on; shared: V_1 in place of V, and no later W_V."""
    tied_head: bool = False
    """Use the embedding as the unembedding."""
    init: InitConfig = field(default_factory=InitConfig)
    """Initialisation."""
    mup: MupConfig = field(default_factory=MupConfig)
    """muP multipliers and base sizes."""

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        for name, size in (sizes | {f"mup.{name}": size for name, size in self.mup_bases.items()}).items():
            most = MOST_LAYERS if name == "num_layers" else LARGEST
            if not 1 <= size <= most:
                limit = "at least 1" if size < 1 else f"at most {most:,}"
                raise UserError(f"model.{name} is {size}; it must be {limit}.")
        for name, size in dataclasses.asdict(self.stream).items():
            if isinstance(size, int) and size > LARGEST:
                raise UserError(f"model.stream.{name} is {size}; it must be at most {LARGEST:,}.")
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"Rotary positions need an even model.head_dim; it is {self.head_dim}.")
        if self.init.scheme != "mup" and self.mup_bases:
            names = ", ".join(f"mup.{name}" for name in self.mup_bases)
            raise UserError(f"{names} act only under init.scheme: mup; this model has init.scheme: {self.init.scheme}.")
        if self.tied_head and self.init.output_zero:
            raise UserError(
                "model.init.output_zero would zero the embedding too under model.tied_head; set one of them to false."
            )

    @property
    def mup_bases(self) -> dict[str, int]:
        """The base sizes that were given."""
        names = [name for name in self.mup.__dataclass_fields__ if name.startswith("base_")]
        return {name: size for name in names if (size := getattr(self.mup, name)) is not None}

    @property
    def num_blocks(self) -> int:
        """Blocks in all, which is also the number of writes behind the embedding's."""
        return self.blocks_per_layer * self.num_layers

    @property
    def blocks_per_layer(self) -> int:
        """Attention and MLP, and before them the attention over the last `short_swa` tokens, if there is one."""
        return 2 if self.short_swa is None else 3

    @property
    def embed_dim(self) -> int:
        """Width of what blocks and head receive [D; RMT: R * D_v]."""
        return self.width or self.num_heads * self.head_dim
