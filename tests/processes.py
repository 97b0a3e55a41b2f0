"""What the tests run in processes of their own: these functions are their targets."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import GroupName
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from widestream.blocks.attention_kind import Attention
from widestream.data.batches import Batch
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe import RunConfig
from widestream.recipe.model import ModelConfig
from widestream.runs import checkpoint, progress
from widestream.runs.checkpoint import weights_of
from widestream.train import begin, loop
from widestream.train.layout import Layout, build_shared
from widestream.train.loop import train
from widestream.train.optim import build_optimizer
from widestream.train.parallel import join_world
from widestream.train.saving import newest_checkpoint
from widestream.train.shards import Shares, gradient_norm, join_gradients, own
from widestream.train.step import optimizer_step


def train_quickly(config: RunConfig, run_dir: Path) -> None:
    """Train without measuring the machine."""
    begin.matmul_peak = lambda device, precision: 1e11
    train(config, run_dir)


def train_without_terminal(config: RunConfig, run_dir: Path) -> None:
    """Train with a standard error that cannot be written, as that of a terminal that was closed."""
    read, write = os.pipe()
    os.close(read)
    sys.stderr = open(write, "w", buffering=1)  # noqa: PTH123, SIM115
    progress.PLAIN_EVERY_S = 0.0
    train_quickly(config, run_dir)


def train_told_at_the_end(config: RunConfig, run_dir: Path) -> None:
    """Train, and be told to end once all steps are taken and evaluated."""
    write_done = loop.write_done

    def told(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write_done(*args)

    loop.write_done = told
    train_quickly(config, run_dir)


def train_and_die(config: RunConfig, run_dir: Path, call: str, count: int) -> None:
    """Train until the `count`-th call of `call` (fsync or rename) has just returned, then die as by `kill -9`."""
    owner: Any = os if call == "fsync" else Path
    setattr(owner, call, _dying(getattr(owner, call), count))
    train_quickly(config, run_dir)


def _dying(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = iter(range(1, 10**6))

    def call(*args: Any) -> Any:
        result = function(*args)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def train_as_rank(config: RunConfig, run_dir: Path, environment: dict[str, str]) -> None:
    """Train as one of several processes that torchrun would have started with this environment."""
    os.environ.update(environment)
    train_quickly(config, run_dir)


def train_unlike(configs: list[RunConfig], run_dir: Path, environment: dict[str, str]) -> None:
    """The same, each process with a recipe of its own; what it refuses goes to `refusal-RANK`."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    try:
        train_quickly(configs[rank], run_dir)
    except UserError as error:
        run_dir.with_name(f"refusal-{rank}").write_text(str(error))


def sharded_gradients(model: ModelConfig, depth: Depth, path: Path, environment: dict[str, str]) -> None:
    """Two backward passes of a model sharded by FSDP2; rank 0 saves the whole gradients of the second one.

    Every rank takes its half of `sharding_batch`.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    decoder = build_model(model, depth=depth)
    mesh = init_device_mesh("cpu", (2,))
    for module in (*decoder.blocks, decoder):
        fully_shard(module, mesh=mesh)
    tokens, targets = (half.chunk(2)[dist.get_rank()] for half in sharding_batch(model))
    for _ in range(2):
        decoder.zero_grad()
        decoder.loss(tokens, targets).total.backward()
    whole = {name: p.grad.full_tensor() for name, p in decoder.named_parameters()}  # pyright: ignore
    if dist.get_rank() == 0:
        torch.save(whole, path)
    dist.destroy_process_group()


def shared_gradients(
    cases: dict[str, tuple[ModelConfig, Depth | None, Attention]],
    layout: Layout,
    path: Path,
    environment: dict[str, str],
) -> None:
    """A backward pass of each of these models, all processes reading the windows of `documents_batch`.

    Rank 0 saves each model's loss, as a mean over the processes, whole gradients, and the norm of all of them.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    found: dict[str, dict[str, torch.Tensor]] = {}
    with join_world("cpu", context=layout.context, tensor=layout.tensor) as world:
        for name, (config, depth, attention) in cases.items():
            model = build_shared(config, 3, world, layout, depth, attention)
            shares = Shares(model)
            stir(model)
            loss = model.loss(*documents_batch(config))
            loss.total.backward()
            join_gradients(model)
            norm = gradient_norm(model)
            gradients = {key: shares.whole(key, p.grad) for key, p in model.named_parameters() if p.grad is not None}
            losses = torch.stack((loss.total.detach(), loss.cross_entropy, loss.balance)).detach()
            found[name] = {**gradients, "loss": world.sum_(losses) / world.size, "norm": norm}
        if world.is_main:
            torch.save(found, path)
        del model, loss, gradients


