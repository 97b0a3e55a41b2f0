"""Training time."""

import time

TICK_S = 1e-9
"""Least that anything takes: rates are divided by it, and a clock may be set back."""


class Stopwatch:
    """Adds up the time between `start` and `step_done`, with waiting for data told apart from computing.

    Args:
        total_s: seconds counted before, by the earlier parts of a resumed run.
    """

    def __init__(self, total_s: float = 0.0):
        self.total_s = total_s
        """Seconds of training so far."""
        self.step_s = 0.0
        """Seconds of the newest step."""
        self._interval_s = self._interval_data_s = 0.0
        self._interval_steps = 0
        self.start()

    def start(self) -> None:
        """The next step begins now; what came before does not count."""
        self._begin = time.perf_counter()

    def data_ready(self) -> None:
        """The step's batch has arrived."""
        self._interval_data_s += self._since_start_s()

    def step_done(self) -> None:
        """The weights are updated."""
        self.step_s = self._since_start_s()
        self.total_s += self.step_s
        self._interval_s += self.step_s
        self._interval_steps += 1

    def _since_start_s(self) -> float:
        return max(time.perf_counter() - self._begin, TICK_S)

    def read(self, tokens_per_step: int) -> dict[str, float]:
        """What a row of metrics says of the steps since the last reading.

        Returns:
            `wall_s`, all seconds of training; `tokens_per_s`; and `data_s`, seconds a step waited for its batch.
        """
        steps = self._interval_steps
        row = {
            "wall_s": self.total_s,
            "tokens_per_s": steps * tokens_per_step / self._interval_s,
            "data_s": self._interval_data_s / steps,
        }
        self._interval_s = self._interval_data_s = 0.0
        self._interval_steps = 0
        return row
