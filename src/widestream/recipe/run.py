"""A whole recipe: what to train, on what, and how."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from widestream.errors import UserError, shown
from widestream.recipe.data import DataConfig
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import OptimizerConfig, ScheduleConfig, TrainConfig

LONGEST = 200
"""Bytes of a name that most file systems take, with room for what is put behind it (`-seed0.old-1`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run, fully resolved."""

    name: str
    """Name of the run; the default run folder is runs/<name>."""
    description: str = ""
    """What the recipe mirrors and what to expect of it."""
    model: ModelConfig
    """The decoder and its stream."""
    data: DataConfig
    """Tokens to train on and to be evaluated on."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW, or Muon with AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over training."""

    def __post_init__(self):
        parts = PurePosixPath(self.name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\n" in self.name:
            raise UserError(f"name is {shown(self.name)!r}; a run folder inside of runs/ is named by it.")
        if max(len(part.encode()) for part in parts) > LONGEST:
            raise UserError(f"name is {shown(self.name)}; a part of it must be at most {LONGEST} bytes long.")
