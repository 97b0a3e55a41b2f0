"""What an implementation of the exchange must give: the reference in float64, on random inputs of any shape."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Any, Literal

import torch
from torch import Tensor

from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, SiteNorm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest |result - exact| / |exact| (Frobenius norms), by the narrowest precision among state, gradient and data."""

GainKind = Literal["full", "row"] | None

NORMS: tuple[SiteNorm, ...] = ("layernorm", "rmsnorm", "none")
GAINS: tuple[GainKind, ...] = ("full", "row", None)
PRECISIONS = (
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.float32),
)
"""Of a state, its gradient and data vectors."""


@dataclass(frozen=True, slots=True)
class Case:
    """A random exchange: sizes by the letters of `kernels.exchange`."""

    N: int
    V: int
    K: int
    R: int
    roles: int
    """Q / R: 3 in front of attention, else 1."""
    norm: SiteNorm = "layernorm"
    gain: GainKind = "full"
    writes: bool = True
    heads_first: bool = False
    """Data vectors are transposes of [N, R, V] and [N, Q, V], as attention has them."""
    apart: bool = False
    """New states and their gradients are filled beside the old ones, which stay."""
    state: torch.dtype = torch.float32
    gradient: torch.dtype = torch.float32
    """Precision of the state's gradient."""
    vectors: torch.dtype = torch.float32
    """Precision of data vectors, written and read."""

    @property
    def tolerance(self) -> float:
        """See `TOLERANCE`."""
        narrow = torch.bfloat16 in (self.state, self.gradient, self.vectors)
        return TOLERANCE[torch.bfloat16 if narrow else torch.float32]


def grid(shapes: list[tuple[int, int, int, int]]) -> Iterator[Case]:
    """Both role counts and all precisions at all `shapes` (N, V, K, R), all other choices in turn."""
    choices = list(product(NORMS, GAINS, (True, True, False), (False, True), (False, True)))
    random.Random(0).shuffle(choices)  # else a choice would always meet the same precision
    turns = cycle(choices)
    for (N, V, K, R), roles, precisions in product(shapes, (1, 3), PRECISIONS):
        yield Case(N, V, K, R, roles, *next(turns), *precisions)


@dataclass(slots=True)
class Inputs:
    """All tensors of one call of both passes."""

    state: Tensor
    grad_state: Tensor
    data: Tensor | None
    grad_data: Tensor | None
    site: Site
    out: Tensor
    grad_out: Tensor


def draw(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Inputs as a model has them: a state away from zero mean, keys of size one over root D_k."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def vectors(count: int) -> Tensor:
        shape = (case.N, count, case.V) if case.heads_first else (case.N, case.V, count)
        drawn = normal(*shape, dtype=case.vectors)
        return drawn.mT if case.heads_first else drawn

    N, V, K, R, Q = case.N, case.V, case.K, case.R, case.roles * case.R
    gain = {"full": (V, K), "row": (K,), None: None}[case.gain]
    site = Site(
        normal(K, R) * K**-0.5 if case.writes else None,
        normal(Q, K) * K**-0.5,
        None if gain is None else 1 + 0.3 * normal(*gain),
        case.norm,
        1e-6,
    )
    data = vectors(R) if case.writes else None
    return Inputs(
        (2 * normal(N, V, K) + 0.5).to(case.state), normal(N, V, K, dtype=case.gradient), data,
        None if data is None else torch.empty_like(data), site, torch.empty_like(vectors(Q)), vectors(Q),
    )  # fmt: skip


def exact(inputs: Inputs) -> Inputs:
    """The same in float64, in memory of its own."""

    def wide(x: Tensor | None) -> Any:
        return None if x is None else x.double().clone(memory_format=torch.preserve_format)

    site = inputs.site
    site = replace(site, write_keys=wide(site.write_keys), read_keys=wide(site.read_keys), gain=wide(site.gain))
    names = ("state", "grad_state", "data", "grad_data", "out", "grad_out")
    return Inputs(**{name: wide(getattr(inputs, name)) for name in names}, site=site)


def run(exchange: Exchange, inputs: Inputs, apart: bool = False) -> dict[str, Tensor]:
    """Both passes, in place or `apart`: everything that comes out, by name. `inputs` are used up."""
    before, after, grad_after, grad = inputs.state, inputs.state, None, inputs.grad_state
    if apart:
        after, grad_after, grad = torch.full_like(before, torch.nan), grad, torch.full_like(grad, torch.nan)
    exchange.forward_(after, inputs.data, inputs.site, inputs.out, before if apart else None)
    results = {"state": after.clone(), "out": inputs.out}
    gradients = exchange.backward_(after, grad, inputs.data, inputs.site, inputs.grad_out, inputs.grad_data, grad_after)
    assert not apart or torch.equal(after, results["state"]), "a saved state has changed"
    results |= {"state before": before, "grad state": grad, "grad data": inputs.grad_data}
    results |= {f"grad {name}": getattr(gradients, name) for name in ("write_keys", "read_keys", "gain")}
    return {name: value for name, value in results.items() if value is not None}


def errors(exchange: Exchange, case: Case, device: torch.device, seed: int = 0) -> dict[str, float]:
    """Relative error of everything an exchange puts out, against the reference in float64."""
    inputs = draw(case, device, seed)
    expected = run(ReferenceExchange(), exact(inputs))
    results = run(exchange, inputs, case.apart)
    assert results.keys() == expected.keys(), (results.keys(), expected.keys())
    return {name: _distance(results[name], expected[name]) for name in expected}


def _distance(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    return ((result.double() - expected).norm() / expected.norm()).item()
