"""Norms in front of a read: LayerNorm without bias and RMSNorm, over one axis or jointly over several."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Declared, Role


class Norm(Declared):
    """Normalises jointly over the last axes, then multiplies by a gain.

    Args:
        kind: `layernorm` (subtracts the mean) or `rmsnorm`.
        shape: sizes of the axes normalised over.
        gain_shape: shape of the gain, which broadcasts against the last axes; None for no gain.
        eps: added to the variance (mean square).
        role: role of the gain.
    """

    gain: Tensor | None

    def __init__(
        self,
        kind: Literal["layernorm", "rmsnorm"],
        shape: tuple[int, ...],
        gain_shape: tuple[int, ...] | None,
        eps: float,
        role: Role,
    ):
        super().__init__()
        self.kind: Literal["layernorm", "rmsnorm"] = kind
        self.shape, self.eps = shape, eps
        self.fused = gain_shape == shape
        if gain_shape is not None:
            self.declare("gain", gain_shape, role)
        else:
            self.register_parameter("gain", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., *shape] -> the same shape, in float32 or wider: statistics in bfloat16 would cost accuracy."""
        x = x.float() if x.itemsize < 4 else x
        weight = self.gain if self.fused else None
        if self.kind == "layernorm":
            out = F.layer_norm(x, self.shape, weight, None, self.eps)
        else:
            out = F.rms_norm(x, self.shape, weight, self.eps)
        return out if self.fused or self.gain is None else out * self.gain
