"""Checkpoints that are written while training goes on: a copy is taken, and a thread of each process writes its share.

Every process learns at the end of a step whether all have written; then the main one completes the checkpoint. Until
that moment it does not exist, and the older ones are what they were.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from widestream.errors import UserError
from widestream.model.decoder import Decoder
from widestream.runs import checkpoint, checkpoint_writer
from widestream.runs.checkpoint import MOMENTS, WEIGHTS, Checkpoint, Expected
from widestream.runs.folder import CHECKPOINTS
from widestream.runs.mirror import Mirror
from widestream.runs.rows import Written
from widestream.runs.tensor_files import Piece, write_part, write_whole
from widestream.train.layout import Layout
from widestream.train.parallel import World
from widestream.train.shards import Shares

Files = dict[str, dict[str, Any]]
"""Names of files, and what `checkpoint_writer.describe` says of them."""


class Saver:
    """Writes the checkpoints of a run; all its methods are called by all processes together.

    Args:
        run_dir: the run's folder.
        world: the processes.
        layout: who holds what.
        keep: newest checkpoints that stay.
        best: checkpoints of the lowest held-out loss that stay beside these.
        mirror: keeps a copy behind a URL; in the main process, if anywhere.
    """

    def __init__(
        self, run_dir: Path, world: World, layout: Layout, keep: int, best: int = 0, mirror: Mirror | None = None
    ):
        self._run_dir, self._world, self._layout, self._keep, self._best = run_dir, world, layout, keep, best
        self._mirror = mirror
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Files] | None = None
        self._rest: tuple[int, dict[str, Any], Written | None] = 0, {}, None

    def begin(
        self,
        step: int,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        written: Written | None,
    ) -> None:
        """Begin a checkpoint, once an earlier one is complete.

        Args:
            step: optimizer steps done.
            model: weights of it are copied.
            optimizer: moments of it are copied.
            state: of the run, for state.json.
            written: what the main process has in metrics.jsonl.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        self.finish()
        shares, parts = Shares(model), self._layout.parts
        weights = shares.pieces(checkpoint.weights_of(model), self._world, parts)
        moments = shares.pieces(checkpoint.moments_of(model, optimizer), self._world, parts)

        def begin() -> Path:
            with checkpoint_writer.write_errors(self._run_dir, step):
                return checkpoint_writer.begin(self._run_dir, step)

        aside = self._world.on_main(begin)
        self._rest = step, state, written
        self._pending = self._thread.submit(self._write, aside, {WEIGHTS: weights, MOMENTS: moments})

    def look(self) -> None:
        """Complete the checkpoint that is being written, if all have written; after every step.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None and self._world.all_(self._pending.done()):
            self._complete(self._pending)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and complete it.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is not None:
            wait([self._pending])
            self._complete(self._pending)

    def copy(self) -> None:
        """Have the run copied to its mirror, if it has one; in the main process."""
        if self._mirror is not None:
            self._mirror.push()

    def close(self) -> None:
        """Let the thread end, whatever has ended the run.

        What is being written is completed by a run of one process. Several may have ended at different places, and
        cannot: they leave a hidden folder, which the next one removes.
        """
        with contextlib.suppress(UserError):
            if self._world.size == 1:
                self.finish()
        self._thread.shutdown()
        if self._mirror is not None:
            self._world.resting()
            self._mirror.close()

    def _write(self, aside: Path, tensors: dict[str, dict[str, Piece]]) -> Files:
        """Write what this process has."""
        parts, part = self._layout.parts, self._world.rank % self._layout.parts
        files: Files = {}
        with checkpoint_writer.write_errors(self._run_dir, self._rest[0], remove=False):
            for kind, pieces in tensors.items():
                if parts == 1:
                    if self._world.is_main:
                        path = write_whole(aside, kind, {name: piece.values for name, piece in pieces.items()})
                        files[path.name] = checkpoint_writer.describe(path)
                elif self._world.rank < parts:
                    path = write_part(aside, kind, part, parts, pieces)
                    files[path.name] = checkpoint_writer.describe(path)
        return files

    def _complete(self, pending: "Future[Files]") -> None:
        self._pending = None
        step, state, written = self._rest
        try:
            own = self._world.everywhere(pending.result)
        except UserError:
            self._world.on_main(lambda: checkpoint_writer.abandon(self._run_dir, step))
            raise
        files: Files = {name: said for part in self._world.gather(own) for name, said in part.items()}

        def complete() -> None:
            with checkpoint_writer.write_errors(self._run_dir, step):
                checkpoint_writer.commit(self._run_dir, step, files, state, written)
            checkpoint_writer.prune(self._run_dir, step, self._keep, self._best)
            self.copy()

        self._world.on_main(complete)


def newest_checkpoint(run_dir: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint that is complete and unaltered.

    The main process looks for it, because a disk of the network may show the others an older list, or a newer one; each
    reads a share of its files through.

    Raises:
        UserError: in all processes: there are checkpoints, but all of them are damaged.
    """

    def read_share(files: Sequence[Expected]) -> str | None:
        own = [(run_dir / file, size, sha256) for file, size, sha256 in files[world.rank :: world.size]]
        return next(filter(None, world.gather(checkpoint.first_fault(own))), None)

    def check(files: Sequence[Expected]) -> str | None:
        inside = [(file.relative_to(run_dir), size, sha256) for file, size, sha256 in files]
        return read_share(world.on_main(lambda: inside))

    def look() -> Checkpoint | list[Expected] | None:
        return checkpoint.latest(run_dir, check)

    # To the others comes what to read, as often as the main process has them read, and then what it has found.
    while isinstance(told := world.on_main(look), list):
        read_share(told)
    return told and replace(told, path=run_dir / CHECKPOINTS / told.path.name)
