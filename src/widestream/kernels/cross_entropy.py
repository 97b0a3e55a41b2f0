"""Head and cross-entropy in one, a few tokens at a time: the logits of a whole batch never exist.

Gradients are formed in the forward pass, while a chunk's logits are at hand, so nothing is computed twice.
Letters: M tokens, D width, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from widestream.kernels.autocasting import autocast_dtype

# Logits of one product, in elements: bounds the memory, yet keeps the products large.
PRODUCT_ELEMENTS = 2**26
# Logits of one pass of the softmax, in elements: what a processor's cache holds.
SOFTMAX_ELEMENTS = 2**20
# Parts in which a CPU makes logits, and their products with the head, in bfloat16. oneDNN 3.12 makes a product of 1024
# rows and 768 columns in one thread, however many there are, and one with a whole vocabulary at two thirds of its speed
# (lab/2026-11-22-cpu-step.md).
VOCABULARY_PART, ROWS_PART = 8192, 512

_cut_for_cpu = [True]


class _LinearCrossEntropy(torch.autograd.Function):
    """Weighted sums of cross-entropy and squared log-partition, with gradients made ready for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        z_loss: float,
        soft_cap: float | None,
        dtype: torch.dtype,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden [M, D], head [V, D], targets [M], weights [M] -> sums: total, cross-entropy, squared log-partition."""
        all_h, w = hidden.to(dtype), head.to(dtype)
        grad_hidden = torch.empty_like(all_h) if needs_grad else None
        grad_head: Tensor | None = None
        ce, z = (torch.zeros((), device=hidden.device) for _ in range(2))
        for rows in _slices(len(targets), PRODUCT_ELEMENTS // len(w)):
            h, weight = all_h[rows], weights[rows]
            logits = _logits(h, w)
            log_z, log_p = _softmax(logits, targets[rows], z_loss, soft_cap, in_place=needs_grad)
            ce, z = ce - (weight * log_p).sum(), z + (weight * log_z.square()).sum()
            if grad_hidden is not None:
                # The rows' common factor goes to the narrow side of both products, which spares a pass over the logits.
                factor = (weight * (1 + 2 * z_loss * log_z)).to(dtype)[:, None]
                _multiply_by_rows(logits, w, grad_hidden[rows]).mul_(factor)
                product = logits.T @ (h * factor)
                grad_head = product.to(head.dtype) if grad_head is None else grad_head.add_(product)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(ce, z)
        return ce + z_loss * z, ce, z

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_total: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has prepared, in place: a backward pass happens once."""
        grad_hidden, grad_head = ctx.saved_tensors
        grads = grad_hidden.to(ctx.hidden_dtype).mul_(grad_total), grad_head.mul_(grad_total)
        return *grads, None, None, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of softmax(head @ hidden) without ever holding all logits.

    Args:
        hidden: [M, D].
        head: [V, D].
        targets: [M] int64.
        weights: [M] weight of every token, or None for one each.
        z_loss: weight of (log sum exp logits)^2 in the total.
        soft_cap: c, where logits become c tanh(logit / c).

    Returns:
        total: mean cross-entropy + z_loss * mean squared log-partition, to call backward on;
        cross_entropy, z: the two means, detached, float32.
    """
    dtype = autocast_dtype(hidden.device) or hidden.dtype
    weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights.float()
    # Normalised before the sum, so that the gradients come out of the forward pass at their final size.
    weights = weights / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)
    # Asked here, because inside of `forward` autograd is off and parameters still say that they require a gradient.
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    return _LinearCrossEntropy.apply(hidden, head, targets, weights, z_loss, soft_cap, dtype, needs_grad)  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def cut_as_on_gpu() -> Iterator[None]:
    """Cut as for a GPU whatever device tensors lie on: for measurements without contents."""
    _cut_for_cpu.append(False)
    try:
        yield
    finally:
        _cut_for_cpu.pop()


def _softmax(
    logits: Tensor, targets: Tensor, z_loss: float, soft_cap: float | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Log-partition [m] and log-probability of the target [m] of logits [m, V], in float32.

    In place, `logits` turn into p - onehot / (1 + 2 z_loss log_z), which times weight * (1 + 2 z_loss log_z) is the
    gradient of weight * (cross-entropy + z_loss log_z^2), times the slope of the soft cap, where there is one.
    """
    log_zs, log_ps = [], []
    rows = SOFTMAX_ELEMENTS // logits.shape[1] if _on_cpu(logits) else len(logits)
    for part in _slices(len(logits), rows):
        own, target = logits[part], targets[part][:, None]
        values, slope = own.float(), None
        if soft_cap is not None:
            squashed = torch.tanh(values / soft_cap)
            values, slope = soft_cap * squashed, 1 - squashed.square()
        at_target = values.gather(1, target)
        log_p = torch.log_softmax(values, dim=-1)
        log_p_target = log_p.gather(1, target)
        log_z = at_target - log_p_target
        if in_place:
            p = log_p.exp_()
            p.scatter_add_(1, target, -1 / (1 + 2 * z_loss * log_z))
            own.copy_(p if slope is None else p.mul_(slope))
        log_zs.append(log_z[:, 0])
        log_ps.append(log_p_target[:, 0])
    return torch.cat(log_zs), torch.cat(log_ps)


def _logits(h: Tensor, w: Tensor) -> Tensor:
    logits = h.new_empty(len(h), len(w))
    for part in _slices(len(w), VOCABULARY_PART if _in_parts(h) else len(w)):
        torch.mm(h, w[part].T, out=logits[:, part])
    return logits


def _multiply_by_rows(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    for rows in _slices(len(a), ROWS_PART if _in_parts(a) else len(a)):
        torch.mm(a[rows], b, out=out[rows])
    return out


def _in_parts(x: Tensor) -> bool:
    return _on_cpu(x) and x.dtype == torch.bfloat16


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and _cut_for_cpu[-1]


def _slices(total: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
