"""How lanes are mixed over depth and how gates spread over a prompt: sentences, tables, JSON, a map."""

from typing import Any

from widestream.experiments.lens import packing
from widestream.lens import Gate, LaneMixing
from widestream.report.table import Table
from widestream.runs.metrics import finite

SPREAD = ("least", "lower quartile", "median", "upper quartile", "largest")
"""What `Gate.spread` gives."""
ENTRIES = 64
"""Gates of more entries are told of all entries together."""


def sentence(mixing: LaneMixing) -> str:
    """What the whole depth does to lanes."""
    forward, backward = mixing.gains()
    of = "largest over the prompt's tokens" if mixing.dynamic else "the same for every token"
    return (
        f"From the first block to the head lanes are mixed with a gain of {forward:.3g} forward and {backward:.3g} "
        f"backward (largest sum of absolute values in a row, in a column; {of})."
    )


def gate_table(gates: list[Gate]) -> Table:
    """The spread of every gate."""
    rows = tuple(
        (gate.reader, gate.name, str(gate.values.shape[1]), *(f"{value:.3g}" for value in gate.over_all()))
        for gate in gates
    )
    return Table(
        title="Gates",
        caption="Spread over the prompt's tokens, and over entries where there are several (lanes, sources, features).",
        columns=("in front of", "gate", "entries", *SPREAD),
        rows=rows,
        words=2,
    )


def mixing_dict(mixing: LaneMixing) -> dict[str, Any]:
    """The matrices as plain values, rows the lanes they lead to."""
    forward, backward = mixing.gains()
    composite = mixing.composite()
    return {
        "dynamic": mixing.dynamic,
        "readers": mixing.readers,
        "gain": {"forward": forward, "backward": backward},
        "steps": dict(zip(mixing.readers, mixing.steps.mean((1, 2)).tolist(), strict=False)),
        "composite": {
            later: {earlier: composite[end, start].tolist() for start, earlier in enumerate(mixing.readers[: end + 1])}
            for end, later in enumerate(mixing.readers)
        },
    }


def gate_dicts(gates: list[Gate]) -> list[dict[str, Any]]:
    """Spreads as plain values, entry by entry where these are not too many."""

    def spread(numbers: list[float]) -> dict[str, float | None]:
        return {name: finite(number) for name, number in zip(SPREAD, numbers, strict=True)}

    return [
        {
            "reader": gate.reader,
            "gate": gate.name,
            "entries": gate.values.shape[1],
            **spread(gate.over_all()),
            "by_entry": [spread(one) for one in gate.spread().T.tolist()] if gate.values.shape[1] <= ENTRIES else None,
        }
        for gate in gates
    ]


def page_data(mixing: LaneMixing) -> dict[str, Any]:
    """One map of all products: a row a lane in front of a reader, a column a lane in front of an earlier one."""
    number, lanes = len(mixing.readers), mixing.steps.shape[-1]
    cells = mixing.composite().permute(0, 2, 1, 3).reshape(number * lanes, number * lanes)
    names = [f"{reader}, lane {lane}" for reader in mixing.readers for lane in range(lanes)]
    return {"names": names, "dynamic": mixing.dynamic, **packing.view(cells, packing.largest(cells))}
