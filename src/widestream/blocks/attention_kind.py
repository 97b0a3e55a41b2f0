"""What computes attention in training.

* `sdpa`: torch's scaled_dot_product_attention, with a mask in memory where one is needed.
* `flex`: FlexAttention where a mask is needed (flex.py); trains on a CUDA device only.
* `fused`: on a CPU, torch's forward pass and a compiled backward pass of this package (kernels/attention_cpu.py).
"""

from typing import Literal

import torch

from widestream.blocks.flex import SMALLEST_HEAD
from widestream.errors import UserError
from widestream.kernels.compiled import require_compiler

Attention = Literal["sdpa", "flex", "fused"]
AttentionSetting = Literal["auto", "sdpa", "flex", "fused"]


def choose_attention(
    asked: AttentionSetting, device: torch.device, *, compiled: bool, masked: bool, head_dim: int, upcast: bool
) -> Attention:
    """What computes attention on a device.

    Args:
        asked: `train.attention`.
        device: where the model is.
        compiled: whether the blocks are.
        masked: whether the model needs any mask other than causal.
        head_dim: K.
        upcast: whether attention is computed in float32 under autocast. `auto` leaves that to SDPA on a GPU: in
            float32, FlexAttention's products use no tensor cores unless TF32 is allowed.

    Raises:
        UserError: what was asked for cannot be had here.
    """
    if asked == "flex":
        _require_flex(device, head_dim)
    if asked in ("auto", "fused") and device.type == "cpu":
        from widestream.kernels.attention_cpu import available

        missing = available()
        if missing is None:
            return "fused"
        if asked == "fused":
            raise UserError(f"train.attention: fused cannot be had: {missing.rstrip('.')}; use auto or sdpa.")
    if asked == "fused":
        raise UserError(f"train.attention: fused is for a CPU, and this is {device.type}; use auto, sdpa or flex.")
    suits = device.type == "cuda" and compiled and masked and head_dim >= SMALLEST_HEAD and not upcast
    return "flex" if asked == "flex" or (asked == "auto" and suits) else "sdpa"


def _require_flex(device: torch.device, head_dim: int) -> None:
    if device.type != "cuda":
        raise UserError(
            f"train.attention: flex trains on a CUDA device only, and this is {device.type} "
            "(torch's FlexAttention has no backward pass there); use auto or sdpa."
        )
    if head_dim < SMALLEST_HEAD:
        raise UserError(
            f"train.attention: flex needs a model.head_dim of at least {SMALLEST_HEAD}, and it is {head_dim}; "
            "use auto or sdpa."
        )
    require_compiler("train.attention: flex", device)
