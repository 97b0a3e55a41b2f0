"""How mean and variance pass through the operations of both models at initialisation (RMT paper 3.2 and appendix B).

Weights are independent with mean zero, so a propagated mean is zero, and a propagated variance is a ratio times the
second moment that comes in: sigma_out^2 = forward (sigma_in^2 + mu_in^2), and the same backward for gradients.

                                    forward            backward
    storage    X = sum_h w^(h) (x) x^(h)    R sigma_w^2        D_k sigma_w^2
    retrieval  x^(h) = w^(h) . X            D_k sigma_w^2      R sigma_w^2
    matrix     x_out = W x_in               d_in sigma_w^2     d_out sigma_w^2

These forms (Table 1) are right. Table 2 puts shapes into them, and its RMT rows take two different shapes: its
attention rows need R = 16 and D_k = 64, GPT2-medium's, and its feed-forward rows need R = D_k. `PRINTED` holds what is
printed and the shapes that give it; `closed_forms` gives every row at one and the same shape. Table 2 also sets the
transformer's W_1 and W_2 against the RMT's keys alone, while the RMT keeps both matrices: the "path" rows are the
like-for-like comparison. GELU's moments are those of Kedia et al. (2024); the tests check them by quadrature.
"""

import math
from dataclasses import dataclass
from typing import Literal

from widestream.paper.printed import RMT_MEDIUM

Scheme = Literal["xavier", "lecun"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Ratios of second moments: of outputs to inputs, and of the gradients of inputs to those of outputs."""

    forward: float
    backward: float

    def then(self, after: "Moments") -> "Moments":
        """This operation, and `after` it another that is independent of it."""
        return Moments(self.forward * after.forward, self.backward * after.backward)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of both models: the transformer's width is R D_v."""

    rank: int
    """[R] Data vectors, which are the heads."""
    key_dim: int
    """[D_k]."""
    value_dim: int
    """[D_v]."""
    mlp_dim: int
    """[F]."""

    @property
    def width(self) -> int:
        """[D] = R D_v."""
        return self.rank * self.value_dim


GPT2_MEDIUM = Shape(rank=RMT_MEDIUM.R, key_dim=RMT_MEDIUM.D_k, value_dim=RMT_MEDIUM.D_v, mlp_dim=RMT_MEDIUM.F)
"""The shapes of Table 2, with the D_k of the RMT of the same size (305M)."""


@dataclass(frozen=True, slots=True)
class Row:
    """Names a row: Table 2's layer, operation and model, or a row beside it that the paper does not print."""

    layer: Literal["attention", "feed-forward"]
    operation: str
    """storage, retrieval; path in, path out: the same together with the MLP's matrix; whole: the block alone."""
    model: Literal["RMT", "transformer"]


@dataclass(frozen=True, slots=True)
class Printed:
    """A row of Table 2."""

    moments: Moments
    """As printed, rounded to two digits behind the point."""
    fan_in: int
    fan_out: int
    """The sizes which, put into Table 1, give it: R and D_k in the order of the operation, or those of a matrix."""


PRINTED: dict[Row, Printed] = {
    Row("attention", "storage", "RMT"): Printed(Moments(0.4, 1.6), 16, 64),
    Row("attention", "storage", "transformer"): Printed(Moments(1, 1), 1024, 1024),
    Row("attention", "retrieval", "RMT"): Printed(Moments(1.14, 0.86), 64, 3 * 16),
    Row("attention", "retrieval", "transformer"): Printed(Moments(0.5, 1.5), 1024, 3 * 1024),
    Row("feed-forward", "storage", "RMT"): Printed(Moments(1, 1), 64, 64),
    Row("feed-forward", "storage", "transformer"): Printed(Moments(1.6, 0.4), 4096, 1024),
    Row("feed-forward", "retrieval", "RMT"): Printed(Moments(1, 1), 64, 64),
    Row("feed-forward", "retrieval", "transformer"): Printed(Moments(0.4, 1.6), 1024, 4096),
}


def weight_variance(scheme: Scheme, fan_in: int, fan_out: int) -> float:
    """sigma_w^2: Xavier 2 / (fan_in + fan_out), LeCun 1 / fan_in."""
    return 2 / (fan_in + fan_out) if scheme == "xavier" else 1 / fan_in


def linear(fan_in: int, fan_out: int, scheme: Scheme) -> Moments:
    """x_out = W x_in, W [fan_out, fan_in]; the same for storage (R to D_k, B.1) and retrieval (D_k to R, B.2)."""
    variance = weight_variance(scheme, fan_in, fan_out)
    return Moments(fan_in * variance, fan_out * variance)


def gelu(variance: float) -> Moments:
    """GELU on normal inputs of `variance` s and mean zero: E[gelu(x)^2] / s, and E[gelu'(x)^2].

    The output's mean is not zero, so that forward is a ratio of second moments, as the next matrix sees them.
    """
    s = variance
    mean = s / math.sqrt(2 * math.pi * (s + 1))
    angle = math.asin(s / (1 + s))
    spread = math.pi / 2 - s / (1 + s) + angle + 2 * s / ((1 + s) * math.sqrt(1 + 2 * s))
    backward = 0.25 + angle / (2 * math.pi) + s * (5 * s + 3) / (2 * math.pi * (s + 1) * (2 * s + 1) ** 1.5)
    return Moments((s / (2 * math.pi) * spread + mean**2) / s, backward)


def uniform_attention(length: int) -> Moments:
    """Causal attention whose logits are all equal, from independent values to heads: H_T / T, averaged over places.

    Place t is the mean of t values, and the gradient of value s sums those of places t >= s, each over t. So it is
    at initialisation where queries start at zero; logits that differ put it higher.
    """
    mean = math.fsum(1 / t for t in range(1, length + 1)) / length
    return Moments(mean, mean)


def closed_forms(shape: Shape, scheme: Scheme = "xavier", length: int = 16) -> dict[Row, Moments]:
    """Every row at one shape, without depth scaling. q, k, v are one map, as in both models here and in Table 2.

    Args:
        shape: sizes.
        scheme: initialisation of weights and keys.
        length: tokens, for attention with queries at zero.
    """
    rank, keys, width, neurons = shape.rank, shape.key_dim, shape.width, shape.mlp_dim

    def map_of(fan_in: int, fan_out: int) -> Moments:
        return linear(fan_in, fan_out, scheme)

    store, read, first, second = map_of(rank, keys), map_of(keys, rank), map_of(width, neurons), map_of(neurons, width)
    return {
        Row("attention", "storage", "RMT"): store,
        Row("attention", "storage", "transformer"): map_of(width, width),
        Row("attention", "retrieval", "RMT"): map_of(keys, 3 * rank),
        Row("attention", "retrieval", "transformer"): map_of(width, 3 * width),
        Row("feed-forward", "storage", "RMT"): store,
        Row("feed-forward", "storage", "transformer"): second,
        Row("feed-forward", "retrieval", "RMT"): read,
        Row("feed-forward", "retrieval", "transformer"): first,
        Row("feed-forward", "path out", "RMT"): second.then(store),
        Row("feed-forward", "path out", "transformer"): second,
        Row("feed-forward", "path in", "RMT"): read.then(first),
        Row("feed-forward", "path in", "transformer"): first,
        Row("feed-forward", "whole", "transformer"): first.then(gelu(first.forward)).then(second),
        Row("attention", "whole, q = 0", "RMT"): uniform_attention(length),
    }
