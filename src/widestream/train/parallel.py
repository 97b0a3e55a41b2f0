"""Many processes that train one model, each with its slice of every batch; shards.py says who holds what weights."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from widestream.errors import UserError, shown
from widestream.machine import find_device

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as one of them sees it."""

    device: torch.device
    """Where this process computes."""
    rank: int = 0
    """Number of this process."""
    size: int = 1
    """How many processes there are."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up `tensor` over all processes, in place; all get the sum."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

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
        everyone: list[str | None] = [None] * self.size
        dist.all_gather_object(everyone, refused)
        for sentence in filter(None, everyone):
            raise UserError(sentence)
        return cast(Value, answer)

    def require_same(self, values: dict[str, Any]) -> None:
        """Make sure that all processes were given the same, before they train on together.

        Args:
            values: plain values by name, the same names in all processes.

        Raises:
            UserError: in every process: names the first value that differs.
        """
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, values)
        for name, value in everyone[0].items():
            for rank, other in enumerate(everyone):
                if other.get(name) != value:
                    raise UserError(
                        f"The processes were not started alike: {name} is {shown(value)} in process 0 and "
                        f"{shown(other.get(name))} in process {rank}."
                    )


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...; under torchrun every process takes the GPU of its local rank.

    Raises:
        UserError: the device does not exist, or what torchrun says in the environment is incomplete.
    """
    size = _from_torchrun("WORLD_SIZE", 1)
    if size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {size} and {', '.join(missing)} not set; start the processes with torchrun, or unset "
                "WORLD_SIZE."
            )
        if not 0 <= (rank := _from_torchrun("RANK", 0)) < size:
            raise UserError(f"RANK is {rank}, and WORLD_SIZE {size}; start the processes with torchrun.")
    place = find_device(device, _from_torchrun("LOCAL_RANK", 0) if size > 1 else None)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(place, dist.get_rank(), size)
    finally:
        gc.collect()  # meshes and models that still know the group would abort the process at its exit
        dist.destroy_process_group()


def _from_torchrun(name: str, default: int) -> int:
    """A number that torchrun leaves in the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name} is {shown(text)!r} in the environment, and is no whole number; start with torchrun.")
    return int(text)
