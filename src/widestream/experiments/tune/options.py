"""What can be said about a search of settings, and what its trials are then."""

from dataclasses import dataclass
from pathlib import Path

from widestream.errors import UserError
from widestream.experiments.tune.space import Space, changes
from widestream.recipe import RunConfig, load_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """What can be said about a search."""

    recipe: str
    """Trial model, data and length of a trial."""
    changes: tuple[str, ...] = ()
    """Changes to the recipe."""
    folder: Path
    """Trials and record are written here; machines that share a storage each have their own."""
    space: Space
    """What is varied."""
    trials: int = 100
    """Trials in all, those of other processes and of earlier calls counted."""
    trial_steps: int | None = None
    """Optimizer steps of a trial; default: the recipe's."""
    storage: str | None = None
    """Journal file, or URL of a database; default: journal.log in the folder."""
    workers: int = 1
    """Trials that run at a time, each in a process of its own."""

    def __post_init__(self):
        for name in ("trials", "trial_steps", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")

    def trial_changes(self, settings: dict[str, float]) -> tuple[str, ...]:
        """All changes to the recipe that make a trial: a checkpoint at every evaluation, so that no more is lost."""
        config = self.config
        every = min(config.train.save_every, config.train.eval_every)
        own = (f"train.steps={config.train.steps}", f"train.save_every={every}", "train.keep=1")
        return (*self.changes, *changes(settings), *own)

    @property
    def config(self) -> RunConfig:
        """The recipe of the trials, before anything is varied.

        Raises:
            UserError: it is no recipe, or none that can be searched.
        """
        steps = () if self.trial_steps is None else (f"train.steps={self.trial_steps}", "train.tokens=null")
        config = load_recipe(self.recipe, (*self.changes, *steps))
        if config.model.init.scheme != "mup":
            raise UserError(
                f"{self.recipe} has model.init.scheme: {config.model.init.scheme}; a muP search needs "
                "model.init.scheme=mup and base sizes, as tune/transformer and tune/rmt have."
            )
        if config.train.steps is None:
            raise UserError(f"{self.recipe} gives train.tokens; say --trial-steps.")
        if config.data.heldout_split == "none":
            raise UserError("Trials are judged by their held-out loss; set data.heldout_split.")
        return config


def trial_folder(options: TuneOptions, number: int) -> Path:
    """The run folder of a trial."""
    return options.folder / f"trial-{number:04d}"
