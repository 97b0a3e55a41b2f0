"""What makes two runs one model, what differs between models, and the short, unique names that they go by."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from widestream.runs.read import Run
from widestream.runs.settings import BOOKKEEPING, differing, plain, settings

_DATA = ("fingerprint", "heldout_fingerprint", "tokenizer_sha256", "sequence_length", "batch_size")
_LONG = 24
"""Characters of a value in a label."""


def same_model(run: Run) -> str:
    """What the runs of a model share: configuration, data and precision, without seeds and bookkeeping."""
    return repr(sorted((key, repr(value)) for key, value in _identity(run).items()))


def stream_kind(run: Run) -> str:
    """Kind of the residual stream in a run's configuration."""
    return str(run.config.get("model", {}).get("stream", {}).get("kind", "?"))


def is_reference(name: str, label: str, runs: Sequence[Run]) -> bool:
    """Whether a reader means a model by its label, or by a folder of one of its runs."""
    return name == label or any(name == run.path.name or Path(name).resolve() == run.path.resolve() for run in runs)


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each model, no two alike: the recipe's without what seeds and folders add, and what differs behind it.

    Of the folders in a name as many are kept as tell it from the others (`zoo/rmt`, `demo/rmt`, but `wide`). Models of
    one name are told apart by as few settings as can be: `rmt (lr 0.01)`, `tiny (lr 0.01, data A)`.
    """
    names = _shortest([_common_name(group) for group in groups])
    result = list(names)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        if len(same) > 1:
            for i, detail in zip(same, _details([groups[i][0] for i in same]), strict=True):
                result[i] = f"{name} ({detail})" if detail else name
    return _unlike(result)


def _unlike(names: Sequence[str]) -> list[str]:
    """Names of which some may still be alike, as when a recipe is called `rmt (lr 0.5)`, with a number behind these."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name} #{number}" for number in range(2, len(names) + 2))
        found.append(name if name not in found else next(one for one in numbered if one not in found))
    return found


def _identity(run: Run) -> dict[str, Any]:
    """All that makes a run the model that it is, by name."""
    own = {key: value for key, value in settings(run.config).items() if key not in BOOKKEEPING}
    if run.origin.get("sha256"):  # weights are what they are, wherever they lie
        own |= {"train.init_from": None, "run.init_from": run.origin["sha256"]}
    return own | {f"run.{key}": run.data.get(key) for key in _DATA} | {"run.precision": run.info.get("precision")}


def _details(runs: Sequence[Run]) -> list[str]:
    """What tells models of one name apart, in as few settings as can be, those first that tell the most apart."""
    found = differing({str(i): _identity(run) for i, run in enumerate(runs)})
    columns = {key: [_told(key, values.get(str(i))) for i in range(len(runs))] for key, values in found.items()}
    for name in ("fingerprint", "heldout_fingerprint"):
        if f"run.{name}" in columns:
            columns[f"run.{name}"] = _data_names(runs, name)
    if "run.init_from" in columns:
        columns["run.init_from"] = _origin_names(runs)
    order = sorted(columns, key=lambda key: (key.startswith("run."), -len(set(columns[key])), key != "optimizer.lr"))
    seen = [""] * len(runs)
    for key in order:
        finer = [f"{before}, {cell}" if before else cell for before, cell in zip(seen, columns[key], strict=True)]
        if len(set(finer)) > len(set(seen)):
            seen = finer
    return seen


def _told(key: str, value: object) -> str:
    """A setting in a label: `lr 0.01`."""
    name = {"run.heldout_fingerprint": "held-out", "run.tokenizer_sha256": "tokenizer"}.get(key, key.rsplit(".", 1)[-1])
    words = plain(value) if not isinstance(value, float) else f"{value:g}"
    return f"{name} {words if len(words) <= _LONG else f'{words[:_LONG]}…'}"


def _data_names(runs: Sequence[Run], fingerprint: str) -> list[str]:
    """Data in labels: by their folders' names where these tell them apart, else by their fingerprints."""
    word = "data" if fingerprint == "fingerprint" else "held-out"
    prints = [str(run.data.get(fingerprint)) for run in runs]
    names = dict(zip(reversed(prints), (run.data_name for run in reversed(runs)), strict=True))
    clear = all(names.values()) and len(set(names.values())) == len(names)
    return [f"{word} {names[one] if clear else one[:6]}" for one in prints]


def _origin_names(runs: Sequence[Run]) -> list[str]:
    """Weights that runs start from in labels: by run and step where these tell them apart, else by their hashes."""
    hashes = [str(run.origin.get("sha256", "")) for run in runs]
    names = dict(zip(hashes, (run.origin_name for run in runs), strict=True))
    clear = len(set(names.values())) == len(names)
    return [f"from {names[one] if clear else one[:6]}" if one else "from scratch" for one in hashes]


def _shortest(names: Sequence[str]) -> list[str]:
    """Every name by its last parts, as many as tell it from the other names."""
    parts = {name: name.split("/") for name in names}

    def last(name: str, count: int) -> str:
        return "/".join(parts[name][-count:])

    short = {}
    for name in parts:
        others, whole = [other for other in parts if other != name], len(parts[name])
        counts = range(1, whole + 1)
        alone = (count for count in counts if last(name, count) not in {last(other, count) for other in others})
        short[name] = last(name, next(alone, whole))
    return [short[name] for name in names]


def _common_name(group: Sequence[Run]) -> str:
    """The name that the runs of a model have in common, without what its seeds add."""
    names = {_clean(run) for run in group}
    if len(names) > 1:
        names = {re.sub(r"[\W_]*(seed|s)[\W_]*\d+$", "", name) for name in names}
    if len(names) == 1:
        return names.pop() or stream_kind(group[0])
    first, last = min(names), max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", first[:shared]) or stream_kind(group[0])


def _clean(run: Run) -> str:
    """A run's name on one line, without empty folders in it; the run folder's where nothing is left."""
    parts = (" ".join(part.split()) for part in run.name.split("/"))
    return "/".join(filter(None, parts)) or run.path.resolve().name
