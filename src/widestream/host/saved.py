"""A stream's weights as a file of their own, beside those of the model that it is attached to.

It is a safetensors file. Its metadata say what it holds, under `widestream_stream`, as JSON:

    {"kind": "mhc", "settings": {"lanes": 4, ...}, "dim": 64, "sites": 12, "heads": 4, "eps": 1e-06, "model": "llama"}
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from widestream.errors import UserError, shown
from widestream.files import write_bytes
from widestream.host.attach import attach, attached_stream, detach, find_attached
from widestream.host.config import stream_settings
from widestream.host.stream import ResidualStream
from widestream.recipe.kinds import kinds, settings_class

KEY = "widestream_stream"
"""Of the metadata."""


def save_stream(model: Any, path: str | Path) -> None:
    """Write the weights of the stream that is attached to a model; whole or not at all.

    Raises:
        UserError: nothing is attached; the folder does not exist, is full or cannot be written to.
    """
    stream = attached_stream(model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stream.core.state_dict().items()}
    metadata = {"format": "pt", KEY: json.dumps(_describe(model, stream))}
    write_bytes(Path(path), save(tensors, metadata))


def load_stream(model: Any, path: str | Path) -> None:
    """Read what `save_stream` wrote; a model without a stream gets the one that the file names.

    Raises:
        UserError: the file is missing, damaged or no stream's, or of another stream or model than this one; nothing is
            changed then.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            there = _metadata(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a file that save_stream wrote.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); give one that save_stream wrote.") from None
    if find_attached(model):
        _fill(path, there, tensors, model)
        return
    _attach(path, there, model)
    try:
        _fill(path, there, tensors, model)
    except UserError:
        detach(model)
        raise


def _attach(path: Path, there: dict[str, Any], model: Any) -> None:
    """Attach the stream that a file names.

    Raises:
        UserError: it is not of this package or an installed one, whose code a file must not choose; or does not fit.
    """
    kind, settings = there["kind"], there["settings"]
    own = set(settings_class(kind).__dataclass_fields__) if kind in kinds() else set()
    if kind not in kinds() or not settings.keys() <= own - {"kind", "norm_eps"}:
        raise UserError(f"{path} holds a {shown(kind)} stream, which is not known here; attach it first, then load.")
    try:
        attach(model, kind, heads=there["heads"], **settings)
    except UserError as error:
        raise UserError(f"The stream of {path} does not fit this model: {error}") from error


def _describe(model: Any, stream: ResidualStream) -> dict[str, Any]:
    """What a file is of."""
    config = stream.config
    return {
        "kind": stream.kind,
        "settings": stream_settings(config.stream),
        "dim": stream.dim,
        "sites": stream.num_sites,
        "heads": config.num_heads,
        "eps": config.norm_eps,
        "model": model.config.get_text_config().model_type,
    }


def _metadata(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        there = json.loads((metadata or {})[KEY])
    except (KeyError, ValueError, RecursionError):
        there = {}
    wanted = {"kind": str, "settings": dict, "heads": int}
    if not isinstance(there, dict) or not all(isinstance(there.get(name), kind) for name, kind in wanted.items()):
        raise UserError(f"{path} holds no attached stream; give a file that save_stream wrote.")
    return there


@torch.no_grad()
def _fill(path: Path, there: dict[str, Any], tensors: dict[str, torch.Tensor], model: Any) -> None:
    """Copy all tensors of a file, or none.

    Raises:
        UserError: it is of another stream or model, or names a tensor that is not as here.
    """
    stream = attached_stream(model)
    for name, value in _describe(model, stream).items():
        if there.get(name) != value:
            raise UserError(
                f"{path} is of another stream or model: its {name} is {shown(there.get(name))}, and here it is "
                f"{shown(value)}."
            )
    here = stream.core.state_dict()
    for name in sorted(tensors.keys() | here.keys()):
        if name not in tensors or name not in here or tensors[name].shape != here[name].shape:
            raise UserError(f"{path} is damaged: {shown(name)} is not as the stream that it names has it.")
        if not _same_kind(tensors[name], here[name]):
            raise UserError(f"{path} is damaged: {name} is of type {shown(tensors[name].dtype)}.")
        if not tensors[name].float().isfinite().all():
            raise UserError(f"{path} is damaged, or its training diverged: {name} holds numbers that are not finite.")
    for name, tensor in here.items():
        tensor.copy_(tensors[name])


def _same_kind(there: torch.Tensor, here: torch.Tensor) -> bool:
    """Whether both hold the same kind of number; floating ones may be of another precision."""
    return there.dtype == here.dtype or (there.is_floating_point() and here.is_floating_point())
