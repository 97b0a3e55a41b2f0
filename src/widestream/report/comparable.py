"""May these models be compared? What must agree, what is worth a warning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from widestream.runs.read import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """One thing that must agree between models and does not."""

    field: str
    """What: `tokenizer`, `data`, `held-out data`, `held-out tokens` (evaluated), `held-out bytes` (where tokenizers
    differ), `batch size`, `sequence length` or `batch order`."""
    values: dict[str, str]
    """Value by label."""

    @property
    def sentence(self) -> str:
        """The mismatch in words."""
        return f"{self.field} differs: " + ", ".join(f"{label} {value}" for label, value in self.values.items()) + "."


def mismatches(models: Sequence[tuple[str, Sequence[Run]]]) -> list[Mismatch]:
    """What makes a verdict about loss impossible, for (label, runs) of each model; empty when they are comparable.

    Where the tokenizers differ, the token shards cannot agree; the held-out texts can, and are told apart by length.
    """

    def differs(field: str, value: Callable[[Run], object]) -> Mismatch | None:
        values = {label: str(value(runs[0])) for label, runs in models}
        return Mismatch(field=field, values=values) if _several(values.values()) else None

    tokenizer = differs("tokenizer", lambda run: _short(run.data.get("tokenizer_sha256")))
    if tokenizer:
        checks = [tokenizer, differs("held-out bytes", lambda run: f"{run.data['heldout_bytes']:,}")]
    else:
        checks = [
            differs("data", lambda run: _short(run.data["fingerprint"])),
            differs("held-out data", lambda run: _short(run.data.get("heldout_fingerprint"))),
            differs("held-out tokens", lambda run: f"{_evaluated(run):,}"),
        ]
    checks += [
        differs("batch size", lambda run: run.data["batch_size"]),
        differs("sequence length", lambda run: run.data["sequence_length"]),
        _order(models),
    ]
    return [mismatch for mismatch in checks if mismatch]


def tokenizers_differ(models: Sequence[tuple[str, Sequence[Run]]]) -> bool:
    """Whether loss per token means something else for some model, so that bits per byte must stand in."""
    return _several(run.data.get("tokenizer_sha256") for _, runs in models for run in runs)


def cautions(models: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    """What does not forbid a verdict but colours it, one sentence each."""
    first = {label: runs[0] for label, runs in models}
    sentences = []
    if _several(_machine(run) for _, runs in models for run in runs):
        sentences.append("The runs were made on different machines or thread counts: wall times do not compare.")
    if _several(str(run.info.get("precision")) for run in first.values()):
        sentences.append("The models were trained in different precisions.")
    if _several(str(_planned_tokens(run)) for run in first.values()):
        sentences.append(
            "The models were set to train for different numbers of tokens: at equal tokens their learning rates stand "
            "at different points of the schedule."
        )
    if any(run.config.get("schedule", {}).get("kind") != "constant" for run in first.values()):
        sentences.append(
            "A model read before its end (equal FLOPs, equal time, resources to reach a loss) has not had the decay of "
            "its learning rate, which counts against it there."
        )
    lonely = [label for label, runs in models if len(runs) == 1]
    if lonely:
        whose = "of every model" if len(lonely) == len(models) else f"({', '.join(lonely)})"
        sentences.append(f"One seed only {whose}: a small difference may be chance.")
    orders = [_orders(runs) for _, runs in models]
    if not _order(models) and any(order != orders[0] for order in orders):
        sentences.append("Some seeds were run for one model only; differences use the seeds that the models share.")
    return sentences


def _order(models: Sequence[tuple[str, Sequence[Run]]]) -> Mismatch | None:
    """Batch orders agree when every model shares an order seed with the first one."""
    values = {label: _orders(runs) for label, runs in models}
    sets = list(values.values())
    if all(sets[0] & order for order in sets):
        return None
    shown = {label: "seed " + ", ".join(str(seed) for seed in sorted(order)) for label, order in values.items()}
    return Mismatch(field="batch order", values=shown)


def _orders(runs: Sequence[Run]) -> set[int]:
    return {run.seeds[1] for run in runs}


def _several(values: Any) -> bool:
    return len(set(values)) > 1


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def _evaluated(run: Run) -> int:
    """Tokens behind the curve when evaluations are partial, else of the whole split."""
    return run.curve[0].target_tokens


def _machine(run: Run) -> str:
    machine = run.info.get("machine", {})
    return repr([machine.get(key) for key in ("cpu", "gpu", "threads")])


def _planned_tokens(run: Run) -> int | None:
    train = run.config.get("train", {})
    window = run.data["batch_size"] * run.data["sequence_length"]
    if train.get("steps") is not None:
        return train["steps"] * window
    return None if train.get("tokens") is None else -(-train["tokens"] // window) * window
