"""What every study's section of the page has: answers in words, the comparison of arms, their rates and their runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from widestream.report import formats
from widestream.report.comparable import judge
from widestream.report.figures.pictures import Figure
from widestream.report.figures.rows import Forest
from widestream.report.stats.intervals import Interval
from widestream.report.table import NONE, Table
from widestream.study.page.results import EQUAL, ArmResult, Contrast, StudyResult, as_family, contrast

Compared = Sequence[tuple[dict[str, Any], Contrast]]
"""Contrasts, each with its row in the study: `label` and `paper`, the paper's number, if it has them."""

UNPRINTED = "not printed"
"""Stands where the paper has no number."""


@dataclass(kw_only=True, slots=True)
class Section:
    """A part of the page."""

    key: str
    """Anchor."""
    name: str
    """What it is asked for by: the study's name, or the measurement's."""
    title: str
    """Heading."""
    question: str = ""
    """What is asked."""
    mirrors: str = ""
    """Parts of the paper."""
    scale: str = ""
    """Sizes and budget, data and epochs."""
    answers: list[str] = field(default_factory=list)
    """Sentences made from the intervals."""
    charts: list[tuple[str, Figure]] = field(default_factory=list)
    """With their captions."""
    tables: list[Table] = field(default_factory=list)
    """Shown at once."""
    details: list[Table] = field(default_factory=list)
    """Folded away."""
    notes: list[str] = field(default_factory=list)
    """Runs that diverged, failed or are missing, and other things to know."""
    commands: list[str] = field(default_factory=list)
    """How to do it again."""

    @property
    def whole_figures(self) -> list[tuple[str, Figure]]:
        """Charts that have the page to themselves."""
        return [(caption, chart) for caption, chart in self.charts if isinstance(chart, Forest)]

    @property
    def column_figures(self) -> list[tuple[str, Figure]]:
        """Charts that stand beside each other."""
        return [(caption, chart) for caption, chart in self.charts if not isinstance(chart, Forest)]


def begin(result: StudyResult) -> Section:
    """The section of a study, with what all studies have."""
    record = result.record
    section = Section(
        key=f"{record['study']}-{record['scale']}",
        name=record["study"],
        title=record["title"],
        question=record["question"],
        mirrors=record["mirrors"],
        scale=describe_scale(result),
        notes=list(result.notes),
        commands=[record["command"]],
    )
    section.notes += searching(result)
    if earlier := [arm["name"] for arm in record.get("earlier", [])]:
        names = formats.listing(list(dict.fromkeys(earlier)))
        section.notes.append(f"The record also has runs of earlier forms of this study, not shown here: {names}.")
    groups = [arm.group for arm in result.measured() if arm.group]
    if groups:
        judgement = judge(groups)
        found = [*(f"Not comparable in nats: {one.sentence}" for one in judgement.mismatches), *judgement.cautions]
        # Runs by their names within the results, which may be an archive that is unpacked for the while.
        section.notes += [sentence.replace(f"{result.folder}/", "") for sentence in found]
    section.details = [table for table in (arms_table(result), rates_table(result), runs_table(result)) if table.rows]
    return section


def diverged_sentences(result: StudyResult) -> list[str]:
    """What became of arms of which a seed diverged; that is a result, and comes first."""
    return [
        f"{arm.name}: {arm.lost}" + (f"; {arm.name} has no figure." if arm.group is None else ".")
        for arm in result.arms.values()
        if arm.lost
    ]


def searching(result: StudyResult) -> list[str]:
    """How far the search for learning rates is, while it goes on."""
    trials = [trial for arm in result.arms.values() for trial in arm.entry["trials"]]
    waiting = [trial for trial in trials if trial["status"] == "unfinished"]
    if not waiting:
        return []
    return [f"Learning rates are being searched: {len(trials) - len(waiting)} of {len(trials)} runs so far are done."]


