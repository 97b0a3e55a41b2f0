"""May these models be compared? One judge of it, for `compare` and for the pages of studies.

Every run that counts is looked at, not the first of each model. What is compared is the loss on the held-out text after
the same number of tokens of the same training text. So a verdict is ruled out by

* another tokenizer (a token is then something else; bits per byte are shown in place of loss), and, there, held-out
  texts of different length,
* other training or held-out data, or other held-out tokens evaluated,
* another sequence length: a held-out token is then predicted from another context.

Anything else colours it, and is said: other batches (batch size, order) take away the pairing by seeds, but an average
over seeds is what it was; trained weights to start from, precision, versions, machines, skipped steps and schedules may
each be the reason of a difference, or are what the reader asks about.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from widestream.report.formats import listing
from widestream.report.stats.groups import Group, unfinished_seeds
from widestream.runs.read import Run

_PLURAL = ("held-out tokens", "held-out bytes")
FEW = 6
"""More values than these are told by what they have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """One thing that must agree between all runs and does not."""

    field: str
    """What: `tokenizer`, `data`, `held-out data`, `held-out tokens` (evaluated), `held-out bytes` (where tokenizers
    differ) or `sequence length`."""
    values: dict[str, str]
    """Value by label; by run folder for a model whose own runs disagree."""

    @property
    def sentence(self) -> str:
        """The mismatch in words."""
        return f"{self.field} {'differ' if self.field in _PLURAL else 'differs'}: {_told(self.values)}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What may be said of some models side by side."""

    mismatches: tuple[Mismatch, ...]
    """What makes a verdict about loss impossible; empty when they are comparable."""
    cautions: tuple[str, ...]
    """What does not forbid a verdict but colours it, one sentence each."""


def judge(groups: Sequence[Group]) -> Judgement:
    """Whether models may be compared, and what a reader must know when they are."""
    mismatches = tuple(_mismatches(groups))
    batches = () if mismatches else _batch_cautions(groups)
    return Judgement(mismatches=mismatches, cautions=(*_seed_cautions(groups), *batches, *_cautions(groups)))


def tokenizers_differ(runs: Sequence[Run]) -> bool:
    """Whether loss per token means something else for some run, so that bits per byte must stand in."""
    return len({run.data.get("tokenizer_sha256") for run in runs}) > 1


def _mismatches(groups: Sequence[Group]) -> list[Mismatch]:
    """Where the tokenizers differ, token shards cannot agree; the held-out texts can, and are told apart by length."""
    tokenizer = _values(groups, lambda run: _short(run.data.get("tokenizer_sha256")))
    if tokenizer:
        fields = {
            "tokenizer": tokenizer,
            "held-out bytes": _values(groups, lambda run: f"{run.data.get('heldout_bytes') or 0:,}"),
        }
    else:
        fields = {
            "data": _data(groups, "fingerprint"),
            "held-out data": _data(groups, "heldout_fingerprint"),
            "held-out tokens": _values(groups, _evaluated),
        }
    fields["sequence length"] = _values(groups, lambda run: str(run.data["sequence_length"]))
    return [Mismatch(field=field, values=values) for field, values in fields.items() if values]


def _cautions(groups: Sequence[Group]) -> list[str]:
    found = [*_origin_cautions(groups), *_schedule_cautions(groups)]
    machines = _values(groups, lambda run: _over_time(run, _machine))
    if machines:
        found.append(f"Machines or threads differ, so wall times do not compare: {_told(machines)}.")
    for what, value in _MADE_BY.items():
        values = _values(groups, lambda run, value=value: _over_time(run, value))
        if values:
            found.append(f"{what} differs, which may be a part of any difference: {_told(values)}.")
    moved = {str(run.path): _over_time(run, _machine) for group in groups for run in group.runs}
    moved = {path: told for path, told in moved.items() if THEN in told}
    if moved:
        found.append(f"The wall time of a run that went on elsewhere is made of both: {_told(moved)}.")
    lost = [f"{group.label} {group.skipped}" for group in groups if group.skipped]
    if lost:
        found.append(f"Steps were skipped that moved nothing, and count as tokens and FLOPs: {listing(lost)}.")
    return found


_MADE_BY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Precision": lambda info: str(info.get("precision")),
    "The version of widestream": lambda info: f"{info.get('widestream')} {info.get('code') or ''}".strip(),
    "The version of PyTorch": lambda info: str(info.get("torch")),
}
"""What a run was computed by, and may owe a part of its loss to."""
THEN = ", then "


def _seed_cautions(groups: Sequence[Group]) -> list[str]:
    """What is to be known of how many seeds stand behind the figures."""
    found = [f"{group.label}: {unfinished_seeds(group.behind)}, not counted." for group in groups if group.behind]
    lonely = [group.label for group in groups if len(group.runs) == 1]
    if lonely:
        whose = "of every model" if len(lonely) == len(groups) else f"({_some(lonely)})"
        found.append(f"One seed only {whose}: a small difference may be chance.")
    return found


