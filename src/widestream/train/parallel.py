"""Many processes that train one model, each with its slice of every batch; layout.py says who holds what weights."""

import contextlib
import faulthandler
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from widestream.errors import UserError, shown
from widestream.machine import find_device

Value = TypeVar("Value")

LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|[Tt]imed? ?out")
"""What errors say that PyTorch raises where another process does not answer."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as one of them sees it."""

    device: torch.device
    """Where this process computes."""
    rank: int = 0
    """Number of this process."""
    size: int = 1
    """How many processes there are."""
    timeout_s: int = 600
    """Seconds that this one waits for the others."""
    context: int = 1
    """How many share the tokens of a window; neighbours in number do, or where neighbours share blocks, those that have
    the same part of them."""
    tensor: int = 1
    """How many share the blocks, and read the same windows; neighbours in number do."""

    @property
    def readers(self) -> int:
        """Into how many parts a batch's windows are divided."""
        return self.size // (self.context * self.tensor)

    @property
    def reader(self) -> int:
        """Which of these parts this process reads, together with those that share its windows."""
        return self.rank // (self.context * self.tensor)

    @property
    def first_alike(self) -> int:
        """Number of the first of those processes that find the same losses of the same tokens as this one."""
        return self.rank - self.rank % self.tensor

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def alive(self) -> None:
        """Say that this process has got somewhere. Where nothing is said for long, it prints where it is, and ends."""
        if self.size > 1:
            faulthandler.dump_traceback_later(1.5 * self.timeout_s, exit=True, file=sys.__stderr__ or 2)

    def resting(self) -> None:
        """Say that this process may now wait for something that no other one waits for, as long as it takes."""
        faulthandler.cancel_dump_traceback_later()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up `tensor` over all processes, in place; all get the sum."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_main(self, tensor: torch.Tensor) -> torch.Tensor:
        """The main process's tensor, in all of them; all have to ask, with one of the same shape."""
        if self.size == 1:
            return tensor
        copy = tensor.clone()
        dist.broadcast(copy, src=0)
        return copy

    def all_(self, holds: bool) -> bool:
        """Whether something holds in all processes; all have to ask."""
        if self.size == 1:
            return holds
        return not self.sum_(torch.tensor(float(not holds), device=self.device)).item()

    def on_main(self, function: Callable[[], Value]) -> Value:
        """Call `function` in the main process only, and give its result, or its `UserError`, to all."""
        if self.size == 1:
            return function()
        answer: list[Any] = [None]  # a Value or a UserError, once it is here
        if self.is_main:
            try:
                answer = [function()]
            except UserError as error:
                answer = [error]
        dist.broadcast_object_list(answer, src=0, device=self.device)
        if isinstance(answer[0], UserError):
            raise answer[0]
        return answer[0]

    def everywhere(self, function: Callable[[], Value]) -> Value:
        """Call `function` in every process; where it is refused in one, all raise that `UserError`, and none waits."""
        if self.size == 1:
            return function()
        answer, refused = None, None
        try:
            answer = function()
        except UserError as error:
            refused = str(error)
        for sentence in filter(None, self.gather(refused)):
            raise UserError(sentence)
        return cast(Value, answer)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in their order; all have to ask."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def require_same(self, values: dict[str, Any]) -> None:
        """Make sure that all processes were given the same, before they train on together.

        Args:
            values: plain values by name, the same names in all processes.

        Raises:
            UserError: in every process: names the first value that differs.
        """
        if self.size == 1:
            return
        everyone = self.gather(values)
        for name, value in everyone[0].items():
            for rank, other in enumerate(everyone):
                if other.get(name) != value:
                    raise UserError(
                        f"The processes were not started alike: {name} is {shown(value)} in process 0 and "
                        f"{shown(other.get(name))} in process {rank}."
                    )


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Processes that share windows, or blocks, as one of them sees them."""

    size: int
    """N."""
    rank: int = 0
    """Number of this process in the group."""
    group: str = ""
    """Name of the group; none where nothing is sent, as in measurements without contents."""

    def own_heads(self, num_heads: int) -> slice:
        """The heads that this process computes, H / N of them."""
        here = num_heads // self.size
        return slice(self.rank * here, (self.rank + 1) * here)


Kind = TypeVar("Kind", bound=Neighbours)


def join_neighbours(kind: type[Kind], world: World, size: int, apart: int = 1) -> Kind | None:
    """Divide all processes into groups, which all have to do at once; None where each stands alone.

    Args:
        kind: what a group is.
        world: the processes.
        size: of a group.
        apart: from the number of one of a group to that of the next.
    """
    if size == 1:
        return None
    firsts = (first for first in range(world.size) if first // apart % size == 0)
    groups = [list(range(first, first + size * apart, apart)) for first in firsts]
    group, _ = dist.new_subgroups_by_enumeration(groups, timeout=timedelta(seconds=world.timeout_s))
    assert isinstance(group, dist.ProcessGroup)
    return kind(size, world.rank // apart % size, group.group_name)


@contextlib.contextmanager
def join_world(device: str, timeout_s: int = 600, context: int = 1, tensor: int = 1) -> Iterator[World]:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...; under torchrun every process takes the GPU of its local rank.
        timeout_s: seconds that processes wait for each other.
        context: how many share the tokens of a window.
        tensor: how many share the blocks.

    Raises:
        UserError: the device does not exist, what torchrun says in the environment is incomplete, the processes cannot
            be divided into such groups, or another process has ended or answers no more.
    """
    size, rank = _from_torchrun("WORLD_SIZE", 1), _from_torchrun("RANK", 0)
    if size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {size} and {', '.join(missing)} not set; start the processes with torchrun, or unset "
                "WORLD_SIZE."
            )
        if not 0 <= rank < size:
            raise UserError(f"RANK is {rank}, and WORLD_SIZE {size}; start the processes with torchrun.")
    together = (f"context={context} x tensor={tensor} is {context * tensor},", context * tensor)
    for name, number in ((f"context is {context},", context), (f"tensor is {tensor},", tensor), together):
        if size % number:
            there = "there is 1 process" if size == 1 else f"there are {size} processes"
            raise UserError(f"train.parallel.{name} and {there}; start a multiple of them with torchrun.")
    place = find_device(device, _from_torchrun("LOCAL_RANK", 0) if size > 1 else None)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(place)
        return
    with _lost_processes(rank):
        _connect("nccl" if place.type == "cuda" else "gloo", timedelta(seconds=timeout_s))
    world = World(place, rank, size, timeout_s, context, tensor)
    try:
        with _lost_processes(rank):
            yield world
    finally:
        faulthandler.cancel_dump_traceback_later()
        gc.collect()  # meshes and models that still know the group would abort the process at its exit
        dist.destroy_process_group()


def _connect(backend: str, timeout: timedelta) -> None:
    """Join the group of processes.

    A launcher that starts processes again lets them meet in the store of those that failed, with what these left there.
    On one machine its counter of restarts tells them apart (on several it differs between machines).
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    own = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


@contextlib.contextmanager
def _lost_processes(rank: int) -> Iterator[None]:
    """Say in a sentence that another process is gone, or hangs."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        raise UserError(
            f"Process {rank} has lost another one of this run, which has ended or answers no more "
            f"({shown(str(error).splitlines()[0], 160)}). The same command goes on from the last checkpoint; "
            "torchrun --max-restarts N does so by itself."
        ) from error


def _from_torchrun(name: str, default: int) -> int:
    """A number that torchrun leaves in the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name} is {shown(text)!r} in the environment, and is no whole number; start with torchrun.")
    return int(text)
