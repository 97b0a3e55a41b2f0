"""Errata of FLOPs: E5 to E9."""

import dataclasses

from widestream.paper.errata_sizes import sweep_sizes
from widestream.paper.erratum import Figures, millions, percent
from widestream.paper.printed import GPT2_MEDIUM, RMT_MEDIUM, TOKENS, TOKENS_TO_LOSS
from widestream.paper.resources import RMT, Transformer, growth, widest_doubling

TRAIN = 3
"""A training step in forward passes (appendix A)."""
FORMS = {
    "parameters, printed": lambda m: m.printed_parameters,
    "parameters, actual": lambda m: m.total_parameters,
    "FLOPs, printed": lambda m: m.printed_flops,
    "FLOPs, items of A.2": lambda m: sum(m.flop_items.values()),
    "FLOPs, actual": lambda m: m.forward_flops,
    "FLOPs, actual, no logits": lambda m: m.forward_flops - m.flops["logits"],
}
"""What may grow by less than one percent, by name: RMT -> int."""


def rmt_flop_total() -> Figures:
    """E5: the total of A.2."""
    model = RMT_MEDIUM
    return Figures(
        {
            "items": sum(model.flop_items.values()),
            "printed": model.printed_flops,
            "keys": 2 * model.R * model.stream_size * (model.key_sets - 3 * (1 + model.L)),
            "vocabulary": 2 * model.V * model.width,
        }
    )


def position_flops() -> Figures:
    """E6: positions as a product with the vocabulary."""
    model = RMT_MEDIUM
    return Figures({"printed": model.flop_items["position embeddings"], "found": 2 * model.N * model.width})


def vocabulary_factor() -> Figures:
    """E7: the transformer's vocabulary term in Table 7."""
    rows, values = [("context", "with V D", "with V")], {}
    for context in (512, 1024):
        small = dataclasses.replace(GPT2_MEDIUM, N=context)
        large = dataclasses.replace(small, D=2 * small.D)
        meant, letter = large.paper_flops(2) / small.paper_flops(2) - 1, large.printed_flops / small.printed_flops - 1
        rows.append((str(context), percent(meant), percent(letter)))
        values |= {f"{context} VD": meant, f"{context} V": letter}
    return Figures(values, tuple(rows))


def accountings(plain: Transformer, rmt: RMT) -> dict[str, tuple[int, int]]:
    """FLOPs per token of both models by what is counted."""
    return {
        "paper: no vocabulary, keys 6 + 8L": (plain.paper_flops(0), rmt.paper_flops(0, rmt.key_sets - 2 * rmt.L)),
        "no vocabulary, keys 6 + 12L": (plain.paper_flops(0), rmt.paper_flops(0)),
        "with logits": (plain.paper_flops(1), rmt.paper_flops(1)),
        "with 4V, as Table 7": (plain.paper_flops(2), rmt.paper_flops(2)),
        "products only, with logits": (plain.forward_flops, rmt.forward_flops),
    }


def uncounted_logits() -> Figures:
    """E8: what the reported totals leave out."""
    rows, values = [("what is counted", "transformer", "RMT", "saved, equal tokens", "saved, loss 3.03")], {}
    counted = accountings(GPT2_MEDIUM, RMT_MEDIUM)
    for name, (plain, rmt) in counted.items():
        equal, to_loss = 1 - rmt / plain, 1 - rmt * TOKENS_TO_LOSS / (plain * TOKENS)
        rows.append((name, millions(plain), millions(rmt), percent(equal), percent(to_loss)))
        values |= {f"{name}: equal tokens": equal, f"{name}: to loss": to_loss}
    plain, rmt = counted["paper: no vocabulary, keys 6 + 8L"]
    values |= {
        "transformer": TRAIN * TOKENS * plain,
        "RMT": TRAIN * TOKENS * rmt,
        "RMT to loss": TRAIN * TOKENS_TO_LOSS * rmt,
        "transformer, logits": TRAIN * TOKENS * GPT2_MEDIUM.paper_flops(1),
        "transformer, V D": TRAIN * TOKENS * GPT2_MEDIUM.paper_flops(2),
        "transformer, Table 7": TRAIN * TOKENS * GPT2_MEDIUM.printed_flops,
    }
    return Figures(values, tuple(rows))


def less_than_one_percent() -> Figures:
    """E9: what a wider stream costs."""
    rows, values = [("GPT2-medium, D_k", *FORMS)], {}
    for key_dim in (16, 32, 64):
        model = dataclasses.replace(RMT_MEDIUM, D_k=key_dim)
        grown = {name: growth(count, model, 2 * key_dim) for name, count in FORMS.items()}
        rows.append((f"{key_dim} to {2 * key_dim}", *(percent(part, 2) for part in grown.values())))
        values |= {f"{name}, {key_dim}": part for name, part in grown.items()}
    widest = {name: widest_doubling(count, RMT_MEDIUM) for name, count in FORMS.items()}
    rows.append(("< 1 % up to a final D_k of", *map(str, widest.values())))
    narrow, second, *_, wide = sweep_sizes()
    grown = {name: growth(count, narrow, wide.D_k) for name, count in FORMS.items()}
    rows.append((f"section 4.4: {narrow.D_k} to {wide.D_k}", *(percent(part, 2) for part in grown.values())))
    values |= {f"{name}, widest": key_dim for name, key_dim in widest.items()}
    values |= {f"{name}, sweep": part for name, part in grown.items()}
    values["sweep pair, printed"] = (1 - 0.23) / (1 - 0.25)
    values["sweep pair, items"] = 1 + growth(FORMS["FLOPs, items of A.2"], second, wide.D_k)
    values["sweep pair, actual"] = 1 + growth(FORMS["FLOPs, actual"], second, wide.D_k)
    return Figures(values, tuple(rows), {"pair": (second.D_k, wide.D_k)})
