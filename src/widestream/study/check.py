"""What is checked of a study before anything is trained, by its plan: the recipes, the lengths and what pages need."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from widestream.errors import UserError, unknown_name
from widestream.model.build import meta_model
from widestream.model.costs import count_flops
from widestream.recipe import RunConfig, to_dict
from widestream.streams import stream_class
from widestream.study.analysis_rules import analysis_faults
from widestream.study.overwritten import refuse_other_data
from widestream.study.plan import Place, arm_config, count_without_norm, decides, fingerprints
from widestream.study.rates import is_searched
from widestream.study.spec import Arm, Study
from widestream.train.plan import make_plan


@dataclass(frozen=True)
class PlannedArm:
    """An arm and the recipe of its runs, whose sizes can be counted."""

    name: str
    """As the study calls it."""
    config: RunConfig
    """Whole, with its length in steps."""

    def count(self, what: str) -> float:
        """A figure, as `study/page/results.ArmResult.count` has it of a finished run.

        Raises:
            UserError: there is no such figure; names the nearest.
        """
        sizes = {key: value for key, value in to_dict(self.config.model).items() if type(value) in (int, float)}
        known = ("parameters", "non_embedding", "stream_size", "flops", "tokens")
        if what not in (*known, *sizes):
            raise unknown_name(f"size {what!r} of arm {self.name}", what, [*known, *sizes])
        if what in sizes:
            return float(sizes[what])
        if what == "stream_size":
            return math.prod(stream_class(self.config.model.stream.kind).spec(self.config.model).state_shape)
        if what in ("parameters", "non_embedding"):
            return count_without_norm(self.config.model, what)
        plan = make_plan(self.config)
        tokens = plan.steps * plan.tokens_per_step
        if what == "tokens":
            return tokens
        return (
            3 * tokens * sum(count_flops(meta_model(replace(self.config.model, context=plan.sequence_length))).values())
        )


def check_plan(study: Study, place: Place, given_data: bool) -> None:
    """Refuse a study that would come to nothing, or show one run as two.

    Args:
        study: what is to be done.
        place: where.
        given_data: whether its data was given for all arms.

    Raises:
        UserError: what is wrong, and with which arms.
    """
    if given_data:
        refuse_other_data(study)
    planned = {arm.name: PlannedArm(arm.name, arm_config(study, arm, place)) for arm in study.arms}
    for arm in planned.values():
        if arm.config.data.heldout_split == "none":
            raise UserError(f"Arm {arm.name} has data.heldout_split: none, and a study judges by the held-out loss.")
    _refuse_twins(study, planned)
    families: dict[str, list[PlannedArm]] = {}
    for arm in study.arms:
        families.setdefault(arm.group or arm.name, []).append(planned[arm.name])
    if faults := analysis_faults(study.analysis, planned, families):
        raise UserError(f"The study {study.name} cannot be shown as its `analysis` says: {faults[0]}")


def _refuse_twins(study: Study, planned: dict[str, PlannedArm]) -> None:
    """Refuse two arms that differ in nothing but their names: they would share every run."""
    seen: dict[str, Arm] = {}
    for arm in study.arms:
        key = json.dumps([_apart_from_rate(planned[arm.name].config), _rate(study, arm, planned)], sort_keys=True)
        if (other := seen.setdefault(key, arm)) is not arm:
            raise UserError(
                f"The arms {other.name} and {arm.name} of the study {study.name} are the same run: they differ in "
                "their names only. Leave one of them out, or set what should differ."
            )


def _rate(study: Study, arm: Arm, planned: dict[str, PlannedArm]) -> Any:
    """What decides an arm's rate: a number, or the search that finds it."""
    lender = next((other for other in study.arms if other.name == arm.rate_of), arm)
    config = planned[lender.name].config
    if study.search is None or study.search.record is not None or not is_searched(lender):
        return config.optimizer.lr
    return [_apart_from_rate(config), lender.share]


def _apart_from_rate(config: RunConfig) -> dict[str, Any]:
    values = decides(config, fingerprints(config))
    del values["optimizer"]["lr"]
    return values
