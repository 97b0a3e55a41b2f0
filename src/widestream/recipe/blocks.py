"""Settings of blocks that come in groups: the norm of queries and keys, rotary scaling, a mixture of experts."""

from dataclasses import dataclass
from typing import Literal

from widestream.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class QKNormConfig:
    """RMSNorm of queries and keys, under the model's `norm_eps` and form of gain (`norm_offset`)."""

    over: Literal["none", "head", "full"] = "none"
    """none. head: over each head (Qwen 3, Gemma 3). full: over all heads jointly (OLMo 2)."""
    gain: Literal["none", "shared", "head"] = "shared"
    """over: head. none. shared: one gain [D_h] for all heads. head: one for every head [H, D_h]. With over: full there
    is one gain for all numbers [H D_h], or none."""
    place: Literal["before", "after"] = "before"
    """Before the rotary rotation (Qwen 3, OLMo 2, Gemma 3), or after it (nanochat, Llama 4)."""

    def __post_init__(self):
        if self.place == "after" and self.gain != "none":
            raise UserError(
                f"model.qk_norm.gain is {self.gain}, and behind the rotation it would act on turned numbers, "
                "differently at every position; use gain: none or place: before."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RotaryScalingConfig:
    """How rotary frequencies are changed so that a model sees further than it was trained (`original_context`)."""

    kind: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    """linear: all frequencies through `factor`. ntk: a larger base, the same for all lengths. yarn: low frequencies
    through `factor`, high ones unchanged, a ramp between (Peng et al., arXiv 2309.00071). llama3: the same with a ramp
    in wavelengths (Llama 3.1)."""
    factor: float | None = None
    """How much further."""
    original_context: int | None = None
    """yarn, llama3: the length that the frequencies were trained at."""
    low_frequency: float | None = None
    """llama3: wavelengths above original_context / low_frequency are scaled in full; usually 1."""
    high_frequency: float | None = None
    """llama3: wavelengths below original_context / high_frequency are not scaled; usually 4."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn oftener than this within original_context are not scaled."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are scaled in full."""
    truncate: bool = True
    """yarn: let the ramp begin and end at whole pairs."""
    attention_factor: float | None = None
    """yarn: factor on cosines and sines; default: 0.1 ln(factor) + 1."""
    layers: Literal["all", "full"] = "all"
    """Scale in all layers, or in those only whose attention sees all tokens (OLMo 3, Gemma 3)."""

    def __post_init__(self):
        own = {
            "none": (),
            "linear": ("factor",),
            "ntk": ("factor",),
            "yarn": ("factor", "original_context"),
            "llama3": ("factor", "original_context", "low_frequency", "high_frequency"),
        }[self.kind]
        optional = {"yarn": ("attention_factor",)}.get(self.kind, ())
        for name in ("factor", "original_context", "low_frequency", "high_frequency", "attention_factor"):
            value = getattr(self, name)
            if name in own and value is None:
                raise UserError(f"model.rotary_scaling.kind: {self.kind} needs model.rotary_scaling.{name}.")
            if value is not None and name not in (*own, *optional):
                raise UserError(f"model.rotary_scaling.{name} does nothing with kind: {self.kind}; leave it out.")
            if value is not None and value <= 0:
                raise UserError(f"model.rotary_scaling.{name} is {value}; it must be above 0.")
        if self.factor is not None and self.factor < 1:
            raise UserError(f"model.rotary_scaling.factor is {self.factor}; it must be at least 1.")
        if self.low_frequency is not None and self.high_frequency is not None:
            _require_order("low_frequency", self.low_frequency, "high_frequency", self.high_frequency)
        if self.kind == "yarn":
            _require_order("beta_slow", self.beta_slow, "beta_fast", self.beta_fast)


def _require_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0 < low < high:
        raise UserError(
            f"model.rotary_scaling.{low_name} is {low} and {high_name} {high}; they must be above 0, the first lower."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """A mixture of experts in place of the MLP: every token goes through `top_k` of `num_experts` MLPs."""

    num_experts: int = 0
    """[E] Experts; 0: the plain MLP."""
    top_k: int | None = None
    """[k] Experts of one token."""
    expert_dim: int | None = None
    """Neurons of one expert; default: the model's mlp_dim. Under muP it does not grow with it."""
    normalise: bool = True
    """Let the weights of a token's experts sum to 1 (Mixtral; released Qwen 3) instead of those of all (OLMoE)."""
    balance: Literal["none", "loss", "bias"] = "loss"
    """How experts are kept equally busy. loss: E sum_e f_e p_e is added to what is minimised (Switch Transformer, arXiv
    2101.03961), f_e being the share of a window's tokens that go through expert e and p_e its mean probability there;
    k when balanced; averaged over windows and layers, so that it does not depend on how a batch is cut (DeepSeek-V3's
    form, arXiv 2412.19437). bias: a number per expert, added to its score for the choice alone, moved against its load
    in the whole batch after every step (arXiv 2408.15664)."""
    balance_weight: float = 0.001
    """loss: its weight; 0.001 in Qwen 3 and Mixtral, 0.01 in OLMoE."""
    bias_rate: float = 0.001
    """bias: how far a step moves it."""
    every: int = 1
    """Every n-th layer has experts, the n-th first; the others have the plain MLP."""

    def __post_init__(self):
        if self.num_experts < 0:
            raise UserError(f"model.moe.num_experts is {self.num_experts}; it must be at least 0.")
        for name in ("top_k", "expert_dim", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.moe.{name} is {value}; it must be at least 1.")
        for name in ("balance_weight", "bias_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"model.moe.{name} is {getattr(self, name)}; it must be at least 0.")
        if not self.num_experts:
            if self.top_k is not None or self.expert_dim is not None:
                raise UserError("model.moe.top_k and expert_dim do nothing without model.moe.num_experts.")
            return
        if self.top_k is None:
            raise UserError("model.moe.top_k is missing: how many of the experts does a token go through?")
        if self.top_k > self.num_experts:
            raise UserError(
                f"model.moe.top_k is {self.top_k}, and there are {self.num_experts} experts; it may be at most that."
            )
        if self.top_k == 1 and self.normalise:
            raise UserError(
                "model.moe.normalise makes the weight of a single expert 1, so that the router learns nothing from it; "
                "with top_k: 1 use normalise: false."
            )
