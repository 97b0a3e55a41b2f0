"""Which layout a run should take: all there are, the largest micro-batch that each holds, the quickest step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from widestream.model.build import meta_model
from widestream.model.live import Live
from widestream.plan.devices import Device
from widestream.plan.forecast import MFU, Forecast, forecast
from widestream.plan.memory import at_work, shares, step_bytes
from widestream.recipe import RunConfig
from widestream.train.layout import Layout
from widestream.train.plan import make_plan

LARGEST = 16
"""Windows of a micro-batch beyond which products are not larger for it."""
MEASURED = 2, 3
"""Windows at which a step is measured; memory of more grows as between these."""


def advise(
    config: RunConfig,
    devices: int,
    device: Device,
    precision: str,
    mfu: float = MFU,
    say: Callable[[str], None] = lambda _: None,
) -> list[Forecast]:
    """Every layout of so many devices that holds the run, each with the micro-batch that makes its step quickest.

    How many of them share a window (`train.parallel.context`) or blocks (`tensor`) is the recipe's to say.

    Args:
        config: the run; its micro-batch and activation checkpointing are chosen anew.
        devices: how many.
        device: what each is.
        precision: `bf16` or `float32`.
        mfu: share of the peak that matrix products reach.
        say: takes a line about what is measured.

    Returns:
        The quickest first; of equally quick ones that which sends less, then that which takes less memory. Empty where
        none fits.

    Raises:
        UserError: the batch cannot be shared by so many.
    """
    steps = _Steps(config, precision, device.gpu, say)
    found = (_best(config, layout, device, precision, mfu, steps) for layout in _layouts(config, devices, precision))
    return sorted((one for one in found if one is not None), key=_worth)


def _layouts(config: RunConfig, devices: int, precision: str) -> Iterator[Layout]:
    context, tensor = config.train.parallel.context, config.train.parallel.tensor
    groups = devices // (context * tensor)
    for shard in (number for number in range(1, groups + 1) if groups % number == 0):
        sent = precision if shard * context * tensor > 1 else "float32"
        yield Layout(groups // shard, shard, sent, context, tensor)


def _best(
    config: RunConfig, layout: Layout, device: Device, precision: str, mfu: float, steps: "_Steps"
) -> Forecast | None:
    """The quickest way of one layout; None where it does not fit."""
    model = meta_model(config.model)
    if sum(shares(config, model, layout)) + at_work(model, layout) > device.memory:
        return None
    found: list[Forecast] = []
    for checkpointing in (False, True):
        for windows in _windows(config, layout):
            chosen = _changed(config, activation_checkpointing=checkpointing, micro_batch_size=windows)
            one = forecast(chosen, layout, device, precision, mfu, steps.at(checkpointing, layout, windows))
            if one.fits:
                found.append(one)
                break
    return min(found, key=_worth, default=None)


def _worth(one: Forecast) -> tuple[float, float, float]:
    least, most = one.step_s
    return round(least + most, 3), sum(sent.bytes for sent in one.sent), one.memory.total


def _windows(config: RunConfig, layout: Layout) -> Iterator[int]:
    """Sizes of a micro-batch that divide a process's part of the batch, largest first."""
    local = config.train.batch_size // (layout.replicate * layout.shard)
    for windows in range(min(local, LARGEST), 0, -1):
        if local % windows == 0:
            yield windows


class _Steps:
    """What a step has alive, by checkpointing, how weights are sent, and windows; each is measured once."""

    def __init__(self, config: RunConfig, precision: str, gpu: bool, say: Callable[[str], None]):
        self._config, self._precision, self._gpu, self._say = config, precision, gpu, say
        self._length = make_plan(_changed(config, micro_batch_size=1)).sequence_length
        self._measured: dict[tuple[bool, str, int], Live] = {}

    def at(self, checkpointing: bool, layout: Layout, windows: int) -> Live:
        """Measured, or told from two sizes."""
        if windows <= MEASURED[1]:
            return self._measure(checkpointing, layout, windows)
        low, high = (self._measure(checkpointing, layout, number) for number in MEASURED)
        more = windows - MEASURED[1]
        return Live(high.kept + more * (high.kept - low.kept), high.most + more * (high.most - low.most))

    def _measure(self, checkpointing: bool, layout: Layout, windows: int) -> Live:
        key = checkpointing, layout.gather, windows
        if key not in self._measured:
            kind = "with" if checkpointing else "without"
            self._say(f"Measuring a step of {windows} window(s) {kind} activation checkpointing ...")
            config = _changed(self._config, activation_checkpointing=checkpointing)
            self._measured[key] = step_bytes(config, windows, self._length, self._precision, layout, self._gpu)
        return self._measured[key]


def _changed(config: RunConfig, **train: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **train))
