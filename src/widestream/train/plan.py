"""What a run will do, in numbers: worked out and checked before anything is allocated."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from widestream.blocks.experts import expert_neurons
from widestream.errors import UserError
from widestream.recipe import RunConfig
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import ParallelConfig, TrainConfig
from widestream.streams import stream_class
from widestream.train.schedule import phases


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Sizes of a run."""

    steps: int
    """Optimizer steps."""
    sequence_length: int
    """Tokens per window, T."""
    tokens_per_step: int
    """Target tokens of one optimizer step, over all processes."""
    micro_batches: int
    """Forward and backward passes per optimizer step and process."""
    micro_batch_size: int
    """Windows of each of them."""


def make_plan(config: RunConfig, readers: int = 1) -> Plan:
    """Work out a run.

    Args:
        config: the recipe.
        readers: parts that the windows of a batch are divided into: processes, or groups that share windows.

    Raises:
        UserError: the sizes do not fit together; the message names the keys to change.
    """
    length = _length(config)
    if length > config.model.context:
        raise UserError(
            f"data.sequence_length is {length} but the model reads at most model.context={config.model.context} "
            "tokens; lower the first or raise the second."
        )
    _require_windows(config.model, length, config.train.parallel)
    _require_blocks(config.model, config.train.parallel)
    micro_batch_size, micro_batches = _split(config.train, readers)
    steps = num_steps(config)
    phases(steps, config.schedule)
    return Plan(
        steps=steps,
        sequence_length=length,
        tokens_per_step=config.train.batch_size * length,
        micro_batches=micro_batches,
        micro_batch_size=micro_batch_size,
    )


def _split(train: TrainConfig, readers: int) -> tuple[int, int]:
    """Windows per micro-batch, and micro-batches per process."""
    together = math.prod(number for _, number in _within(train))
    kind = "process" if together == 1 else f"group{'s' if readers > 1 else ''} of {together} process"
    over = f"{readers} {kind}{'es' if max(readers, together) > 1 else ''}"
    if train.batch_size % readers:
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be split evenly over {over}; make it a multiple of {readers}."
        )
    local = train.batch_size // readers
    micro = train.micro_batch_size or local
    if local % micro:
        raise UserError(
            f"train.micro_batch_size={micro} does not divide the {local} windows that each process has in a step "
            f"(train.batch_size={train.batch_size} over {over}); change one of the two."
        )
    return micro, local // micro


def _require_windows(model: ModelConfig, length: int, parallel: ParallelConfig) -> None:
    """Make sure that so many processes can share the windows of a model.

    Args:
        model: its configuration.
        length: T.
        parallel: N, and how many share the blocks beside it.

    Raises:
        UserError: they cannot; names the setting.
    """
    if parallel.context == 1:
        return
    setting = f"train.parallel.context is {parallel.context}"
    if length % parallel.context:
        raise UserError(f"{setting}, which does not divide the {length} tokens of a window (data.sequence_length).")
    if model.num_heads % (parallel.context * parallel.tensor):
        does = "does" if parallel.tensor == 1 else f"with tensor {parallel.tensor} does"
        raise UserError(
            f"{setting}, which {does} not divide model.num_heads={model.num_heads}: each process computes the "
            "attention of some heads."
        )


def _require_blocks(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Make sure that so many processes can share the blocks of a model.

    Raises:
        UserError: they cannot; names the setting.
    """
    if parallel.tensor == 1:
        return
    setting = f"train.parallel.tensor is {parallel.tensor}"
    kind = stream_class(model.stream.kind)
    if kind.spec(model).attention == "bare":
        raise UserError(
            f"{setting}, and the attention of a {model.stream.kind} stream has no matrices that could be shared out; "
            "use train.parallel.context, or shard."
        )
    for what, number in _divided(model):
        if number % parallel.tensor:
            raise UserError(f"{setting}, which does not divide {what}: each process has its part of them.")


def _divided(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """What processes that share blocks share out: in words, and how many there are."""
    yield f"model.num_heads={model.num_heads}", model.num_heads
    yield f"model.num_kv_heads={model.kv_heads}", model.kv_heads
    for block in stream_class(model.stream.kind).blocks(model):
        if block.kind != "mlp":
            continue
        number = block.num_neurons
        if model.has_experts(block.layer):
            number = expert_neurons(model, number)
            yield f"the {number} neurons of an expert of layer {block.layer} (model.moe.expert_dim)", number
        elif number is None:
            yield f"model.mlp_dim={model.mlp_dim}", model.mlp_dim
        else:
            yield f"the {number} neurons of layer {block.layer}", number


def _within(train: TrainConfig) -> list[tuple[str, int]]:
    """Settings that let several processes read the same windows."""
    return [(name, getattr(train.parallel, name)) for name in ("context", "tensor")]


def num_steps(config: RunConfig) -> int:
    """Optimizer steps of a run.

    Raises:
        UserError: its length is not given, or twice.
    """
    train = config.train
    if train.steps is not None and train.tokens is not None:
        raise UserError("train.steps and train.tokens are both given; set one of them to null.")
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return -(-train.tokens // (train.batch_size * _length(config)))
    raise UserError("The length of the run is not given; set train.steps or train.tokens.")


def _length(config: RunConfig) -> int:
    return config.data.sequence_length or config.model.context
