"""The training loop. `train` is all of it; what it calls stands below, in the order of the calls."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from widestream.data.batches import Batch
from widestream.errors import TERMINATED, UserError
from widestream.files import disk_errors, write_atomic
from widestream.lens.monitor import Watch, check_health
from widestream.machine import autocast, keep_freed_memory, memory_bytes, memory_errors, numerics
from widestream.recipe import RunConfig
from widestream.runs.folder import NONFINITE
from widestream.runs.metrics import finite
from widestream.runs.model import all_finite
from widestream.runs.progress import Progress
from widestream.runs.write import write_done
from widestream.train.clock import Stopwatch
from widestream.train.ending import Ending, listening
from widestream.train.evaluate import Heldout, evaluate
from widestream.train.optim import set_lr, set_momentum
from widestream.train.parallel import join_world
from widestream.train.rollback import Rollback, batch_of
from widestream.train.schedule import factor
from widestream.train.setup import TrainingRun, prepare
from widestream.train.shards import own
from widestream.train.step import StepResult, batch_loss, optimizer_step, split


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a finished run comes to; also the contents of its done.json."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Training tokens seen."""
    flops: float
    """Training FLOPs spent, logits included."""
    wall_s: float
    """Seconds spent training; evaluation and saving are not in it."""
    skipped: int
    """Steps skipped because something was not finite."""
    heldout: dict[str, Any] | None
    """The last evaluation (see `train.evaluate.Heldout`, `train.final_eval`), if there is one."""
    selection: dict[str, Any] | None
    """The same on the windows that settings are chosen on (`train.selection`), if any are kept for that."""


def train(config: RunConfig, run_dir: str | Path, resume: bool = True, extend: bool = False) -> Result:
    """Train a model, or go on training it from the newest checkpoint in its folder.

    Args:
        config: what to train, on what, and how.
        run_dir: folder for everything that the run writes.
        resume: go on from what the folder holds; if not, the folder is moved aside first.
        extend: go on also where another length or schedule makes other rates of the steps that were done (see
            `train.extend`).

    On a CPU the process keeps the memory that a step needs (see `keep_freed_memory`), also afterwards. Told to end by
    SIGTERM, it saves a checkpoint after the step that it is at and exits with code 143.

    Raises:
        UserError: something has to be mended first (configuration, data, folder), the disk is full, or the loss is not
            finite. What the folder holds stays usable.
    """
    folder, settings, parallel = Path(run_dir), config.train, config.train.parallel
    with (
        listening() as ending,
        join_world(settings.device, parallel.timeout_s, parallel.context, parallel.tensor) as world,
        numerics(settings),
        disk_errors(folder, "give the same command again"),
        memory_errors("A step", "lower train.micro_batch_size, train.batch_size or the model's sizes"),
    ):
        if world.device.type == "cpu":
            keep_freed_memory()
        while isinstance(result := _train(prepare(config, folder, world, resume, extend), ending), Rollback):
            resume = True
        return result


def _train(run: TrainingRun, ending: Ending) -> Result | Rollback:
    """All steps that are left, or those until the run goes back.

    Nothing of the run outlives this, because the processes part behind it.
    """
    config, settings, folder = run.config, run.config.train, run.folder
    steps, watch, health = run.plan.steps, Stopwatch(run.reached.wall_s), Watch()
    bar = Progress(config.name, run.reached.step, steps, quiet=not run.world.is_main)
    with run.metrics or contextlib.nullcontext(), contextlib.closing(run.saver), bar as progress:
        if run.said:
            progress.say(f"{folder}: {run.said}")
        ending.may_wait = True
        watch.start()
        for step, batch in _upcoming(run):
            run.world.alive()
            watch.data_ready()
            scale = factor(step, steps, config.schedule)
            set_lr(run.optimizer, scale)
            set_momentum(run.optimizer, step)
            result = _take_step(run, batch, ending)
            watch.step_done()
            run.reached.step, run.reached.wall_s = step + 1, watch.total_s

            run.saver.look()
            if result.applied and (usual := run.losses.leapt_from(result.loss)) is not None:
                back = run.go_back(result.loss, usual)
                leap = f"the loss leapt to {back.loss:.3f} from {usual:.3f}"
                progress.say(f"step {back.at}: {leap}; back to step {back.to}, and on with other batches")
                return back
            if not result.applied:
                _handle_nonfinite(run, result)
            elif run.due(settings.log_every):
                _log(run, result, scale * config.optimizer.lr, watch)
            if settings.watch_every is not None and result.applied and run.due(settings.watch_every):
                _look_at_stream(run, batch, health, progress)
            if run.heldout is not None and run.due(settings.eval_every):
                progress.say(_evaluate(run))
            saved = (result.ending or run.due(settings.save_every)) and _save(run, batch, progress)
            note = f"loss {result.loss:.3f}, {run.plan.tokens_per_step / watch.step_s:,.0f} tokens/s"
            progress.show(step + 1, f"step {step + 1}/{steps}: {note}", note)
            if result.ending and step + 1 < steps:
                run.saver.finish()
                place = "here" if saved else "its newest checkpoint"
                told = f"told to end at step {step + 1}/{steps}"
                progress.say(f"{folder}: {told}; the same command goes on from {place}.")
                sys.exit(TERMINATED)
            watch.start()
        return _finish(run, progress)


