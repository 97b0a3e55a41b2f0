"""What the stream holds, site by site: what the head would make of it, its rank, its rows in use, sizes of updates."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widestream.blocks.attention import DenseAttention
from widestream.blocks.norm import Norm
from widestream.errors import UserError
from widestream.lens.look import Seen
from widestream.lens.places import inner_block


@torch.no_grad()
def logit_lens(seen: Seen, site: int) -> Tensor:
    """Logits [B, T, V] that the head would give if it read at `site` (nostalgebraist 2020): its keys and its norm on
    the state as it is there. The last site's are the model's.

    Raises:
        UserError: the stream's state has another form there than at its end (it keeps a history of writes).
    """
    model = seen.model
    if not 0 <= site <= seen.last:
        raise UserError(f"Site {site} is none of 0 to {seen.last}.")
    if site == seen.last:
        return seen.logits
    if type(model.stream).spec(model.config).history_size:
        raise UserError(
            f"A {model.config.stream.kind} stream keeps what was written in a history whose form changes from site to "
            "site, and the head's weights are for its end; there is no reading it earlier."
        )
    return model.logits(model.stream.read(seen.last, seen.exchanges[site].state)["x"])


@dataclass(frozen=True, slots=True)
class Held:
    """The stream as one reader sees it, before its norm; means over tokens."""

    norm: float
    """Root mean square of its numbers."""
    update: float
    """Size of what was written there over that of the stream after it (Frobenius norms)."""
    turn: float
    """Cosine between the stream here and at the reader before."""
    rank: float
    """Effective rank of a token's state, exp of the entropy of its normalised singular values (Roy & Vetterli 2007); of
    a matrix D_k x D_v at most the smaller; 1 for a vector."""
    token_rank: float
    """Effective rank over tokens, of the states of a batch as rows: how many directions the stream uses at all."""
    rows: float
    """Matrix streams: effective number of rows (slots) in use, exp of the entropy of their squared norms; of D_k."""
    entropy: float
    """nats: of what the head would predict here; nan where it cannot read here."""


@torch.no_grad()
def held(seen: Seen, site: int, most_tokens: int = 128) -> Held:
    """What the stream holds at a site.

    Args:
        seen: a pass.
        site: from 0; the reader behind the site's write.
        most_tokens: tokens that ranks are taken of, evenly spaced: singular values are dear.
    """
    state = seen.resid(site).double()
    if not state.isfinite().all():
        raise UserError(f"The stream is not finite at site {site}.")
    flat = state.flatten(0, 1)
    flat = flat[torch.linspace(0, len(flat) - 1, min(len(flat), most_tokens)).long()]
    matrix = seen.model.stream.cuts_vectors and flat.ndim == 3
    rows = flat.square().sum(1) if matrix else None  # [tokens, D_k] of [tokens, D_v, D_k]
    before = seen.resid(site - 1).double() if site else None
    same = before is not None and before.shape == state.shape
    try:
        entropy = _entropy(logit_lens(seen, site).double().softmax(-1)).mean().item()
    except UserError:
        entropy = float("nan")
    dims = tuple(range(2, state.ndim))
    change = (
        (state - before).square().sum().sqrt() / state.square().sum().sqrt() if same and before is not None else None
    )
    return Held(
        norm=state.square().mean().sqrt().item(),
        update=1.0 if change is None else change.item(),
        turn=_cosine(state, before, dims) if same and before is not None else float("nan"),
        rank=_effective(_singular(flat)).mean().item() if matrix else 1.0,
        token_rank=_effective(_singular(flat.flatten(1))).item(),
        rows=_entropy(rows / rows.sum(-1, keepdim=True)).exp().mean().item() if rows is not None else float("nan"),
        entropy=entropy,
    )


def _entropy(probabilities: Tensor) -> Tensor:
    """nats, over the last axis."""
    return torch.special.entr(probabilities).sum(-1)


def _singular(matrix: Tensor) -> Tensor:
    """Singular values, by the smaller of the two products with itself: in float64 exact enough for an entropy."""
    product = matrix @ matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(product).clamp_min(0).sqrt()


def _effective(values: Tensor) -> Tensor:
    """Exp of the entropy of values that are made to sum to 1, over the last axis."""
    return _entropy(values / values.sum(-1, keepdim=True).clamp_min(1e-300)).exp()


def _cosine(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> float:
    sizes = (a.square().sum(dims) * b.square().sum(dims)).sqrt().clamp_min(1e-300)
    return ((a * b).sum(dims) / sizes).mean().item()


@torch.no_grad()
def composition(seen: Seen) -> dict[str, Tensor]:
    """Q, K and V composition of heads in the plain transformer [readers' heads, writers' heads] (Elhage et al. 2021).

        Q  norm(W_QK^T W_OV) / (norm(W_QK) norm(W_OV))      K  norm(W_QK W_OV) / ...      V  norm(W_OV' W_OV) / ...

    with W_OV = W_O^h W_V^h of the earlier head, W_QK = W_Q^T W_K and W_OV' of the later one, and Frobenius norms.
    Gains of the reader's norm are taken into its maps. Pairs whose reader is not later are nan.

    Raises:
        UserError: attention has no maps of its own (a bare one's heads meet by keys: `wiring.keys`).
    """
    config = seen.model.config
    dense = all(isinstance(inner_block(seen.model, site), DenseAttention) for site in seen.heads)
    if not dense or seen.model.stream.cuts_vectors or config.value_residual == "shared":
        raise UserError(
            f"Attention in a {config.stream.kind} model has no maps of its own to compose, or they act on a matrix; "
            "keys() and flow() say who reads whom."
        )
    heads = [head for site in sorted(seen.heads) for head in _maps(seen, site)]
    found = {role: torch.full((len(heads), len(heads)), torch.nan, dtype=torch.float64) for role in "QKV"}
    for r, reader in enumerate(heads):
        for w, writer in enumerate(heads):
            if writer.site < reader.site:
                found["Q"][r, w] = _score(reader.k.mT, reader.q, writer)
                found["K"][r, w] = _score(reader.q.mT, reader.k, writer)
                found["V"][r, w] = _score(reader.o, reader.v, writer)
    return found


@dataclass(frozen=True, slots=True)
class _Maps:
    site: int
    q: Tensor
    """[K, D], like k and v."""
    k: Tensor
    v: Tensor
    o: Tensor
    """[D, K]."""


def _maps(seen: Seen, site: int) -> list[_Maps]:
    """Of every head of an attention block."""
    config, block = seen.model.config, inner_block(seen.model, site)
    assert isinstance(block, DenseAttention)
    gain = _gain(seen.model.stream, site - 1)
    q, k, v = (
        (part.double() * gain).unflatten(0, (-1, config.head_dim)) for part in block.qkv.split([*block.rows.values()])
    )
    share, out = config.num_heads // config.kv_heads, block.out.double().unflatten(1, (-1, config.head_dim))
    return [_Maps(site, q[h], k[h // share], v[h // share], out[:, h]) for h in range(config.num_heads)]


def _gain(stream: nn.Module, site: int) -> Tensor:
    """What the norm in front of a reader multiplies by."""
    norms = getattr(stream, "norms", None)
    norm = norms[site] if isinstance(norms, nn.ModuleList) else None
    factor = norm.factor() if isinstance(norm, Norm) else None
    return torch.ones((), dtype=torch.float64) if factor is None else factor.double()


def _score(left: Tensor, right: Tensor, writer: _Maps) -> Tensor:
    """|left right W_O W_V| over |left right| |W_O W_V|; left [D, K], right [K, D]."""
    return _norm(left, right @ writer.o @ writer.v) / (_norm(left, right) * _norm(writer.o, writer.v))


def _norm(tall: Tensor, wide: Tensor) -> Tensor:
    """Frobenius norm of tall [D, K] @ wide [K, D], by products of K x K."""
    return ((tall.mT @ tall) * (wide @ wide.mT)).sum().clamp_min(0).sqrt()
