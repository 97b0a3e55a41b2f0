"""A study's results: its record and the runs that it names, read and brought together arm by arm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import read_json
from widestream.report.comparable import judge
from widestream.report.stats.groups import Apart, Group, diverged_seeds, measure
from widestream.report.stats.intervals import SIGNIFICANT, Interval, difference, holm_by
from widestream.report.stats.pairs import Pair, match
from widestream.runs.folder import finished
from widestream.runs.read import Run, load_run

RECORD = ".study.json"
"""Ending of a study's record."""
Seeds = tuple[int, int]
Cache = dict[Path, Run | UserError]
"""Runs read already, or why one cannot be read, by folder; studies share runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """One arm: what it is, and what its runs came to."""

    name: str
    """As the study calls it."""
    entry: dict[str, Any]
    """The arm in the record: group, recipe, settings, rate, trials, runs."""
    group: Group | None
    """Its finished runs, measured, and those that diverged; None where no finished run counts."""
    lost: str = ""
    """How many of its seeds diverged, and where, in words; empty where none did."""

    @property
    def losses(self) -> dict[Seeds, float]:
        """Final held-out loss of every finished run, by seeds."""
        if self.group is None:
            return {}
        return {run.seeds: loss for run, loss in zip(self.group.runs, self.group.finals, strict=True)}

    @property
    def seeds(self) -> str:
        """How many of its finished or diverged seeds count: `3`, or `2 of 3`."""
        return "0" if self.group is None else self.group.seeds.removesuffix("s").removesuffix(" seed")

    @property
    def trouble(self) -> list[str]:
        """What became of the runs that did not come to their end."""
        return [f"seed {run['seed']} {run['status']}" for run in self.entry["runs"] if run["status"] != "done"]

    def count(self, what: str) -> float:
        """A figure: `parameters`, `non_embedding`, `stream_size`, `flops`, `tokens`, or a key of the model's recipe.

        Norm gains are left out of parameter counts, as in the paper.
        """
        assert self.group is not None
        run = self.group.runs[0]
        match what:
            case "parameters":
                return run.parameters["total_without_norm"]
            case "non_embedding":
                return run.parameters["non_embedding_without_norm"]
            case "stream_size":
                return run.info["summary"]["stream_size"]
            case "flops":
                return run.final.flops
            case "tokens":
                return run.final.tokens
            case _:
                return float(run.config["model"][what])


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """A study at one scale, as far as it has come."""

    record: dict[str, Any]
    """As `widestream study run` wrote it."""
    folder: Path
    """Where its runs lie."""
    arms: dict[str, ArmResult]
    """By name, in the study's order."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: runs that are missing or cannot be read."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.record["study"]

    @property
    def reference(self) -> ArmResult:
        """The arm that others are compared with."""
        return self.arms[self.record["reference"]]

    def measured(self, names: Sequence[str] | None = None) -> list[ArmResult]:
        """The arms that have a finished run."""
        wanted = self.arms if names is None else names
        return [self.arms[name] for name in wanted if name in self.arms and self.arms[name].group is not None]

    def in_group(self, group: str) -> list[ArmResult]:
        """The measured arms of one family."""
        return [arm for arm in self.measured() if arm.entry["group"] == group]

    def diverged_in(self, group: str) -> list[ArmResult]:
        """The arms of one family that have no figure, because every seed diverged: what is claimed of the others would
        be of survivors.
        """
        return [arm for arm in self.arms.values() if arm.entry["group"] == group and arm.lost and arm.group is None]

    def runs(self) -> list[Run]:
        """All finished runs."""
        return [run for arm in self.measured() if arm.group for run in arm.group.runs]


def load_result(path: Path, cache: Cache | None = None) -> StudyResult:
    """Read one study.

    Args:
        path: of its record.
        cache: runs that were read already, by folder; studies share runs.

    Raises:
        UserError: the record is damaged.
    """
    try:
        record = read_json(path)
        entries = {str(arm["name"]): arm for arm in record["arms"]}
        missing = {"study", "scale", "reference", "analysis"} - record.keys()
        if missing or not all(map(_is_arm, record["arms"])) or not isinstance(record["analysis"], dict):
            raise KeyError(*missing)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a study, or is damaged; run the study again.") from error
    notes: list[str] = []
    runs = {} if cache is None else cache
    arms = {name: _arm(name, entry, path.parent, runs, notes) for name, entry in entries.items()}
    record = {"question": "", "mirrors": "", "title": record["study"], "command": ""} | record
    return StudyResult(record=record, folder=path.parent, arms=arms, notes=notes)


def _is_arm(entry: dict[str, Any]) -> bool:
    """Whether an entry of a record has the runs and trials that a page reads, each where and how far it is."""
    parts = [entry.get(part) for part in ("runs", "trials")]
    rows = [row for part in parts if isinstance(part, list) for row in part]
    return all(isinstance(part, list) for part in parts) and all(
        isinstance(row, dict)
        and isinstance(row.get("folder"), str)
        and "status" in row
        and type(row.get("steps")) is int
        for row in rows
    )


def _arm(name: str, entry: dict[str, Any], folder: Path, cache: Cache, notes: list[str]) -> ArmResult:
    """Read an arm's runs. What their folders say goes before what the record says, which may be older."""
    runs = []
    for row in entry["runs"]:
        run = _read(folder / row["folder"], row, cache)
        if run is not None and run.state != "unfinished":
            runs.append(run)
        if row["status"] not in ("done", "diverged"):
            why = f": {row['why']}" if row.get("why") else ""
            notes.append(f"{name}, seed {row['seed']}: {row['status']}{why} ({row['folder']})")
    measured = measure(name, runs, "loss") if runs else None
    if isinstance(measured, Apart) and not measured.diverged:
        notes.append(f"{name}: {measured.reason}.")
    lost = diverged_seeds(runs) if any(run.state == "diverged" for run in runs) else ""
    return ArmResult(name=name, entry=entry, group=measured if isinstance(measured, Group) else None, lost=lost)


