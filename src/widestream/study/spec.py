"""A study: a question, the arms that answer it, and how each is trained, from YAML, at one of several scales.

    title: Stream size
    question: Does the loss fall with the size of the stream?
    reference: transformer          # arm that the others are compared with
    seeds: 3
    search: {rates: [4.0e-3, 1.0e-2, 2.5e-2], most: 5, share: 1.0}
    set: {train.steps: {cpu: 200, paper: 50_000}}
    arms:
      transformer: {recipe: "study/{scale}/transformer"}
      rmt: {recipe: "study/{scale}/rmt", grid: {model.stream.key_dim: {cpu: [4, 8], paper: [6, 12]}}}

Wherever a value stands there may be one for each scale; at a scale left out it is as if it were not there. `grid` makes
an arm of every combination; a recipe `FOLDER/*` one of every shipped recipe there.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from widestream.errors import UserError, unknown_name
from widestream.recipe.load import RECIPES

SCALES = ("cpu", "gpu", "paper")
"""Sizes and budgets that a study may have: two CPU cores in about two hours, one GPU, the paper's own."""
_TOLD = {"ladder": "reference", "race": "printed", "lead": "pairs", "sweep": "lines"}
"""What an analysis of a kind must be told."""
SELECTION = 0.5
"""Share of the held-out text that a search chooses on, unless it says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateSearch:
    """The search for a peak learning rate, the same for every arm: lowest held-out loss, one run a rate."""

    rates: tuple[float, ...]
    """Where it starts, in order; the grid grows by its own ratio while the best rate lies at its edge."""
    most: int = 5
    """Rates tried at most."""
    share: float = 1.0
    """Length of its runs, as a share of the full one. At 1 the best rate's run is also the run of the first seed."""
    selection: float | None = None
    """Share of the held-out text that rates are chosen on, and no result is reported on (`train.selection`); 0: rates
    are chosen on what is reported. Default: a half, or 0 where a `record` has the search."""
    steps: int | None = None
    """Length of its runs in optimizer steps, in place of the share."""
    settings: dict[str, Any] = field(default_factory=dict, metadata={"key": "set"})
    """What else its runs have of their own: dotted keys of the recipe and their values."""
    record: Path | None = None
    """Record of the same search, made before, or its name among the recipes: arms train at their recipes' rates, and it
    is made anew only if asked."""

    def __post_init__(self):
        sound = all(0 < rate < math.inf for rate in self.rates) and 0 < self.share <= 1
        if len(set(self.rates)) < max(2, len(self.rates)) or not sound:
            raise UserError("`search` needs two or more positive rates, each once, and a share above 0, at most 1.")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"search.steps must be at least one, not {self.steps}.")
        if self.steps is not None and self.share != 1:
            raise UserError("`search` has steps and a share, two lengths of its runs; leave one of the two out.")
        if self.selection is None:
            object.__setattr__(self, "selection", SELECTION if self.record is None else 0.0)
        elif not 0 <= self.selection < 1:
            raise UserError(f"search.selection is {self.selection}; it must be at least 0 and below 1.")
        object.__setattr__(self, "rates", tuple(sorted(self.rates)))
        if self.record is not None and not self.record.is_file():
            shipped = RECIPES.folder / self.record
            if not shipped.is_file():
                raise UserError(f"search.record: there is no file {self.record}; leave it out to search anew.")
            object.__setattr__(self, "record", shipped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One model of a study."""

    name: str
    """Unique within the study."""
    recipe: str
    """Name or path."""
    settings: dict[str, Any] = field(default_factory=dict, metadata={"key": "set"})
    """Dotted keys of the recipe and their values."""
    grid: dict[str, list[Any] | None] = field(default_factory=dict)
    """Dotted keys and values: its entry in the file stands for an arm of each combination."""
    tokens_per_parameter: int | float | None = None
    """Length of a run in training tokens for each non-embedding parameter, in place of the recipe's."""
    share: float | None = None
    """Length of its search runs in place of the study's, for arms so small that whole runs can be had."""
    rate_of: str | None = None
    """Arm whose learning rate it takes instead of searching one; "recipe": the recipe's. An arm that sets optimizer.lr
    trains at that rate."""
    against: str | None = None
    """Arm that it is compared with where runs stand side by side (demo), in place of the study's reference."""
    paper: float | None = None
    """Final loss that the paper prints for this model at its own scale."""
    group: str | None = None
    """What the arm belongs to: the family of a ladder or the line of a chart."""
    about: str = ""
    """What it is, in a few words."""

    def __post_init__(self):
        if self.tokens_per_parameter is not None and self.tokens_per_parameter <= 0:
            given = self.tokens_per_parameter
            raise UserError(f"`tokens_per_parameter` of arm {self.name} must be a positive number, not {given!r}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"`share` of arm {self.name} is {self.share}; it must be above 0, at most 1.")
        if empty := [key for key, points in self.grid.items() if points == []]:
            raise UserError(f"grid.{empty[0]} of arm {self.name} must be a list of values, and is empty.")


class Corpus(TypedDict):
    """Data to prepare where it is missing, perhaps in a folder of its own."""

    source: str
    vocab_size: int
    folder: NotRequired[str | None]


class Contrast(TypedDict):
    """Two arms to be compared."""

    of: str
    against: str
    label: NotRequired[str | None]
    paper: NotRequired[float | str | None]


class Line(TypedDict):
    """A chart of a sweep: loss against x, a line for each group; `shared` names an arm that a group has in common."""

    title: str
    x: str
    groups: list[str]
    shared: NotRequired[dict[str, str] | None]
    paper: NotRequired[str | None]


class Analysis(TypedDict, total=False):
    """What the report makes of a study, beside the comparison of arms: `study/page/`."""

    kind: Literal["arms", "ladder", "race", "lead", "sweep"]
    reference: str
    printed: dict[str, Any]
    pairs: list[list[str]]
    lines: list[Line]
    contrasts: list[Contrast]
    parameters: list[str]
    parameters_of: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study at one scale."""

    name: str
    """File name without its ending."""
    scale: str
    """Which of its scales."""
    file: Path | None = None
    """Where it was read from; None: it comes with the package."""
    scales: list[str] = field(default_factory=lambda: list(SCALES))
    """Those it has."""
    title: str
    """Heading."""
    question: str = ""
    """What is asked."""
    mirrors: str = ""
    """Parts of the paper that it repeats; may be empty."""
    reference: str = ""
    """Arm that the others are compared with; empty: the first."""
    seeds: int = 3
    """Runs of every arm."""
    search: RateSearch | None = None
    """None: every arm trains at its recipe's rate."""
    evaluations: int | None = 20
    """Held-out evaluations, and checkpoints, of a run; None: what the recipes say."""
    runs: Literal["hashed", "plain"] = "hashed"
    """plain: runs lie beside the record, as ARM-seedN. hashed: with those of other studies, named by a hash."""
    analysis: Analysis = field(default_factory=Analysis)
    """What the report makes of it."""
    corpus: Corpus | None = None
    """The data to prepare; None: it has to be there."""
    settings: dict[str, Any] = field(default_factory=dict, metadata={"key": "set"})
    """What its arms have in common: dotted keys of their recipes and their values."""
    arms: tuple[Arm, ...]
    """The models."""

    def __post_init__(self):
        for key in ("title", "arms"):
            if not getattr(self, key):
                raise UserError(f"The study lacks {key}; a study has a title and arms.")
        for key in ("seeds", "evaluations"):
            if (count := getattr(self, key)) is not None and count < 1:
                raise UserError(f"`{key}` must be a whole number, at least one, not {count}.")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise UserError(f"Two arms are called {next(name for name in names if names.count(name) > 1)}.")
        lenders = [arm.rate_of for arm in self.arms if arm.rate_of not in (None, "recipe")]
        others = [arm.against for arm in self.arms if arm.against is not None]
        for wanted in (self.reference or names[0], *_arms_named(self.analysis), *lenders, *others):
            if wanted not in names:
                raise unknown_name(f"arm {wanted!r}", wanted, names)
        for arm in self.arms:
            if arm.name in lenders and arm.rate_of is not None:
                raise UserError(f"Arm {arm.name} has no search of its own, so no arm can have its rate of it.")
            if self.runs == "plain" and "/" in arm.name:
                raise UserError(f"`runs` are plain, and no folder can be named after the arm {arm.name}.")

    def of_length(self, steps: int) -> "Study":
        """The same study with so many optimizer steps in every run; in those of its search, if it counts them."""
        length = {"train.tokens": None, "train.steps": steps}
        arms = (replace(arm, settings=arm.settings | length, tokens_per_parameter=None) for arm in self.arms)
        search = self.search and (self.search if self.search.steps is None else replace(self.search, steps=steps))
        return replace(self, arms=tuple(arms), search=search)


def _arms_named(analysis: Analysis) -> list[str]:
    """The arms that an analysis names, if it was told what its kind needs."""
    kind = analysis.get("kind", "arms")
    if kind in _TOLD and not analysis.get(_TOLD[kind]):
        raise UserError(f"`analysis` has kind {kind} and lacks `{_TOLD[kind]}`.")
    pairs = analysis.get("pairs", [])
    if kind == "lead" and [len(pair) for pair in pairs] != [2, 2]:
        raise UserError("`analysis.pairs` must be two pairs of arms, the short runs' and the long ones'.")
    compared = [(row["of"], row["against"]) for row in analysis.get("contrasts", [])]
    return [*itertools.chain(*compared, *pairs), *analysis.get("parameters", [])]
