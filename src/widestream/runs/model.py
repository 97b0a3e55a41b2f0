"""The model and the tokenizer in a run folder."""

from pathlib import Path

import torch

from widestream.data.manifest import TokenizerInfo
from widestream.data.tokenizer import Tokenizer, open_tokenizer
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig, to_dict
from widestream.runs import checkpoint
from widestream.runs.folder import differences, load_config, load_info


def load_model(run_dir: Path, device: torch.device) -> tuple[Decoder, checkpoint.Checkpoint]:
    """The model of a run at its newest complete checkpoint.

    Returns:
        The model in evaluation mode, and the checkpoint.

    Raises:
        UserError: it is no run folder, it has no usable checkpoint, or the checkpoint is of another model.
    """
    config = load_config(run_dir)
    model = build_model(config.model, device=device)
    while True:
        found = checkpoint.latest(run_dir)
        if found is None:
            raise UserError(f"{run_dir} has no checkpoint yet; let it train to its first one (train.save_every).")
        require_same_model(found, config)
        try:
            checkpoint.load_weights(found.path, model)
        except UserError:
            if found.path.exists():
                raise
            continue  # the run is training and has removed it for a newer one
        return model.eval(), found


def require_same_model(found: checkpoint.Checkpoint, config: RunConfig) -> None:
    """Make sure that a checkpoint was made with a run's model.

    Raises:
        UserError: it was not; names the first difference.
    """
    for key, old, new in differences(found.state.get("model", {}), to_dict(config.model)):
        raise UserError(
            f"{found.path} is of another model: model.{key} is {old} there and {new} here; "
            "remove that checkpoint from the folder, or give another folder with --out."
        )


def load_run_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from its own folder.

    Raises:
        UserError: run.json or the tokenizer is missing or damaged.
    """
    return open_tokenizer(run_dir, TokenizerInfo(**load_info(run_dir)["data"]["tokenizer"]))
