"""How a run folder begins, and whether it is the one to go on with."""

import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.data.tokenizer import load_tokenizer
from widestream.errors import UserError
from widestream.machine import choose_precision, describe_machine, matmul_peak
from widestream.model.costs import summarize
from widestream.recipe import RunConfig, to_dict
from widestream.runs.folder import differences, is_run, load_config, read_info
from widestream.runs.write import begin, require_free
from widestream.train.plan import Plan
from widestream.version import __version__


def open_folder(
    run_dir: Path, config: RunConfig, data: dict[str, Any], device: torch.device, computed: dict[str, Any]
) -> dict[str, Any]:
    """Begin a run folder, or go on with the one that this very run began.

    Args:
        run_dir: the folder; made when it does not exist. It may hold a beginning that was killed.
        config: what is to be trained.
        data: what `describe_data` says of the tokens.
        device: where.
        computed: what computes the stream's exchanges and attention.

    Returns:
        The contents of run.json. Precision and peak are those measured when the run began.

    Raises:
        UserError: the folder belongs to another run, or holds something else; names what differs.
    """
    if is_run(run_dir):
        return _require_same(run_dir, config, data)
    require_free(run_dir)
    info = _describe(config, data, device) | computed
    begin(run_dir, config, info, load_tokenizer(config.data.path))
    return info


def describe_data(config: RunConfig, plan: Plan, train: TokenStore, heldout: TokenStore | None) -> dict[str, Any]:
    """What two runs must agree on to have seen the same batches, and the sizes of the splits."""
    tokenizer = read_manifest(config.data.path).tokenizer
    return {
        "fingerprint": train.fingerprint,
        "heldout_fingerprint": heldout.fingerprint if heldout else None,
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer": asdict(tokenizer),
        "train_tokens": train.tokens,
        "train_bytes": train.source_bytes,
        "heldout_tokens": heldout.tokens if heldout else None,
        "heldout_bytes": heldout.source_bytes if heldout else None,
        "sequence_length": plan.sequence_length,
        "batch_size": config.train.batch_size,
        "seed": config.data.seed,
    }


def _describe(config: RunConfig, data: dict[str, Any], device: torch.device) -> dict[str, Any]:
    precision = choose_precision(config.train.precision, device)
    model, length = config.model, data["sequence_length"]
    summary = summarize(model)
    at_length = summary if length == model.context else summarize(replace(model, context=length))
    return {
        "widestream": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": describe_machine(device),
        "precision": precision,
        "peak_flops_per_s": matmul_peak(device, precision),
        "data": data,
        "summary": summary.to_dict(),
        "train_flops_per_token": at_length.train_flops,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _require_same(run_dir: Path, config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """The contents of a folder's run.json, once it is certain that it holds this very run."""
    info = read_info(run_dir)
    pairs = [
        *differences(to_dict(load_config(run_dir)), to_dict(config)),  # a setting that is newer has its default there
        *differences(info["data"], data, "run data "),
    ]
    if pairs:
        listed = ", ".join(f"{key} ({old} there, {new} now)" for key, old, new in pairs)
        raise UserError(
            f"{run_dir} holds another run; it differs in {listed}. Give another folder with --out, "
            "or --fresh to move that one aside and begin anew."
        )
    return info
