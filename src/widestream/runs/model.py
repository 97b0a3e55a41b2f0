"""The model and the tokenizer in a run folder."""

from pathlib import Path

import torch

from widestream.data.manifest import TokenizerInfo
from widestream.data.tokenizer import Tokenizer, open_tokenizer
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe import RunConfig, to_dict
from widestream.runs import checkpoint
from widestream.runs.folder import differences, load_config, read_info


def load_model(
    run_dir: Path, device: torch.device, step: int | None = None, depth: Depth | None = None
) -> tuple[Decoder, checkpoint.Checkpoint]:
    """The model of a run at one of its checkpoints.

    Args:
        run_dir: the run's folder.
        device: where the weights are put.
        step: of the checkpoint; None: the newest complete one.
        depth: as for `build_model`.

    Returns:
        The model in evaluation mode, and the checkpoint.

    Raises:
        UserError: it is no run folder, it has no usable checkpoint, or the checkpoint is of another model.
    """
    config = load_config(run_dir)
    model = build_model(config.model, device=device, depth=depth)
    while True:
        saved = checkpoint.latest(run_dir) if step is None else checkpoint.at_step(run_dir, step)
        if saved is None:
            raise UserError(f"{run_dir} has no checkpoint yet; let it train to its first one (train.save_every).")
        require_same_model(saved, config)
        try:
            checkpoint.load_weights(saved.path, model)
        except UserError:
            if saved.path.exists():
                raise
            continue  # the run is training and has removed it for a newer one
        return model.eval(), saved


def require_same_model(saved: checkpoint.Checkpoint, config: RunConfig) -> None:
    """Make sure that a checkpoint was made with a run's model.

    Raises:
        UserError: it was not; names the first difference.
    """
    for key, old, new in differences(saved.state.get("model", {}), to_dict(config.model)):
        raise UserError(
            f"{saved.path} is of another model: model.{key} is {old} there and {new} here; "
            "remove that checkpoint from the folder, or give another folder with --out."
        )


def load_run_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from its own folder.

    Raises:
        UserError: run.json or the tokenizer is missing or damaged.
    """
    return open_tokenizer(run_dir, TokenizerInfo(**read_info(run_dir)["data"]["tokenizer"]))