def _read(path: Path, row: dict[str, Any], cache: Cache) -> Run | None:
    """The run of a row, whose status becomes what the folder says; None where there is none to read."""
    if row["status"] not in ("done", "diverged") and not finished(path, row["steps"]):
        return None
    if path not in cache:
        try:
            cache[path] = load_run(path)
        except UserError as error:
            cache[path] = error
    run = cache[path]
    if isinstance(run, UserError):
        row |= {"status": "unreadable", "why": str(run)}
        return None
    if row["status"] == "diverged" and run.state == "unfinished":  # packed results have no batch to tell it by
        run = replace(run, diverged_at=run.steps + 1)
    row["status"] = run.state
    return run


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """One arm against another: the difference in held-out loss at equal spending. Negative: `of` is better."""

    of: ArmResult
    """The arm."""
    against: ArmResult
    """What it is compared with."""
    at_equal: dict[str, Interval]
    """By resource: tokens, flops, wall_s, parameters; those that cannot be compared are left out."""
    pair: Pair | None
    """The whole comparison; None where the runs share no stretch."""
    refused: str = ""
    """Why no difference is claimed, in words; empty where one may be."""
    family: int = 1
    """Comparisons that were made together and are corrected for their number."""
    corrected: dict[str, float | None] = field(default_factory=dict)
    """p-value by resource, corrected by Holm within the family; None without an interval."""

    def seen(self, resource: str) -> bool:
        """Whether the difference is one at the 5 % level, the family's size counted in."""
        p = self.corrected.get(resource)
        return p is not None and p < SIGNIFICANT


def as_family(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same comparisons with the p-values of each resource corrected for their number (Holm)."""
    corrected = holm_by([{} if one.refused else one.at_equal for one in contrasts])
    counted = sum(not one.refused for one in contrasts)
    return [replace(one, family=counted, corrected=p) for one, p in zip(contrasts, corrected, strict=True)]


def contrast(result: StudyResult, of: str, against: str) -> Contrast | None:
    """Compare two arms; None where one of them has no finished run."""
    if not result.measured([of]) or not result.measured([against]):
        return None
    one, other = result.arms[of], result.arms[against]
    assert one.group is not None
    assert other.group is not None
    pair = match(other.group, one.group)
    at_equal: dict[str, Interval] = {**pair.at_equal} if pair else {}
    at_parameters = _at_equal_parameters(result, one, other)
    if at_parameters is not None:
        at_equal["parameters"] = at_parameters
    found = Contrast(of=one, against=other, at_equal=at_equal, pair=pair, refused=unclaimable([one, other]))
    return as_family([found])[0]


def unclaimable(arms: Sequence[ArmResult]) -> str:
    """Why nothing is claimed from arms beside each other: seeds that diverged, runs that do not compare; else empty."""
    lost = [f"{arm.name}: {arm.lost}" for arm in arms if arm.lost]
    twins = [(one.name, other.name) for one, other in combinations(arms, 2) if _same(one, other)]
    lost += [f"{one} and {other} are the same runs" for one, other in twins]
    differing = judge([arm.group for arm in arms if arm.group is not None]).mismatches
    return "; ".join([*lost, *(one.sentence.rstrip(".") for one in differing)])


def _same(one: ArmResult, other: ArmResult) -> bool:
    """Whether two arms share their runs, as where a search finds for one the rate that the other has."""
    mine, theirs = ([run["folder"] for run in arm.entry["runs"]] for arm in (one, other))
    return one is not other and mine != [] and mine == theirs


def _at_equal_parameters(result: StudyResult, one: ArmResult, other: ArmResult) -> Interval | None:
    """The difference at equal non-embedding parameters; None where that cannot be had without extrapolating.

    Two arms of equal parameters (to 2 %) are compared as they are. Otherwise, if `other` is one of the arms that the
    study trains at several sizes for this (`analysis.parameters`), its loss at the parameters of `one` is interpolated
    between those sizes in log-log, seed by seed. What is counted is non-embedding parameters, or
    `analysis.parameters_of`.
    """
    what = result.record["analysis"].get("parameters_of", "non_embedding")
    size, theirs, tokens = one.count(what), other.count(what), one.count("tokens")
    if abs(size / theirs - 1) <= 0.02 and other.count("tokens") == tokens:
        return difference(other.losses, one.losses)
    ladder = result.measured(result.record["analysis"].get("parameters", []))
    sizes = [arm.name for arm in ladder]
    if other.name not in sizes or one.name in sizes or len(ladder) < 2:
        return None
    ladder.sort(key=lambda arm: arm.count(what))
    below = [arm for arm in ladder if arm.count(what) <= size]
    above = [arm for arm in ladder if arm.count(what) >= size]
    if not below or not above or {below[-1].count("tokens"), above[0].count("tokens")} != {tokens}:
        return None
    low, high = below[-1], above[0]
    if unclaimable([one, low, high]):
        return None
    share = _log_share(low.count(what), high.count(what), size)
    between = {
        seed: low.losses[seed] ** (1 - share) * high.losses[seed] ** share for seed in low.losses if seed in high.losses
    }
    return difference(between, one.losses) if between else None


def _log_share(low: float, high: float, value: float) -> float:
    return 0.0 if low == high else math.log(value / low) / math.log(high / low)


EQUAL: dict[str, str] = {
    "tokens": "equal tokens",
    "flops": "equal FLOPs",
    "wall_s": "equal time",
    "parameters": "equal parameters",
}
"""Names of the four ways to spend the same."""
