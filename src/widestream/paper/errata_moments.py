"""Errata of the rest: variance (E10), percentages (E11), tuning (E14)."""

from dataclasses import replace

from widestream.paper.erratum import Figures
from widestream.paper.moments import GPT2_MEDIUM, PRINTED, Moments, Printed, Row, closed_forms, linear
from widestream.paper.printed import RMT_SECONDS, TRANSFORMER_SECONDS

WAYS = ("forward", "backward")
OPERATIONS = ("storage", "retrieval")


def _pair(moments: Moments) -> str:
    return f"{moments.forward:.2f} / {moments.backward:.2f}"


def _printed(row: Printed) -> str:
    return f"{row.moments.forward:g} / {row.moments.backward:g}"


def variance_table() -> Figures:
    """E10: Table 2 against Table 1."""
    shape, forms = GPT2_MEDIUM, closed_forms(GPT2_MEDIUM)
    D, F, R, D_k = shape.width, shape.mlp_dim, shape.rank, shape.key_dim
    store, read, ff_store, ff_read = (
        Row(layer, operation, "RMT") for layer in ("attention", "feed-forward") for operation in OPERATIONS
    )
    W_O, W_QKV, W_2, W_1 = (replace(row, model="transformer") for row in (store, read, ff_store, ff_read))
    cells = [
        ("transformer, attention storage", W_O, f"W_O {D} to {D}", forms[W_O]),
        ("transformer, attention retrieval", W_QKV, f"W_QKV {D} to {3 * D}", forms[W_QKV]),
        ("transformer, FF storage", W_2, f"W_2 {F} to {D}", forms[W_2]),
        ("transformer, FF retrieval", W_1, f"W_1 {D} to {F}", forms[W_1]),
        ("RMT, attention storage", store, f"R {R}, D_k {D_k}", forms[store]),
        ("RMT, attention retrieval, q k v as one", read, f"D_k {D_k}, 3 R = {3 * R}", forms[read]),
        ("RMT, attention retrieval, each apart", read, f"D_k {D_k}, R {R}", linear(D_k, R, "xavier")),
        ("RMT, FF storage", ff_store, f"R {R}, D_k {D_k}", forms[ff_store]),
        ("RMT, FF retrieval", ff_read, f"D_k {D_k}, R {R}", forms[ff_read]),
        ("RMT, FF, if D_k were R", ff_store, f"D_k = R = {R}", linear(R, R, "xavier")),
    ]
    into, out = (forms[Row("feed-forward", f"path {way}", "RMT")] for way in ("in", "out"))
    named = {name: moments for name, _, _, moments in cells} | {"into the MLP": into, "out of the MLP": out}
    values = {f"{name}, {way}": getattr(moments, way) for name, moments in named.items() for way in WAYS}
    pairs = {name: _pair(moments) for name, moments in named.items()}
    rows = ((name, _printed(PRINTED[row]), sizes, pairs[name]) for name, row, sizes, _ in cells)
    table = (("operation", "printed", "shape", "computed"), *rows)
    return Figures(values, table, {"R": R, "D_k": D_k, "pairs": pairs})


def time_difference() -> Figures:
    """E11: a percentage and a reference to a table."""
    longer, shorter = RMT_SECONDS / TRANSFORMER_SECONDS - 1, 1 - TRANSFORMER_SECONDS / RMT_SECONDS
    return Figures({"longer": longer, "shorter": shorter, "by step": 7.17 / 4.06 - 1})


def tuned_settings() -> Figures:
    """E14: intervals and settings of the search."""
    low, high = 0.1, 1.0
    chosen = {"alpha_in": 9.76, "alpha_attn": 0.25, "alpha_out": 5.52, "init std": 0.15}
    outside = [name for name, value in chosen.items() if not low <= value <= high]
    rows = ((name, f"{low:g} to {high:g}", f"{value:g}") for name, value in chosen.items())
    values = {f"{name} outside": float(name in outside) for name in chosen}
    return Figures(values, (("setting", "interval", "chosen"), *rows), {"outside": outside})
