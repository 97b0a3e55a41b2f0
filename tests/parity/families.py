"""Models of transformers as models of this package: the configuration, and every weight under its name here.

A weight's map is linear, so that gradients are compared by the same map.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from widestream.recipe import build
from widestream.recipe.model import ModelConfig

Named = Mapping[str, Tensor]
ACTIVATIONS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "gelu_tanh"}


def model_config(theirs: Any, stream: dict[str, Any] | None = None) -> ModelConfig:
    """What a model of transformers is called here."""
    settings = gpt2_settings(theirs) if theirs.model_type == "gpt2" else decoder_settings(theirs)
    common: dict[str, Any] = {
        "stream": stream or {"kind": "vector"}, "vocab_size": theirs.vocab_size, "upcast_attention": False,
        "document_mask": False, "context": theirs.max_position_embeddings, "tied_head": theirs.tie_word_embeddings,
        "init": {"scheme": "normal", "std": 0.02},  # under which a tied head has no factor
    }  # fmt: skip
    return build(ModelConfig, common | settings, "model")


def gpt2_settings(theirs: Any) -> dict[str, Any]:
    """GPT-2."""
    return {
        "num_layers": theirs.n_layer, "num_heads": theirs.n_head, "head_dim": theirs.n_embd // theirs.n_head,
        "mlp_dim": theirs.n_inner or 4 * theirs.n_embd, "norm": "layernorm", "norm_bias": True,
        "norm_eps": theirs.layer_norm_epsilon, "positions": "learned", "attention_bias": "all", "mlp_bias": True,
        "activation": ACTIVATIONS[theirs.activation_function],
        "inverse_layer_scaling": theirs.scale_attn_by_inverse_layer_idx,
    }  # fmt: skip


def decoder_settings(theirs: Any) -> dict[str, Any]:
    """The families that came after Llama."""
    kind = theirs.model_type
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    settings: dict[str, Any] = {
        "num_layers": theirs.num_hidden_layers, "num_heads": theirs.num_attention_heads, "head_dim": head_dim,
        "num_kv_heads": theirs.num_key_value_heads, "width": theirs.hidden_size, "mlp_dim": theirs.intermediate_size,
        "norm": "rmsnorm", "norm_eps": theirs.rms_norm_eps, "norm_cast": "before_gain", "positions": "rotary",
        "activation": ACTIVATIONS[getattr(theirs, "hidden_activation", None) or theirs.hidden_act],
        "inverse_layer_scaling": False,
    }  # fmt: skip
    settings |= rotary_settings(theirs) | window_settings(theirs)
    if getattr(theirs, "attention_bias", False):
        settings["attention_bias"] = "all"
    if getattr(theirs, "mlp_bias", False):
        settings["mlp_bias"] = True
    return settings | OWN.get(kind, lambda _: {})(theirs)


def rotary_settings(theirs: Any) -> dict[str, Any]:
    """Base and scaling, which may differ between layers that have a window and those that have none."""
    rope = theirs.rope_parameters
    if "rope_theta" in rope:
        settings = {"rotary_base": rope["rope_theta"]}
    else:
        local, rope = rope["sliding_attention"], rope["full_attention"]
        settings = {"rotary_base": rope["rope_theta"]}
        if "sliding_attention" in theirs.layer_types:
            settings["rotary_window_base"] = local["rope_theta"]
    if rope.get("rope_type", "default") == "default":
        return settings
    names = {
        "factor": "factor", "original_max_position_embeddings": "original_context", "low_freq_factor": "low_frequency",
        "high_freq_factor": "high_frequency", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "attention_factor": "attention_factor", "truncate": "truncate",
    }  # fmt: skip
    scaling = {ours: rope[name] for name, ours in names.items() if rope.get(name) is not None}
    split = "rope_theta" not in theirs.rope_parameters
    return settings | {
        "rotary_scaling": scaling | {"kind": rope["rope_type"], "layers": "full" if split else "all"},
    }


def window_settings(theirs: Any) -> dict[str, Any]:
    """Layers with a window: all, or all but every n-th."""
    kinds = getattr(theirs, "layer_types", None) or []
    window = getattr(theirs, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return {}
    full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return {"attention_window": window} | ({"full_attention_every": full[0] + 1} if full else {})


def _gemma(theirs: Any) -> dict[str, Any]:
    return {
        "norm_place": "both", "norm_offset": True, "norm_cast": "after_gain",
        "mup": {
            "input_multiplier": theirs.hidden_size**0.5,
            "attention_multiplier": (theirs.head_dim / theirs.query_pre_attn_scalar) ** 0.5,
        },
    }  # fmt: skip


def _experts(theirs: Any) -> dict[str, Any]:
    mixtral = theirs.model_type == "mixtral"
    return {
        "moe": {
            "num_experts": theirs.num_local_experts if mixtral else theirs.num_experts,
            "top_k": theirs.num_experts_per_tok,
            "expert_dim": theirs.intermediate_size if mixtral else theirs.moe_intermediate_size,
            "normalise": mixtral or theirs.norm_topk_prob,
        }
    }


OWN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "qwen2": lambda _: {"attention_bias": "qkv"},
    "qwen3": lambda _: {"qk_norm": {"over": "head"}},
    "olmo2": lambda _: {"qk_norm": {"over": "full"}, "norm_place": "after", "norm_cast": "after_gain"},
    "gemma2": lambda theirs: _gemma(theirs) | {
        "attention_soft_cap": theirs.attn_logit_softcapping, "logit_soft_cap": theirs.final_logit_softcapping,
    },
    "gemma3_text": lambda theirs: _gemma(theirs) | {"qk_norm": {"over": "head"}},
    "smollm3": lambda theirs: {"rotary_skip_every": theirs.no_rope_layer_interval},
    "mixtral": _experts,
    "qwen3_moe": lambda theirs: _experts(theirs) | {"qk_norm": {"over": "head"}},
}  # fmt: skip


def weights(theirs: Any, named: Named) -> dict[str, Tensor]:
    """Weights (or gradients) of a model of transformers under their names here."""
    return _gpt2(theirs, named) if theirs.model_type == "gpt2" else _decoder(theirs, named)


def _gpt2(theirs: Any, named: Named) -> dict[str, Tensor]:
    top = "transformer."
    out = {"embedding.token": named[top + "wte.weight"], "embedding.position": named[top + "wpe.weight"]}
    for layer in range(theirs.n_layer):
        here, attention, mlp = f"{top}h.{layer}.", f"blocks.{2 * layer}.", f"blocks.{2 * layer + 1}."
        out |= _norm(named, here + "ln_1", f"stream.norms.{2 * layer}")
        out |= _norm(named, here + "ln_2", f"stream.norms.{2 * layer + 1}")
        out[attention + "qkv"] = named[here + "attn.c_attn.weight"].T
        for name, bias in zip("qkv", named[here + "attn.c_attn.bias"].chunk(3), strict=True):
            out[f"{attention}core.bias_{name}"] = bias
        out[attention + "out"] = named[here + "attn.c_proj.weight"].T
        out[attention + "bias_out"] = named[here + "attn.c_proj.bias"]
        for ours, name in (("1", "c_fc"), ("2", "c_proj")):
            out[f"{mlp}w{ours}"] = named[f"{here}mlp.{name}.weight"].T
            out[f"{mlp}b{ours}"] = named[f"{here}mlp.{name}.bias"]
    return out | _norm(named, top + "ln_f", f"stream.norms.{2 * theirs.n_layer}") | _head(theirs, named)


def _decoder(theirs: Any, named: Named) -> dict[str, Tensor]:
    out = {"embedding.token": named["model.embed_tokens.weight"]}
    before = {"gemma2": True, "gemma3_text": True, "olmo2": False}.get(theirs.model_type)
    wrapped = "" if before is None else "block."
    for layer in range(theirs.num_hidden_layers):
        here, sites = f"model.layers.{layer}.", (2 * layer, 2 * layer + 1)
        names = {
            None: ("input_layernorm", "post_attention_layernorm"),
            True: ("input_layernorm", "pre_feedforward_layernorm"),
            False: (),
        }[before]
        for site, name in zip(sites, names, strict=False):
            out |= _norm(named, here + name, f"stream.norms.{site}")
        if before is not None:
            for site, name in zip(sites, ("post_attention_layernorm", "post_feedforward_layernorm"), strict=True):
                out |= _norm(named, here + name, f"blocks.{site}.norm")
        out |= _attention(named, here + "self_attn.", f"blocks.{sites[0]}.{wrapped}")
        out |= _mlp(named, here + "mlp.", f"blocks.{sites[1]}.{wrapped}")
    return out | _norm(named, "model.norm", f"stream.norms.{2 * theirs.num_hidden_layers}") | _head(theirs, named)


def _norm(named: Named, theirs: str, ours: str) -> dict[str, Tensor]:
    out = {f"{ours}.gain": named[f"{theirs}.weight"]}
    return out | ({f"{ours}.bias": named[f"{theirs}.bias"]} if f"{theirs}.bias" in named else {})


def _attention(named: Named, theirs: str, ours: str) -> dict[str, Tensor]:
    out = {
        ours + "qkv": torch.cat([named[f"{theirs}{name}_proj.weight"] for name in "qkv"]),
        ours + "out": named[theirs + "o_proj.weight"],
    }
    for name in "qkv":
        if f"{theirs}{name}_proj.bias" in named:
            out[f"{ours}core.bias_{name}"] = named[f"{theirs}{name}_proj.bias"]
    if theirs + "o_proj.bias" in named:
        out[ours + "bias_out"] = named[theirs + "o_proj.bias"]
    for name, own in (("q_norm", "queries"), ("k_norm", "keys")):
        if f"{theirs}{name}.weight" in named:
            out[f"{ours}core.norm_before.{own}.gain"] = named[f"{theirs}{name}.weight"]
    return out


def _mlp(named: Named, theirs: str, ours: str) -> dict[str, Tensor]:
    if theirs + "gate.weight" in named:
        return {
            ours + "router": named[theirs + "gate.weight"],
            ours + "w1": named[theirs + "experts.gate_up_proj"],
            ours + "w2": named[theirs + "experts.down_proj"],
        }
    out = {
        ours + "w1": torch.cat([named[f"{theirs}{name}_proj.weight"] for name in ("gate", "up")]),
        ours + "w2": named[theirs + "down_proj.weight"],
    }
    if theirs + "down_proj.bias" in named:
        out[ours + "b1"] = torch.cat([named[f"{theirs}{name}_proj.bias"] for name in ("gate", "up")])
        out[ours + "b2"] = named[theirs + "down_proj.bias"]
    return out


def _head(theirs: Any, named: Named) -> dict[str, Tensor]:
    return {} if theirs.tie_word_embeddings else {"unembedding": named["lm_head.weight"]}
