"""Errata of parameters and budgets: E1 to E4, E12, E13, E17, E18."""

import dataclasses

from widestream.paper.erratum import Cells, Erratum, millions
from widestream.paper.printed import (
    GPT2_SMALL,
    RMT_MEDIUM,
    RMT_SMALL,
    SWEEP_STREAM_SIZES,
    TABLE_8,
    TABLE_9,
    TABLE_9_PRINTED,
)
from widestream.paper.resources import RMT, Transformer
from widestream.report.formats import count

CHINCHILLA = 20
"""Training tokens per non-embedding parameter (section 4.2)."""


def table_9_shapes() -> Erratum:
    """E1: the shapes of the two large RMTs."""
    rows, values = [("row", "D_k, D_v printed", "parameters", "D_k, D_v meant", "parameters", "stream / D")], {}
    for printed, meant, plain in zip(TABLE_9_PRINTED, TABLE_9, TABLE_8, strict=True):
        a, b, ratio = printed.model, meant.model, meant.model.stream_size / plain.model.D
        shapes = [f"{m.D_k}, {m.D_v}" for m in (a, b)]
        counts = [f"{m.counted_parameters:,}" for m in (a, b)]
        rows.append((printed.name, shapes[0], counts[0], shapes[1], counts[1], f"{ratio:.2f}"))
        values |= {f"{meant.name} printed": a.counted_parameters, f"{meant.name} meant": b.counted_parameters}
        values |= {f"{meant.name} stream / D": ratio, f"{meant.name} norm gains": b.parameters["norm"]}
        values[f"{meant.name} printed stream / D"] = a.stream_size / plain.model.D
    wide = TABLE_9_PRINTED[2].model
    smallest = min(meant.model.stream_size / plain.model.D for meant, plain in zip(TABLE_9, TABLE_8, strict=True))
    return Erratum(
        number=1,
        title="Shapes of the 206M and 305M models",
        where="Table 9, columns D_k and D_v; section 4.2, the sentence on the size of the stream",
        printed='D_k, D_v = 896, 48 (206M) and 1024, 64 (305M); streams "2.5 – 4 times larger"',
        found=(
            "The column D_k holds the transformer's D in these two rows, and the true D_k stands under D_v. As "
            "printed, "
            f"R D_v of the 206M row is {wide.width}, not {TABLE_8[2].model.D}. With D_k, D_v = 48, 64 and 64, 64 "
            f"the sizes come out as named, and the largest stream is four times its counterpart's, as the text says; "
            f"the smallest ratio is {smallest:.2f}. Counts are without norm gains."
        ),
        changes="Whoever rebuilds the two models from the table gets others. The results are not touched.",
        check="widestream summary paper/rmt-206m",
        table=tuple(rows),
        values=values | {"printed width": wide.width, "smallest ratio": smallest},
    )


def chinchilla_budget() -> Erratum:
    """E2: the token budget of the 305M row."""
    rows, values = [("row", "tokens printed", "20 per non-embedding parameter")], {}
    for row in (*TABLE_8, *TABLE_9):
        budget = CHINCHILLA * row.model.non_embedding_parameters
        rows.append((row.name, row.tokens, count(budget)))
        values[row.name] = budget
    return Erratum(
        number=2,
        title="Training tokens of the 305M model",
        where="Table 9, last row; section 4.2",
        printed="6B tokens; each model trained for 20 tokens per non-embedding parameter",
        found=(
            f"20 per non-embedding parameter is {count(values['305M'])} for this model; the other rows agree. 6B is "
            "the extended run of Tables 3 and 4, as section 4.2 explains; Figure 2 uses the shorter one."
        ),
        changes="Only how the row is to be read.",
        table=tuple(rows),
        values=values,
    )


def rmt_parameter_total() -> Erratum:
    """E3: the total of A.1."""
    model = RMT_MEDIUM
    items, printed = sum(model.parameter_items.values()), model.printed_parameters
    keys, words = model.R * model.D_k, model.V * model.width
    return Erratum(
        number=3,
        title="RMT's parameters: the total is less than its items",
        where="Appendix A.1 and Table 7",
        printed="R(2 D_k (3L + 1) + D_v (2L D_FF + V + N))",
        found=(
            "The items add up to R(D_k (6L + 3) + D_v (2L D_FF + 2V + N)): the total leaves out one set of keys "
            f"(R D_k) and one of the two vocabulary matrices (R V D_v). For the 305M model {printed:,} against "
            f"{items:,}; "
            f"the difference is {keys:,} + {words:,}."
        ),
        changes=(
            "The sizes named in the text (46M to 305M) follow the items, not the printed total; see E4 for Figure 1."
        ),
        check="widestream paper resources",
        values={"printed": printed, "items": items, "difference": keys + words},
    )


