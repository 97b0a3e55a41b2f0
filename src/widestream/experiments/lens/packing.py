"""Matrices as a page's script reads them: bytes in base64."""

import base64

import torch
from torch import Tensor


def packed(values: Tensor, top: float) -> str:
    """Numbers from 0 to `top` as bytes 0 to 255."""
    return _text((values / top * 255).round().clamp(0, 255).to(torch.uint8))


def signed(values: Tensor, top: float) -> str:
    """Numbers from -top to top as 16 bits, -32767 to 32767, -32768 where there is none."""
    return _text((values / top * 32767).round().nan_to_num(-32768.0).to(torch.int16))


def largest(*matrices: Tensor) -> float:
    """The largest absolute value in matrices, not 0: what their cells are told as parts of."""
    return max(values.abs().nan_to_num(0.0).max().item() for values in matrices) or 1.0


def view(values: Tensor, top: float) -> dict[str, float | str]:
    """A matrix and the largest value that its cells can stand for."""
    return {"top": top, "bytes": signed(values, top)}


def _text(numbers: Tensor) -> str:
    return base64.b64encode(numbers.cpu().numpy().tobytes()).decode()
