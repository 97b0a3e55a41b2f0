"""Held-out loss, perplexity and bits per byte, of a model and of a run folder."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from widestream.data.batches import Batch, divide_windows, eval_batches
from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.machine import find_device, numerics
from widestream.model.decoder import Decoder
from widestream.runs.folder import load_config, read_info
from widestream.runs.model import load_model
from widestream.train.parallel import World
from widestream.train.plan import make_plan
from widestream.train.setup import depth_of
from widestream.train.shards import settle
from widestream.train.step import batch_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """How well a model predicts a split."""

    loss: float
    """Mean cross-entropy in nats per target token."""
    perplexity: float
    """exp(loss); comparable only between models with the same tokenizer."""
    bits_per_byte: float | None
    """Total cross-entropy in bits over the UTF-8 bytes of the source text; comparable between tokenizers. None where
    the tokens do not tell all of that text."""
    target_tokens: int
    """Tokens the loss is a mean over."""
    whole: bool
    """Whether that is the whole split. If not, its bytes are estimated from the split's bytes per token."""


@torch.no_grad()
def evaluate(
    model: Decoder,
    store: TokenStore,
    *,
    world: World,
    sequence_length: int,
    batch_size: int,
    precision: str = "float32",
    limit: int | None = None,
    among: Sequence[int] | None = None,
) -> Heldout:
    """Evaluate a model on a split.

    Every token of the split but its first is a target exactly once.

    Args:
        model: the decoder; its mode is put back afterwards.
        store: the split.
        world: processes that share the work; all get the result.
        sequence_length: tokens per window, T.
        batch_size: windows per forward pass.
        precision: `bf16` computes under autocast.
        limit: only so many windows, spread evenly.
        among: only of these windows of the split; default: of all.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for batch, counts in _shared(eval_batches(store, sequence_length, batch_size, limit, among), world):
        world.alive()
        terms = batch_loss(model, batch, world.device, precision)
        if counts:
            sums += torch.stack((terms.cross_entropy.double() * terms.tokens, terms.tokens.double()))
    settle(model)
    model.train(training)
    nats, targets = world.sum_(sums).tolist()
    source_bytes = store.source_bytes * targets / (store.tokens - 1)
    loss = nats / targets
    return Heldout(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / (math.log(2) * source_bytes) if store.is_exact else None,
        target_tokens=int(targets),
        whole=int(targets) == store.tokens - 1,
    )


def _shared(batches: Iterator[Batch], world: World) -> Iterator[tuple[Batch, bool]]:
    """This process's batches, and whether they count.

    All processes get as many, since weights that are shared out are made whole by all at once: where batches run out
    for some, these go through one of another process, for nothing. Of processes that find the same one counts.
    """
    while group := list(islice(batches, world.readers)):
        mine = world.reader < len(group)
        yield group[world.reader if mine else 0], mine and world.rank == world.first_alike


def evaluate_run(run_dir: str | Path, data: str | Path | None = None, device: str | None = None) -> tuple[int, Heldout]:
    """Evaluate a run's newest complete checkpoint on a whole held-out split.

    It computes as the run did (precision, threads, windows), so that the numbers are those the run itself reports: on
    the run's own split, without the windows that it was chosen on (`train.selection`).

    Args:
        run_dir: folder of a run, finished or not.
        data: another prepared folder, made with the same tokenizer; default: the run's own.
        device: where to compute; default: where the run was trained.

    Returns:
        The checkpoint's step, and the evaluation.

    Raises:
        UserError: no run folder, no usable checkpoint, no such data, data of another tokenizer, or a loss that is not
            finite.
    """
    run_dir = Path(run_dir)
    config, info = load_config(run_dir), read_info(run_dir)
    store = open_heldout(run_dir, data)
    place = find_device(device or config.train.device)
    plan = make_plan(config)
    selection = config.train.selection if data is None else 0.0
    with numerics(config.train):
        model, saved = load_model(run_dir, place, depth=depth_of(config, place, training=False))
        heldout = evaluate(
            model,
            store,
            world=World(place),
            sequence_length=plan.sequence_length,
            batch_size=plan.micro_batch_size,
            precision=info["precision"],
            among=divide_windows(store, plan.sequence_length, selection)[0],
        )
    if not math.isfinite(heldout.loss):
        raise UserError(f"The held-out loss of {run_dir} at step {saved.step} is not finite: the run diverged.")
    return saved.step, heldout


def open_heldout(run_dir: Path, data: str | Path | None = None) -> TokenStore:
    """The held-out split that a run is judged on, read through and checked.

    Args:
        run_dir: folder of the run.
        data: another prepared folder, made with the same tokenizer; default: the run's own.

    Raises:
        UserError: no run folder, no such data, data of another tokenizer or boundary, or, without `data`, another
            held-out text than the run was trained beside.
    """
    config, info = load_config(run_dir), read_info(run_dir)
    folder = config.data.path if data is None else data
    split = "heldout" if config.data.heldout_split == "none" else config.data.heldout_split
    store = TokenStore.open(folder, split)
    store.verify_changed()
    manifest, then = read_manifest(folder), info["data"]
    boundary = then.get("tokenizer", {}).get("boundary_id", manifest.tokenizer.boundary_id)
    if (manifest.tokenizer.sha256, manifest.tokenizer.boundary_id) != (then.get("tokenizer_sha256"), boundary):
        raise UserError(
            f"{folder} was prepared with another tokenizer or boundary than {run_dir} was trained with; "
            "prepare the text again with the run's tokenizer."
        )
    known = then.get("heldout_fingerprint")
    if data is None and known is not None and manifest.fingerprint(split) != known:
        raise UserError(
            f"{folder} was prepared anew since {run_dir} was trained, and its held-out text is another one; give "
            "--data to evaluate on it all the same."
        )
    return store
