"""What happens when the loss or the gradient is not finite."""

from safetensors.torch import save
from torch import tensor

from widestream.errors import UserError
from widestream.files import write_atomic
from widestream.runs.folder import NONFINITE
from widestream.train.setup import TrainingRun
from widestream.train.step import StepResult


def handle_nonfinite(run: TrainingRun, result: StepResult) -> None:
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
    path = run.folder / NONFINITE.format(step)
    if run.world.is_main:
        batch = run.batches.at(step - 1)
        fields = {"tokens": batch.tokens, "targets": batch.targets, "segments": batch.segments}
        write_atomic(path, save({**fields, "step": tensor(step), "losses": result.losses.cpu()}))
    raise UserError(
        f"Training stopped at {what}. Its batch is saved as {path}; checkpoints are untouched. Lower optimizer.lr, set "
        "optimizer.grad_clip, or pass over such steps with train.nonfinite=skip, in another run folder (--out) or anew "
        "in this one (--fresh)."
    )
