"""Configuration of a model: sizes, norm, positions, initialisation, muP. The stream brings its own (streams/)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from widestream.errors import UserError
from widestream.recipe.blocks import MoEConfig, QKNormConfig, RotaryScalingConfig
from widestream.recipe.stream import StreamConfig

SIZES = (
    *("vocab_size", "context", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "width", "short_swa"),
    *("attention_window", "full_attention_every", "rotary_skip_every"),
)

Activation = Literal["gelu_tanh", "gelu", "squared_relu", "swiglu", "geglu", "geglu_tanh"]
"""Non-linearities of the MLP."""

BlockKind = Literal["attention", "mlp", "branch"]
"""What stands between two exchanges. branch: anything that takes one vector and puts out one (`host.residual`)."""

GATED = ("swiglu", "geglu", "geglu_tanh")
"""Activations with a gate: W_2 (act(W_g x) * W_u x), three matrices."""

LARGEST, MOST_LAYERS, MOST_TAPS = 2**31 - 1, 4096, 64
"""Largest size of an axis, most layers, and most taps of a convolution: beyond, a mistype is likelier than a model."""


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
    num_kv_heads: int | None = None
    """[H_kv] Heads of keys and values, each for H / H_kv heads of queries (grouped-query attention, arXiv 2305.13245);
    in a matrix stream as many vectors are read for k and v. Default: num_heads."""
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
    norm_place: Literal["before", "after", "both"] = "before"
    """Where blocks have norms: in front of what they read (GPT-2, Llama), behind what they put out, before it is
    written (OLMo 2, OLMo 3), or both (sandwich norms: Gemma 2 and 3). The head's norm is always there."""
    norm_offset: bool = False
    """Gains are 1 + w with w from zero (Gemma), instead of w from one."""
    norm_bias: bool = False
    """layernorm: add a bias behind the gain (GPT-2)."""
    norm_cast: Literal["after_gain", "before_gain"] = "after_gain"
    """Under autocast: whether the gain acts on float32 numbers, rounded afterwards (OLMo, Gemma), or on rounded ones
    (Llama, Qwen, Mixtral). In float32 there is no difference."""
    positions: Literal["learned", "alibi", "rotary", "none"] = "learned"
    """Position information. learned: a table added to (RMT: stored beside) the embedding."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    rotary_window_base: float | None = None
    """The same in layers with a window (Gemma 3); default: rotary_base."""
    rotary_fraction: float = 1.0
    """Share of every head, from its first number on, that is rotated (GPT-NeoX 0.25, GLM 4 0.5)."""
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    """Which numbers are rotated together: i and i + half, or 2 i and 2 i + 1 (GLM 4, the paper on rotary positions)."""
    rotary_skip_every: int | None = None
    """Every n-th layer, the n-th first, has no rotation (SmolLM3, Llama 4: 4)."""
    rotary_scaling: RotaryScalingConfig = field(default_factory=RotaryScalingConfig)
    """Frequencies for longer text than was trained on."""
    qk_norm: QKNormConfig = field(default_factory=QKNormConfig)
    """Norm of queries and keys."""
    attention_bias: Literal["none", "qkv", "all"] = "none"
    """Biases of queries, keys and values (Qwen 2), or these and one on what attention puts out (GPT-2)."""
    attention_convolution: Literal["none", "kv", "qkv"] = "none"
    """A short causal convolution over tokens of keys and values, or of queries too, number by number, in front of norms
    and positions (Primer, arXiv 2109.08668: qkv, 3 taps). It starts as the identity."""
    attention_convolution_taps: int = 3
    """[J] Tokens that it sees, the token itself counted."""
    attention_soft_cap: float | None = None
    """[c] Attention logits become c tanh(logit / c), in front of the mask (Gemma 2: 50)."""
    attention_window: int | None = None
    """[w] Attention sees the last w tokens, the token itself counted; None: all."""
    full_attention_every: int | None = None
    """Every n-th layer, the n-th first, sees all tokens in spite of attention_window (Gemma 2: 2, OLMo 3: 4, Gemma 3:
    6); None: no layer does."""
    document_mask: bool = True
    """Attention stays inside a document."""
    activation: Activation = "gelu_tanh"
    """Non-linearity of the MLP; gelu_tanh is the tanh approximation (the published code). swiglu, geglu, geglu_tanh:
    W_2 (act(W_g x) * W_u x) with a gate (Shazeer, arXiv 2002.05202), three matrices of mlp_dim neurons."""
    mlp_bias: bool = False
    """Biases of the MLP's matrices."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    """A mixture of experts in place of the MLP."""
    upcast_attention: bool = True
    """Queries, keys and softmax in float32 under autocast."""
    inverse_layer_scaling: bool = True
    """Divide the attention logits of layer l = 0, 1, ... by l + 1."""
    short_swa: int | None = None
    """[w] Attention over the last w tokens as a block of its own at the entry of every layer; None: no such block."""
    value_residual: Literal["none", "fixed", "learned", "shared", "gated"] = "none"
    """What attention makes of V_1, the values of the first attention block (arXiv 2410.17897). fixed: (V_1 + V) / 2;
    learned: lambda_1 V_1 + lambda_2 V, from (0, 1) on; shared: V_1 in place of V, and no later W_V; gated:
    V + relu(W x) V_1, a gate of every token and head by the vector x that attention receives (arXiv 2605.03953)."""
    token_before: Literal["none", "dense", "smear"] = "none"
    """What the embedding gets of the token before, of the same document. dense: W_p e_(t-1), W_p [D, D] from zero.
    smear: lambda sigmoid(w . e_t) e_(t-1), a gate of the token's own (modded-nanogpt, nanochat), lambda from zero."""
    tied_head: bool = False
    """Use the embedding as the unembedding."""
    head_bias: bool = False
    """A bias [D] on what the head reads: that of a last LayerNorm whose stream has norms without one."""
    logit_soft_cap: float | None = None
    """[c] Logits become c tanh(logit / c) (Gemma 2: 30; nanochat: 15)."""
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
        check_attention(self)
        check_norms(self)
        check_experts(self)
        if self.init.scheme != "mup" and self.mup_bases:
            names = ", ".join(f"mup.{name}" for name in self.mup_bases)
            raise UserError(f"{names} act only under init.scheme: mup; this model has init.scheme: {self.init.scheme}.")
        if self.tied_head and self.init.output_zero:
            raise UserError(
                "model.init.output_zero would zero the embedding too under model.tied_head; set one of them to false."
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values [H_kv]."""
        return self.num_kv_heads or self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are rotated."""
        return round(self.head_dim * self.rotary_fraction)

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.activation in GATED

    def window_of(self, layer: int) -> int | None:
        """How many tokens back a layer's attention sees, the token itself counted; None: all."""
        every = self.full_attention_every
        return None if every and (layer + 1) % every == 0 else self.attention_window

    def rotates(self, layer: int) -> bool:
        """Whether a layer's attention has rotary positions."""
        every = self.rotary_skip_every
        return self.positions == "rotary" and not (every and (layer + 1) % every == 0)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.moe.num_experts > 0 and (layer + 1) % self.moe.every == 0

    @property
    def mup_bases(self) -> dict[str, int]:
        """The base sizes that were given."""
        names = [name for name in self.mup.__dataclass_fields__ if name.startswith("base_")]
        return {name: size for name in names if (size := getattr(self.mup, name)) is not None}

    @property
    def layer_blocks(self) -> tuple[tuple[BlockKind, ...], ...]:
        """The blocks of every layer, by kind: attention (or two, see `blocks_per_layer`) and MLP."""
        layer: tuple[BlockKind, ...] = ("attention", "mlp")
        if self.short_swa is not None:
            layer = ("attention", "attention", "mlp")
        return (layer,) * self.num_layers

    @property
    def num_blocks(self) -> int:
        """Blocks in all, which is also the number of writes behind the embedding's."""
        return sum(map(len, self.layer_blocks))

    @property
    def blocks_per_layer(self) -> int:
        """Attention and MLP, and before them the attention over the last `short_swa` tokens, if there is one."""
        return 2 if self.short_swa is None else 3

    @property
    def num_attentions(self) -> int:
        """Blocks that are attention."""
        return sum(layer.count("attention") for layer in self.layer_blocks)

    @property
    def norm_places(self) -> tuple[bool, bool]:
        """Whether the stream has norms in front of what blocks read, and of what the head reads."""
        return self.norm_place != "after", True

    @property
    def embed_dim(self) -> int:
        """Width of what blocks and head receive [D; RMT: R * D_v]."""
        return self.width or self.num_heads * self.head_dim


def check_attention(config: ModelConfig) -> None:
    """Refuse settings of attention that do not fit together.

    Raises:
        UserError: names the setting.
    """
    if config.num_heads % config.kv_heads:
        raise UserError(
            f"model.num_kv_heads is {config.num_kv_heads}; model.num_heads, {config.num_heads}, must be a multiple of "
            "it."
        )
    for name in ("attention_soft_cap", "logit_soft_cap", "rotary_base", "rotary_window_base"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"model.{name} is {value}; it must be above 0.")
    if not 2 <= config.attention_convolution_taps <= MOST_TAPS:
        raise UserError(
            f"model.attention_convolution_taps is {config.attention_convolution_taps}; it must be 2 to {MOST_TAPS}."
        )
    if config.full_attention_every is not None and config.attention_window is None:
        raise UserError("model.full_attention_every does nothing without model.attention_window.")
    if config.positions == "rotary":
        _check_rotary(config)
        return
    ours = config.rotary_window_base, config.rotary_skip_every
    if any(ours) or config.rotary_fraction != 1 or config.rotary_scaling.kind != "none":
        raise UserError(
            "model.rotary_window_base, rotary_skip_every, rotary_fraction and rotary_scaling act only under positions: "
            f"rotary; this model has positions: {config.positions}."
        )


def _check_rotary(config: ModelConfig) -> None:
    if config.rotary_fraction == 1 and config.head_dim % 2:
        raise UserError(f"Rotary positions need an even model.head_dim; it is {config.head_dim}.")
    if not 0 < config.rotary_fraction <= 1 or config.rotary_dim % 2 or not config.rotary_dim:
        raise UserError(
            f"model.rotary_fraction is {config.rotary_fraction}; of a head of {config.head_dim} it must leave an even "
            f"number to rotate, from 2 to {config.head_dim}."
        )
    if config.rotary_window_base is not None and config.attention_window is None:
        raise UserError("model.rotary_window_base does nothing without model.attention_window.")


def check_norms(config: ModelConfig) -> None:
    """Refuse settings of norms that do not fit together.

    Raises:
        UserError: names the setting.
    """
    if config.norm_bias and config.norm != "layernorm":
        raise UserError(f"model.norm_bias is for norm: layernorm; this model has norm: {config.norm}.")
    if not config.norm_eps > 0:
        raise UserError(f"model.norm_eps is {config.norm_eps}; it must be above 0.")


def check_experts(config: ModelConfig) -> None:
    """Refuse settings of experts that do not fit the model's.

    Raises:
        UserError: names the setting.
    """
    if config.moe.num_experts and config.moe.every > config.num_layers:
        raise UserError(
            f"model.moe.every is {config.moe.every}, and of model.num_layers, {config.num_layers}, none has experts; "
            "it may be at most that."
        )
    if config.moe.expert_dim is not None and config.mup.base_mlp_dim is not None:
        raise UserError(
            "model.mup.base_mlp_dim is the base of model.mlp_dim, and experts of a width of their own have none; leave "
            "out model.moe.expert_dim, and set model.mlp_dim."
        )
