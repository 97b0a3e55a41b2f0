"""Small models with random weights for the tests of import and conversion, and folders of transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import widestream
from families import both, tokens_of
from widestream.convert.hf import import_hf
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.recipe import build
from widestream.recipe.model import ModelConfig

SIZES = {"vocab_size": 61, "context": 24, "num_layers": 2, "num_heads": 4, "head_dim": 8, "mlp_dim": 40,
         "stream": {"kind": "vector"}, "norm": "rmsnorm", "positions": "rotary"}  # fmt: skip
MODERN = {"norm_eps": 1e-3, "num_kv_heads": 2, "activation": "swiglu", "norm_cast": "before_gain"}


def saved(folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of transformers, in a folder; gives the model itself, in float32."""
    shards = changes.pop("max_shard_size", "5GB")
    theirs, _ = both(family, seed, **changes)
    theirs.to(dtype).save_pretrained(folder, max_shard_size=shards)
    return theirs.float()


def imported(folder: Path, family: str, seed: int = 0, **changes: Any) -> tuple[Path, Any]:
    """A run that was imported, and what of."""
    theirs = saved(folder / "hf", family, seed, **changes)
    import_hf(folder / "hf", folder / "run")
    return folder / "run", theirs


def square(family: str) -> dict[str, Any]:
    """Changes that make the width of a model that of its heads, as a matrix stream needs it: 4 heads of 8."""
    if family == "GPT2":
        return {"n_embd": 32, "n_head": 4}
    return {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@torch.no_grad()
def off(run: Path, wanted: Tensor, tokens: Tensor | None = None) -> float:
    """Largest difference of a run's logits from those wanted [B, T, V], relative to the largest."""
    got = widestream.open(run).model()(tokens_of(0) if tokens is None else tokens)
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def logits_of(theirs: Any) -> Tensor:
    """Of a model of transformers [B, T, V]."""
    return theirs(tokens_of(0)).logits


def edit(folder: Path, **changes: Any) -> None:
    """Change config.json; a value of `...` takes a key out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def write_tokenizer(folder: Path, words: int = 58) -> Tokenizer:
    """A tokenizer.json of so many words and three special tokens, 61 ids at most."""
    names = ["<unk>", "<s>", "<|endoftext|>", *(f"w{i}" for i in range(words))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def model_of(changes: dict[str, Any], seed: int = 1) -> Decoder:
    """A model whose parameters have all left their initial values."""
    model = build_model(build(ModelConfig, SIZES | changes, "model"), seed)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
