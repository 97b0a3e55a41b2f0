"""Head and cross-entropy in one, a few tokens at a time: the logits of a whole batch never exist.

Gradients are formed in the forward pass, while a chunk's logits are at hand, so nothing is computed twice.
Letters: M tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

# Logits of one product, in elements: bounds the memory, yet keeps the products large.
PRODUCT_ELEMENTS = 2**26
# Logits of one pass of the softmax, in elements: what a processor's cache holds.
SOFTMAX_ELEMENTS = 2**20


class _LinearCrossEntropy(torch.autograd.Function):
    """Sums over tokens of weighted cross-entropy and squared log-partition, with gradients ready for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [M, D], head [V, D], targets [M], weights [M] -> total, cross-entropy, squared log-partition (sums)."""
        needs_hidden, needs_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        h_all, w = hidden.to(dtype), head.to(dtype)
        grad_hidden = torch.empty_like(h_all) if needs_hidden else None
        grad_head = None
        ce, z = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        for rows in _slices(len(targets), PRODUCT_ELEMENTS // len(w)):
            h = h_all[rows]
            logits = h @ w.T
            grad = torch.empty_like(logits) if needs_hidden or needs_head else None
            inner = SOFTMAX_ELEMENTS // len(w) if logits.device.type == "cpu" else len(h)
            for part in _slices(len(h), inner):
                part_ce, part_z = _softmax_rows(
                    logits[part], targets[rows][part], weights[rows][part], z_loss, None if grad is None else grad[part]
                )
                ce, z = ce + part_ce, z + part_z
            if grad_hidden is not None:
                torch.mm(grad, w, out=grad_hidden[rows])
            if needs_head:
                product = grad.T @ h
                grad_head = product.to(head.dtype) if grad_head is None else grad_head.add_(product)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(ce, z)
        return ce + z_loss * z, ce.clone(), z.clone()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass has prepared."""
        grad_hidden, grad_head = ctx.saved_tensors
        hidden_dtype, _head_dtype = ctx.dtypes
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden_dtype) * grad_total
        return grad_hidden, None if grad_head is None else grad_head * grad_total, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of softmax(head @ hidden) without ever holding all logits.

    Args:
        hidden: [M, D].
        head: [V, D].
        targets: [M] int64.
        weights: [M] weight of every token, or None for one each.
        z_loss: weight of (log sum exp logits)^2 in the total.

    Returns:
        total: mean cross-entropy + z_loss * mean squared log-partition, to call backward on;
        cross_entropy, z: the two means, detached, float32.
    """
    dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
    weights = torch.ones_like(targets, dtype=torch.float32) if weights is None else weights.float()
    # Normalised before the sum, so that the gradients come out of the forward pass at their final size.
    weights = weights / weights.sum().clamp_min(1.0)
    return _LinearCrossEntropy.apply(hidden, head, targets, weights, z_loss, dtype)  # pyright: ignore[reportReturnType]


def _softmax_rows(
    logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted sums of cross-entropy and squared log-partition of rows [m, V]; fills `grad` with their gradient."""
    logits = logits.float()
    log_z = logits.logsumexp(dim=-1)
    ce = (weights * (log_z - logits.gather(1, targets[:, None])[:, 0])).sum()
    if grad is not None:
        # d/dlogits of ce + z_loss * log_z^2 = p (1 + 2 z_loss log_z) - onehot
        p = logits.sub_(log_z[:, None]).exp_() if logits is not grad else logits
        p.mul_((weights * (1 + 2 * z_loss * log_z))[:, None])
        p.scatter_add_(1, targets[:, None], -weights[:, None])
        grad.copy_(p)
    return ce, (weights * log_z.square()).sum()


def _slices(total: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
