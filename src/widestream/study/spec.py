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

Wherever a value stands there may be one for each scale. `grid` makes an arm of every combination; a recipe `FOLDER/*`
one of every shipped recipe there.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from widestream.errors import UserError, unknown_name
from widestream.recipe.load import PACKAGE, recipe_folder, recipe_names

SCALES = ("cpu", "gpu", "paper")
"""Sizes and budgets that a study may have: two CPU cores in about two hours, one GPU, the paper's own."""
_ANALYSES: dict[str, tuple[str, ...]] = {
    "arms": (), "ladder": ("reference",), "race": ("printed",), "lead": ("pairs",), "sweep": ("lines",),
}  # fmt: skip
"""Kinds of analysis (study/page/analyses.py) and what each must be told."""
_KEYS = ("title", "question", "mirrors", "reference", "seeds", "search", "evaluations", "analysis", "corpus", "arms",
         "set", "scales", "runs")  # fmt: skip
_ARM_KEYS = ("recipe", "set", "grid", "tokens_per_parameter", "share", "rate_of", "paper", "group", "about")
_SEARCH_KEYS = ("rates", "most", "share", "steps", "set", "record")


@dataclass(frozen=True, kw_only=True, slots=True)
class RateSearch:
    """The search for a peak learning rate, the same for every arm: lowest held-out loss, one run a rate."""

    rates: tuple[float, ...]
    """Where it starts, in order; the grid grows by its own ratio while the best rate lies at its edge."""
    most: int = 5
    """Rates tried at most."""
    share: float = 1.0
    """Length of its runs, as a share of the full one. At 1 the best rate's run is also the run of the first seed."""
    steps: int | None = None
    """Length of its runs in optimizer steps, in place of the share."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else its runs have of their own: dotted keys of the recipe and their values."""
    record: Path | None = None
    """Record of the same search, made before: arms train at their recipes' rates, and it is made anew only if asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One model of a study."""

    name: str
    """Unique within the study."""
    recipe: str
    """Name or path."""
    settings: dict[str, Any]
    """Dotted keys of the recipe and their values."""
    tokens_per_parameter: float | None = None
    """Length of a run in training tokens for each non-embedding parameter, in place of the recipe's."""
    share: float | None = None
    """Length of its search runs in place of the study's, for arms so small that whole runs can be had."""
    rate_of: str | None = None
    """Arm whose learning rate it takes instead of searching one; "recipe": the recipe's."""
    paper: float | None = None
    """Final loss that the paper prints for this model at its own scale."""
    group: str | None = None
    """What the arm belongs to: the family of a ladder or the line of a chart."""
    about: str = ""
    """What it is, in a few words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study at one scale."""

    name: str
    """File name without its ending."""
    scale: str
    """Which of its scales."""
    title: str
    """Heading."""
    question: str
    """What is asked."""
    mirrors: str
    """Parts of the paper that it repeats; may be empty."""
    reference: str
    """Arm that the others are compared with."""
    seeds: int
    """Runs of every arm."""
    search: RateSearch | None
    """None: every arm trains at its recipe's rate."""
    evaluations: int | None
    """Held-out evaluations, and checkpoints, of a run; None: what the recipes say."""
    plain_names: bool
    """Whether runs lie beside the record, as ARM-seedN; else they lie with those of other studies, named by a hash."""
    analysis: dict[str, Any]
    """What the report makes of it, beside the comparison of arms: `study/page/`."""
    corpus: dict[str, Any] | None
    """`source` and `vocab_size` of the data to prepare where it is missing, perhaps in a `folder` of its own; None: it
    has to be there."""
    arms: tuple[Arm, ...]
    """The models."""

    def of_length(self, steps: int) -> "Study":
        """The same study with so many optimizer steps in every run; in those of its search, if it counts them."""
        length = {"train.tokens": None, "train.steps": steps}
        arms = (replace(arm, settings=arm.settings | length, tokens_per_parameter=None) for arm in self.arms)
        search = self.search and (self.search if self.search.steps is None else replace(self.search, steps=steps))
        return replace(self, arms=tuple(arms), search=search)


def study_folder() -> Path:
    """Where the shipped studies lie: inside an installed package, or at the root of a checkout."""
    installed = PACKAGE / "studies"
    return installed if installed.is_dir() else PACKAGE.parent.parent / "studies"


def study_names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(path.stem for path in study_folder().glob("*.yaml"))


