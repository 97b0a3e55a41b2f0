"""Study 1 on the page: parameters, FLOPs and memory against stream size, and the paper's errata (Figure 1, Table 7)."""

from widestream.paper.errata import list_errata
from widestream.paper.figure_1 import chart_of, figure_1, resources_record
from widestream.report import formats
from widestream.report.table import NONE, Table
from widestream.study.page.sections import Section


def resources_section() -> Section:
    """Exact numbers: no runs, no intervals."""
    record = resources_record()
    curves = figure_1()
    section = Section(
        key="resources",
        name="resources",
        title="Resources: what a wider stream costs",
        question="Do parameters and FLOPs stay the same as the stream grows?",
        mirrors="Figure 1, Table 7, appendix A",
        scale="Exact arithmetic at the paper's own sizes; tests hold every count to the unit on the real modules.",
        commands=["widestream paper resources", "widestream paper errata"],
    )
    section.charts = [(f"{name} against stream size", chart_of(name, lines)) for name, lines in curves.items()]
    parameters, flops = curves["parameters"], curves["FLOPs per token"]
    section.answers = [
        _doubling("RMT's parameters", parameters["RMT"]),
        _doubling("RMT's FLOPs per token", flops["RMT"]),
        _doubling("The transformer's parameters", parameters["transformer"]),
        _doubling("The transformer's FLOPs per token", flops["transformer"]),
    ]
    section.tables = [_models(record["models"])]
    section.details = [_errata()]
    return section


def _doubling(what: str, points: list[tuple[int, int]]) -> str:
    """Growth when the stream doubles, over Figure 1."""
    costs = dict(points)
    growth = {size: costs[2 * size] / costs[size] - 1 for size in costs if 2 * size in costs}
    low, high = min(growth.values()), max(growth.values())
    last = max(growth)
    return (
        f"{what} grow by {100 * low:.2f} to {100 * high:.2f} % when the stream doubles "
        f"({100 * growth[last]:.2f} % from {last:,} to {2 * last:,} cells)."
    )


def _models(models: dict[str, dict]) -> Table:
    rows = []
    for name, cost in models.items():
        parameters, flops, memory = cost["parameters"], cost["flops_per_token"], cost["training_bytes"]
        itemised = parameters["itemised"], flops["itemised"]
        rows.append(
            (
                name,
                formats.count(cost["stream_size"]),
                f"{parameters['printed']:,}",
                NONE if itemised[0] is None else f"{itemised[0]:,}",
                f"{parameters['actual_without_norm']:,}",
                formats.count(flops["printed"]),
                NONE if itemised[1] is None else formats.count(itemised[1]),
                formats.count(flops["actual"]),
                formats.memory(memory["parameters_and_optimizer"]),
                formats.count(memory["stream_states_per_token"]),
                NONE if memory["stream_writes_per_token"] is None else formats.count(memory["stream_writes_per_token"]),
                formats.memory(cost["decoding_bytes"]["whole_context"]["bf16"]),
            )
        )
    return Table(
        title="Table 7 at the paper's eight sizes",
        caption="As Table 7's formulas print it, as the items of appendix A add up, and as it is (without norm gains). "
        "FLOPs: forward, per token. Memory: weights, gradients and Adam's moments in float32; bytes a token that the "
        "stream keeps for the backward pass as states or as writes; weights and cache of one whole context, bf16.",
        columns=(
            "model", "stream cells", "parameters printed", "itemised", "as they are", "FLOPs printed", "itemised",
            "as they are", "training", "kept, states", "kept, writes", "decoding",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _errata() -> Table:
    rows = tuple((f"E{one.number}", one.where, one.printed, one.found) for one in list_errata())
    return Table(
        title="Errata",
        caption="Each is computed by a tested function; docs/errata.md has them in full.",
        columns=("", "where", "printed", "found"),
        rows=rows,
        words=4,
    )
