"""What the RMT paper (arXiv 2506.22696) prints, and the shapes that it means.

The only figures of this room that are not computed.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from widestream.paper.resources import RMT, Transformer

Model = TypeVar("Model", Transformer, RMT)


@dataclass(frozen=True, kw_only=True)
class Row(Generic[Model]):
    """A row of Table 8 or 9."""

    name: str
    """The size's name in the paper, in millions."""
    model: Model
    """The shape."""
    tokens: str
    """Training tokens as printed, in millions (M) or billions (B)."""


TABLE_8 = (
    Row(name="49M", model=Transformer(L=6, D=384, F=1536, H=12, D_h=32), tokens="212M"),
    Row(name="160M", model=Transformer(L=12, D=768, F=3072, H=12, D_h=64), tokens="1.7B"),
    Row(name="260M", model=Transformer(L=18, D=896, F=3584, H=14, D_h=64), tokens="3.5B"),
    Row(name="405M", model=Transformer(L=24, D=1024, F=4096, H=16, D_h=64), tokens="6B"),
)
TABLE_9_PRINTED = (
    Row(name="46M", model=RMT(L=6, D_k=32, D_v=32, R=12, F=1536), tokens="142M"),
    Row(name="134M", model=RMT(L=12, D_k=32, D_v=64, R=12, F=3072), tokens="1.1B"),
    Row(name="206M", model=RMT(L=18, D_k=896, D_v=48, R=14, F=3584), tokens="2.3B"),
    Row(name="305M", model=RMT(L=24, D_k=1024, D_v=64, R=16, F=4096), tokens="6B"),
)
TABLE_9 = (
    *TABLE_9_PRINTED[:2],
    Row(name="206M", model=RMT(L=18, D_k=48, D_v=64, R=14, F=3584), tokens="2.3B"),
    Row(name="305M", model=RMT(L=24, D_k=64, D_v=64, R=16, F=4096), tokens="6B"),
)
"""Table 9 with the shapes that give the printed sizes (erratum E1)."""

GPT2_SMALL, GPT2_MEDIUM = TABLE_8[1].model, TABLE_8[3].model
RMT_SMALL, RMT_MEDIUM = TABLE_9[1].model, TABLE_9[3].model
SWEEP_STREAM_SIZES = (384, 768, 1536, 2048, 3072, 4096)
"""Section 4.4; D_v is that of GPT2-small, so D_k is 6 to 64."""

TOKENS, TOKENS_TO_LOSS = 6.04e9, 3.55e9
"""Tables 3 and 4: of the whole run, and RMT's to loss 3.03."""
TRANSFORMER_FLOPS, RMT_FLOPS, RMT_FLOPS_TO_LOSS = 1.18e19, 8.45e18, 4.97e18
"""Tables 3 and 4: of the whole runs, and RMT's to loss 3.03."""
TRANSFORMER_SECONDS, RMT_SECONDS = 1.86e5, 3.30e5
"""Table 4."""

TABLE_5 = {
    "lambada_openai": (61.34, 25.21), "openwebtext": (20.64, 18.36), "pile_10k": (30.23, 23.54),
    "wikitext": (76.35, 55.94),
}  # fmt: skip
"""Perplexities of the 405M transformer and the 305M RMT after 6B tokens, by task as the harness calls it. Whether they
are by token is not said; OpenWebText's is exp of the transformer's loss, 3.03 nats a token."""
TABLE_6 = {
    "arc_challenge": (19.7, 20.6), "arc_easy": (44.3, 46.1), "hellaswag": (28.7, 30.5), "piqa": (61.9, 63.7),
    "winogrande": (49.5, 52.5),
}  # fmt: skip
"""Accuracies in percent of the same models. Whether of plain or of length-normalised likelihoods is not said."""
