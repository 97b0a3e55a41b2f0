"""Small random models of transformers, one of each family."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
HOSTS = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"head_dim": 12, "sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 20}),
    "olmo2": ("Olmo2", {}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}),
    "gpt2": ("GPT2", {}),
}


def make_host(name, seed=0, **changes):
    family, fields = HOSTS[name]
    if name == "gpt2":
        fields = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 40}
        fields |= {
            "vocab_size": 60,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
        model = transformers.GPT2LMHeadModel
    else:
        fields = SIZES | fields
        model = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(seed)
    return model(model.config_class(**fields | changes)).eval()


def ids_of(rows=2, tokens=9):
    return torch.randint(2, 60, (rows, tokens), generator=torch.Generator().manual_seed(3))


def shake(stream, by=0.1):
    """Away from the start, where many kinds are plain."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def logits_of(model, ids, **arguments):
    with torch.no_grad():
        return model(input_ids=ids, **arguments).logits