def _batch_cautions(groups: Sequence[Group]) -> list[str]:
    """Whether differences can be taken seed by seed, and on what the last evaluations are made."""
    found = []
    sizes = _values(groups, lambda run: str(run.data["batch_size"]))
    claimable = [group for group in groups if group.claimable]
    orders = [{run.batches for run in group.runs} for group in claimable]
    if sizes:
        found.append(f"Batch size differs, so no step has the same batch and differences are unpaired: {_told(sizes)}.")
    elif any(not orders[0] & order for order in orders):
        seeds = {group.label: "seed " + ", ".join(run.seed_name for run in group.runs) for group in claimable}
        found.append(f"No batches in common, so differences are unpaired: {_told(seeds)}.")
    elif any(order != orders[0] for order in orders):
        found.append(
            "Some seeds were run for one model only; differences use those that two models share, where they share two."
        )
    last = _values(groups, lambda run: f"{run.final.target_tokens:,}")
    if last and not _values(groups, _evaluated):
        found.append(
            f"The last evaluations are made on different numbers of held-out tokens ({_told(last)}): differences are "
            "those of the curves, which are not."
        )
    return found


def _origin_cautions(groups: Sequence[Group]) -> list[str]:
    """Who starts from trained weights, so that what is counted here is not all of its training."""
    started: dict[str, str] = {}
    for group in groups:
        own = {str(run.path): f"from {run.origin_name}" for run in group.runs if run.origin}
        alike = len(own) == len(group.runs) and len(set(own.values())) == 1
        started |= {group.label: next(iter(own.values()))} if alike else own
    if not started:
        return []
    return [
        "Trained weights are where some runs start, and the tokens, FLOPs and time that these took are not counted: "
        f"{_told(started)}."
    ]


def _schedule_cautions(groups: Sequence[Group]) -> list[str]:
    """At which points of their schedules the models are read."""
    found, runs = [], [run for group in groups for run in group.runs]
    plans = _values(groups, lambda run: "unknown" if (planned := _planned_tokens(run)) is None else f"{planned:,}")
    if plans:
        found.append(
            "The models were set to train for different numbers of tokens, so that at equal tokens their learning "
            f"rates stand at different points of the schedule: {_told(plans)}."
        )
    if any(run.config.get("schedule", {}).get("kind") != "constant" for run in runs):
        found.append(
            "A model read before its end (equal FLOPs, equal time, resources to reach a loss) has not had the decay of "
            "its learning rate, which counts against it there."
        )
    return found


def _values(groups: Sequence[Group], value: Callable[[Run], str]) -> dict[str, str]:
    """Values that differ between runs, by label, and by folder for a model whose own runs disagree; else empty."""
    found: dict[str, str] = {}
    for group in groups:
        own = {str(run.path): value(run) for run in group.runs}
        several = len(set(own.values())) > 1
        found |= own if several else {group.label: next(iter(own.values()))}
    return found if len(set(found.values())) > 1 else {}


def _data(groups: Sequence[Group], fingerprint: str) -> dict[str, str]:
    """The same of data: fingerprints tell them apart, and each goes by the name of a folder that it lay in."""
    runs = [run for group in groups for run in group.runs]
    names = {run.data.get(fingerprint): run.data_name for run in reversed(runs)}
    return _values(groups, lambda run: f"{names[found := run.data.get(fingerprint)]} {_short(found)}".strip())


def _evaluated(run: Run) -> str:
    """Held-out tokens that a curve is made on, and whether windows that settings are chosen on are none of them."""
    apart = run.config.get("train", {}).get("selection")
    return f"{run.curve[0].target_tokens:,}" + (f" (selection {apart} apart)" if apart else "")


def _over_time(run: Run, value: Callable[[Mapping[str, Any]], str]) -> str:
    """What a run was made by; of one that was resumed elsewhere, one after the other."""
    parts = [run.info, *({**run.info, **later} for later in run.info.get("resumed", []))]
    return THEN.join(dict.fromkeys(value(part) for part in parts))


def _told(values: dict[str, str]) -> str:
    """Values by name in words; many of them by what they have in common."""
    if len(values) <= FEW:
        return ", ".join(f"{name} {value}" for name, value in values.items())
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return "; ".join(f"{value} of {_some(same)}" for value, same in names.items())


def _some(names: Sequence[str], most: int = 3) -> str:
    left = len(names) - most
    return listing([*names[:most], f"{left} more"]) if left > 1 else listing([*names])


def _short(digest: object) -> str:
    return str(digest)[:12] if digest else "none"


def _machine(info: Mapping[str, Any]) -> str:
    machine = info.get("machine", {})
    processes = info.get("processes") or 1
    several = f", {processes} processes" if processes > 1 else ""
    threads = machine.get("threads")
    return f"{machine.get('gpu') or machine.get('cpu')} ({threads} thread{'' if threads == 1 else 's'}{several})"


def _planned_tokens(run: Run) -> int | None:
    train = run.config.get("train", {})
    window = run.data["batch_size"] * run.data["sequence_length"]
    if train.get("steps") is not None:
        return train["steps"] * window
    return None if train.get("tokens") is None else -(-train["tokens"] // window) * window