def describe_scale(result: StudyResult) -> str:
    """Sizes, budget, seeds, data and epochs, in two sentences."""
    runs = result.runs()
    if not runs:
        return f"Scale {result.record['scale']}; no run is finished yet."
    seeds = sorted({len(arm.group.runs) for arm in result.measured() if arm.group})
    sizes = [run.parameters["non_embedding_without_norm"] for run in runs]
    tokens = [run.final.tokens for run in runs]
    corpus = result.record.get("corpus")
    data = f"{corpus['source']}, a vocabulary of {corpus['vocab_size']:,}" if corpus else "as its recipes say"
    epochs = [run.final.tokens / run.data["train_tokens"] for run in runs]
    return (
        f"Scale {result.record['scale']}: {_span(sizes, formats.count)} non-embedding parameters, "
        f"{_span(tokens, formats.count)} tokens, {_span(seeds, str)} seed{'' if seeds == [1] else 's'}. Data: {data}; "
        f"{_span(epochs, formats.three)} epochs."
    )


def _span(values: Sequence[Any], shown: Any) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def at_equal_tokens(contrast: Contrast) -> str:
    """At equal tokens: who is ahead and by how much, or that no difference is seen."""
    one, other, gap = contrast.of.name, contrast.against.name, contrast.at_equal.get("tokens")
    if contrast.refused:
        return _refused(contrast)
    if gap is None:
        return f"{one} and {other} share no stretch of training."
    at = f" {place}" if (place := _place(contrast)) else ""
    if gap.low is None or gap.high is None:
        return f"{one} against {other}{at}: {formats.signed(gap.mean)} nats, {_lonely(contrast)}, which may be chance."
    ends = f"95\N{NO-BREAK SPACE}% interval {formats.interval(gap.low, gap.high)}, {gap.n} seeds"
    if contrast.family > 1:
        ends += f"; p {formats.p_value(contrast.corrected['tokens'])} by Holm over {contrast.family} comparisons"
    if not contrast.seen("tokens"):
        return f"No difference seen between {one} and {other}{at}: {formats.signed(gap.mean)} nats ({ends})."
    return f"{one} is {formats.size(gap.mean)} nats {'worse' if gap.mean > 0 else 'better'} than {other}{at} ({ends})."


def _lonely(contrast: Contrast) -> str:
    """Which of two arms has one seed only."""
    arms = [arm for arm in (contrast.of, contrast.against) if len(arm.losses) == 1]
    return "one seed each" if len(arms) == 2 else f"one seed of {arms[0].name}" if arms else "one seed in common"


def _place(contrast: Contrast) -> str:
    """Where two arms are compared, if that is not the end of both: other comparisons may be made elsewhere."""
    pair = contrast.pair
    if pair is None or {pair.reference.tokens, pair.other.tokens} == {pair.tokens}:
        return ""
    return f"after {formats.count(pair.tokens)} tokens"


def _refused(contrast: Contrast) -> str:
    """Why no difference is claimed, and the figures that stand."""
    arms = (contrast.of, contrast.against)
    losses = [f"{arm.name} {formats.loss(mean_loss(arm))} ({arm.group.seeds})" for arm in arms if arm.group]
    return (
        f"No difference between {arms[0].name} and {arms[1].name} is claimed ({contrast.refused}); the losses are "
        f"{formats.listing(losses)}."
    )


def _at_equal_parameters(contrast: Contrast) -> str | None:
    """The same at equal parameters, where that is not the comparison at equal tokens itself."""
    gap = contrast.at_equal.get("parameters")
    if contrast.refused or gap is None or gap.low is None or gap == contrast.at_equal.get("tokens"):
        return None
    one, other = contrast.of.name, contrast.against.name
    if not contrast.seen("parameters"):
        return f"At equal parameters no difference is seen between {one} and {other}: {shown(gap)} nats."
    return f"At equal parameters {one} is {'worse' if gap.mean > 0 else 'better'} than {other}: {shown(gap)} nats."


