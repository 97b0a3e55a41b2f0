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
PAIRS_ONLY = ("mudd", "dca")
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
