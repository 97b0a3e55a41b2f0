"""A whole recipe: what to train, on what, and how."""

from dataclasses import dataclass, field

from widestream.recipe.data import DataConfig
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import OptimizerConfig, ScheduleConfig, TrainConfig


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
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over training."""
