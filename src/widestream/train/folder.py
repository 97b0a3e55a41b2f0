"""The run folder: who it belongs to, what it says of itself, and the model in it."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

import widestream
from widestream.data.manifest import TokenizerInfo, read_manifest
from widestream.data.store import TokenStore
from widestream.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer, open_tokenizer
from widestream.errors import UserError
from widestream.files import write_atomic
from widestream.machine import choose_precision, describe_machine, matmul_peak
from widestream.model.build import build_model
from widestream.model.costs import summarize
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig, from_dict, to_dict
from widestream.runs import checkpoint
from widestream.train.plan import Plan

CONFIG = "config.yaml"
INFO = "run.json"
DONE = "done.json"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def open_folder(
    run_dir: Path, config: RunConfig, data: dict[str, Any], device: torch.device, computed: dict[str, Any]
) -> dict[str, Any]:
    """Begin a run folder, or go on with the one that this very run began.

    Args:
        run_dir: the folder; made when it does not exist.
        config: what is to be trained.
        data: what `describe_data` says of the tokens.
        device: where.
        computed: what computes the stream's exchanges and attention.

    Returns:
        The contents of run.json. Precision and peak are those measured when the run began.

    Raises:
        UserError: the folder belongs to another run, or holds something else; names what differs.
    """
    if (run_dir / CONFIG).exists():
        return _resume(run_dir, config, data)
    begun = {name + suffix for name in (TOKENIZER_FILE, INFO, CONFIG) for suffix in ("", ".tmp")}
    strangers = [path.name for path in _contents(run_dir) if path.name not in begun]
    if strangers:
        raise UserError(f"{run_dir} is no run folder and holds {strangers[0]}; give another folder with --out.")
    info = _describe(config, data, device) | computed
    run_dir.mkdir(parents=True, exist_ok=True)
    load_tokenizer(config.data.path).save(run_dir)  # a run can be sampled wherever it is taken
    write_json(run_dir / INFO, info)
    write_atomic(run_dir / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
    return info


def move_aside(run_dir: Path) -> Path | None:
    """Rename a run folder to `NAME.old-1`, `NAME.old-2`, ...; nothing is deleted.

    Returns:
        The new place, or None when there was nothing to move.
    """
    if not any(_contents(run_dir)):
        return None
    number = 1
    while (place := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    return run_dir.rename(place)


def load_run_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from its own folder.

    Raises:
        UserError: run.json or the tokenizer is missing or damaged.
    """
    return open_tokenizer(run_dir, TokenizerInfo(**load_info(run_dir)["data"]["tokenizer"]))


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


def load_config(run_dir: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        UserError: it is no run folder, or its config.yaml is damaged.
    """
    return from_dict(_read_config(run_dir))


def load_info(run_dir: Path) -> dict[str, Any]:
    """The contents of a run's run.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = run_dir / INFO
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise UserError(f"{path} is missing or damaged; train the run again with --fresh.") from None


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
    for key, old, new in _differences(found.state.get("model", {}), to_dict(config.model)):
        raise UserError(
            f"{found.path} is of another model: model.{key} is {old} there and {new} here; "
            "remove that checkpoint from the folder, or give another folder with --out."
        )


def _describe(config: RunConfig, data: dict[str, Any], device: torch.device) -> dict[str, Any]:
    precision = choose_precision(config.train.precision, device)
    model, length = config.model, data["sequence_length"]
    summary = summarize(model)
    at_length = summary if length == model.context else summarize(replace(model, context=length))
    return {
        "widestream": widestream.__version__,
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


def _resume(run_dir: Path, config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    info = load_info(run_dir)
    pairs = [
        *_differences(to_dict(load_config(run_dir)), to_dict(config)),  # a setting that is newer has its default there
        *_differences(info.get("data", {}), data, "run data "),
    ]
    if pairs:
        listed = ", ".join(f"{key} ({old} there, {new} now)" for key, old, new in pairs)
        raise UserError(
            f"{run_dir} holds another run; it differs in {listed}. Give another folder with --out, "
            "or --fresh to move that one aside and begin anew."
        )
    return info


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run_dir} is no run folder: it has no {CONFIG}; give a folder that training wrote.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged; put a good copy back, or train again with --fresh.")
    return values


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from _differences(
                old.get(name), new.get(name), f"{key}.{name}" if key[-1:].strip() else f"{key}{name}"
            )
    elif old != new:
        yield key, old, new


def _contents(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())
