"""GGUF files, dequantised by transformers and the package gguf (the extra `import`)."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widestream.convert.checkpoint_folder import finite
from widestream.convert.families import model_config
from widestream.errors import UserError, shown

UNREAD = ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length", "rope.scaling.type")
"""Settings of a file that say again what others say, or what is looked at here."""


class GgufTensors:
    """The tensors of a file, under transformers' names.

    Args:
        path: the file.
        tensors: by name, dequantised.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor]):
        self._path, self._tensors = path, tensors

    def names(self) -> Sequence[str]:
        """See `Tensors`."""
        return list(self._tensors)

    def shape(self, name: str) -> list[int]:
        """See `Tensors`."""
        return list(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return finite(self._tensors[name].float(), name, self._path)


def read_gguf(path: Path) -> tuple[dict[str, Any], GgufTensors, bytes]:
    """What config.json would say, the weights, and tokenizer.json.

    Raises:
        UserError: the extra is not installed, the file is damaged, or holds what transformers does not read.
    """
    if missing := [name for name in ("transformers", "gguf") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"Reading a .gguf file needs {' and '.join(missing)}; run `pip install 'widestream[hf]'`, or give a "
            "folder with safetensors."
        )
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        _require_known(path)
        folder, name = str(path.parent), path.name
        config = AutoConfig.from_pretrained(folder, gguf_file=name, local_files_only=True)
        values = config.to_dict()
        model_config(values)  # what cannot be taken over is said before the weights are dequantised
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=shell)["tensors"]
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
        return values, GgufTensors(path, tensors), tokenizer.backend_tokenizer.to_str().encode()
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever comes
        logging.getLogger(__name__).debug("gguf", exc_info=True)
        raise UserError(
            f"{path} cannot be read by transformers ({type(error).__name__}: {shown(str(error))})."
        ) from None


def _require_known(path: Path) -> None:
    """Make sure that transformers takes over all that the file says of the function; it passes over what it does not.

    Raises:
        UserError: it does not.
    """
    from gguf import GGUFReader
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = str(fields["general.architecture"])
    known = GGUF_CONFIG_MAPPING.get(kind, {})
    if fields.get(f"{kind}.rope.scaling.type", "none") != "none" or any(
        tensor.name.startswith("rope_") for tensor in reader.tensors
    ):
        raise UserError(f"{path} scales its rotary positions, which is not read from .gguf files; give safetensors.")
    for name in fields:
        setting = name.removeprefix(f"{kind}.")
        if setting != name and setting not in known and setting not in UNREAD:
            raise UserError(f"{path} has {shown(name)}, which is not read from .gguf files; give safetensors.")
