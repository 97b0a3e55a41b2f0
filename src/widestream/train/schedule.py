"""Learning rate over training: a pure function from the step to a factor of the peak rate."""

import math

from widestream.errors import UserError
from widestream.recipe.train import ScheduleConfig


def factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """Factor on the peak learning rate for one optimizer step.

    The first step of a run is step 0 and, with any warm-up, has factor 0: it fills the optimizer's moments and changes
    no weight. That is what the published RMT code does (optax's `warmup_cosine_decay_schedule`).

    Args:
        step: optimizer steps done before this one.
        total_steps: optimizer steps of the whole run; the floor is reached there, one past the last step.
        config: shape of the schedule.

    Returns:
        A number between 0 and 1.

    Raises:
        UserError: warm-up and decay do not fit into the run.
    """
    warmup, decay = phases(total_steps, config)
    if step < warmup:
        return step / warmup
    match config.kind:
        case "cosine":
            done = min(1.0, (step - warmup) / (total_steps - warmup))
            above_floor = 0.5 * (1 + math.cos(math.pi * done))
        case "wsd":
            above_floor = min(1.0, max(0, total_steps - step) / decay) if decay else 1.0
        case "constant":
            return 1.0
    return config.floor + (1 - config.floor) * above_floor


def phases(total_steps: int, config: ScheduleConfig) -> tuple[int, int]:
    """Steps of warm-up and of the final decay (0 but for wsd).

    Raises:
        UserError: they do not fit into the run.
    """
    warmup = _steps(config.warmup, total_steps)
    decay = _steps(config.decay, total_steps) if config.kind == "wsd" else 0
    if warmup >= total_steps:
        raise UserError(
            f"schedule.warmup is {warmup} steps but the run has only {total_steps}; "
            "lower schedule.warmup or train longer."
        )
    if warmup + decay > total_steps:
        raise UserError(
            f"schedule.warmup ({warmup} steps) and schedule.decay ({decay} steps) do not fit into {total_steps} steps; "
            "lower one of them or train longer."
        )
    return warmup, decay


def _steps(length: float, total_steps: int) -> int:
    return round(length * total_steps) if length < 1 else int(length)