def answers_of(compared: Compared) -> list[str]:
    """What contrasts come to at equal tokens and, where that is another comparison, at equal parameters."""
    return [
        sentence
        for _, contrast in compared
        for sentence in (at_equal_tokens(contrast), _at_equal_parameters(contrast))
        if sentence
    ]


def shown(interval: Interval | None) -> str:
    """A difference and its interval."""
    if interval is None:
        return NONE
    ends = "" if interval.low is None else f" [{formats.interval(interval.low, interval.high)}]"
    return f"{formats.signed(interval.mean)}{ends}"


def contrasts(result: StudyResult, rows: Sequence[dict[str, Any]] | None = None) -> Compared:
    """The contrasts that a study names, or every arm against the reference; those without finished runs left out."""
    if rows is None:
        reference = result.reference
        rows = [
            {"of": name, "against": reference.name, "paper": _paper_gap(arm, reference)}
            for name, arm in result.arms.items()
            if name != reference.name
        ]
    compared = [(row, contrast(result, row["of"], row["against"])) for row in rows]
    known = [(row, one) for row, one in compared if one is not None]
    return list(zip([row for row, _ in known], as_family([one for _, one in known]), strict=True))


def _paper_gap(arm: ArmResult, reference: ArmResult) -> float | None:
    ours, theirs = arm.entry.get("paper"), reference.entry.get("paper")
    return None if ours is None or theirs is None else ours - theirs


