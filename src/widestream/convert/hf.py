"""A pretrained model of transformers into a run with the plain stream (`widestream import hf`).

All that can be known from config.json and the headers of the files is checked before a weight is read.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from widestream.convert.checkpoint_folder import Tensors, open_tensors, read_model_config
from widestream.convert.families import model_config
from widestream.convert.weights import BUFFERS, Source, prefix_of, sources
from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.manifest import file_sha256
from widestream.data.tokenizer import resolve_tokenizer
from widestream.data.tokenizer_base import TOKENIZER_FILE, Tokenizer
from widestream.errors import UserError, shown
from widestream.files import read_bounded
from widestream.model.build import build_model, count_weights, meta_model, require_room
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig, build
from widestream.recipe.model import ModelConfig
from widestream.runs.made import Made, require_absent, write_made
from widestream.runs.model import require_finite

SEQUENCE = 1024
"""Tokens per window in the recipe of an imported run, where the model sees as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What was imported, for a line about it."""

    family: str
    """`model_type`."""
    parameters: int
    """Numbers in all weights."""
    read_as: str
    """Types of the weights in the files."""
    tokenizer: Tokenizer | None
    """The tokenizer, if there is one."""
    boundary: str | None
    """Its boundary token, where `data prepare` has to be told it."""
    sha256: str
    """Hash of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A checkpoint that has been looked at: its files are open and their headers read."""

    values: Mapping[str, Any]
    """config.json."""
    tensors: Tensors
    """The weights."""
    kinds: str
    """Their types, in words."""
    files: Sequence[Path]
    """The files that they lie in."""
    tokenizer: bytes | None
    """tokenizer.json."""
    tokenizer_config: Mapping[str, Any]
    """tokenizer_config.json."""


def import_hf(path: Path, to: Path, tokenizer: str | None = None, boundary: str | None = None) -> Imported:
    """Import a model into a run folder.

    Args:
        path: a folder with config.json and safetensors, or a .gguf file.
        to: the run to make.
        tokenizer: `byte`, `gpt2` or the path of a tokenizer.json, in place of the folder's own.
        boundary: the token in front of documents; default: the one that the tokenizer puts in front of a text, else as
            `data prepare` has it.

    Raises:
        UserError: it cannot be imported; names what stands in the way. Nothing has been written then.
    """
    require_absent(to)
    with _open(path) as origin:
        config = model_config(origin.values)
        table = match_tensors(config, origin)
        chosen, own = _tokenizer(origin, path, tokenizer, boundary)
        if chosen is not None and chosen.vocab_size > config.vocab_size:
            raise UserError(
                f"The tokenizer of {path} has {chosen.vocab_size} ids, and the model {config.vocab_size}; give the "
                "model's own with --tokenizer."
            )
        model = fill(config, table, origin)
        sha256 = hash_of(origin.files)
    require_finite(model, path)
    made = Made(by="import hf", source=str(path), sha256=sha256, settings={"model_type": origin.values["model_type"]})
    write_made(to, _recipe(to, config, path), model, chosen, made)
    return Imported(
        family=origin.values["model_type"],
        parameters=count_weights(model),
        read_as=origin.kinds,
        tokenizer=chosen,
        boundary=own,
        sha256=sha256,
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Origin]:
    if _is_file(path):
        if path.suffix != ".gguf":
            raise UserError(f"{path} is a file; give the folder that it lies in, or a .gguf file.")
        from widestream.convert.gguf import read_gguf

        values, tensors, tokenizer = read_gguf(path)
        yield Origin(
            values=values, tensors=tensors, kinds="GGUF", files=[path], tokenizer=tokenizer, tokenizer_config={}
        )
        return
    if not path.is_dir():
        raise UserError(
            f"{shown(str(path), 300)} does not exist; give a folder that transformers saved, or a .gguf file."
        )
    values = read_model_config(path)
    model_config(values)  # what cannot be taken over is said before any file is opened
    with open_tensors(path, prefix_of(values["model_type"])) as tensors:
        yield Origin(
            values=values,
            tensors=tensors,
            kinds=", ".join(sorted(tensors.kinds)),
            files=tensors.files,
            tokenizer=_bytes(path / TOKENIZER_FILE),
            tokenizer_config=_json(path / "tokenizer_config.json"),
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{shown(str(path), 300)} cannot be opened ({error.strerror}); give another path.") from None


def match_tensors(config: ModelConfig, origin: Origin) -> dict[str, Source]:
    """Where every parameter comes from; every tensor is used, and every shape is right.

    Raises:
        UserError: a tensor is missing, left over, or of another shape than config.json makes it.
    """
    model, tensors, kind = meta_model(config), origin.tensors, origin.values["model_type"]
    own = {name: [*parameter.shape] for name, parameter in model.named_parameters()}
    there = set(tensors.names())
    table = sources(kind, config.num_layers, config.moe.num_experts, own, there)
    used = {name for source in table.values() for name in source.names}
    where = origin.files[0].parent if len(origin.files) > 1 else origin.files[0]
    if missing := sorted(used - there):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{where} lacks {shown(missing[0])}{more}, which a {kind} model of this config.json has.")
    spare = {"lm_head.weight"} if config.tied_head else set()  # compared with the embedding where it is read
    if strange := sorted(name for name in there - used - spare if not name.endswith(BUFFERS)):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(f"{where} has {shown(strange[0])}{more}, which a {kind} model of this config.json has not.")
    for name, shape in own.items():
        shapes = {part: torch.empty(tensors.shape(part), device="meta") for part in table[name].names}
        try:
            found = [*table[name].gather(shapes.__getitem__).shape]
        except (RuntimeError, IndexError):
            found = []
        if found != shape:
            listed = ", ".join(f"{part} {[*tensor.shape]}" for part, tensor in list(shapes.items())[:3])
            raise UserError(f"{where} has {listed}, of which config.json would make {shape}; one of them is another's.")
    return table


@torch.no_grad()
def fill(config: ModelConfig, table: Mapping[str, Source], origin: Origin) -> Decoder:
    """The model with its weights, read one by one.

    Raises:
        UserError: it does not fit into memory, a tensor cannot be read or is not finite, or the file has a head of its
            own where config.json says that it shares the embedding.
    """
    require_room(torch.device("cpu"), count_weights(meta_model(config)))
    model = build_model(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(table[name].gather(origin.tensors.get))
    head = "lm_head.weight"
    if config.tied_head and head in origin.tensors.names():
        own = origin.tensors.get(head)
        if own.shape != model.embedding.token.shape or not torch.equal(own, model.embedding.token):
            raise UserError(
                "config.json says tie_word_embeddings, and the file has a head of its own beside the embedding; set "
                "tie_word_embeddings to what is meant, or remove that tensor."
            )
    return model.eval()


def hash_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or over those of several."""
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _tokenizer(
    origin: Origin, path: Path, name: str | None, boundary: str | None
) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer, and its boundary where `data prepare` would take another."""
    if name is not None:
        return resolve_tokenizer(name, boundary), boundary
    if origin.tokenizer is None:
        if boundary is not None:
            raise UserError(f"{path} holds no {TOKENIZER_FILE}, so --boundary has nothing to act on; give --tokenizer.")
        return None, None
    file = str(path / TOKENIZER_FILE) if path.is_dir() else str(path)
    first = _first_token(origin) if boundary is None else boundary
    opened = FileTokenizer(origin.tokenizer, file, boundary=first)
    try:
        usual = FileTokenizer(origin.tokenizer, file).boundary_id
    except UserError:
        usual = None
    return opened, first if opened.boundary_id != usual else None


def _first_token(origin: Origin) -> str | None:
    """What the tokenizer puts in front of a text, if anything."""
    assert origin.tokenizer is not None
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError, AttributeError):
        processor = json.loads(origin.tokenizer)["post_processor"]
        steps = processor["processors"] if processor["type"] == "Sequence" else [processor]
        for step in steps:
            if step["type"] == "TemplateProcessing" and "SpecialToken" in (piece := step["single"][0]):
                return step["special_tokens"][piece["SpecialToken"]["id"]]["tokens"][0]
    config = origin.tokenizer_config
    token = config.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if config.get("add_bos_token") is True and isinstance(token, str) else None


def _recipe(to: Path, config: ModelConfig, path: Path) -> RunConfig:
    """A recipe to train on by; what it lacks is data."""
    return build(
        RunConfig,
        {
            "name": to.name,
            "description": f"Imported from {shown(path.name)}.",
            "model": config,
            "data": {"path": "none", "sequence_length": min(config.context, SEQUENCE)},
            "train": {"steps": 1000, "batch_size": 8, "z_loss": 0.0},
            "optimizer": {"lr": 3e-5, "weight_decay": 0.1, "decay": "coupled", "grad_clip": 1.0},
        },
        "",
    )


def _bytes(path: Path) -> bytes | None:
    return read_bounded(path) if path.is_file() else None


def _json(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(read_bounded(path))
        return values if isinstance(values, dict) else {}
    return {}
