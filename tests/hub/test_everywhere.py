"""Every kind of stream as a folder: loaded by transformers where this package is not, and equal in all ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import tiny
from widestream.hub.export import write_model
from widestream.model.build import build_model
from widestream.streams import OWN_KINDS, stream_class

MODERN = {
    "norm": "rmsnorm", "positions": "rotary", "qk_norm": {"over": "head"}, "activation": "swiglu", "num_kv_heads": 2,
    "upcast_attention": False, "inverse_layer_scaling": False, "attention_window": 6, "full_attention_every": 2,
}  # fmt: skip
BLOCKS = {
    "modern": MODERN,
    "modern, dense token before": {**MODERN, "token_before": "dense"},
    "sandwich": {
        "norm": "rmsnorm", "norm_place": "both", "norm_offset": True, "attention_bias": "qkv", "positions": "rotary",
        "rotary_fraction": 0.5, "rotary_pairs": "neighbours", "attention_soft_cap": 20.0, "logit_soft_cap": 10.0,
        "activation": "geglu_tanh", "num_kv_heads": 1,
    },
    "behind": {"norm": "rmsnorm", "norm_place": "after", "qk_norm": {"over": "full"}, "positions": "alibi"},
    "learned": {"positions": "learned", "document_mask": False, "mlp_bias": True, "tied_head": True},
    "experts": {"activation": "swiglu", "moe": {"num_experts": 4, "top_k": 2, "balance": "bias"}},
    "scaled": {"positions": "rotary", "rotary_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 8}},
    "values": {"value_residual": "learned", "short_swa": 3},
    "convolution": {"attention_convolution": "qkv", "positions": "rotary", "qk_norm": {"over": "head"}},
}  # fmt: skip
"""Settings of blocks; on the kinds with an own form of attention or state each."""
CASES = {
    **{kind: ({"kind": kind, **stream_class(kind).examples[0]}, {}) for kind in OWN_KINDS},
    **{
        f"{kind}, {name}": ({"kind": kind, **stream_class(kind).examples[0]}, blocks)
        for kind, names in {"vector": BLOCKS, "matrix": BLOCKS, "mhc": ["modern", "sandwich"]}.items()
        for name, blocks in ((name, BLOCKS[name]) for name in names)
    },
}


def shaken(stream, blocks):
    """A model whose gates, zeros and gains are far from their start."""
    model = build_model(tiny(stream, **blocks), seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module", name="found")
def _found(tmp_path_factory):
    """What a process found that cannot import the package."""
    root, work = tmp_path_factory.mktemp("folders"), tmp_path_factory.mktemp("work")
    for name, (stream, blocks) in CASES.items():
        model = shaken(stream, blocks)
        write_model(model, root / name)
        tokens = torch.randint(1, model.config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            logits = model.logits(model(tokens))
        save_file({"tokens": tokens, "logits": logits}, root / name / "expected.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "PYTHONPATH": ""}
    script = Path(__file__).with_name("elsewhere.py")
    subprocess.run([sys.executable, script, root, work / "found.json"], env=environment, cwd=work, check=True)
    return json.loads((work / "found.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_all_ways_are_equal(found, name):
    ways = found[name]
    assert "error" not in ways, ways
    assert ways["same"] == dict.fromkeys(ways["same"], True)
    assert ways["logits"] < 1e-6
    assert ways["steps"] < 1e-5
    assert ways["padding"] < 1e-5
