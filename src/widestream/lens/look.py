"""A forward pass that is looked at: everything in it by name, as plain tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from widestream.blocks.attention import DenseAttention
from widestream.blocks.context import Context
from widestream.blocks.norm import NormBehind
from widestream.errors import UserError, shown
from widestream.lens.parted import Parted
from widestream.lens.places import BIAS, Reader, Writer, attention_core, block_of, inner_block, vectors_of
from widestream.lens.taps import Heads, tap_heads
from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged, record_pass

BY_LAYER = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class Seen:
    """A forward pass without gradients. `seen[name]` gives a tensor; `seen.names()` says which there are.

    There are tokens [B, T], embed [B, T, D], pos_embed [1, T, D], logits [B, T, V]; and for layer l, as
    `blocks.l.NAME`:

    * resid_pre, resid_mid, resid_post: the stream as the layer's first block, its second one, and the next layer (or
      the head) see it, before their norms: [B, T, D], or a matrix stream's state [B, T, D_v, D_k]; of one that shows a
      reader several vectors all, [B, T, n, D].
    * attn_in, mlp_in: what the block gets, normed [B, T, D]; heads as attn_in.q, attn_in.k, ...
    * q, k, v, z: heads [B, T, H, K] as attention multiplies them, and what they put out.
    * pattern: attention weights [B, H, T, T].
    * attn_out, mlp_out: what the block writes [B, T, D], or heads [B, T, H, K].
    """

    model: Decoder
    tokens: Tensor
    """[B, T]."""
    exchanges: list[Exchanged]
    """By site."""
    heads: dict[int, Heads]
    """Of attention blocks, by the site where they write."""
    context: Context
    """What the pass shared."""

    @property
    def last(self) -> int:
        """The site behind which the head reads."""
        return len(self.exchanges) - 1

    @cached_property
    def logits(self) -> Tensor:
        """[B, T, V]."""
        with torch.no_grad():
            return self.model.logits(self.exchanges[-1].inputs["x"])

    def resid(self, site: int) -> Tensor:
        """The stream as the reader at `site` sees it, before its norm; see the class."""
        there = self.exchanges[site]
        if self.model.stream.cuts_vectors and isinstance(there.state, Tensor) and there.state.ndim == 4:
            return there.state
        seen = there.normed or tuple(there.inputs.values())
        alike = all(x.shape == seen[0].shape for x in seen)
        return seen[0] if len(seen) == 1 or not alike else torch.stack(list(seen), dim=2)

    @cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        """What a name stands for: the field, and the site."""
        places = {"tokens": ("tokens", 0), "embed": ("embed", 0), "logits": ("logits", self.last)}
        if len(self.exchanges[0].written) > 1:
            places["pos_embed"] = ("pos_embed", 0)
        seen: dict[int, int] = {}
        for site in range(1, self.last + 1):
            block = block_of(self.model, site)
            number = seen[block.layer] = seen.get(block.layer, -1) + 1
            short = {"attention": "attn", "mlp": "mlp"}.get(block.kind, block.kind)
            prefix = f"blocks.{block.layer}"
            for name in (f"{prefix}.{short}_in", f"{prefix}.{short}_out"):
                again = f"{name}.{number}" if name in places else name
                places[again] = (name.rsplit("_", 1)[-1], site)
            places[f"{prefix}.{BY_LAYER[min(number, 1)]}"] = ("resid", site - 1)
            places[f"{prefix}.resid_post"] = ("resid", site)
            if site in self.heads:
                places |= {f"{prefix}.{name}": (name, site) for name in ("q", "k", "v", "z", "pattern")}
            for role in self.exchanges[site - 1].inputs:
                if role != "x":
                    places[f"{prefix}.{short}_in.{role}"] = (f"in.{role}", site)
        return places

    def names(self) -> list[str]:
        """What there is."""
        return [name for name, (field, site) in self._places.items() if not (field == "in" and self._by_role(site))]

    def _by_role(self, site: int) -> bool:
        return "x" not in self.exchanges[site - 1].inputs

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self._places or name not in self.names():
            raise UserError(f"There is no {shown(name)!r} here; names are {', '.join(self.names()[:14])}, ...")
        field, site = self._places[name]
        if field in ("tokens", "logits"):
            return getattr(self, field)
        if field in ("embed", "pos_embed"):
            return self.exchanges[0].written[field == "pos_embed"]
        if field == "resid":
            return self.resid(site)
        if field == "pattern":
            return self.heads[site].pattern()
        if field in ("q", "k", "v", "z"):
            return getattr(self.heads[site], field)
        return self.exchanges[site].written[0] if field == "out" else self.exchanges[site - 1].inputs[field[3:] or "x"]

    def writers(self) -> list[Writer]:
        """Everything that is written, vector by vector where vectors can be told apart, in order of sites."""
        return list(_writers(self))

    def readers(self) -> list[Reader]:
        """Everything that is read, vector by vector where there are several, in order of sites."""
        return list(_readers(self))


def _writers(seen: Seen) -> Iterator[Writer]:
    for site, exchanged in enumerate(seen.exchanges):
        parts = ("token", "position") if site == 0 else (block_of(seen.model, site).kind,)
        layer = None if site == 0 else block_of(seen.model, site).layer
        for part, written in zip(parts, exchanged.written, strict=False):
            number = written_vectors(seen.model, site, written)
            yield from (Writer(site, part, layer, vector) for vector in (range(number) if number else (None,)))
            if site and has_bias(seen.model, site):
                yield Writer(site, f"{part}{BIAS}", layer)


def require_there(seen: Seen, places: Sequence[Writer | Reader]) -> None:
    """Make sure that a pass has these writers (vector by vector, or a site's as a whole) and readers.

    Raises:
        UserError: names the first that it has not.
    """
    writers = seen.writers()
    known: set[Writer | Reader] = {*writers, *(writer.whole for writer in writers), *seen.readers()}
    unknown = next((place for place in places if place not in known), None)
    if unknown is not None:
        kind = "reader" if isinstance(unknown, Reader) else "writer"
        raise UserError(
            f"There is no {kind} {unknown.name} at site {unknown.site} of this model; seen.{kind}s() has all."
        )


def written_vectors(model: Decoder, site: int, written: Tensor) -> int | None:
    """How many vectors can be told apart in what is written at `site`; None: it is one."""
    if site and isinstance(inner_block(model, site), DenseAttention):
        return model.config.num_heads
    vectors = vectors_of(model, written)
    return None if vectors is None else vectors.shape[2]


def has_bias(model: Decoder, site: int) -> bool:
    """Whether heads are told apart at `site`, and something constant stands behind them."""
    block, inner = model.blocks[site - 1], inner_block(model, site)
    behind = isinstance(block, NormBehind) and block.norm.bias is not None
    return isinstance(inner, DenseAttention) and (inner.bias_out is not None or behind)


def _readers(seen: Seen) -> Iterator[Reader]:
    for site, exchanged in enumerate(seen.exchanges):
        block = block_of(seen.model, site + 1) if site < seen.last else None
        part, layer = (block.kind, block.layer) if block else ("head", None)
        for role, x in exchanged.inputs.items():
            vectors = vectors_of(seen.model, x)
            number = None if vectors is None else vectors.shape[2]
            yield from (Reader(site, part, layer, role, v) for v in (range(number) if number else (None,)))


@torch.no_grad()
def look(model: Decoder, tokens: Tensor, segments: Tensor | None = None) -> Seen:
    """Run a model on tokens and keep everything.

    Args:
        model: in evaluation mode, in float32 or wider. Edits that are in force (`edits.py`) hold here too.
        tokens: [B, T] int64.
        segments: document of every token [B, T]; None: a row is one document.

    Returns:
        What was computed. It takes memory: every state of the stream, for every token.
    """
    if tokens.ndim != 2:
        raise UserError(f"Tokens are {[*tokens.shape]}; a look takes [B, T].")
    attention, model.attention = model.attention, "sdpa"
    try:
        with tap_heads(model) as tapped, record_pass(model) as recorded:
            model(tokens, segments)
    finally:
        model.attention = attention
    sites = [site for site in range(1, len(model.layout) + 1) if attention_core(model, site) is not None]
    exchanges = [_plain(one) for one in recorded.exchanges]
    return Seen(model, tokens, exchanges, dict(zip(sites, tapped, strict=True)), recorded.context)


def _plain(exchanged: Exchanged) -> Exchanged:
    """The same without shares, which edits leave in a state."""
    state, *normed = (x.value if isinstance(x, Parted) else x for x in (exchanged.state, *exchanged.normed))
    return replace(exchanged, state=state, normed=tuple(normed))
