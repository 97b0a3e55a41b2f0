"""What an analysis needs of its arms, told before anything is trained.

Each rule gives a sentence that says what is missing, or None. Arms are whatever has a `name` and counts of its size.
What the page lacks because runs diverged or are not done is said there (`page/`), from what was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from widestream.study.spec import Analysis, Line

PRINTED = ("tokens", "flops", "parameters", "wall_s")
"""What a race must have the paper's savings of; beside them `loss`, that of the reference and of the other arm."""


class Counted(Protocol):
    """An arm, planned or measured."""

    @property
    def name(self) -> str:
        """As the study calls it."""
        ...

    def count(self, what: str) -> float:
        """Its `parameters`, `non_embedding`, `stream_size`, `flops`, `tokens`, or a key of the model's recipe."""
        ...


Families = Mapping[str, Sequence[Counted]]
"""Arms by their group."""


def analysis_faults(analysis: Analysis, arms: Mapping[str, Counted], families: Families) -> list[str]:
    """What keeps an analysis from being made, in sentences; none where it can be."""
    kind, faults = analysis.get("kind", "arms"), []
    if kind == "ladder":
        faults += [*filter(None, [ladder_fault(analysis.get("reference", ""), families)])]
    if kind == "sweep":
        faults += [fault for line in analysis.get("lines", []) if (fault := line_fault(line, arms, families))]
    if kind == "race":
        faults += [*filter(None, [race_fault(analysis, arms)])]
    pairs = [*analysis.get("pairs", []), *([row["of"], row["against"]] for row in analysis.get("contrasts", []))]
    faults += [f"{one} is compared with itself." for one, other in pairs if one == other]
    if kind == "lead" and analysis.get("pairs", [])[:1] == analysis.get("pairs", [])[1:]:
        faults.append("The short runs' pair and the long ones' are the same arms.")
    if "parameters_of" in analysis:
        _ = [arm.count(analysis["parameters_of"]) for arm in arms.values()]  # an unknown size is refused
    sizes = [arms[name] for name in analysis.get("parameters", []) if name in arms]
    if sizes:
        what = analysis.get("parameters_of", "non_embedding")
        if fault := few(sizes, what):
            faults.append(f"`parameters` names the arms of one model in several sizes: {fault}")
    return faults


def ladder_fault(reference: str, families: Families) -> str | None:
    """A ladder needs two families, the reference among them, of two or more sizes each."""
    if reference not in families:
        return f"The ladder's reference {reference} is no group of arms; there are {', '.join(families)}."
    if len(families) < 2:
        return f"The ladder has one group of arms, {reference}, and needs another one to compare with it."
    for family, rungs in families.items():
        if fault := few(rungs, "non_embedding") or twice(rungs, "non_embedding"):
            return f"No power law can be fitted to {family}: {fault}"
    return None


def line_fault(line: Line, arms: Mapping[str, Counted], families: Families) -> str | None:
    """A line of a sweep needs groups that there are, each with two or more values of x, all above zero."""
    for group in (*line["groups"], *(line.get("shared") or {})):
        if group not in families:
            return f"The line {line['title']!r} names the group {group}; there are {', '.join(families)}."
    for group, name in (line.get("shared") or {}).items():
        if group not in line["groups"]:
            return f"The line {line['title']!r} shares {name} with {group}, which is none of its groups."
        if name not in arms:
            return f"The line {line['title']!r} shares the arm {name}; there are {', '.join(arms)}."
    for group, members in line_groups(line, arms, families).items():
        if low := next((arm for arm in members if not arm.count(line["x"]) > 0), None):
            return f"The line {line['title']!r} is drawn over logarithms, and {low.name} has no {line['x']} above zero."
        if fault := few(members, line["x"]):
            return f"The line {line['title']!r} of {group} needs two points: {fault}"
    return None


def line_groups(line: Line, arms: Mapping[str, Counted], families: Families) -> dict[str, list[Counted]]:
    """The arms of each group of a line, those included that it shares."""
    shared = line.get("shared") or {}
    own = {group: [*families.get(group, ())] for group in line["groups"]}
    return {
        group: [*some, *(arms[name] for name in [shared.get(group, "")] if name in arms)] for group, some in own.items()
    }


def race_fault(analysis: Analysis, arms: Mapping[str, Counted]) -> str | None:
    """A race is between two arms, and has the paper's savings beside it."""
    if len(arms) != 2:
        return f"A race is between the reference and one other arm, and there are {len(arms)} arms."
    printed = analysis.get("printed", {})
    if missing := [key for key in PRINTED if not isinstance(printed.get(key), int | float)]:
        return f"`analysis.printed` of a race must have a number for {', '.join(missing)}."
    loss = printed.get("loss")
    if not isinstance(loss, list) or [isinstance(value, int | float) for value in loss] != [True, True]:
        return "`analysis.printed.loss` of a race must be two numbers, the reference's and the other arm's."
    return None


def few(arms: Sequence[Counted], what: str) -> str | None:
    """Fewer than two arms, or all of one size."""
    if len(arms) < 2:
        return f"it has one arm, {arms[0].name}." if arms else "it has no arm."
    sizes = {arm.count(what) for arm in arms}
    return None if len(sizes) > 1 else f"{_listed(arms)} have the same {what}, {next(iter(sizes)):,g}."


def twice(arms: Sequence[Counted], what: str) -> str | None:
    """Two arms of one size."""
    seen: dict[float, Counted] = {}
    for arm in arms:
        if (other := seen.setdefault(arm.count(what), arm)) is not arm:
            return f"{_listed([other, arm])} have the same {what}, {arm.count(what):,g}."
    return None


def _listed(arms: Iterable[Counted]) -> str:
    return ", ".join(arm.name for arm in arms)
