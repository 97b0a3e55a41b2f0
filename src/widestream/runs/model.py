"""The model and the tokenizer in a run folder."""

from collections.abc import Iterable
from pathlib import Path

import torch

from widestream.data.manifest import TokenizerInfo
from widestream.data.tokenizer import Tokenizer, open_tokenizer
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.runs import checkpoint
from widestream.runs.folder import INFO, MADE, damaged, load_config, read_info
from widestream.runs.identity import require_own


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
        UserError: it is no run folder, it has no usable checkpoint, or the checkpoint is of another run or model, or
            not finite.
    """
    config = load_config(run_dir)
    model = build_model(config.model, device=device, depth=depth)
    while True:
        saved = checkpoint.latest(run_dir) if step is None else checkpoint.at_step(run_dir, step)
        if saved is None:
            raise UserError(f"{run_dir} has no checkpoint yet; let it train to its first one (train.save_every).")
        require_own(saved, config, read_info(run_dir))
        try:
            checkpoint.load_weights(saved.path, model)
        except UserError:
            if saved.path.exists():
                raise
            continue  # the run is training and has removed it for a newer one
        require_finite(model.eval(), saved.path)
        return model, saved


def require_finite(model: Decoder, place: Path | str) -> None:
    """Make sure that a model computes numbers.

    Args:
        model: with weights from `place`.
        place: where they are from, for messages.

    Raises:
        UserError: weights or logits are not finite.
    """
    if not is_finite(model, model.parameters()):
        raise not_finite(place)


@torch.no_grad()
def is_finite(model: Decoder, parameters: Iterable[torch.Tensor]) -> bool:
    """Whether these parameters of a model, and what it makes of a token, are finite."""
    own = 1 if model.split is None else model.split.size  # one token for every process that shares a window
    tokens = torch.zeros(1, own, dtype=torch.long, device=model.embedding.token.device)
    return all_finite([*parameters, model(tokens)])


def not_finite(place: Path | str) -> UserError:
    """What to say of weights that are not finite."""
    return UserError(f"{place} holds weights that are not finite: its run diverged. Use an earlier one or another run.")


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number is finite."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def load_run_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from its own folder.

    Raises:
        UserError: run.json or the tokenizer is missing or damaged.
    """
    known = read_info(run_dir)
    if MADE in known and "tokenizer" not in known["data"]:
        raise UserError(f"{run_dir} was imported without a tokenizer; import it again, with --tokenizer.")
    try:
        info = TokenizerInfo(**known["data"]["tokenizer"])
    except (KeyError, TypeError):
        raise damaged(run_dir / INFO) from None
    return open_tokenizer(run_dir, info)
