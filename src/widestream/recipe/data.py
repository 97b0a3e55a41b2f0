"""Configuration of the data a run reads."""

from dataclasses import dataclass

from widestream.recipe.home import expand_home


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which prepared tokens a run trains on and is evaluated on."""

    path: str
    """Folder written by `widestream data prepare` (holds manifest.json). Relative to the working directory; ~ is the
    home folder. Or the URL of one (s3://bucket/folder), of which is fetched what is needed."""
    train_split: str = "train"
    """Split of the manifest to train on."""
    heldout_split: str = "heldout"
    """Split to evaluate on; `none` switches evaluation off."""
    sequence_length: int | None = None
    """Tokens per window, T. Default: the model's context."""
    seed: int = 0
    """Seed of the order of the windows. Two runs see the same batches when data, sequence_length, batch_size and this
    agree."""

    def __post_init__(self):
        object.__setattr__(self, "path", expand_home(self.path))
