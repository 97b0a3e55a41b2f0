"""Tensors that know what they are the sum of.

A `Parted` is a tensor together with the share that each writer has in it. Operations act on the shares as they act on
the tensor, as far as they are linear; with that, any stream's own `write` and `read` say exactly who wrote what its
readers get, and no stream needs code of its own for it.

    sums, maps, views, products with weights       act on every share
    norms                                          act on every share, with the scale of the whole
    gates (softmax, sigmoid, ...)                  are computed of the whole, and multiply every share

What is not linear and no gate (a GELU on the way) leaves a remainder: the shares do not sum to the tensor, and
`Parted.missing` says by how much. Where both factors of a product carry shares, the one with fewer numbers is the
gate; of equal ones the product is not linear.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Share = Tensor | None
"""A writer's share; None: it has none."""

MAPS = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "transpose", "t", "permute", "unsqueeze"),
        *("squeeze", "select", "slice", "split", "split_with_sizes", "unbind", "chunk", "unfold", "alias", "clone"),
        *("contiguous", "detach", "_to_copy", "neg", "sum", "mean", "flip", "roll", "constant_pad_nd", "cumsum"),
        *("index", "index_select", "gather", "diagonal", "tril", "triu", "repeat", "repeat_interleave"),
    )
)
"""Linear in their first tensor, which is the only one with shares."""
SUMS = frozenset(("add", "sub", "rsub", "cat", "stack", "where", "masked_fill", "lerp"))
"""Linear in all their tensors together."""
PRODUCTS = {
    "mul": 0,
    "div": 0,
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "dot": 0,
    "convolution": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addcmul": 1,
}
"""Linear in each of two tensors; how many others stand in front of these, to be added."""
VIEWS = frozenset(("view", "_unsafe_view", "_reshape_alias"))
EMPTY = frozenset(
    ("zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty", "new_full", "full_like")
)
"""They take a tensor's shape alone."""


@dataclass(slots=True)
class Ledger:
    """What was met on the way."""

    gated: set[str] = field(default_factory=set)
    """Products in which a gate that depends on the stream had a part."""
    nonlinear: set[str] = field(default_factory=set)
    """Operations that took a tensor without its shares."""


class Parted(Tensor):
    """A tensor and its shares. Meant for `torch.no_grad`.

    Args:
        value: the tensor.
        shares: of every writer, each of the tensor's shape; the last one is that of all else: constants, and what
            nobody asked about. None: the tensor depends on the stream, but not linearly (a gate).
        ledger: takes down what was met.
    """

    value: Tensor
    """The tensor itself."""
    shares: list[Share] | None
    """See above."""
    ledger: Ledger

    @staticmethod
    def __new__(cls, value: Tensor, shares: list[Share] | None, ledger: Ledger) -> "Parted":
        """A wrapper without numbers of its own."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.value, made.shares, made.ledger = value, shares, ledger
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Its shape and how many shares."""
        return f"Parted({tuple(self.value.shape)}, shares={None if self.shares is None else len(self.shares)})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute the operation, and what it does to the shares."""
        return _Call(func, args, kwargs or {}).result()

    def missing(self) -> float:
        """Size of what the shares do not account for, beside the size of the tensor."""
        if self.shares is None:
            return 1.0
        rest = self.value.double()
        for share in self.shares:
            rest = rest if share is None else rest - share
        size = self.value.double().norm().item()
        return rest.norm().item() / size if size else 0.0


