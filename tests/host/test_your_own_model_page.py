"""docs/how-to/your-own-model.md: its code runs from top to bottom, and its tables are true."""

import re
from pathlib import Path

import pytest
import torch

from host_models import make_host
from page_commands import python_code
from widestream import attach, attached_stream
from widestream.streams import OWN_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "your-own-model.md").read_text(encoding="utf-8")
OPTIONS = {
    "generalized_hc": {"embedding": "expand", "readout": "plain"},
    "hier_agg": {"identity": True},
    "data_lane": {"embedding_dim": 48},
    "matrix_dense": {"key_dim": 6, "start": "plain"},
}
NEEDED = {"matrix_dense": {"key_dim": 6}}


def test_the_code_runs():
    pytest.importorskip("peft")
    names = {}
    for code in python_code("docs/how-to/your-own-model.md"):
        exec(code, names)
    assert names["x"].shape == (8, 32, 64)
    assert torch.equal(attached_stream(names["back"]).core.phi, attached_stream(names["model"]).core.phi)


def test_the_table_of_kinds_is_true():
    plain, other, refused = (
        set(re.findall(r"`(\w+)`", row)) & set(OWN_KINDS)
        for row in re.findall(r"^\| (?:computes|another|refused)(.*)", PAGE, flags=re.M)
    )
    relatives = {kind for kind in OWN_KINDS if kind.startswith("matrix_")} - {"matrix_dense"}
    assert plain | other | refused | relatives == set(OWN_KINDS)
    for kind in plain:
        model = attach(make_host("llama"), kind, **OPTIONS.get(kind, {}))
        assert attached_stream(model).spec.starts_plain, kind
    for kind in other - plain | {"hier_agg", "matrix_dense"}:
        model = attach(make_host("llama"), kind, **NEEDED.get(kind, {}))
        assert not attached_stream(model).spec.starts_plain, kind
