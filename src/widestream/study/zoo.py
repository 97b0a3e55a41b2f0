"""The zoo: the study of that name, every residual stream at one small size, or recipes of one's own in its place."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from widestream.data.manifest import MANIFEST
from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.study.load import load_study
from widestream.study.run import Outcome, StudyOptions, carry_out, command_line
from widestream.study.spec import Arm, Study


def run_zoo(options: StudyOptions, recipes: Sequence[str] = (), search: Path | None = None) -> Path:
    """Train all models, or what an interrupted zoo has left to do, and write report and picture.

    Args:
        options: length, place and how many runs.
        recipes: names or paths; default: all of the zoo.
        search: record of the search to show; default: the zoo's.

    Returns:
        The report's path.
    """
    from widestream.report import write_picture
    from widestream.study.comparison import compare_runs

    comparison, report = compare_runs(_carry_out(options, recipes), search)
    if len(comparison.groups) > 1:
        write_picture(comparison, report.with_name("zoo"))
    print(f"Report: {report}")
    return report


def search_zoo(options: StudyOptions, recipes: Sequence[str] = ()) -> Path:
    """Train every model at every rate of the search and say which is best. Models recorded earlier stay recorded.

    Args:
        options: with `search_only`.
        recipes: names or paths; default: all of the zoo.

    Returns:
        The record's path.
    """
    from widestream.report.search_record import load_search

    record = _carry_out(options, recipes).record
    for model, trials in load_search(record).models.items():
        best = next((f"{trial.lr:g}" for trial in trials if trial.chosen), "none: all diverged")
        print(f"{model}: best peak rate {best}")
    return record


def zoo_study(options: StudyOptions, recipes: Sequence[str] = ()) -> Study:
    """The zoo, with the chosen recipes for arms; the transformer is always among them.

    Raises:
        UserError: no such recipe, or two of one label.
    """
    study = load_study("zoo", seeds=options.seeds)
    if not recipes:
        return study
    reference = next(arm for arm in study.arms if arm.name == study.reference)
    arms: dict[str, Arm] = {}
    for recipe in dict.fromkeys((reference.recipe, *recipes)):
        label = str(load_recipe(recipe).name or recipe).rsplit("/", 1)[-1].removesuffix(".yaml")
        if label in arms:
            raise UserError(f"{arms[label].recipe} and {recipe} are both called {label}; give one another `name`.")
        arms[label] = replace(reference, name=label, recipe=recipe, group=label)
    return replace(study, arms=tuple(arms.values()))


def _carry_out(options: StudyOptions, recipes: Sequence[str]) -> Outcome:
    command = command_line(shlex.join(["widestream", "zoo", *recipes]), options)
    study, data = zoo_study(options, recipes), options.data
    if data is not None and data.name == "data" and not (data / MANIFEST).is_file():
        study = replace(study, corpus=(study.corpus or {}) | {"folder": str(data.parent)})
        options = replace(options, data=None)
    return carry_out(study, options, command)