def transformer_parameter_total() -> Erratum:
    """E4: the transformer's parameters in Table 7."""
    rows, values = [("row", "by Table 7", "with both vocabulary matrices and positions")], {}
    for row in TABLE_8:
        printed, found = row.model.printed_parameters, row.model.counted_parameters
        rows.append((row.name, f"{printed:,}", f"{found:,}"))
        values |= {row.name: found, f"{row.name} Table 7": printed}
    return Erratum(
        number=4,
        title="The transformer's parameters in Table 7",
        where="Table 7, first row",
        printed="D(L(4 H D_h + 2 D_FF) + V)",
        found=(
            "This has one vocabulary matrix and no positions. Embedding and unembedding are not tied (C.1), and the "
            "sizes named everywhere else (49M, 160M, 260M, 405M) have both and the positions."
        ),
        changes=(
            "Absolute heights in Figure 1 if it was drawn by Table 7. That doubling D doubles the parameters holds "
            "either way, since every term has the factor D."
        ),
        check="widestream summary paper/transformer-405m",
        table=tuple(rows),
        values=values,
    )


def variants_budget() -> Erratum:
    """E12: steps and tokens of C.4."""
    steps, batch, named = 5000, 64, 1.6e9
    tokens, needed = steps * batch * GPT2_SMALL.N, 50_000 * batch * GPT2_SMALL.N
    return Erratum(
        number=12,
        title="Steps of the comparison of variants",
        where="Appendix C.4",
        printed="5000 steps, batch 64, 1.6B tokens",
        found=(
            f"{steps} x {batch} x {GPT2_SMALL.N} = {millions(tokens)} tokens. 1.6B need 50,000 steps "
            f"({needed / 1e9:.3f}B), "
            "as C.3 has it."
        ),
        changes="If the tokens are right, as the losses suggest, Table 10 takes ten times the steps printed.",
        values={"tokens": tokens, "steps needed": named / (batch * GPT2_SMALL.N), "tokens at 50K": needed},
    )


def sweep_sizes() -> tuple[RMT, ...]:
    """The six models of section 4.4."""
    return tuple(dataclasses.replace(RMT_SMALL, D_k=size // RMT_SMALL.D_v) for size in SWEEP_STREAM_SIZES)


def sweep_total() -> Erratum:
    """E13: the size of the sweep's models."""
    rows: list[Cells] = [("stream size", "D_k", "parameters", "with norm gains")]
    values = {}
    for model in sweep_sizes():
        counts = (model.counted_parameters, model.total_parameters)
        rows.append((str(model.stream_size), str(model.D_k), *(f"{number:,}" for number in counts)))
        values[str(model.stream_size)] = model.counted_parameters
    low, high = min(values.values()), max(values.values())
    return Erratum(
        number=13,
        title="Size of the models with different streams",
        where="Appendix C.3",
        printed="a total of 135M parameters",
        found=f"All six have {millions(low, 2)} to {millions(high, 2)}: 134M, as in Table 9 and Table 10.",
        changes="Nothing but the name.",
        check="widestream summary paper/rmt-134m model.stream.key_dim=64",
        table=tuple(rows),
        values=values,
    )


def sweep_axis() -> Erratum:
    """E17: what the sweep varies."""
    key_dims = [model.D_k for model in sweep_sizes()]
    sizes = ", ".join(map(str, SWEEP_STREAM_SIZES))
    return Erratum(
        number=17,
        title="What the sweep over streams varies",
        where="Section 4.4 and Figure 6 (not an error, but easily misread)",
        printed=f"residual stream sizes {sizes}",
        found=f"These are D_k D_v. With D_v = {RMT_SMALL.D_v}, D_k is {', '.join(map(str, key_dims))}.",
        changes="Whoever takes the list for D_k trains streams 64 times as large.",
        values={str(size): key_dim for size, key_dim in zip(SWEEP_STREAM_SIZES, key_dims, strict=True)},
    )


def highway_parameters(model: Transformer, biases: bool) -> int:
    """Of a Highway Transformer, without norm gains: two D x D maps more for each of the 2 L blocks."""
    maps = 2 * 2 * model.L
    return model.counted_parameters + maps * (model.D**2 + (model.D if biases else 0))


def positions_counted() -> Erratum:
    """E18: whether Table 10 counts positions."""
    positions = GPT2_SMALL.parameters["positions"]
    counted, biased = (highway_parameters(GPT2_SMALL, biases) for biases in (False, True))
    return Erratum(
        number=18,
        title="Positions are probably counted",
        where="Table 10, Highway Transformer (an inference of ours)",
        printed="191M",
        found=(
            f"With a gate for every block: {millions(counted, 2)} with learned positions; "
            f"{millions(counted - positions, 2)} "
            f"without, {millions(biased - positions, 2)} with biases, which round to 190M."
        ),
        changes="Sizes in the paper are taken to include learned positions, here as well.",
        check="widestream summary paper/highway-191m",
        values={"with": counted, "without": counted - positions, "without, biases": biased - positions},
    )
