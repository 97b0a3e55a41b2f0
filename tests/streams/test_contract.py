"""Every registered stream, at each of its examples, against every check of the contract."""

import pytest

from widestream.streams import KINDS, stream_class
from widestream.streams.testing import CHECKS

CASES = [{"kind": kind, **fields} for kind in KINDS for fields in stream_class(kind).examples]


def name_of(case):
    return "-".join(str(value) for value in case.values())


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_contract(case, check):
    CHECKS[check](case, {})


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none"])
@pytest.mark.parametrize("check", ["causality", "documents", "decoding"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_with_other_positions(kind, check, positions):
    CHECKS[check]({"kind": kind, **stream_class(kind).examples[0]}, {"positions": positions})
