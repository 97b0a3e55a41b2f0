"""A run folder as an object; `runs/many.py` opens it. docs/reference/python.md shows it at work."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widestream.errors import UserError
from widestream.recipe import RunConfig
from widestream.runs.folder import (
    flatten,
    list_checkpoints,
    load_config,
    read_config,
    read_done,
    read_info,
    steps_done,
)
from widestream.runs.read import is_number
from widestream.runs.rows import metrics_rows

if TYPE_CHECKING:
    from widestream.data.tokenizer import Tokenizer
    from widestream.model.language_model import LanguageModel
    from widestream.runs.columns import Columns


class RunFolder:
    """A run on disk, finished or not. Everything is read when it is asked for, so a run may train meanwhile.

    Args:
        path: a folder that training wrote.

    Raises:
        UserError: it is no run folder, or its config.yaml is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        """The folder."""
        self._recipe = read_config(self.path)

    def __repr__(self) -> str:
        flat = flatten(self._recipe)
        planned = flat.get("train.steps")
        of = f" of {planned:,}" if is_number(planned) else ""
        parts = [self.name, f"{flat.get('model.stream.kind', 'unknown')} stream"]
        parts.append(f"{steps_done(self.path):,}{of} steps")
        with contextlib.suppress(UserError):
            loss = None
            for row in metrics_rows(self.path):
                loss = row.get("loss") if row["kind"] == "eval" else loss
            if is_number(loss):
                parts.append(f"held-out loss {loss:.4f}")
        return f"<RunFolder {self.path}: {', '.join(parts)}>"

    @property
    def name(self) -> str:
        """Name of the recipe; the folder's where there is none."""
        return str(self._recipe.get("name") or self.path.name)

    @property
    def config(self) -> RunConfig:
        """The recipe.

        Raises:
            UserError: it holds a setting that this version does not know.
        """
        return load_config(self.path)

    @property
    def info(self) -> dict[str, Any]:
        """What run.json holds (machine, versions, data, costs).

        Raises:
            UserError: the file is missing or damaged.
        """
        return read_info(self.path)

    @property
    def done(self) -> dict[str, Any] | None:
        """The contents of done.json; None while the run is not finished."""
        return read_done(self.path)

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which there is a checkpoint, rising. Whether one is whole is seen when it is used."""
        return [step for step, _ in list_checkpoints(self.path)]

    def metrics(self, kind: Literal["train", "eval", "event", "stream"] | None = None) -> "Columns":
        """The rows of metrics.jsonl as columns; a column `kind` tells them apart.

        Args:
            kind: only rows of this kind, with the columns that they have; None: all rows, all columns.

        Returns:
            Numpy arrays by name, `clock.wall_s` for a key inside `clock`; missing values are nan. `to_pandas` of it
            makes a data frame.

        Raises:
            UserError: the file is missing or damaged, or there is no such kind.
        """
        from widestream.runs.columns import to_columns

        if kind not in (None, "train", "eval", "event", "stream"):
            raise UserError(f"There are no rows of kind {kind!r}; use train, eval, event, stream or none.")
        return to_columns(row for row in metrics_rows(self.path) if kind in (None, row["kind"]))

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that the run was trained with: `encode_batch`, `decode`, `boundary_id`.

        Raises:
            UserError: run.json or tokenizer.json is missing or damaged.
        """
        from widestream.runs.model import load_run_tokenizer

        return load_run_tokenizer(self.path)

    def model(self, checkpoint: int | None = None, device: str = "cpu") -> "LanguageModel":
        """The model, in evaluation mode: token ids [B, T] to logits [B, T, V].

        Args:
            checkpoint: one of `checkpoints`; None: the newest that is whole.
            device: cpu, cuda, cuda:1, or auto.

        Raises:
            UserError: no checkpoint yet, an unknown or damaged one, or no such device.
        """
        from widestream.machine import find_device
        from widestream.model.language_model import LanguageModel
        from widestream.runs.model import load_model

        return LanguageModel(load_model(self.path, find_device(device), checkpoint)[0]).eval()

    def sample(
        self,
        prompt: str = "",
        tokens: int = 100,
        temperature: float = 0.8,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        checkpoint: int | None = None,
        device: str = "cpu",
    ) -> str:
        """Text with which the model continues a prompt. The weights are read anew by every call.

        Args:
            prompt: what to continue; empty: the beginning of a document.
            tokens: tokens to add at most; fewer where the context is full or the document ends.
            temperature: 0 takes the likeliest token each time.
            top_k: draw from the k likeliest tokens only.
            top_p: draw from the likeliest tokens that together reach this probability.
            seed: of the draws.
            checkpoint: as for `model`.
            device: as for `model`.

        Raises:
            UserError: no usable checkpoint, or a prompt that does not fit into the context.
        """
        from widestream.generate.sampling import SamplingConfig
        from widestream.runs.sample import sample_run

        config = SamplingConfig(max_new_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return sample_run(self.path, prompt, config, step=checkpoint, device=device).text
