"""All errata of the RMT paper (arXiv 2506.22696), and `docs/errata.md`, which is written from them."""

from collections.abc import Callable
from typing import Any

from widestream.errors import UserError
from widestream.paper import errata_flops, errata_moments, errata_sizes
from widestream.paper.erratum import Erratum
from widestream.paper.printed import GPT2_MEDIUM, RMT_MEDIUM
from widestream.paper.resources import ADAM_BYTES, BF16, FLOAT32, checkpoint_balance

ERRATA: tuple[Callable[[], Erratum], ...] = (
    errata_sizes.table_9_shapes,
    errata_sizes.chinchilla_budget,
    errata_sizes.rmt_parameter_total,
    errata_sizes.transformer_parameter_total,
    errata_flops.rmt_flop_total,
    errata_flops.position_flops,
    errata_flops.vocabulary_factor,
    errata_flops.uncounted_logits,
    errata_flops.less_than_one_percent,
    errata_moments.variance_table,
    errata_moments.time_difference,
    errata_sizes.variants_budget,
    errata_sizes.sweep_total,
    errata_moments.tuned_settings,
    errata_moments.sweep_settings,
    errata_moments.notation,
    errata_sizes.sweep_axis,
    errata_sizes.positions_counted,
)
"""E1 to E18, in order."""

_INTRODUCTION = """\
# Notes on reproducing "Residual Matrix Transformers"

Mak and Flanigan, *Residual Matrix Transformers: Scaling the Size of the Residual Stream*, ICML 2025,
[arXiv 2506.22696](https://arxiv.org/abs/2506.22696).

We rebuilt both models of this paper to the unit of their parameter counts, and met some figures that do not come
out as printed. Most are slips of a table or a total; none of them changes a loss that was measured. Two of them
(E8, E9) change how large an advantage in FLOPs is, and we say by how much. We are grateful for a paper whose formulas
are written out: that is what makes such a list possible. If an entry is wrong, please tell us, and it will be put
right here.

Symbols are the paper's. FLOPs are of a forward pass, per token, two for each multiply-add. Every figure on this page is
computed; only what the paper prints is quoted. This page is written by `widestream paper errata --out docs/errata.md`.
"""


def list_errata() -> list[Erratum]:
    """All of them, computed now."""
    return [make() for make in ERRATA]


def find_erratum(name: str) -> Erratum:
    """One of them by its name, E8 or 8.

    Raises:
        UserError: there is none of that name.
    """
    number = name.upper().removeprefix("E")
    if not number.isdecimal() or not 1 <= int(number) <= len(ERRATA):
        raise UserError(f"There is no erratum {name}; they are E1 to E{len(ERRATA)}.")
    return ERRATA[int(number) - 1]()


def to_dict(erratum: Erratum) -> dict[str, Any]:
    """Plain values for JSON."""
    names = ("title", "where", "printed", "found", "changes")
    words = {name: getattr(erratum, name) for name in names}
    return {"name": f"E{erratum.number}", **words, "values": dict(erratum.values)}


def to_markdown(erratum: Erratum) -> str:
    """A section of the page."""
    own = f"`widestream paper errata E{erratum.number}`"
    checks = own + (f", `{erratum.check}`" if erratum.check else "") if erratum.values else "read the places named."
    lines = [
        f"## E{erratum.number}. {erratum.title}",
        "",
        f"* **Where.** {erratum.where}.",
        f"* **Printed.** {erratum.printed}.",
        f"* **Found.** {erratum.found}",
        f"* **Changes.** {erratum.changes}",
        f"* **Check.** {checks}",
        "",
    ]
    return "\n".join([*lines, *_table(erratum), ""]) if erratum.table else "\n".join(lines)


def errata_page() -> str:
    """The whole of `docs/errata.md`."""
    sections = [to_markdown(erratum) for erratum in list_errata()]
    return "\n".join([_INTRODUCTION, *sections, _FIGURE, _memory()])


def _table(erratum: Erratum) -> list[str]:
    head, *rows = erratum.table
    return [f"| {' | '.join(row)} |" for row in (head, ("---", *("---:" for _ in head[1:])), *rows)]


_FIGURE = """\
## Figure 1, drawn anew

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="assets/figure-1-dark.svg">
  <img src="assets/figure-1-light.svg" alt="Parameters and FLOPs per token against the size of the residual stream, \
as the models are (thick), by the items of appendix A and by Table 7 (thin).">
</picture>

Thick: the models as they are. Thin: the items of appendix A, and Table 7 with the V D of E7.

* **Check.** `widestream paper resources --chart docs/assets/figure-1`
"""


def _memory() -> str:
    """No erratum, since the paper measured it: what the arithmetic says of memory in training."""
    tokens = {number: checkpoint_balance(GPT2_MEDIUM, RMT_MEDIUM, number) for number in (FLOAT32, BF16)}
    full, half = (f"{tokens[number]:,.0f} tokens ({tokens[number] / RMT_MEDIUM.N:.1f} windows)" for number in tokens)
    return f"""\
## A remark on memory in training

Section 4.2 finds the same largest batch, 256, for the 405M transformer and the 305M RMT, in steps of powers of two, and
infers that the wider stream's checkpoints are offset by the smaller model. By arithmetic, with one state a layer kept
and {ADAM_BYTES} bytes a parameter for weight, gradient and AdamW's moments, they balance at {full}
in memory at a time in float32, at {half} in bfloat16; with more, RMT takes more. That both models
fit the same power of two does not contradict this. Rebuilding states from what was written removes the difference
(`train.stream_memory: writes`).

* **Check.** `widestream paper resources`
"""
