"""Closed forms of moment propagation: Table 2 as printed and as it is, GELU and attention against quadrature."""

import math

import numpy as np
import pytest

from widestream.paper.moments import (
    GPT2_MEDIUM,
    PRINTED,
    Moments,
    Row,
    closed_forms,
    gelu,
    linear,
    uniform_attention,
)

WRONG = {Row("feed-forward", operation, "RMT") for operation in ("storage", "retrieval")}


def rounded(moments):
    return round(moments.forward, 2), round(moments.backward, 2)


@pytest.mark.parametrize("row", PRINTED, ids=str)
def test_printed_numbers_follow_from_the_shapes_given_for_them(row):
    printed = PRINTED[row]
    assert rounded(linear(printed.fan_in, printed.fan_out, "xavier")) == rounded(printed.moments)


def test_table_2_holds_at_gpt2_medium_but_for_the_keys_of_the_feed_forward_layer():
    found = closed_forms(GPT2_MEDIUM)
    differing = {row for row, printed in PRINTED.items() if rounded(found[row]) != rounded(printed.moments)}
    assert differing == WRONG
    assert rounded(found[Row("feed-forward", "storage", "RMT")]) == (0.4, 1.6)
    assert rounded(found[Row("feed-forward", "retrieval", "RMT")]) == (1.6, 0.4)
    for path in ("path in", "path out"):
        assert rounded(found[Row("feed-forward", path, "RMT")]) == (0.64, 0.64)


def test_lecun_keeps_the_variance_of_every_operation_forward():
    rows = closed_forms(GPT2_MEDIUM, "lecun")
    operations = {row: moments for row, moments in rows.items() if not row.operation.startswith("whole")}
    assert all(math.isclose(moments.forward, 1) for moments in operations.values())
    assert math.isclose(rows[Row("attention", "storage", "RMT")].backward, 4)
    assert math.isclose(rows[Row("attention", "retrieval", "RMT")].backward, 0.75)
    assert math.isclose(rows[Row("attention", "retrieval", "transformer")].backward, 3)


def test_operations_one_after_the_other_multiply():
    assert Moments(0.5, 2).then(Moments(3, 5)) == Moments(1.5, 10)


@pytest.mark.parametrize("variance", [0.1, 0.4, 1.0, 3.0])
def test_moments_of_gelu_by_quadrature(variance):
    x, weights = np.polynomial.hermite_e.hermegauss(120)
    x, weights = x * math.sqrt(variance), weights / weights.sum()
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    slope = below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    found = gelu(variance)
    assert math.isclose(found.forward, (weights * (x * below) ** 2).sum() / variance, rel_tol=1e-6)
    assert math.isclose(found.backward, (weights * slope**2).sum(), rel_tol=1e-6)


def test_uniform_attention_by_its_matrix():
    matrix = np.tril(np.ones((7, 7)))
    matrix /= matrix.sum(1, keepdims=True)
    found = uniform_attention(7)
    assert math.isclose(found.forward, (matrix**2).sum() / 7)
    assert math.isclose(found.backward, (matrix**2).sum() / 7)
