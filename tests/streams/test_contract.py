"""Every registered stream, at each of its examples, against every check of the contract."""

import pytest

from widestream.errors import UserError
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing import CHECKS

KINDS = list(OWN_KINDS)
CASES = [
    (check, {"kind": kind, **fields})
    for kind in KINDS
    for number, fields in enumerate(stream_class(kind).examples)
    for check in CHECKS
    if check != "compiling" or number == 0  # it takes ten seconds
]
PAIRS_ONLY = ("mudd", "dca", "altup")
CHANGING_MLPS = ("vector", "matrix", "matrix_keys", "depth_lstm", "mudd")
"""A vector and a matrix, and the streams that have something to say about the MLP."""
EXPERTS = {"activation": "swiglu", "moe": {"num_experts": 4, "top_k": 2}}


def name_of(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("check", "stream"), CASES, ids=name_of)
def test_contract(check, stream):
    CHECKS[check](stream, {})


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none"])
@pytest.mark.parametrize("check", ["causality", "documents", "decoding"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_with_other_positions(kind, check, positions):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"positions": positions})


@pytest.mark.parametrize("check", ["parameter_count", "causality", "documents", "decoding"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PAIRS_ONLY])
def test_contract_with_short_swa(kind, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"short_swa": 3})


@pytest.mark.parametrize("kind", PAIRS_ONLY)
def test_streams_of_pairs_refuse_short_swa(kind):
    with pytest.raises(UserError, match=r"has no place for model\.short_swa"):
        CHECKS["shapes"]({"kind": kind}, {"short_swa": 3})


@pytest.mark.parametrize("check", ["saved", "reversible"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_with_rmsnorm(kind, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"norm": "rmsnorm"})


@pytest.mark.parametrize("activation", ["swiglu", "squared_relu"])
@pytest.mark.parametrize("check", ["parameter_count", "decoding", "cost", "saved", "reversible"])
@pytest.mark.parametrize("kind", CHANGING_MLPS)
def test_contract_with_other_activations(kind, check, activation):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"activation": activation})


@pytest.mark.parametrize("check", ["decoding", "cached_documents", "cost", "reversible", "activation_checkpointing"])
@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc", "mudd"])
def test_contract_with_experts(kind, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, EXPERTS)


@pytest.mark.parametrize("changes", [{"activation": "geglu_tanh"}, EXPERTS], ids=["geglu_tanh", "experts"])
def test_gates_and_experts_compile(changes):
    CHECKS["compiling"]({"kind": "matrix", "key_dim": 6}, changes)


MODERN = {
    "norm": "rmsnorm", "positions": "rotary", "qk_norm": {"over": "head"}, "activation": "swiglu", "num_kv_heads": 2,
    "upcast_attention": False, "inverse_layer_scaling": False, "attention_window": 5, "full_attention_every": 2,
}  # fmt: skip
SANDWICH = {
    "norm": "rmsnorm", "norm_place": "both", "norm_offset": True, "attention_bias": "qkv", "positions": "rotary",
    "rotary_fraction": 0.5, "rotary_pairs": "neighbours", "rotary_skip_every": 3, "attention_soft_cap": 20.0,
    "logit_soft_cap": 10.0, "activation": "geglu_tanh", "num_kv_heads": 1,
}  # fmt: skip
BEHIND = {
    "norm": "rmsnorm", "norm_place": "after", "qk_norm": {"over": "full"}, "positions": "alibi", "num_kv_heads": 2,
    "activation": "squared_relu", "attention_bias": "all",
}  # fmt: skip


@pytest.mark.parametrize("check", ["parameter_count", "gradients", "cached_documents", "cost", "reversible"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_on_modern_blocks(kind, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, MODERN)


@pytest.mark.parametrize("check", ["parameter_count", "cached_documents", "reversible"])
@pytest.mark.parametrize("blocks", [SANDWICH, BEHIND], ids=["sandwich", "behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_with_norms_elsewhere(kind, blocks, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, blocks)


@pytest.mark.parametrize("blocks", [MODERN, SANDWICH, BEHIND], ids=["modern", "sandwich", "behind"])
@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc"])
def test_modern_blocks_compile(kind, blocks):
    CHECKS["compiling"]({"kind": kind, **stream_class(kind).examples[0]}, blocks)


@pytest.mark.parametrize("check", ["gradients", "decoding", "cached_documents", "cost", "plain_start"])
@pytest.mark.parametrize("before", ["dense", "smear"])
@pytest.mark.parametrize("kind", ["vector", "matrix", "mhc", "data_lane"])
def test_contract_with_the_token_before(kind, before, check):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"token_before": before})
