"""Rows of a matrix stream that readers do not find."""

import pytest
import torch

from lens_passes import seen_of, seen_with
from widestream.errors import UserError
from widestream.lens import look, silence_rows


@pytest.mark.parametrize(
    "kind", ["matrix", "matrix_carry", "matrix_delta", "matrix_dense", "matrix_keys", "matrix_maps"]
)
def test_readers_find_nothing_in_silenced_rows_and_all_else_as_it_is(kind):
    settings = {"mlp_rank": 6} if kind == "matrix_keys" else {}
    seen = seen_with({"kind": kind, "key_dim": 12, **settings}, {"norm": "rmsnorm"})
    stream, state = seen.model.stream, seen.exchanges[4].state
    turned = state.clone()
    turned[..., [1, 3]] *= -1  # of the same size, so that a norm has the same scale
    with torch.no_grad():
        before = stream.read(4, state)
        with silence_rows(seen.model, [1, 3], sites=[4]):
            one, other = stream.read(4, state), stream.read(4, turned)
        after = stream.read(4, state)
    for role in before:
        assert torch.equal(one[role], other[role])
        assert not torch.allclose(one[role], before[role], atol=1e-5)
        assert torch.equal(after[role], before[role])


def test_a_row_is_silenced_in_every_pass_and_by_the_fused_kernel_too():
    seen = seen_with({"kind": "matrix", "key_dim": 8}, {"norm": "rmsnorm"})
    with silence_rows(seen.model, range(8)):
        silent = look(seen.model, seen.tokens)
    assert not silent["logits"].any()
    assert seen["logits"].any()


def test_rows_are_back_after_an_error():
    seen = seen_of("matrix")
    before = seen.model.stream.read_0.detach().clone()
    with pytest.raises(ZeroDivisionError), silence_rows(seen.model, [0]):
        _ = 1 / 0
    assert torch.equal(before, seen.model.stream.read_0)


@pytest.mark.parametrize(
    ("kind", "rows", "sites", "sentence"),
    [
        ("vector", [0], None, "no rows"),
        ("matrix_softmax", [0], None, "no rows"),
        ("matrix", [32], None, "Row 32 is none of the 32"),
        ("matrix", [-1], None, "Row -1 is none"),
        ("matrix", [0], [7], "Sites are 0 to 6"),
    ],
)
def test_what_has_no_such_rows_is_refused(kind, rows, sites, sentence):
    with pytest.raises(UserError, match=sentence), silence_rows(seen_of(kind).model, rows, sites):
        pass
