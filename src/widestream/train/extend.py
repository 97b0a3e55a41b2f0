"""Training longer than was planned, or by another schedule: when that is the same run, when it must be asked for."""

from pathlib import Path

from widestream.errors import UserError
from widestream.recipe import RunConfig
from widestream.runs.identity import Changes, another_run, is_length
from widestream.train.plan import num_steps
from widestream.train.schedule import factor, phases


def require_length(
    run_dir: Path, before: RunConfig, now: RunConfig, changes: Changes, step: int, extend: bool
) -> str | None:
    """Make sure that a run may go on with another length or schedule.

    It may where every step that was done had the rate that it has in the new schedule, so that the steps are those of
    the longer run: with constant schedules, and with wsd before the decay. A warm-up that is over counts as it was.
    With others it may if that is asked for.

    Args:
        run_dir: folder of the run.
        before: the recipe that it began with, or last went on with.
        now: the recipe now.
        changes: what differs.
        step: optimizer steps done.
        extend: whether it is asked for.

    Returns:
        What is not as in a run that was planned like this from the start; None: nothing, or only the warm-up.

    Raises:
        UserError: it has not been asked for, or more steps are done than are planned now, or ever were.
    """
    old, new = num_steps(before), num_steps(now)
    if step > old:
        raise UserError(
            f"{run_dir} has a checkpoint of step {step:,}, and its run has no more than {old:,} steps; remove that "
            "checkpoint from the folder, or give another folder with --out."
        )
    asked = {key: pair for key, pair in changes.items() if is_length(key)}
    if not asked:
        return None
    if step >= new != old:
        raise another_run(run_dir, asked, f"It has done {step:,} steps already. ")
    rates = [(factor(i, old, before.schedule), factor(i, new, now.schedule)) for i in range(step)]
    other = [i for i, (was, would_be) in enumerate(rates) if was != would_be]
    warmup = max(phases(old, before.schedule)[0], phases(new, now.schedule)[0])
    if not other or other[-1] < warmup <= step:
        return None
    changed = (
        f"{len(other):,} of the {step:,} steps done had other rates than in a run planned like this from the start; "
        f"the rate goes from {rates[-1][0]:.3g} of its peak to {factor(min(step, new - 1), new, now.schedule):.3g}"
    )
    if not extend:
        raise another_run(run_dir, asked, f"With --extend it goes on all the same: {changed}. ")
    return changed
