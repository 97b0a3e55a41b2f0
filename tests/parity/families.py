"""Models of transformers as models of this package, by the maps that `widestream import hf` goes by."""

import dataclasses
import random
from typing import Any

import torch
from torch import Tensor

from widestream.convert import families
from widestream.convert.weights import sources
from widestream.model.build import build_model, meta_model
from widestream.model.decoder import Decoder
from widestream.recipe.model import ModelConfig

FAMILIES = ("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "Gemma2", "Gemma3Text", "SmolLM3", "Mixtral",
            "Qwen3Moe")  # fmt: skip
VOCAB, LONGEST = 61, 48


def model_config(theirs: Any, stream: dict[str, Any] | None = None) -> ModelConfig:
    """What a model of transformers is called here; it knows no documents."""
    return dataclasses.replace(families.model_config(theirs.to_dict(), stream), document_mask=False)


def weights(theirs: Any, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (or gradients) of a model of transformers under their names here."""
    config = model_config(theirs)
    own = [name for name, _ in meta_model(config).named_parameters()]
    table = sources(theirs.model_type, config.num_layers, config.moe.num_experts, own, named)
    return {name: source.gather(named.__getitem__) for name, source in table.items()}


def draw(family: str, seed: int) -> Any:
    """A small configuration of a family."""
    dice = random.Random(f"{family} {seed}")
    kv_heads, group, head_dim = dice.choice([1, 2, 3]), dice.choice([1, 2, 4]), dice.choice([4, 6, 8, 16])
    layers = dice.choice([1, 2, 3, 5])
    import transformers

    cls = getattr(transformers, f"{family}Config")
    if family == "GPT2":
        heads = kv_heads * group
        return cls(
            vocab_size=VOCAB, n_positions=LONGEST, n_embd=heads * head_dim, n_layer=layers, n_head=heads,
            n_inner=dice.choice([None, 40]), scale_attn_by_inverse_layer_idx=dice.random() < 0.5,
            tie_word_embeddings=dice.random() < 0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            layer_norm_epsilon=dice.choice([1e-5, 1e-6]),
        )  # fmt: skip
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "max_position_embeddings": LONGEST, "hidden_size": dice.choice([24, 40]),
        "intermediate_size": dice.choice([32, 56]), "num_hidden_layers": layers, "head_dim": head_dim,
        "num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads,
        "rms_norm_eps": dice.choice([1e-5, 1e-6]), "tie_word_embeddings": dice.random() < 0.5,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    rope = draw_rope(dice)
    if family in ("Qwen2", "Olmo2"):  # whose heads are parts of the width
        values["hidden_size"] = values["num_attention_heads"] * head_dim
    if family in ("Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3Text", "Mixtral"):
        values["sliding_window"] = dice.choice([3, 5, 100])
    if family in ("Llama", "SmolLM3", "Qwen3", "Olmo2"):
        values["attention_bias"] = dice.random() < 0.5
    if family in ("Llama", "SmolLM3"):
        values["mlp_bias"] = dice.random() < 0.5
    if family in ("Qwen2", "Qwen3"):
        kind = dice.choice(["full_attention", "sliding_attention"])
        values |= {"layer_types": [kind] * layers, "use_sliding_window": True}
    if family == "SmolLM3":
        every = dice.choice([2, 3])
        values |= {"no_rope_layer_interval": every}
        values["no_rope_layers"] = [int((layer + 1) % every != 0) for layer in range(layers)]
    if family.startswith("Gemma"):
        values["query_pre_attn_scalar"] = dice.choice([8, 24, 256])
        every = dice.choice([2, 3])
        values["layer_types"] = [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)
        ]
    if family == "Gemma3Text":
        values["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    else:
        values["rope_parameters"] = rope
    if family in ("Mixtral", "Qwen3Moe"):
        experts = dice.choice([2, 4, 7])
        # One expert alone, renormalised, would leave its router without a gradient, and is refused here.
        values |= {"num_experts_per_tok": dice.randint(2, experts), "router_aux_loss_coef": 0.01}
        values |= {"num_local_experts": experts} if family == "Mixtral" else {
            "num_experts": experts, "moe_intermediate_size": 24, "norm_topk_prob": dice.random() < 0.5,
            "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
    return cls(**values)


def draw_rope(dice: random.Random) -> dict[str, Any]:
    """A base, and perhaps a scaling."""
    base = {"rope_theta": dice.choice([1e4, 5e5, 1e6])}
    return base | dice.choice(
        [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 8.0,
             "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False},
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 24, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0},
        ]
    )  # fmt: skip


def both(family: str, seed: int, **changes: Any) -> tuple[Any, Decoder]:
    """A model of transformers with random weights, and the same one here; `changes` of its configuration as drawn."""
    import transformers

    config = draw(family, seed)
    for name, value in changes.items():
        setattr(config, name, value)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family.removesuffix('Text')}ForCausalLM"
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            spread = 0.3 if parameter.ndim > 1 and "embed" not in name else 0.5
            parameter.copy_(torch.randn_like(parameter) * spread + ("norm" in name and not family.startswith("Gemma")))
    ours = build_model(model_config(config))
    named = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    ours.load_state_dict(weights(config, named), strict=True)
    return theirs, ours


def tokens_of(seed: int, length: int = 20) -> Tensor:
    """Random tokens [2, length]."""
    return torch.randint(3, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))
