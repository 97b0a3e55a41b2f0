"""Which peak rate every arm trains at: its own, its recipe's, another arm's, or the best one of a search."""

from collections.abc import Callable
from typing import Literal

from widestream.runs.pool import Job
from widestream.study.overwritten import RATE, names
from widestream.study.plan import Place, arm_config, refuse_others, trial_job
from widestream.study.spec import Arm, RateSearch, Study

Trials = dict[str, dict[float, Job]]
"""Search runs by arm and rate."""


def search_rates(
    study: Study, place: Place, train: Callable[[list[Job]], None], say: Callable[[Trials], None]
) -> Trials:
    """Train every arm that has a search of its own at the rates of the grid, which grows while its best is at its edge.

    Args:
        study: its arms and grid.
        place: where.
        train: carries out runs, of which any may diverge and none fail.
        say: told of the trials before every round.

    Returns:
        The runs by arm and rate.

    Raises:
        UserError: a run failed. Without it no rate is chosen, for a second try could have chosen another.
    """
    search = study.search
    assert search is not None
    searched = [arm for arm in study.arms if is_searched(arm)]
    trials = {arm.name: {rate: trial_job(study, arm, place, rate) for rate in search.rates} for arm in searched}
    while True:
        jobs = [job for by_rate in trials.values() for job in by_rate.values()]
        refuse_others(study, jobs)
        say(trials)
        train(jobs)
        grown = False
        for arm in searched:
            rate = next_rate(losses_by_rate(trials[arm.name]), search)
            if rate is not None:
                trials[arm.name][rate] = trial_job(study, arm, place, rate)
                grown = True
        if not grown:
            return trials


def is_searched(arm: Arm) -> bool:
    """Whether a search is for this arm: it takes no other rate and sets none."""
    return arm.rate_of is None and not names(arm.settings, RATE)


def next_rate(losses: dict[float, float | None], search: RateSearch) -> float | None:
    """The rate to try next: beyond the edge at which the best one lies, by the grid's own ratio; None: it is enough.

    Args:
        losses: by rate; None for a run that diverged or failed.
        search: for the number of rates.
    """
    best = best_rate(losses)
    if best is None or len(losses) >= search.most:
        return None
    ratio = search.rates[1] / search.rates[0]
    beyond = {max(losses): max(losses) * ratio, min(losses): min(losses) / ratio}.get(best)
    rate = None if beyond is None else float(f"{beyond:.3g}")
    return None if rate in losses else rate  # rates so close together that the next one is rounded to one of them


def best_rate(losses: dict[float, float | None]) -> float | None:
    """The rate of the lowest loss; None where no run came to its end."""
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def losses_by_rate(trials: dict[float, Job]) -> dict[float, float | None]:
    """Held-out losses of an arm's search that rates are chosen by; None for a run that diverged or is not done."""
    return {rate: job.choosing_loss for rate, job in trials.items()}


def rate_of(study: Study, place: Place, arm: Arm, trials: Trials) -> float | None:
    """Peak rate of an arm; None: its recipe's."""
    searched = trials.get(arm.rate_of or arm.name)
    if searched is not None:
        # Where every rate diverged or failed, its runs are made all the same, at the lowest, shown as what they are.
        return best_rate(losses_by_rate(searched)) or min(searched)
    if names(arm.settings, RATE):
        return arm_config(study, arm, place).optimizer.lr
    lender = next((other for other in study.arms if other.name == arm.rate_of), None)
    return None if lender is None else arm_config(study, lender, place).optimizer.lr


def rate_source(study: Study, arm: Arm, trials: Trials) -> Literal["own", "arm", "search", "recipe"]:
    """Where an arm's rate comes from: set by itself, of another arm, found in the search, or its recipe's."""
    if names(arm.settings, RATE):
        return "own"
    if any(other.name == arm.rate_of for other in study.arms):
        return "arm"
    return "search" if arm.name in trials else "recipe"
