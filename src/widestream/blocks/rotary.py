"""Rotary positions (Su et al., arXiv 2104.09864) and how their frequencies are scaled for longer text.

Pair i of a head turns by position * f_i, f_i = base^(-2 i / d), d the numbers of a head that turn. Scalings change f:

    linear    f / factor                                              (Chen et al., arXiv 2306.15595)
    ntk       base * factor^(d / (d - 2)) in place of the base
    yarn      (1 - r) f / factor + r f, r = 1 where f turns at least beta_fast times in the original context, 0 where it
              turns beta_slow times or less, linear in i between; cosines and sines times 0.1 ln(factor) + 1
              (Peng et al., arXiv 2309.00071)
    llama3    the same with r = (original / wavelength - low) / (high - low), within 0 and 1     (Llama 3.1)

Frequencies are float32, made by the operations that transformers makes them with, so that they are equal to the bit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.blocks.norm import Norm
from widestream.kernels.norm_cpu import norm_rotate, one_pass, turn
from widestream.recipe.blocks import RotaryScalingConfig
from widestream.recipe.model import ModelConfig


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of tokens, and how pairs lie in a head."""

    cos: Tensor
    """[T, 1, d / 2], the middle axis for heads; [B, T, 1, d / 2] where rows have positions of their own."""
    sin: Tensor
    """The same."""
    neighbours: bool = False
    """Whether pairs are 2 i and 2 i + 1, not i and i + d / 2."""


def rotary_angles(config: ModelConfig, positions: Tensor, windowed: bool) -> Angles:
    """Of layers whose attention has a window (`windowed`), or sees all tokens.

    Args:
        config: the model's, with rotary positions.
        positions: [T] or [B, T].
        windowed: whether the layers have a window.
    """
    base = config.rotary_window_base if windowed and config.rotary_window_base else config.rotary_base
    scaling = config.rotary_scaling
    scaled = scaling.kind != "none" and not (windowed and scaling.layers == "full")
    frequencies = _frequencies(base, config.rotary_dim, positions.device)
    factor = 1.0
    if scaled:
        frequencies, factor = _scale(frequencies, scaling, base, config.rotary_dim)
    angles = (positions.float()[..., None] * frequencies).unsqueeze(-2)
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return Angles(cos, sin, config.rotary_pairs == "neighbours")


def rotate(x: Tensor, angles: Angles, norm: Norm | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Turn the first d numbers of heads x [B, T, H, D_h] by the angles of their positions; the others stay.

    Args:
        x: the heads.
        angles: of their tokens.
        norm: normalises every head before.
        dtype: of what is returned; default: the norm's, or that of x.
    """
    if one_pass(x) and not angles.neighbours and (norm is None or norm.plain):
        gain, eps = (None, None) if norm is None else (norm.factor(), norm.eps)
        dtype = dtype or (x.dtype if norm is None else torch.promote_types(x.dtype, torch.float32))
        return norm_rotate(x, gain, eps, angles.cos, angles.sin, dtype)
    x = x if norm is None else norm(x)
    wide = x.float() if x.itemsize < 4 else x
    return _turn(wide, angles).to(dtype or x.dtype)


def _turn(x: Tensor, angles: Angles) -> Tensor:
    if not angles.neighbours:
        return turn(x, angles.cos, angles.sin)
    width = 2 * angles.cos.shape[-1]
    first, second = x[..., 0:width:2], x[..., 1:width:2]
    pair = first * angles.cos - second * angles.sin, second * angles.cos + first * angles.sin
    return torch.cat((torch.stack(pair, dim=-1).flatten(-2), x[..., width:]), dim=-1)


def _frequencies(base: float, dim: int, device: torch.device) -> Tensor:
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim)


def _scale(frequencies: Tensor, scaling: RotaryScalingConfig, base: float, dim: int) -> tuple[Tensor, float]:
    """Scaled frequencies, and a factor for cosines and sines."""
    assert scaling.factor is not None
    match scaling.kind:
        case "linear":
            return frequencies / scaling.factor, 1.0
        case "ntk":
            stretch = scaling.factor ** (dim / (dim - 2)) if dim > 2 else 1.0
            return _frequencies(base * stretch, dim, frequencies.device), 1.0
        case "yarn":
            factor = scaling.attention_factor
            factor = 0.1 * math.log(scaling.factor) + 1.0 if factor is None else factor
            return _yarn(frequencies, scaling, base, dim), factor
        case "llama3":
            return _llama3(frequencies, scaling), 1.0
        case _:
            raise AssertionError(scaling.kind)


def _yarn(frequencies: Tensor, scaling: RotaryScalingConfig, base: float, dim: int) -> Tensor:
    assert scaling.factor is not None
    original = scaling.original_context
    assert original is not None

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    index = torch.arange(dim // 2, dtype=torch.float32, device=frequencies.device)
    unchanged = 1 - torch.clamp((index - low) / (high - low), 0, 1)
    # 1 / (factor / f) and not f / factor, as transformers rounds it.
    return 1.0 / (scaling.factor * (1.0 / frequencies)) * (1 - unchanged) + frequencies * unchanged


def _llama3(frequencies: Tensor, scaling: RotaryScalingConfig) -> Tensor:
    factor, original = scaling.factor, scaling.original_context
    low, high = scaling.low_frequency, scaling.high_frequency
    assert factor is not None
    assert original is not None
    assert low is not None
    assert high is not None
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    part = (original / wavelengths - low) / (high - low)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return torch.where(between, (1 - part) * scaled / factor + part * scaled, scaled)
