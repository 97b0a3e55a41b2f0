"""What a muP search varies, within which intervals, and how it draws (RMT paper, C.2.1)."""

import importlib.util
import math
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from widestream.errors import UserError

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("random", "tpe")
PAPER = {
    "lr": (1e-4, 1e-1),
    "init_std": (1e-1, 1.0),
    "alpha_in": (1e-1, 1.0),
    "alpha_attn": (1e-1, 1.0),
    "alpha_out": (1e-1, 1.0),
}
"""The intervals as printed, each log-uniform. Two of the values that the paper chose, alpha_in 9.76 and alpha_out 5.52,
lie outside (erratum E14)."""
INTERVALS = {"paper": PAPER, "wide": PAPER | dict.fromkeys(("alpha_in", "alpha_attn", "alpha_out"), (1e-1, 1e1))}
"""wide: alphas within [0.1, 10], as the chosen values imply."""
KEYS = {
    "lr": "optimizer.lr",
    "init_std": "model.init.std",
    "alpha_in": "model.mup.input_multiplier",
    "alpha_attn": "model.mup.attention_multiplier",
    "alpha_out": "model.mup.output_multiplier",
}
"""Where each of them stands in a recipe."""


@dataclass(frozen=True, slots=True)
class Space:
    """A search space, and how it is drawn from."""

    interval: str
    """`paper` or `wide`."""
    sampler: str
    """random: independent log-uniform draws, as the paper's. tpe: Optuna's tree-structured Parzen estimator."""
    seed: int
    """Of the draws."""

    def __post_init__(self):
        if self.interval not in INTERVALS:
            raise UserError(f"--interval is {self.interval}; it must be one of {', '.join(INTERVALS)}.")
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler is {self.sampler}; it must be one of {', '.join(SAMPLERS)}.")

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value, by name."""
        return INTERVALS[self.interval]

    def suggest(self, trial: "optuna.Trial") -> dict[str, float]:
        """The settings of a trial; those that it has already stay."""
        return {name: trial.suggest_float(name, *ends, log=True) for name, ends in self.intervals.items()}

    def make_sampler(self) -> "optuna.samplers.BaseSampler":
        """The sampler for Optuna."""
        import optuna

        if self.sampler == "tpe":
            # Trials that run elsewhere count as bad ones, so that processes do not all try the same place.
            return optuna.samplers.TPESampler(seed=None, multivariate=True, constant_liar=True)

        seed = self.seed

        class LogUniform(optuna.samplers.BaseSampler):
            """Draws that depend on the seed and the trial's number alone: not on processes, kills or the model."""

            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
                return {}

            def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
                return {}

            def sample_independent(
                self, study: Any, trial: optuna.trial.FrozenTrial, param_name: str, param_distribution: Any
            ) -> float:
                return draw(seed, trial.number, param_name, (param_distribution.low, param_distribution.high))

        return LogUniform()


def draw(seed: int, number: int, name: str, ends: tuple[float, float]) -> float:
    """The log-uniform draw of one setting of trial `number`."""
    key = zlib.crc32(f"{seed} {number} {name}".encode())
    low, high = map(math.log, ends)
    return math.exp(low + (high - low) * random.Random(key).random())


def changes(settings: dict[str, float]) -> tuple[str, ...]:
    """Settings as changes to a recipe."""
    return tuple(f"{KEYS[name]}={value!r}" for name, value in settings.items())


def require_optuna() -> None:
    """Make sure that Optuna can be imported.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("The search needs Optuna: pip install 'widestream[tune]'.")