def _upcoming(run: TrainingRun) -> Iterator[tuple[int, Batch]]:
    """This process's batches from where the run stands on, with their steps; the next one is read in the background."""

    def read(step: int) -> Batch:
        return run.batch_at(step).ready_for(run.world.device)

    first, last = run.reached.step, run.plan.steps - 1
    with ThreadPoolExecutor(1, "batches") as reader:
        pending = reader.submit(read, first)
        for step in range(first, last + 1):
            batch = pending.result()
            if step < last:
                pending = reader.submit(read, step + 1)
            yield step, batch


def _take_step(run: TrainingRun, batch: Batch, ending: Ending) -> StepResult:
    # A stream may draw random numbers. Seeded by the step they need no saving, and evaluation cannot disturb them.
    torch.manual_seed((run.config.train.seed << 32) + run.reached.step * run.world.size + run.world.first_alike)
    return optimizer_step(
        run.model,
        run.optimizer,
        batch,
        world=run.world,
        micro_batches=run.plan.micro_batches,
        precision=run.precision,
        z_loss=run.config.train.z_loss,
        grad_clip=run.config.optimizer.grad_clip,
        ending=ending.told,
    )


def _handle_nonfinite(run: TrainingRun, result: StepResult) -> None:
    """Stop the run, or count the step as skipped, as `train.nonfinite` says. The weights are as before the step.

    Every process comes to the same decision, because loss and norm are those of the whole batch.

    Raises:
        UserError: the run is to stop. The batch was saved to `nonfinite_step_N.safetensors` in the run folder: tokens,
            targets and segments [B, T] of all processes, the step, and the loss of every micro-batch.
    """
    step = run.reached.step
    what = f"step {step}: the loss is {result.loss} and the gradient norm {result.grad_norm}"
    if run.config.train.nonfinite == "skip":
        run.reached.skipped += 1
        run.record(
            "event",
            event="nonfinite_skipped",
            loss=result.loss,
            grad_norm=result.grad_norm,
            skipped=run.reached.skipped,
        )
        return
    run.saver.finish()
    path = run.folder / NONFINITE.format(step)
    if run.world.is_main:
        batch = run.batches.at(batch_of(step - 1, run.rollbacks))
        fields = {"tokens": batch.tokens, "targets": batch.targets, "segments": batch.segments}
        write_atomic(path, save({**fields, "step": torch.tensor(step), "losses": result.losses.cpu()}))
    raise UserError(
        f"Training stopped at {what}. Its batch is saved as {path}; checkpoints are untouched. Lower optimizer.lr, set "
        "optimizer.grad_clip, or pass over such steps with train.nonfinite=skip, in another run folder (--out) or anew "
        "in this one (--fresh)."
    )


def _log(run: TrainingRun, result: StepResult, lr: float, watch: Stopwatch) -> None:
    """Write the row of a training step."""
    clock = watch.read(run.plan.tokens_per_step)
    experts = {"balance": result.balance, "largest_load": result.largest_load} if run.model.experts else {}
    run.record(
        "train",
        tokens=run.tokens,
        flops=run.flops,
        loss=result.loss,
        z_loss=result.z_loss,
        grad_norm=result.grad_norm,
        lr=lr,
        **experts,
        clock={
            **clock,
            "mfu": clock["tokens_per_s"] * run.flops_per_token / run.peak_flops_per_s,
            "memory_bytes": memory_bytes(run.world.device),
        },
    )