def contrast_table(
    result: StudyResult,
    compared: Compared,
    title: str = "Differences in held-out loss",
) -> Table:
    """The paper's number beside ours: at equal tokens with its interval, then at equal FLOPs, time, parameters."""
    rows = []
    for row, one in compared:
        gap = one.at_equal.get("tokens")
        paper = row.get("paper")
        label = row.get("label") or f"{one.of.name} against {one.against.name}"
        printed = UNPRINTED if paper is None else formats.signed(paper)
        if one.refused:
            rows.append((label, printed, "not claimed", *[NONE] * 5, NONE, result.record["scale"]))
            continue
        rows.append(
            (
                label,
                printed,
                NONE if gap is None else f"{formats.signed(gap.mean)} {_place(one)}".strip(),
                NONE if gap is None else formats.interval(gap.low, gap.high),
                formats.p_value(one.corrected.get("tokens")),
                *(shown(one.at_equal.get(resource)) for resource in ("flops", "wall_s", "parameters")),
                NONE if gap is None else str(gap.n),
                result.record["scale"],
            )
        )
    return Table(
        title=title,
        caption="Nats per token; below zero the first named is better. Ours: the last evaluation at equal tokens "
        "(where one of the two ends earlier: the curves there), mean over seeds and 95 % interval, seed by seed; "
        f"p {_corrected(compared)}. Beside it the same at equal training FLOPs (logits included), equal wall time and "
        "equal non-embedding parameters, with intervals; at equal FLOPs or time one of the two is read before its run, "
        "and its schedule, has ended. A dash: not comparable without extrapolating.",
        columns=(
            "comparison", "paper", "ours", "95 % interval", "p",
            *(EQUAL[resource] for resource in ("flops", "wall_s", "parameters")),
            "seeds", "scale",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _corrected(compared: Compared) -> str:
    """What the column of p-values holds."""
    family = max((one.family for _, one in compared), default=1)
    return f"corrected for {family} comparisons (Holm), the intervals not" if family > 1 else "of no difference"


def arms_table(result: StudyResult) -> Table:
    """Every arm: what it is and its last loss, beside what the paper prints for its own scale."""
    rows = []
    for arm in result.arms.values():
        about = arm.entry["about"] or NONE
        paper = UNPRINTED if arm.entry["paper"] is None else f"{arm.entry['paper']:.2f}"
        trouble = formats.listing(arm.trouble) if arm.trouble else "all done"
        rate = "recipe's" if arm.entry["rate"] is None else f"{arm.entry['rate']:g}"
        if arm.group is None:
            rows.append((arm.name, about, *[NONE] * 4, rate, paper, NONE, NONE, arm.seeds, trouble))
            continue
        final = arm.group.final
        rows.append(
            (
                arm.name,
                about,
                formats.count(arm.count("non_embedding")),
                formats.count(arm.count("parameters")),
                formats.count(arm.count("stream_size")),
                arm.group.trained,
                rate,
                paper,
                formats.loss(final.mean),
                NONE if final.low is None else f"{formats.loss(final.low)} to {formats.loss(final.high or 0)}",
                arm.seeds,
                trouble,
            )
        )
    return Table(
        title="Arms",
        caption="Parameters without norm gains. Loss: last held-out evaluation in nats per token, mean over seeds and "
        "95 % interval; seeds that diverged are in no mean."
        + (" The paper's losses are of its own data, vocabulary and scale." if result.record["mirrors"] else ""),
        columns=(
            "arm", "what it is", "non-embedding", "parameters", "stream cells", "tokens", "peak rate", "paper",
            "ours", "95 % interval", "seeds", "runs",
        ),
        rows=tuple(rows),
        words=2,
    )  # fmt: skip


def rates_table(result: StudyResult) -> Table:
    """The search for every arm's learning rate."""
    rows = []
    for arm in result.arms.values():
        trials = arm.entry["trials"]
        if trials:
            losses = [
                f"{trial['lr']:g}: {trial['status'] if trial['loss'] is None else formats.loss(trial['loss'])}"
                for trial in trials
            ]
            edge = arm.entry["rate"] in (trials[0]["lr"], trials[-1]["lr"])
            runs, rate = arm.entry["runs"], arm.entry["rate"]
            length = formats.percent(trials[0]["steps"] / runs[0]["steps"]) if runs else NONE
            taken = NONE if rate is None or not runs else f"{rate:g}"
            rows.append((arm.name, "; ".join(losses), taken, "yes" if edge else "no", length))
        elif arm.entry["rate_of"]:
            rate = NONE if arm.entry["rate"] is None else f"{arm.entry['rate']:g}"
            rows.append((arm.name, f"as {arm.entry['rate_of']}", rate, NONE, NONE))
        elif result.record["search"] and arm.entry.get("rate_from") == "own":
            rows.append((arm.name, "not searched: its own", f"{arm.entry['rate']:g}", NONE, NONE))
    return Table(
        title="Learning rates",
        caption="Held-out loss by peak rate; the same grid for all, grown by its own ratio while the best lies at its "
        "edge, up to a number of rates; one seed. Length: of a search run, as a share of the arm's full length. "
        + _chosen_on(result.record["search"]),
        columns=("arm", "rates searched", "taken", "at the edge", "length"),
        rows=tuple(rows),
        words=2,
    )


def _chosen_on(search: dict[str, Any] | None) -> str:
    """Which part of the held-out text chose the rates."""
    share = (search or {}).get("selection")
    if not share:
        return (
            "The rates were chosen on the held-out text that results are reported on, which flatters all arms a little."
        )
    return f"The rates were chosen on {formats.percent(share)} of the held-out text, on which no result is reported."


def runs_table(result: StudyResult) -> Table:
    """Where every number comes from: run folder and command."""
    rows = []
    for arm in result.arms.values():
        losses = {seeds[0]: loss for seeds, loss in arm.losses.items()}
        for run in arm.entry["runs"]:
            loss = losses.get(run["seed"])
            shown_loss = NONE if loss is None else f"{loss:.4f}"
            rows.append((arm.name, str(run["seed"]), run["status"], shown_loss, run["folder"], run["command"]))
    return Table(
        title="Runs",
        caption="Every run folder (config.yaml, run.json, metrics.jsonl) and the command that makes it again.",
        columns=("arm", "seed", "status", "loss", "folder", "command"),
        rows=tuple(rows),
        words=1,
    )


def mean_loss(arm: ArmResult) -> float:
    """Mean final loss over seeds."""
    return fmean(arm.losses.values())
