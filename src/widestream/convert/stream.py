"""A run with the plain stream into one with another stream that starts plain (`widestream convert`).

The new stream takes over the plain one's norms (`Stream.from_plain`), starts with everything else as a new model does,
and so computes what the run does; blocks, embedding and head stay.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from widestream.blocks.roles import require_seed
from widestream.convert.same import require_same
from widestream.errors import UserError, shown
from widestream.model.build import build_model, meta_model
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig, build
from widestream.recipe.kinds import kinds
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.recipe.yaml_text import parse_value
from widestream.runs import checkpoint
from widestream.runs.folder import MADE, load_config, read_info
from widestream.runs.made import Made, require_absent, write_made
from widestream.runs.model import load_model, load_run_tokenizer
from widestream.streams import stream_class
from widestream.streams.base import Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What was made, for a line about it."""

    config: ModelConfig
    """The new model."""
    parameters: tuple[int, int]
    """Parameters before and after."""
    off: float
    """Largest difference of logits, relative to the largest logit."""


def convert_run(run: Path, stream: str, to: Path, seed: int = 0, step: int | None = None) -> Converted:
    """Make a run with another stream of one with the plain stream.

    Args:
        run: its folder.
        stream: `KIND` or `KIND:setting=value,...`.
        to: the run to make.
        seed: of what a stream starts at random.
        step: of the checkpoint; None: the newest.

    Raises:
        UserError: the stream does not start plain, or the run cannot be taken over; says which can. Or the seed is out
            of range.
    """
    require_absent(to)
    require_seed(seed)
    config = load_config(run)
    if (kind := config.model.stream.kind) != "vector":
        raise UserError(f"{run} has a {kind} stream; what is converted is a run with the plain one (vector).")
    model_config = replace(config.model, stream=parse_stream(stream))
    if not stream_class(model_config.stream.kind).spec(model_config).starts_plain:
        raise UserError(
            f"A {model_config.stream.kind} stream with these settings does not start as the plain transformer, so it "
            f"cannot take its weights over; those that can are {', '.join(plain_kinds(config.model))} (some with other "
            "settings than their own)."
        )
    meta_model(model_config)  # what does not fit is said before weights are read
    old, saved = load_model(run, torch.device("cpu"), step)
    new = build_model(model_config, seed)
    take_over(new, old)
    settings = {"stream": asdict(model_config.stream), "seed": seed}
    return write_converted(run, to, config, (old, new), saved, "convert", settings)


def plain_kinds(config: ModelConfig) -> list[str]:
    """The kinds of stream that start as the plain transformer, with some settings at least."""

    def starts_plain(cls: type[Stream], kind: str, settings: dict[str, Any]) -> bool:
        stream = build(StreamConfig, {"kind": kind, **settings}, "model.stream")
        return cls.spec(replace(config, stream=stream)).starts_plain

    classes = {kind: stream_class(kind) for kind in kinds()}
    return [
        kind for kind, cls in classes.items() if any(starts_plain(cls, kind, settings) for settings in cls.examples)
    ]


def parse_stream(text: str) -> StreamConfig:
    """Settings of a stream from `KIND:setting=value,...`.

    Raises:
        UserError: an unknown kind or setting, one given twice, or no such form.
    """
    kind, settings = _parted(text)
    values: dict[str, object] = {}
    for pair in settings:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise UserError(f"Cannot read --stream {shown(text)}; write it as KIND:setting=value,setting=value.")
        if name == "kind":
            raise UserError(f"--stream {shown(text)} names its kind twice; it stands in front of the colon only.")
        if name in values:
            raise UserError(f"--stream {shown(text)} has {shown(name)} twice; give it once.")
        try:
            values[name] = parse_value(value)
        except UserError as error:
            raise UserError(f"The value of {shown(name)} in --stream {shown(text)} {error}") from None
    return build(StreamConfig, {"kind": kind, **values}, "model.stream", "stream")


def _parted(text: str) -> tuple[str, list[str]]:
    """The kind, which may be `module:Class` of the user's own, and the settings behind it."""
    kind, colon, rest = text.partition(":")
    if colon and kind not in kinds() and "=" not in rest.partition(":")[0]:
        name, colon, rest = rest.partition(":")
        kind = f"{kind}:{name}"
    return kind, rest.split(",") if colon else []


@torch.no_grad()
def take_over(new: Decoder, old: Decoder) -> None:
    """Copy the weights of a plain model into one with a stream that starts plain.

    Args:
        new: with its initial values.
        old: with the plain stream and the same blocks.

    Raises:
        UserError: the new stream does not say where the plain one's norms go.
    """
    prefix = "stream."
    theirs = old.state_dict()
    plain = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    taken = {f"{prefix}{name}": value for name, value in new.stream.from_plain(plain).items()}
    taken |= {name: value for name, value in theirs.items() if not name.startswith(prefix)}
    own = new.state_dict()
    if strange := sorted(taken.keys() - own.keys()):
        raise UserError(
            f"The {new.config.stream.kind} stream has no {strange[0].removeprefix(prefix)}, which the plain one has; "
            "its class has to say in from_plain where that goes."
        )
    for name, value in taken.items():
        own[name].copy_(value)


def write_converted(
    run: Path,
    to: Path,
    config: RunConfig,
    models: tuple[Decoder, Decoder],
    saved: checkpoint.Checkpoint,
    by: str,
    settings: dict[str, object],
) -> Converted:
    """Write a run that was made of another one, if it computes the same.

    Args:
        run: the other one's folder.
        to: the run to make.
        config: the other one's recipe.
        models: before and after.
        saved: the checkpoint that the weights are from.
        by: the command.
        settings: what it was told.
    """
    old, new = models
    off = require_same(new.eval(), old)
    recipe = replace(config, name=to.name, model=new.config, train=replace(config.train, init_from=None))
    made = Made(
        by=by,
        source=str(saved.path),
        sha256=checkpoint.recorded_hash(saved.path) or "",
        step=saved.step,
        settings=settings | {"off": off},
    )
    info = read_info(run)
    data = {name: info["data"][name] for name in ("tokenizer_sha256", "tokenizer") if name in info["data"]}
    bare = MADE in info and not data
    write_made(to, recipe, new, None if bare else load_run_tokenizer(run), made, data)
    before, after = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    return Converted(config=new.config, parameters=(before, after), off=off)