def _look_at_stream(run: TrainingRun, batch: Batch, health: Watch, progress: Progress) -> None:
    """Write the row of the stream's health, by the first window of the batch, and say what is not well."""
    first = next(split(batch, len(batch.tokens))).to(run.world.device)
    window = [run.world.from_main(part) for part in (first.tokens, first.targets, first.segments)]
    with autocast(run.world.device, run.precision):
        found = check_health(run.model, *window)
    run.record("stream", tokens=run.tokens, **{name: _finite(value) for name, value in found.to_row().items()})
    for sentence in health.take(found):
        progress.say(f"step {run.reached.step}: {sentence}")


def _finite(value: Any) -> Any:
    """A number, or numbers, as JSON has them: null for what is not finite."""
    return [finite(one) for one in value] if isinstance(value, list) else finite(value)


def _evaluate(run: TrainingRun) -> str:
    """Evaluate on held-out tokens, and say the result in one line.

    The last step evaluates all windows that are reported on, unless `train.final_eval` is windows. If the steps before
    it did not, it does so beside what they did, so that a curve over training is of the same tokens throughout. It also
    evaluates, apart, the windows that settings are chosen on.
    """
    settings = run.config.train
    limit = settings.eval_windows
    heldout = _record_evaluation(run, _evaluate_windows(run, limit, run.reported))
    if run.reached.step == run.plan.steps:
        last = None if settings.final_eval == "whole" else limit
        if last is None and limit is not None and limit < len(run.reported):
            heldout = _record_evaluation(run, _evaluate_windows(run, last, run.reported))
        if run.chosen:
            run.reached.selection = _plain(_evaluate_windows(run, last, run.chosen))
    bits = "" if heldout.bits_per_byte is None else f", {heldout.bits_per_byte:.4f} bits per byte"
    return (
        f"step {run.reached.step}/{run.plan.steps}: held-out loss {heldout.loss:.4f}, "
        f"perplexity {heldout.perplexity:.2f}{bits}"
    )


def _evaluate_windows(run: TrainingRun, limit: int | None, among: Sequence[int]) -> Heldout:
    """Evaluate on so many of these windows (None: all)."""
    assert run.heldout is not None
    return evaluate(
        run.model,
        run.heldout,
        world=run.world,
        sequence_length=run.plan.sequence_length,
        batch_size=run.plan.micro_batch_size,
        precision=run.precision,
        limit=limit,
        among=among,
    )


def _record_evaluation(run: TrainingRun, heldout: Heldout) -> Heldout:
    """Write the row of an evaluation."""
    run.reached.heldout = _plain(heldout)
    clock = {"wall_s": run.reached.wall_s}
    run.record("eval", tokens=run.tokens, flops=run.flops, **run.reached.heldout, clock=clock)
    return heldout


def _plain(heldout: Heldout) -> dict[str, Any]:
    return {name: finite(value) for name, value in asdict(heldout).items()}


def _save(run: TrainingRun, batch: Batch, progress: Progress) -> bool:
    """Write a checkpoint, unless nothing good could be computed from it: then the older ones stay the newest.

    Weights can be finite, and so large that no loss is; so the batch at hand is tried.

    Returns:
        Whether it is written.
    """
    moments = [moment for state in run.optimizer.state.values() for moment in state.values()]
    sound = run.world.all_(all_finite(own([*run.model.parameters(), *moments])))
    if sound:
        run.model.eval()
        with torch.no_grad():
            part = next(split(batch, run.plan.micro_batches))
            sound = all_finite([batch_loss(run.model, part, run.world.device, run.precision).cross_entropy])
        run.model.train()
        sound = run.world.all_(sound)
    if sound:
        run.save()
    else:
        progress.say(f"step {run.reached.step}: its weights give no finite loss, so no checkpoint is made of them")
    return sound


def _finish(run: TrainingRun, progress: Progress) -> Result:
    """Write done.json; the last step has evaluated and begun its checkpoint already."""
    run.saver.finish()
    result = Result(tokens=run.tokens, flops=run.flops, **asdict(run.reached))
    if run.world.is_main:
        write_done(run.folder, asdict(result))
        run.saver.copy()
    lost = f" ({result.skipped:,} skipped, which moved nothing)" if result.skipped else ""
    if 2 * result.skipped > result.step:
        lost += ", most of its steps: this is no trained model; lower optimizer.lr or set optimizer.grad_clip"
    progress.say(f"{run.folder}: {result.step:,} steps{lost}, {result.tokens:,} tokens in {result.wall_s / 60:.1f} min")
    return result
