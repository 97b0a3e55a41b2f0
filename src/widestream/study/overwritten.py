"""Settings that a study would overwrite in silence are refused, with what to say in their place."""

from collections.abc import Iterable, Mapping
from typing import Any

from widestream.errors import UserError
from widestream.runs.folder import flatten
from widestream.study.spec import Arm, Study

RATE, DATA = "optimizer.lr", "data.path"
LENGTH = ("train.steps", "train.tokens")
SEEDS = ("train.seed", "data.seed")


def names(settings: Mapping[str, Any], key: str) -> bool:
    """Whether settings give a key of the recipe a value, by its dotted name or within a mapping."""
    return flatten(dict(settings)).get(key) is not None


def refuse_overwritten(study: Study) -> None:
    """Refuse what a study says twice, in two ways that cannot both hold.

    Args:
        study: whose arms have their own settings only, not yet those that all have in common.

    Raises:
        UserError: names the place, the key, and what to say instead.
    """
    for where, settings in _places(study):
        for key in SEEDS:
            if names(settings, key):
                raise UserError(f"{where} sets {key}; the runs have the seeds 0, 1, ...: leave it out (`seeds: N`).")
        if study.corpus is not None and names(settings, DATA):
            raise UserError(f"{where} sets {DATA}, and the study prepares its own data (`corpus`); leave one out.")
    for arm in study.arms:
        _refuse_in_arm(study, arm)
    if study.search is not None:
        _refuse_in_search(study)


def refuse_other_data(study: Study) -> None:
    """Refuse arms, or a search, with data of their own where one folder is given for all of them (`--data`).

    Raises:
        UserError: names who has data of his own.
    """
    whole = {arm.name: flatten(arm.settings).get(DATA) for arm in study.arms}
    if len({*map(str, whole.values())}) > 1:
        own = next(name for name, path in whole.items() if path is not None)
        raise UserError(f"Arm {own} sets {DATA} and others have other data; --data would give all of them the same.")
    if study.search is not None and names(study.search.settings, DATA):
        raise UserError(f"search.set sets {DATA}; --data would take its place.")


def _places(study: Study) -> Iterable[tuple[str, dict[str, Any]]]:
    yield "`set`", study.settings
    if study.search is not None:
        yield "search.set", study.search.settings
    for arm in study.arms:
        yield f"Arm {arm.name}", arm.settings


def _refuse_in_arm(study: Study, arm: Arm) -> None:
    length = [key for key in LENGTH if names(arm.settings, key)]
    if length and arm.tokens_per_parameter is not None:
        raise UserError(f"Arm {arm.name} has tokens_per_parameter and sets {length[0]}; leave one of the two out.")
    if names(arm.settings, RATE) and arm.rate_of not in (None, "recipe"):
        raise UserError(f"Arm {arm.name} sets {RATE} and takes its rate of {arm.rate_of}; leave one of the two out.")
    if arm.share is not None and study.search is not None and study.search.steps is not None:
        raise UserError(
            f"Arm {arm.name} has a share, and search.steps is the length of all search runs; leave one out."
        )


def _refuse_in_search(study: Study) -> None:
    assert study.search is not None
    instead = {
        RATE: "its runs have search.rates",
        "train.selection": "say search.selection",
        **dict.fromkeys(LENGTH, "say search.steps or search.share"),
    }
    for key, words in instead.items():
        if names(study.search.settings, key):
            raise UserError(f"search.set sets {key}; {words}.")
    if names(study.settings, RATE):
        raise UserError(
            f"`set` gives every arm {RATE}, and `search` looks for it; leave one of the two out, or set it in the arms "
            "that are not to be searched."
        )