def initial_weights(model: ModelConfig, layout: Layout, path: Path, environment: dict[str, str]) -> None:
    """Build a model in a layout; rank 0 saves its whole weights, and how many numbers each rank holds."""
    os.environ.update(environment)
    with join_world("cpu", context=layout.context, tensor=layout.tensor) as world:
        decoder = build_shared(model, 3, world, layout)
        shares = Shares(decoder)
        weights = {name: shares.whole(name, value) for name, value in weights_of(decoder).items()}
        held = torch.zeros(world.size)
        held[world.rank] = sum(part.numel() for part in own(decoder.state_dict().values()))
        numbers = world.sum_(held).tolist()
        if world.is_main:
            save_file(weights, path)
            path.with_name("shares.json").write_text(json.dumps(numbers))
        del decoder, weights


def look_for_newest(run_dir: Path, out: Path, environment: dict[str, str]) -> None:
    """Note the step of a run's newest checkpoint, and warnings; but for the main process all see a list without any."""
    os.environ.update(environment)
    with join_world("cpu") as world:
        logging.basicConfig(filename=out / f"{world.rank}.log", force=True)
        if not world.is_main:
            checkpoint.list_checkpoints = lambda _: []
        try:
            found = newest_checkpoint(run_dir, world)
            told = f"{found.path.relative_to(run_dir)}, step {found.step}" if found else "none"
        except UserError as error:
            told = str(error)
        (out / f"{world.rank}.txt").write_text(told)


def hold_and_send(
    config: RunConfig, layout: Layout, micro_batches: int, folder: Path, environment: dict[str, str]
) -> None:
    """Take a step in a layout; each rank writes the bytes it holds (weights, gradients, moments) and sends."""
    os.environ.update(environment)
    with join_world("cpu", context=layout.context, tensor=layout.tensor) as world:
        model = build_shared(config.model, 3, world, layout)
        optimizer = build_optimizer(model, config.optimizer)
        tokens = torch.randint(config.model.vocab_size, (2 * micro_batches, config.model.context))
        batch = Batch(tokens=tokens, targets=tokens, segments=torch.zeros_like(tokens), weights=None)
        with SentBytes() as sent:
            precision = config.train.precision
            optimizer_step(model, optimizer, batch, world=world, micro_batches=micro_batches, precision=precision)
        parameters = list(model.parameters())
        moments = [moment for state in optimizer.state.values() for moment in state.values()]
        held = [parameters, [parameter.grad for parameter in parameters], moments]
        sizes = [sum(part.numel() * part.element_size() for part in own(tensors)) for tensors in held]
        (folder / f"{world.rank}.json").write_text(json.dumps({"held": sizes, "sent": sent.bytes}))
        del model, optimizer, parameters, held, moments


SENDING = ("c10d::", "_c10d_functional::", "widestream::swap", "widestream::all_reduce")
NOTHING_SENT = ("wait_tensor", "wrap_tensor_autograd")


class SentBytes(TorchDispatchMode):
    """Counts what this process sends, were its group a ring."""

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count collectives."""
        name = func._schema.name
        if name.startswith(SENDING) and not name.endswith(NOTHING_SENT):
            self.bytes += _ring_bytes(name.partition("::")[2], args)
        return func(*args, **(kwargs or {}))


def _ring_bytes(name: str, args: Any) -> float:
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    size = max(tensor.numel() * tensor.element_size() for tensor in tensors)  # what is whole, of a gather or scatter
    if name == "all_gather_into_tensor":  # given its share alone, and the size of the group
        return size * (args[1] - 1)
    group = next((leaf for leaf in args if isinstance(leaf, torch.ScriptObject)), None)
    own = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, str)), None)  # of this package's operators
    number = dist.get_world_size()
    if group is not None or own is not None:
        number = (dist.ProcessGroup.unbox(group) if own is None else _resolve_process_group(GroupName(own))).size()
    twice = 2 if name.startswith(("allreduce", "all_reduce")) else 1
    return twice * size * (number - 1) / number


def stir(model: Decoder) -> None:
    """Move all weights a little, by the same numbers in every layout, so that none is zero or one."""
    generator, shares = torch.Generator().manual_seed(1), Shares(model)
    for name, parameter in model.named_parameters():
        values = shares.whole(name, parameter.detach())
        shares.fill(name, parameter, values + 0.1 * torch.randn(values.shape, generator=generator))


def documents_batch(model: ModelConfig) -> tuple[torch.Tensor, ...]:
    """Tokens, targets and documents [4, T]: a row of one, two of two that meet within the first half or at its end,
    and one of three, the second of which lies across it.
    """
    length = model.context
    half = length // 2
    ends = [[], [half - 3], [half], [half - 1, half + 2]]
    segments = torch.tensor([[sum(at >= end for end in one) for at in range(length)] for one in ends])
    return *sharding_batch(model), segments


def sharding_batch(model: ModelConfig) -> torch.Tensor:
    """Tokens and targets [2, B, T]."""
    return torch.randint(model.vocab_size, (2, 4, model.context), generator=torch.Generator().manual_seed(0))
