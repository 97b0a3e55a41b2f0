"""What config.json of a model of transformers is called here, family by family.

Every field that changes what the model computes is honoured or refused. A field that is absent has the default that
transformers gives it (5.24); fields that its class does not read are passed over, as it does. Dropout is left out: it
acts in training only, and models here have none.
"""

from collections.abc import Callable, Mapping
from typing import Any

from widestream.convert.rotary import rotary_settings
from widestream.errors import UserError, shown
from widestream.recipe import build
from widestream.recipe.model import ModelConfig

Values = Mapping[str, Any]
"""config.json, with transformers' defaults for what it does not say."""

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh",
         "gelu_new": "geglu_tanh"}  # fmt: skip
UNGATED = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "squared_relu"}

_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip
_BIASES = {"attention_bias": False}
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_QWEN = _LLAMA | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
_GEMMA = {name: value for name, value in _LLAMA.items() if name != "hidden_act"} | _BIASES | {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "llama": _LLAMA | _BIASES | {"mlp_bias": False},
    "mistral": _MISTRAL,
    "qwen2": _QWEN,
    "qwen3": _QWEN | _BIASES | {"head_dim": 128},
    "olmo2": _LLAMA | _BIASES | {"vocab_size": 50304, "rms_norm_eps": 1e-5},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {
        "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None,
        "attn_logit_softcapping": None, "sliding_window_pattern": 6, "use_bidirectional_attention": False,
    },
    "smollm3": _LLAMA | _BIASES | {
        "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "mlp_bias": False, "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": None, "layer_types": None, "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    "mixtral": _MISTRAL | {
        "rms_norm_eps": 1e-5, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen3_moe": _QWEN | _BIASES | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
        "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
}  # fmt: skip
"""What transformers takes for what config.json does not say, of all that is read here; by `model_type`."""
ALIASES = {
    "gpt2": {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
             "num_hidden_layers": "n_layer"},
    "mixtral": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}  # fmt: skip
"""Other names of fields."""
WORDS = (
    "activation_function", "hidden_act", "hidden_activation", "layer_types", "no_rope_layers", "mlp_only_layers",
)  # fmt: skip
"""Fields that are neither numbers nor truth values."""
NULL = ("head_dim", "sliding_window", "final_logit_softcapping", "attn_logit_softcapping", "num_key_value_heads",
        "initializer_range")  # fmt: skip
"""Numbers that may be null, whatever their default."""


def model_config(theirs: Mapping[str, Any], stream: dict[str, Any] | None = None) -> ModelConfig:
    """What a model of transformers is called here.

    Args:
        theirs: the contents of its config.json.
        stream: settings of the stream; default: the plain one.

    Raises:
        UserError: it is of an unknown family, or has a setting that models here do not have; names it.
    """
    values = with_defaults(theirs)
    settings = _gpt2(values) if values["model_type"] == "gpt2" else _decoder(values)
    common: dict[str, Any] = {
        "stream": stream or {"kind": "vector"},
        "vocab_size": values["vocab_size"],
        "upcast_attention": False,
        "tied_head": values["tie_word_embeddings"],
        "init": {"scheme": "normal", "std": values["initializer_range"] or 0.02},  # any other scales a tied head
    }
    return build(ModelConfig, common | settings, "model")


def with_defaults(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with transformers' defaults in place of what it does not say.

    Raises:
        UserError: an unknown family, or a field of the wrong type.
    """
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise UserError(
            f"config.json has model_type {shown(kind)}; those that can be imported are {', '.join(DEFAULTS)}."
        )
    defaults = DEFAULTS[kind]
    other = {name: theirs[alias] for alias, name in ALIASES.get(kind, {}).items() if alias in theirs}
    values = defaults | dict(theirs) | other
    for name, default in defaults.items():
        value = values[name]
        if name in WORDS or (value is None and (default is None or name in NULL)):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, bool) if isinstance(default, bool) else number):
            raise refused(f"{name}: {shown(value)}", "which is of another type than transformers has there")
    for name in ("quantization_config", "is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"):
        if values.get(name):
            raise refused(name, "which models here do not have")
    return values


def refused(what: str, why: str) -> UserError:
    """What to say of a setting that cannot be taken over."""
    return UserError(f"config.json has {what}, {why}; this model cannot be imported.")


def _gpt2(values: Values) -> dict[str, Any]:
    width, heads = whole(values, "n_embd"), whole(values, "n_head")
    if width % heads:
        raise refused(f"n_embd {width} and n_head {heads}", "the first no multiple of the second")
    head_dim = width // heads
    mlp_dim = 4 * width if values["n_inner"] is None else whole(values, "n_inner")
    settings: dict[str, Any] = {
        "context": values["n_positions"], "num_layers": values["n_layer"], "num_heads": heads, "head_dim": head_dim,
        "mlp_dim": mlp_dim, "norm": "layernorm", "norm_bias": True,
        "norm_eps": values["layer_norm_epsilon"], "positions": "learned", "attention_bias": "all", "mlp_bias": True,
        "activation": _activation(values, "activation_function", UNGATED),
        "inverse_layer_scaling": values["scale_attn_by_inverse_layer_idx"],
    }  # fmt: skip
    if not values["scale_attn_weights"]:
        settings["mup"] = {"attention_multiplier": head_dim**0.5}
    return settings


def _decoder(values: Values) -> dict[str, Any]:
    """The families that came after Llama."""
    kind, width, heads = values["model_type"], whole(values, "hidden_size"), whole(values, "num_attention_heads")
    if values["head_dim"] is None and width % heads:
        raise refused(f"hidden_size {width} and num_attention_heads {heads}", "the first no multiple of the second")
    values = {
        **values,
        "head_dim": width // heads if values["head_dim"] is None else whole(values, "head_dim"),
        "num_key_value_heads": heads if values["num_key_value_heads"] is None else whole(values, "num_key_value_heads"),
    }
    settings: dict[str, Any] = {
        "context": values["max_position_embeddings"], "num_layers": whole(values, "num_hidden_layers"),
        "num_heads": heads, "head_dim": values["head_dim"], "num_kv_heads": values["num_key_value_heads"],
        "width": width, "mlp_dim": values["intermediate_size"], "norm": "rmsnorm", "norm_eps": values["rms_norm_eps"],
        "norm_cast": "before_gain", "positions": "rotary", "inverse_layer_scaling": False,
        "activation": _activation(values, "hidden_activation" if kind.startswith("gemma") else "hidden_act", GATED),
    }  # fmt: skip
    kinds = layer_kinds(values)
    settings |= window_settings(values, kinds) | rotary_settings(values, kinds)
    if values.get("attention_bias") and "attention_bias" in DEFAULTS[kind]:
        settings["attention_bias"] = "all"
    if values.get("mlp_bias") and "mlp_bias" in DEFAULTS[kind]:
        settings["mlp_bias"] = True
    return settings | OWN.get(kind, lambda _: {})(values)


def _activation(values: Values, name: str, known: Mapping[str, str]) -> str:
    word = values[name]
    if word is None and name == "hidden_activation":  # as Gemma's first configurations have it
        word = "gelu_pytorch_tanh"
    if not isinstance(word, str) or word not in known:
        raise refused(f"{name} {shown(word)}", f"and those that models here have in its place are {', '.join(known)}")
    return known[word]


def whole(values: Values, name: str) -> int:
    """A size.

    Raises:
        UserError: it is none.
    """
    value = values[name]
    if type(value) is not int or value < 1:
        raise refused(f"{name} {shown(value)}", "which is no size")
    return value


def layer_kinds(values: Values) -> list[str]:
    """`sliding_attention` or `full_attention`, of every layer."""
    kind, layers = values["model_type"], whole(values, "num_hidden_layers")
    window, given = values.get("sliding_window"), values.get("layer_types")
    if kind in ("llama", "olmo2"):
        return ["full_attention"] * layers
    if kind in ("mistral", "mixtral", "qwen3_moe"):
        slides = window is not None and (kind != "qwen3_moe" or values["use_sliding_window"])
        kinds = ["sliding_attention" if slides else "full_attention"] * layers
        if given is not None and kind == "mistral" and given != kinds:
            raise refused("layer_types", f"which {kind} does not heed")
        return kinds
    if given is not None:
        if not isinstance(given, list) or len(given) != layers:
            raise refused("layer_types", f"which is not a list of {layers} layers")
        return given
    if kind in ("qwen2", "qwen3"):
        slides = values["use_sliding_window"] and window is not None
        first = values["max_window_layers"] if slides else layers
        if type(first) is not int or first < 0:
            raise refused(f"max_window_layers {shown(first)}", "which is no number of layers")
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if kind == "smollm3":
        slides = values["use_sliding_window"] and window is not None
        return ["sliding_attention" if slides and not rope else "full_attention" for rope in rotated(values)]
    every = whole(values, "sliding_window_pattern") if kind == "gemma3_text" else 2
    return ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]


def window_settings(values: Values, kinds: list[str]) -> dict[str, Any]:
    """Layers with a window: all, or all but every n-th.

    Raises:
        UserError: other layouts.
    """
    strange = [kind for kind in kinds if kind not in ("sliding_attention", "full_attention")]
    if strange:
        raise refused(f"layers of type {shown(strange[0])}", "which models here do not have")
    if "sliding_attention" not in kinds:
        return {}
    window = values.get("sliding_window")
    if window is None or not values.get("use_sliding_window", True):
        raise refused("layers with a window", "and no window for them (sliding_window, use_sliding_window)")
    full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    every = full[0] + 1 if full else None
    if every is not None and full != list(range(every - 1, len(kinds), every)):
        raise refused(
            "a layout of layers with a window", "in which those without one are not every n-th, the n-th first"
        )
    return {"attention_window": window} | ({"full_attention_every": every} if full else {})


def rotated(values: Values) -> list[int]:
    """SmolLM3: of every layer, whether it has rotary positions."""
    layers, given = whole(values, "num_hidden_layers"), values["no_rope_layers"]
    if given is None:
        every = whole(values, "no_rope_layer_interval")
        return [int((layer + 1) % every != 0) for layer in range(layers)]
    if not isinstance(given, list) or len(given) != layers:
        raise refused("no_rope_layers", f"which is not a list of {layers} layers")
    if strange := [entry for entry in given if not (isinstance(entry, int) and entry in (0, 1))]:
        raise refused(f"no_rope_layers with {shown(strange[0])}", "which is neither 0 nor 1")
    return given


def _smollm3(values: Values) -> dict[str, Any]:
    without = [layer for layer, rope in enumerate(rotated(values)) if not rope]
    if not without:
        return {}
    every = without[0] + 1
    if without != list(range(every - 1, whole(values, "num_hidden_layers"), every)):
        raise refused("no_rope_layers", "of which those without rotation are not every n-th, the n-th first")
    return {"rotary_skip_every": every}


def _gemma(values: Values) -> dict[str, Any]:
    scalar = values["query_pre_attn_scalar"]
    if not scalar > 0:
        raise refused(f"query_pre_attn_scalar {shown(scalar)}", "which is not above 0")
    return {
        "norm_place": "both", "norm_offset": True, "norm_cast": "after_gain",
        "logit_soft_cap": values["final_logit_softcapping"],
        "mup": {
            "input_multiplier": values["hidden_size"] ** 0.5,
            "attention_multiplier": (values["head_dim"] / scalar) ** 0.5,
        },
    }  # fmt: skip


def _gemma3(values: Values) -> dict[str, Any]:
    if values["attn_logit_softcapping"] is not None:
        raise refused("attn_logit_softcapping", "which transformers passes over in Gemma 3")
    return _gemma(values) | {"qk_norm": {"over": "head"}}


def _experts(values: Values) -> dict[str, Any]:
    mixtral = values["model_type"] == "mixtral"
    if not mixtral and (values["decoder_sparse_step"] != 1 or values["mlp_only_layers"] not in (None, [])):
        raise refused("decoder_sparse_step or mlp_only_layers", "by which some layers have no experts")
    return {
        "moe": {
            "num_experts": whole(values, "num_local_experts") if mixtral else values["num_experts"],
            "top_k": values["num_experts_per_tok"],
            "expert_dim": values["intermediate_size"] if mixtral else values["moe_intermediate_size"],
            "normalise": mixtral or values["norm_topk_prob"],
        }
    }


OWN: dict[str, Callable[[Values], dict[str, Any]]] = {
    "qwen2": lambda _: {"attention_bias": "qkv"},
    "qwen3": lambda _: {"qk_norm": {"over": "head"}},
    "olmo2": lambda _: {"qk_norm": {"over": "full"}, "norm_place": "after", "norm_cast": "after_gain"},
    "gemma2": lambda values: _gemma(values) | {"attention_soft_cap": values["attn_logit_softcapping"]},
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
    "mixtral": _experts,
    "qwen3_moe": lambda values: _experts(values) | {"qk_norm": {"over": "head"}},
}
"""What a family has besides."""
