"""Which experts a token goes through, and the way of its vector to them and back. No token is dropped.

    p = softmax(W_r x)                      over all experts, in float32
    picked = the k largest of p (+ b)       b: the balance bias, for the choice alone (arXiv 2408.15664)
    y = sum_e w_e expert_e(x)               w = p of those picked, divided by their sum if `normalise` (Mixtral, Qwen 3)

Letters: B batch, T tokens, N = B T, D width, E experts, k picked, M = N k rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.split import TokenSplit
from widestream.kernels.autocasting import no_autocast


@dataclass(frozen=True)
class Routes:
    """Ways of all tokens of one forward pass."""

    order: Tensor
    """Rows in order of their experts [M]: row i k + j is token i's j-th expert."""
    back: Tensor
    """Where each row lies in that order [M]."""
    experts: Tensor
    """Expert of each row in that order [M]."""
    ends: Tensor
    """Behind the last row of each expert [E] int32."""
    weights: Tensor
    """Of a token's experts [N, k] float32."""
    load: Tensor
    """Tokens of each window that picked each expert [B, E] int64."""
    balance: Tensor
    """E sum_e f_e p_e of each window [B] float32: k when all experts are equally busy, E when only k are."""


def route(
    x: Tensor, router: Tensor, top_k: int, normalise: bool, bias: Tensor | None = None, split: TokenSplit | None = None
) -> Routes:
    """Choose `top_k` experts for every token.

    f_e is the share of a window's tokens that picked expert e, and p_e the mean of its probability there (DeepSeek-V3,
    arXiv 2412.19437, eqs. 17-20, times k); taken window by window it does not depend on how a batch is cut into
    micro-batches and over processes.

    Args:
        x: [B, T, D].
        router: W_r [E, D].
        top_k: k.
        normalise: let a token's weights sum to 1.
        bias: b [E].
        split: the processes that share these windows, if several do. Each has p_e of its own tokens, so that the mean
            of their balances, and of the gradients, is that of whole windows.
    """
    with no_autocast(x.device):
        dtype = torch.promote_types(x.dtype, torch.float32)
        p = F.linear(x.to(dtype), router.to(dtype)).softmax(dim=-1)  # [B, T, E]
    picked = (p.detach() if bias is None else p.detach() + bias).topk(top_k, dim=-1).indices
    weights = p.gather(-1, picked)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    numbers = torch.arange(len(router), device=x.device)
    load = (picked[..., None] == numbers).sum((1, 2))
    picks, tokens = (load, x.shape[1]) if split is None else (split.total(load), split.size * x.shape[1])
    balance = len(router) * (picks.to(p.dtype) / tokens * p.mean(dim=1)).sum(dim=-1)
    experts, order = picked.flatten().sort(stable=True)
    return Routes(
        order=order,
        back=order.argsort(),
        experts=experts,
        ends=load.sum(0).cumsum(0).to(torch.int32),
        weights=weights.flatten(0, 1),
        load=load,
        balance=balance,
    )


def send(x: Tensor, routes: Routes) -> Tensor:
    """Tokens [N, D] to their experts: rows in order [M, D]."""
    top_k = routes.weights.shape[1]
    return _Rows.apply(x, routes.order // top_k, routes.back, top_k)


def bring_back(rows: Tensor, routes: Routes) -> Tensor:
    """Rows in order [M, D] to their tokens, weighted and summed [N, D]."""
    back = _Rows.apply(rows, routes.back, routes.order, 1).unflatten(0, routes.weights.shape)
    return (back * routes.weights.to(rows.dtype)[..., None]).sum(dim=1)


class _Rows(torch.autograd.Function):
    """Rows `x[there]`, and gradients back by an index too.

    As autograd has it, they would be added up where they came from: on a GPU in an order that differs from run to run.
    """

    @staticmethod
    def forward(x: Tensor, there: Tensor, back: Tensor, copies: int) -> Tensor:
        """Tokens [M / copies, D] -> [M, D]; `back` says where each of the copies of a row went."""
        return x.index_select(0, there)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep the ways."""
        _, _, back, ctx.copies = inputs
        ctx.save_for_backward(back)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Sum of the gradients of a row's copies."""
        (back,) = ctx.saved_tensors
        rows = grad.index_select(0, back)
        return rows if ctx.copies == 1 else rows.unflatten(0, (-1, ctx.copies)).sum(dim=1), None, None, None