def find_study(name: str) -> Path:
    """The file of a study: a path that exists, or the name of a shipped study."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = study_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise unknown_name(f"study {name!r}: no such file, and no shipped study of that name", name, study_names())


def load_study(name: str, scale: str = "cpu", seeds: int | None = None) -> Study:
    """Read a study at one scale.

    Args:
        name: path of a YAML file, or name of a shipped study.
        scale: one of `SCALES`.
        seeds: runs of every arm; default: the study's, at least 3 unless it says otherwise.

    Raises:
        UserError: no such study or scale, or the file is not a valid study; says what is wrong.
    """
    path = find_study(name)
    if scale not in SCALES:
        raise unknown_name(f"scale {scale!r}", scale, SCALES)
    values = _read(path)
    _check_keys(values, _KEYS, str(path))
    scales = values.get("scales") or list(SCALES)
    if scale not in scales:
        raise UserError(f"The study {path.stem} has no scale {scale}; it has {', '.join(scales)}.")
    values = _at_scale(values, scale)
    for key in ("title", "arms"):
        if not values.get(key):
            raise UserError(f"{path} lacks {key}; a study has a title and arms.")
    for key in ("arms", "set", "analysis", "corpus", "search"):
        _mapping(values.get(key), f"`{key}` of {path}")
    entries = _expanded(values["arms"], scale, path)
    arms = tuple(arm for key, arm in entries.items() for arm in _arms(key, arm, values.get("set") or {}, scale, path))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UserError(f"{path} has two arms called {next(name for name in names if names.count(name) > 1)}.")
    reference = values.get("reference") or names[0]
    analysis = values.get("analysis") or {}
    named = _check_analysis(analysis, path)
    lenders = [arm.rate_of for arm in arms if arm.rate_of not in (None, "recipe")]
    for wanted in (reference, *named, *lenders):
        if wanted not in names:
            raise unknown_name(f"arm {wanted!r} in {path}", str(wanted), names)
    for arm in arms:
        if arm.name in lenders and arm.rate_of is not None:
            raise UserError(f"Arm {arm.name} of {path} has no search of its own, so no arm can have its rate of it.")
    count = _count(values, "seeds", 3, path) if seeds is None else seeds
    if count < 1:
        raise UserError(f"A study needs at least one seed, not {count}.")
    return Study(
        name=path.stem,
        scale=scale,
        title=str(values["title"]),
        question=" ".join(str(values.get("question", "")).split()),
        mirrors=str(values.get("mirrors", "")),
        reference=str(reference),
        seeds=count,
        search=_search(values.get("search"), path),
        evaluations=None if values.get("evaluations") == "recipe" else _count(values, "evaluations", 20, path),
        plain_names=_plain_names(values, names, path),
        analysis=analysis,
        corpus=_corpus(values.get("corpus"), path),
        arms=arms,
    )


def _count(values: dict[str, Any], key: str, default: int, path: Path) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"`{key}` of {path} must be a whole number, at least one, not {value!r}.")
    return value


def _plain_names(values: dict[str, Any], names: list[str], path: Path) -> bool:
    if (kind := values.get("runs", "hashed")) not in ("hashed", "plain"):
        raise UserError(f"`runs` of {path} must be hashed or plain, not {kind!r}.")
    if kind == "plain" and (no_folder := next((name for name in names if "/" in name), None)):
        raise UserError(f"`runs` of {path} are plain, and no folder can be named after its arm {no_folder}.")
    return kind == "plain"


def _corpus(values: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    if values is None:
        return None
    if values.keys() - {"folder"} != {"source", "vocab_size"}:
        raise UserError(f"`corpus` of {path} needs `source` and `vocab_size`, may have `folder`, and nothing else.")
    return values


def _check_analysis(values: dict[str, Any], path: Path) -> list[str]:
    """Check what an analysis must be told; returns the arms that it names."""
    kind = values.get("kind", "arms")
    if kind not in _ANALYSES:
        raise unknown_name(f"analysis.kind {kind!r} in {path}", str(kind), _ANALYSES)
    for key in _ANALYSES[kind]:
        if not values.get(key):
            raise UserError(f"`analysis` of {path} has kind {kind} and lacks `{key}`.")
    for row in values.get("contrasts") or []:
        if not isinstance(row, dict) or not {"of", "against"} <= row.keys():
            raise UserError(f"A contrast of {path} needs `of` and `against`, not {row!r}.")
    for entry in values.get("lines") or []:
        if not isinstance(entry, dict) or not {"title", "x", "groups"} <= entry.keys():
            raise UserError(f"A line of {path} needs `title`, `x` and `groups`, not {entry!r}.")
    pairs = values.get("pairs") or []
    if kind == "lead" and [len(pair) for pair in pairs] != [2, 2]:
        raise UserError(f"`analysis.pairs` of {path} must be two pairs of arms, the short runs' and the long ones'.")
    named = [row[side] for row in values.get("contrasts") or [] for side in ("of", "against")]
    return [*named, *(arm for pair in pairs for arm in pair), *(values.get("parameters") or [])]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping of keys to values.")
    return values


def _at_scale(value: Any, scale: str) -> Any:
    """The value with every choice between scales made; a choice that leaves this scale out is None."""
    if isinstance(value, Mapping):
        if value and all(key in SCALES for key in value):
            return _at_scale(value.get(scale), scale)
        return {key: _at_scale(entry, scale) for key, entry in value.items()}
    return [_at_scale(entry, scale) for entry in value] if isinstance(value, list) else value


def _expanded(entries: dict[str, Any], scale: str, path: Path) -> dict[str, Any]:
    """Entries of arms, where a recipe `FOLDER/*` stands for all shipped recipes right there that have no entry yet."""
    whole: dict[str, Any] = {}
    for key, entry in entries.items():
        recipe = entry.get("recipe") if isinstance(entry, dict) else None
        if not isinstance(recipe, str) or not recipe.endswith("/*"):
            whole[key] = entry
            continue
        folder = recipe.removesuffix("/*").replace("{scale}", scale)
        recipes = [name for name in recipe_names() if name.rpartition("/")[0] == folder]
        if not recipes:
            raise UserError(f"Arm {key} of {path} stands for the shipped recipes in {folder}, and there are none.")
        for name in recipes:
            whole.setdefault(name.rpartition("/")[2], entry | {"recipe": name})
    return whole


def _arms(key: str, values: Any, common: dict[str, Any], scale: str, path: Path) -> list[Arm]:
    """The arms of one entry: one, or one for each point of its grid; none where this scale does not have it."""
    if values is None:
        return []
    _check_keys(_mapping(values, f"Arm {key} of {path}"), _ARM_KEYS, f"arm {key} of {path}")
    if not isinstance(values.get("recipe"), str):
        raise UserError(f"Arm {key} of {path} lacks `recipe`, a name or a path.")
    settings, grid = (_mapping(values.get(name), f"`{name}` of arm {key} of {path}") for name in ("set", "grid"))
    length = values.get("tokens_per_parameter")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or length <= 0):
        raise UserError(f"`tokens_per_parameter` of arm {key} of {path} must be a positive number, not {length!r}.")
    rest = {name: values.get(name) for name in ("tokens_per_parameter", "share", "rate_of", "paper")}
    grid = {name: points for name, points in grid.items() if points is not None}
    for name, points in grid.items():
        if not isinstance(points, list) or not points:
            raise UserError(f"grid.{name} of arm {key} in {path} must be a list of values, not {points!r}.")
    return [
        Arm(
            name=" ".join(
                [key, *(f"{name.rpartition('.')[2]}={point}" for name, point in zip(grid, points, strict=True))]
            ),
            recipe=values["recipe"].replace("{scale}", scale),
            settings=common | settings | dict(zip(grid, points, strict=True)),
            group=values.get("group") or key,
            about=values.get("about") or "",
            **rest,
        )
        for points in itertools.product(*grid.values())
    ]


def _search(values: dict[str, Any] | None, path: Path) -> RateSearch | None:
    if values is None:
        return None
    _check_keys(values, _SEARCH_KEYS, f"search of {path}")
    settings = _mapping(values.get("set"), f"`set` of the search of {path}")
    try:
        rates = tuple(sorted(float(rate) for rate in values["rates"]))
        most, share = int(values.get("most", 5)), float(values.get("share", 1.0))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"`search` of {path} needs `rates`, a list; `most` and `share` are numbers.") from None
    if len(rates) < 2 or rates[0] <= 0 or not 0 < share <= 1:
        raise UserError(f"`search` of {path} needs two or more positive rates and a share above 0, at most 1.")
    steps = _count(values, "steps", 1, path) if "steps" in values else None
    record = _search_record(values["record"], path) if "record" in values else None
    return RateSearch(rates=rates, most=most, share=share, steps=steps, settings=settings, record=record)


def _search_record(name: Any, path: Path) -> Path:
    """The record of a search: a path, or a file that comes with the recipes."""
    for record in (Path(str(name)), recipe_folder() / str(name)):
        if record.is_file():
            return record
    raise UserError(f"`search.record` of {path} is {name}, and there is no such file; leave it out to search anew.")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    """The value, where it is a mapping; an empty one for None."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{what} must be a mapping, not {value!r}.")
    return value or {}


def _check_keys(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise unknown_name(f"key {key!r} in {where}", str(key), known)
