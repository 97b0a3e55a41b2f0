"""The plain stream is the published model: logits, gradients, caches and padding against transformers' own classes.

Configurations are drawn at random (from seeds, so that they are the same in every run); weights too, gains and biases
included, which a fresh model has at one and zero.
"""

import random
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from families import model_config, weights  # noqa: E402
from widestream.model.build import build_model  # noqa: E402
from widestream.model.decoder import Decoder  # noqa: E402
from widestream.testing.models import copy_of  # noqa: E402

SEEDS = range(4)
FAMILIES = ("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "Gemma2", "Gemma3Text", "SmolLM3", "Mixtral",
            "Qwen3Moe")  # fmt: skip
VOCAB, LONGEST = 61, 48


def draw(family: str, seed: int) -> Any:
    """A small configuration of a family."""
    dice = random.Random(f"{family} {seed}")
    kv_heads, group, head_dim = dice.choice([1, 2, 3]), dice.choice([1, 2, 4]), dice.choice([4, 6, 8, 16])
    layers = dice.choice([1, 2, 3, 5])
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


def both(family: str, seed: int) -> tuple[Any, Decoder]:
    """A model of transformers with random weights, and the same one here."""
    config = draw(family, seed)
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


def tokens_of(seed: int, length: int = 20) -> torch.Tensor:
    return torch.randint(3, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest number."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def agree(got: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether logits are within 1e-5, or within twice what float32 rounds theirs by: some weights drawn amplify it."""
    return apart(got, wanted) < max(1e-5, 2 * apart(wanted, exact))


def in_float64(ours: Decoder, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """Logits [B, T, V] computed in float64."""
    exact = copy_of(ours, dtype=torch.float64)
    with torch.no_grad():
        return exact.logits(exact(tokens, **options)).float()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients(family, seed):
    theirs, ours = both(family, seed)
    tokens = tokens_of(seed)
    wanted, got = theirs(tokens).logits, ours.logits(ours(tokens))
    assert agree(got, wanted, in_float64(ours, tokens))
    weight = torch.randn_like(wanted)
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    named = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = weights(theirs.config, named)
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    # Biases of keys without positions, or the router of one expert, have none: what is there is rounding.
    nothing = 1e-5 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        if gradients[name].abs().max() < nothing:
            assert parameter.grad.abs().max() < nothing, name
        else:
            assert apart(parameter.grad, gradients[name]) < 1e-4, name


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_caches(family, seed):
    theirs, ours = both(family, seed)
    tokens = tokens_of(seed)
    cache, past, got, wanted = ours.new_cache(2, 20), None, [], []
    for start, end in ((0, 7), (7, 8), (8, 12), *((i, i + 1) for i in range(12, 20))):
        out = theirs(tokens[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        wanted.append(out.logits)
        got.append(ours.logits(ours(tokens[:, start:end], cache=cache)))
    # Of all tokens together: what float32 rounds a single token's logits by is a matter of luck.
    assert agree(torch.cat(got, dim=1), torch.cat(wanted, dim=1), in_float64(ours, tokens))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padded_on_the_left(family, seed):
    theirs, ours = both(family, seed)
    tokens, real = tokens_of(seed), torch.ones(2, 20, dtype=torch.bool)
    real[0, :6] = False
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    wanted = theirs(tokens, attention_mask=real.long(), position_ids=positions).logits
    order = torch.arange(20)
    mask = (order[:, None] >= order) & real[:, None, :]
    mask |= torch.eye(20, dtype=torch.bool)  # a padded token sees itself, as else its softmax would be of nothing
    cache = ours.new_cache(2, 20)
    got = [
        ours.logits(ours(tokens[:, part], cache=cache, mask=mask[:, part, : part.stop], positions=positions[:, part]))
        for part in (slice(0, 9), slice(9, 20))
    ]
    exact = in_float64(ours, tokens, mask=mask, positions=positions)
    assert agree(torch.cat(got, dim=1)[real], wanted[real], exact[real])
