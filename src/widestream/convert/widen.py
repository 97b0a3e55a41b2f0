"""A wider stream around trained blocks, without a change of what the model computes (`widestream widen`).

The plain transformer is the matrix stream with D_k = R and identity keys: X = sum_h e_h (x) x_h, its vector cut into R
parts. Rows are added to X, empty ones at first:

    w' = [w; 0]               storage keys: nothing is written there yet
    r' = [r, s n]             retrieval keys: n normal, s small; they read zeros
    g' = sqrt(D_k / D_k') g,  eps' = (D_k / D_k') eps

for with D_k' - D_k empty rows the mean square of X is D_k / D_k' of what it was. The new storage keys have a gradient
from the first step on, because something reads there, and the new retrieval keys from the second on. Gains of new rows
start at the mean of the old ones in their column.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from widestream.blocks.roles import require_seed
from widestream.convert.centre import Weights, with_rms_norm
from widestream.convert.stream import Converted, write_converted
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.decoder import Decoder
from widestream.recipe.model import ModelConfig
from widestream.runs.folder import load_config
from widestream.runs.made import require_absent
from widestream.runs.model import load_model
from widestream.streams import stream_class
from widestream.streams.matrix.dense import NEW_KEYS, MatrixDenseConfig, longer_gain
from widestream.streams.matrix.rmt import MatrixBase, MatrixConfig, WidenedFields


def widen_run(
    run: Path, key_dim: int, to: Path, std: float = NEW_KEYS, seed: int = 0, step: int | None = None
) -> Converted:
    """Make a run with a wider stream.

    Args:
        run: folder of a run with a vector, matrix or matrix_dense stream.
        key_dim: D_k of the new stream; what it is now is the number of heads for a vector stream, which may stay that:
            keys that mix what there is, the control of a wider one.
        to: the run to make.
        std: standard deviation of the new retrieval keys.
        seed: of these.
        step: of the checkpoint; None: the newest.

    Raises:
        UserError: the stream is another one, no narrower, or the model has a setting that a matrix stream does not
            have; names it. Or `std` or `seed` are out of range.
    """
    require_absent(to)
    require_seed(seed)
    if not 0 < std < math.inf:
        raise UserError(f"--std is {std}; it must be above 0, for new rows that nothing reads would never be written.")
    config = load_config(run)
    now = _width_now(run, config.model)
    plain = config.model.stream.kind == "vector"
    if key_dim < now or (key_dim == now and not plain):
        least = f"larger --key-dim than {now}"
        if plain:
            least = f"--key-dim of at least {now} (at {now}: keys, and no new rows)"
        raise UserError(f"The stream of {run} has D_k = {now} already; give a {least}.")
    meta_model(wider_config(_matrix_config(config.model), now, key_dim))  # what does not fit is said before reading
    old, saved = load_model(run, torch.device("cpu"), step)
    new = widened(old, key_dim, std, seed)
    return write_converted(
        run, to, config, (old, new), saved, "widen", {"key_dim": key_dim, "from": now, "std": std, "seed": seed}
    )


def _width_now(run: Path, config: ModelConfig) -> int:
    """D_k as it is: of a plain stream R."""
    stream = config.stream
    if type(stream) in (MatrixConfig, MatrixDenseConfig):
        assert isinstance(stream, WidenedFields)
        if config.norm != "rmsnorm":
            raise UserError(
                f"{run} has a {stream.kind} stream with norm: {config.norm}, whose mean over the state would be "
                "another with empty rows; only one with norm: rmsnorm can be widened."
            )
        return stream.key_dim
    if stream.kind != "vector":
        raise UserError(f"{run} has a {stream.kind} stream; what is widened is a vector, matrix or matrix_dense one.")
    inner = config.num_heads * config.head_dim
    if config.embed_dim != inner:
        raise UserError(
            f"{run} has width {config.embed_dim}, and {config.num_heads} heads of {config.head_dim}: a matrix_dense "
            f"stream needs width = num_heads * head_dim, {inner} here; this model cannot be widened."
        )
    if config.mup_bases:
        raise UserError(
            f"{run} has model.mup.{next(iter(config.mup_bases))}, and base sizes mean other axes in a matrix_dense "
            "stream; this model cannot be widened."
        )
    return config.num_heads


def _matrix_config(config: ModelConfig) -> ModelConfig:
    """A plain model's configuration as a matrix one of the same width; another's as it is."""
    if config.stream.kind != "vector":
        return config
    cast = "after_gain"  # no difference in float32; keys compute in it
    stream = MatrixDenseConfig(key_dim=config.num_heads)
    return replace(config, stream=stream, width=None, norm="rmsnorm", norm_bias=False, norm_cast=cast)


def wider_config(config: ModelConfig, now: int, key_dim: int) -> ModelConfig:
    """A matrix model's configuration at a larger D_k."""
    stream = config.stream
    assert isinstance(stream, WidenedFields)
    kind = stream_class(stream.kind)
    assert issubclass(kind, MatrixBase)
    eps = kind.eps_of(config) * now / key_dim
    return replace(config, stream=replace(stream, key_dim=key_dim, norm_eps=eps))


@torch.no_grad()
def widened(old: Decoder, key_dim: int, std: float, seed: int) -> Decoder:
    """A model with a wider stream that computes what this one does.

    Args:
        old: with a vector, matrix or matrix_dense stream.
        key_dim: D_k, larger than it is; of a vector stream also as large (the number of heads).
        std: standard deviation of the new retrieval keys.
        seed: of these.
    """
    config, weights = old.config, old.state_dict()
    if config.stream.kind == "vector":
        if config.norm == "layernorm":
            config, weights = with_rms_norm(old)
        weights, config = _as_matrix(weights, config), _matrix_config(config)
    stream = config.stream
    assert isinstance(stream, WidenedFields)
    now, new = stream.key_dim, wider_config(config, stream.key_dim, key_dim)
    scale, generator = math.sqrt(now / key_dim), torch.Generator().manual_seed(seed)
    model = build_model(new)
    wide: Weights = {}
    for name, value in weights.items():
        part = name.removeprefix("stream.")
        if part == name:
            wide[name] = value
        elif part.startswith("write_"):
            wide[name] = torch.cat([value, value.new_zeros(key_dim - now, value.shape[1])])
        elif part.startswith("read_"):
            random = torch.randn(value.shape[0], key_dim - now, generator=generator) * std
            wide[name] = torch.cat([value * scale if stream.norm_gain == "none" else value, random.to(value)], dim=1)
        else:
            wide[name] = _wider_gain(value, key_dim - now, scale, config.norm_offset)
    model.load_state_dict(wide)
    return model


def _as_matrix(weights: Weights, config: ModelConfig) -> Weights:
    """Weights of a plain model as those of a matrix_dense one with D_k = R: identity keys, gains [V, R]."""
    shell = meta_model(_matrix_config(config))
    matrix: Weights = {}
    for name, there in shell.state_dict().items():
        if name.startswith(("stream.write_", "stream.read_")):
            matrix[name] = torch.eye(config.num_heads)
        else:
            matrix[name] = weights[name].view(there.shape)  # of gains: number v R + r of the width is cell (v, r)
    return matrix


def _wider_gain(gain: Tensor, rows: int, scale: float, offset: bool) -> Tensor:
    """Gains [..., K] of more rows, through `scale`; `offset`: they are 1 + w."""
    factor = gain + 1 if offset else gain
    factor = longer_gain(factor, rows) * scale
    return factor - 1 if offset else factor