class _Call:
    """One operation on tensors some of which are `Parted`."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.func, self.name = func, func._schema.name.split("::")[1]
        flat, self.spec = tree_flatten((args, kwargs))
        self.plain = [x.value if isinstance(x, Parted) else x for x in flat]
        self.tensors = [i for i, x in enumerate(self.plain) if isinstance(x, Tensor) and x.dtype != torch.bool]
        self.shares: dict[int, list[Share]] = {
            i: x.shares for i, x in enumerate(flat) if isinstance(x, Parted) and x.shares is not None
        }
        """Of the arguments that have shares."""
        self.gates = [i for i, x in enumerate(flat) if isinstance(x, Parted) and x.shares is None]
        self.ledger = next(x.ledger for x in flat if isinstance(x, Parted))

    def result(self) -> Any:
        """What the operation gives."""
        self.out = self._run(self.func, self.plain)
        if self.name in EMPTY:
            return self.out
        if not self.shares:
            return self._wrapped(None)
        if self.name in NORMS:
            return self._wrapped([None if share is None else [share] for share in NORMS[self.name](self)])
        together = self._together()
        if together is None:
            self.ledger.nonlinear.add(self.name)
            return self._wrapped(None)
        count = len(next(iter(self.shares.values())))
        return self._wrapped([self._share(writer, together, writer == count - 1) for writer in range(count)])

    def plain_args(self) -> tuple[Any, ...]:
        """The positional arguments, as plain tensors."""
        return tree_unflatten(self.plain, self.spec)[0]

    def first_shares(self) -> list[Share]:
        """Of the first argument."""
        return self.shares[0]

    def _together(self) -> list[int] | None:
        """The arguments in which, together, the operation is linear, all others held as they are; None: in none."""
        if self.name in MAPS:
            return self.tensors[:1] if {*self.shares} == {*self.tensors[:1]} else None
        if self.name in SUMS:
            return self.tensors[:2] if self.name == "lerp" else self.tensors
        return self._of_product() if self.name in PRODUCTS else None

    def _of_product(self) -> list[int] | None:
        before = PRODUCTS[self.name]
        added, factors = self.tensors[:before], self.tensors[before : before + 2]
        if self.name == "convolution":
            added = self.tensors[2:]
        if len(factors) < 2:  # times a number
            return factors
        varied = self._varied(factors)
        if varied is None:
            return None
        (held,) = (i for i in factors if i != varied)
        if held in self.gates or held in self.shares:
            self.ledger.gated.add(self.name)
        return [*added, varied]

    def _varied(self, factors: list[int]) -> int | None:
        """The factor whose shares the product's are; the other one is its gate."""
        first, second = factors
        if self.name in ("div", "convolution"):
            return first if first in self.shares else None
        if first in self.shares and second in self.shares:
            numbers = self.plain[first].numel(), self.plain[second].numel()
            return None if numbers[0] == numbers[1] else factors[numbers[1] > numbers[0]]
        # Neither has shares where a product is added to something that has: what depends on the stream is held out.
        return next((i for group in (self.shares, self.gates) for i in factors if i in group), first)

    def _share(self, writer: int, together: list[int], last: bool) -> Any:
        """A writer's share of the result: the operation on its shares, with zeros for all others'."""
        mine = {i: share for i in together if i in self.shares and (share := self.shares[i][writer]) is not None}
        others = [i for i in together if i not in self.shares and i not in self.gates] if last else []
        constant = any(bool(self.plain[i].any()) for i in others) or (last and self._adds_number())
        if not mine and not constant:
            return None
        if self.name == "add" and [*mine] == together[:1] and not constant:
            share = mine[together[0]]
            if share.shape == self.out.shape:
                return share
        now = list(self.plain)
        for i in together:
            now[i] = mine[i] if i in mine else self.plain[i] if i in others else torch.zeros_like(self.plain[i])
        if not last and (number := self._added_number()) is not None:
            now[number] = 0
        # A share may lie in memory otherwise than the whole, whose views are no views of it then.
        return self._run(torch.ops.aten.reshape.default if self.name in VIEWS else self.func, now)

    def _added_number(self) -> int | None:
        """Where a number stands that is added: in x + 1, 1 - x, masked_fill(x, mask, 1)."""
        if self.name == "masked_fill" or (self.name in ("add", "sub", "rsub") and len(self.tensors) == 1):
            return next((i for i, x in enumerate(self.plain) if isinstance(x, int | float)), None)
        return None

    def _adds_number(self) -> bool:
        number = self._added_number()
        return number is not None and bool(self.plain[number] != 0)

    def _run(self, func: Any, flat: Sequence[Any]) -> Any:
        args, kwargs = tree_unflatten(list(flat), self.spec)
        return func(*args, **kwargs)

    def _wrapped(self, shares: list[Any] | None) -> Any:
        """The result, whose tensors carry `shares`; of an operation with several results each writer has several."""
        out, spec = tree_flatten(self.out)
        by_writer = None if shares is None else [None if share is None else tree_flatten(share)[0] for share in shares]

        def wrap(index: int, tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            known = by_writer is not None and all(s is None or index < len(s) for s in by_writer)
            own = [None if s is None else s[index] for s in by_writer] if known and by_writer is not None else None
            return Parted(tensor, own, self.ledger)

        return tree_unflatten([wrap(index, tensor) for index, tensor in enumerate(out)], spec)


def _layer_norm(call: _Call) -> list[Share]:
    """(x - mean) / std * gain + bias: each share less its own mean, over the std of the whole; bias is a constant."""
    _, shape, gain, bias, *_ = call.plain_args()
    axes = tuple(range(-len(shape), 0))
    factor = _factor(call.out[2], gain)
    found: list[Share] = [
        None if share is None else (share - share.mean(axes, keepdim=True)) * factor for share in call.first_shares()
    ]
    if bias is not None:
        found[-1] = bias.expand_as(call.out[0]) if found[-1] is None else found[-1] + bias
    return found


def _rms_norm(call: _Call) -> list[Share]:
    """The same without a mean, as kernels/norm_cpu.py has it: each share over the root mean square of the whole."""
    _, gain, cos, _, axes, eps, *_ = call.plain_args()
    assert cos is None, "a stream turns nothing"
    assert eps is not None, "a stream turns nothing"
    scale = call.out[1].reshape(*call.out[1].shape, *(1 for _ in range(axes)))
    return _times(call.first_shares(), _factor(scale, gain))


def _torch_rms_norm(call: _Call) -> list[Share]:
    """The same as torch's operation."""
    _, _, gain, *_ = call.plain_args()
    return _times(call.first_shares(), _factor(call.out[1], gain))


def _factor(scale: Tensor, gain: Tensor | None) -> Tensor:
    """Once for all shares."""
    return scale if gain is None else scale * gain


def _times(shares: list[Share], factor: Tensor) -> list[Share]:
    return [None if share is None else share * factor for share in shares]


NORMS: dict[str, Callable[[_Call], list[Share]]] = {
    "native_layer_norm": _layer_norm,
    "norm_rotate": _rms_norm,
    "_fused_rms_norm": _torch_rms_norm,
}
"""Norms as one operation. Written in single operations they need no rule: squares are no map, so they make a gate."""
