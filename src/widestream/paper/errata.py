"""All errata of the RMT paper (arXiv 2506.22696), and `docs/errata.md`, which is written from them."""

from collections.abc import Callable
from typing import Any

from widestream.errors import UserError
from widestream.paper import errata_flops, errata_moments, errata_sizes
from widestream.paper.erratum import Erratum, Figures, make_erratum, templates
from widestream.paper.printed import GPT2_MEDIUM, RMT_MEDIUM
from widestream.paper.resources import ADAM_BYTES, BF16, FLOAT32, checkpoint_balance

ERRATA: tuple[Callable[[], Figures], ...] = (
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
    Figures,  # E15 and E16 are words only
    Figures,
    errata_sizes.sweep_axis,
    errata_sizes.positions_counted,
)
"""What computes the figures of E1 to E18, in order; their words are in `templates/errata.yaml`."""


def list_errata() -> list[Erratum]:
    """All of them, computed now."""
    return [make_erratum(number, figures()) for number, figures in enumerate(ERRATA, start=1)]


def find_erratum(name: str) -> Erratum:
    """One of them by its name, E8 or 8.

    Raises:
        UserError: there is none of that name.
    """
    number = name.upper().removeprefix("E")
    if not number.isdecimal() or not 1 <= int(number) <= len(ERRATA):
        raise UserError(f"There is no erratum {name}; they are E1 to E{len(ERRATA)}.")
    return make_erratum(int(number), ERRATA[int(number) - 1]())


def to_dict(erratum: Erratum) -> dict[str, Any]:
    """Plain values for JSON."""
    names = ("title", "where", "printed", "found", "changes")
    words = {name: getattr(erratum, name) for name in names}
    return {"name": f"E{erratum.number}", **words, "values": dict(erratum.values)}


def to_markdown(erratum: Erratum) -> str:
    """A section of the page."""
    return templates().get_template("erratum.md").render(erratum=erratum)


def errata_page() -> str:
    """The whole of `docs/errata.md`."""
    balance = {}
    for name, number in (("float32", FLOAT32), ("bfloat16", BF16)):
        tokens = checkpoint_balance(GPT2_MEDIUM, RMT_MEDIUM, number)
        balance[name] = f"{tokens:,.0f} tokens ({tokens / RMT_MEDIUM.N:.1f} windows)"
    page = templates().get_template("errata.md")
    return page.render(errata=list_errata(), adam_bytes=ADAM_BYTES, balance=balance)
