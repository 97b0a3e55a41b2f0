"""Transformer and Residual Matrix Transformer in closed form: parameters, FLOPs and bytes against the stream's size.

Three forms (RMT paper, arXiv 2506.22696, section 3.1 and appendix A). *Printed*: the totals of Table 7. *Itemised*: the
sum of the items that A.1 and A.2 list, for RMT alone, since the transformer is not itemised there. *Actual*: what the
models as described have and do, equal to `model/costs.py` and so to torch's FLOP counter.

Symbols are the paper's: L layers, D width, D_k x D_v residual matrix, R rank (= heads), H heads of width D_h, F MLP
neurons, V vocabulary, N context. All FLOPs are of a forward pass and per token; the paper's are N times as many, for
one example. Bytes are per token where nothing else is said. Nothing here needs torch.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

FLOAT32, BF16 = 4, 2
"""Bytes of a number."""
ADAM_BYTES = 4 * FLOAT32
"""Bytes of a parameter in training: weight, gradient and two moments, all in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What both models share. Subclasses say what their parts are."""

    L: int
    """Layers; one is attention and MLP."""
    F: int
    """Neurons of an MLP."""
    V: int = 50257
    """Vocabulary."""
    N: int = 512
    """Context."""

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads and their width."""
        raise AssertionError("subclasses say it")

    @property
    def width(self) -> int:
        """Of what blocks and head receive."""
        raise AssertionError("subclasses say it")

    @property
    def stream_size(self) -> int:
        """Cells of one token's stream."""
        raise AssertionError("subclasses say it")

    def block_parameters(self) -> dict[str, int]:
        """Parameters by part, without embeddings and norms."""
        raise AssertionError("subclasses say it")

    @property
    def parameters(self) -> dict[str, int]:
        """Actual parameters by part, named as in `Summary.parts`; norms have gains and no biases."""
        return {
            "embedding": self.V * self.width,
            "positions": self.N * self.width,
            **self.block_parameters(),
            "norm": (2 * self.L + 1) * self.stream_size,
            "unembedding": self.V * self.width,
        }

    @property
    def total_parameters(self) -> int:
        """All actual parameters."""
        return sum(self.parameters.values())

    @property
    def counted_parameters(self) -> int:
        """Actual parameters without norm gains, which the paper leaves out."""
        return self.total_parameters - self.parameters["norm"]

    @property
    def non_embedding_parameters(self) -> int:
        """Those without word embedding, positions and unembedding."""
        return sum(self.block_parameters().values())

    @property
    def flops(self) -> dict[str, int]:
        """Actual FLOPs by part, named as in `Summary.flops`: products only, a look-up costs none.

        Two per parameter of a matrix, and per key entry and value column; a vector stream itself multiplies nothing.
        """
        (heads, head_width), parts = self.heads, self.block_parameters()
        return {
            "attention projections": 2 * parts.get("attention", 0),
            "mlp matrices": 2 * parts["mlp"],
            "stream": 2 * parts.get("keys", 0) * head_width,
            "attention over keys": 4 * self.L * self.N * heads * head_width,
            "logits": 2 * self.V * self.width,
        }

    @property
    def forward_flops(self) -> int:
        """All actual FLOPs, logits included."""
        return sum(self.flops.values())

    @property
    def training_bytes(self) -> int:
        """Bytes of weights, gradients and AdamW's two moments, float32: of the model, not per token."""
        return ADAM_BYTES * self.total_parameters

    def decoding_bytes(self, tokens: int, number: int = BF16) -> int:
        """Bytes to decode one sequence: weights, the KV cache of `tokens`, and one token's stream."""
        return number * (self.total_parameters + self.stream_size) + tokens * self.cache_bytes(number)

    def cache_bytes(self, number: int = BF16) -> int:
        """Bytes of a token's keys and values in all layers, `number` bytes each."""
        heads, head_width = self.heads
        return 2 * number * self.L * heads * head_width

    def checkpoint_bytes(self, number: int = BF16) -> int:
        """Bytes of a token's stream kept once a layer, as gradient checkpointing by layers does."""
        return number * self.L * self.stream_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer(Costs):
    """Section 2.1 of the paper; its width D is its stream."""

    D: int
    """Width."""
    H: int
    """Heads."""
    D_h: int
    """Width of a head; H D_h need not be D."""

    @property
    def heads(self) -> tuple[int, int]:
        """H heads of width D_h."""
        return self.H, self.D_h

    @property
    def width(self) -> int:
        """D."""
        return self.D

    @property
    def stream_size(self) -> int:
        """D."""
        return self.D

    def block_parameters(self) -> dict[str, int]:
        """W_Q, W_K, W_V, W_O, W_1, W_2."""
        return {"attention": 4 * self.L * self.D * self.H * self.D_h, "mlp": 2 * self.L * self.D * self.F}

    @property
    def saved_states(self) -> int:
        """Bytes that the 2 L + 1 exchanges keep for the backward pass as states, float32: the input of every norm."""
        return FLOAT32 * self.D * (2 * self.L + 1)

    @property
    def saved_writes(self) -> int | None:
        """None: a vector's write is as large as its state."""
        return None

    @property
    def printed_parameters(self) -> int:
        """Table 7: D (L (4 H D_h + 2 F) + V)."""
        return self.D * (self.L * (4 * self.H * self.D_h + 2 * self.F) + self.V)

    @property
    def printed_flops(self) -> int:
        """Table 7, to the letter: 4 (V + L D (2 D_h H + F) + L (N D_h H + 3/4 N H))."""
        return self.paper_flops(0) + 4 * self.V

    def paper_flops(self, vocabulary: int) -> int:
        """By the rules of Table 7 (softmax counts 3 N a head), with `vocabulary` products of V D each.

        Two are what Table 7 means with V D for its V; one is the logits; none is what Tables 3 and 4 report.
        """
        matrices = 4 * self.L * self.D * (2 * self.D_h * self.H + self.F)
        attention = self.L * self.N * self.H * (4 * self.D_h + 3)
        return matrices + attention + 2 * vocabulary * self.V * self.D


@dataclass(frozen=True, kw_only=True, slots=True)
class RMT(Costs):
    """Section 2.2 of the paper; its stream is a matrix."""

    D_k: int
    """Length of the keys."""
    D_v: int
    """Width of a head and of a data vector."""
    R: int
    """Rank: data vectors of an exchange, and heads."""

    @property
    def heads(self) -> tuple[int, int]:
        """R heads of width D_v."""
        return self.R, self.D_v

    @property
    def width(self) -> int:
        """R D_v."""
        return self.R * self.D_v

    @property
    def stream_size(self) -> int:
        """D_k D_v."""
        return self.D_k * self.D_v

    @property
    def key_sets(self) -> int:
        """Sets of R keys: q, k, v, o, into and out of the MLP in each layer; words, positions and readout."""
        return 6 * self.L + 3

    def block_parameters(self) -> dict[str, int]:
        """W_1, W_2, and the keys of all sites, those of embedding and readout too."""
        return {"mlp": 2 * self.L * self.width * self.F, "keys": self.key_sets * self.R * self.D_k}

    @property
    def saved_states(self) -> int:
        """State and normed state at every read, and the R data vectors of every write."""
        return FLOAT32 * (2 * self.stream_size + self.width) * (2 * self.L + 1)

    @property
    def saved_writes(self) -> int | None:
        """The same where states are rebuilt from what was written, R data vectors a write; D_k does not matter."""
        return FLOAT32 * self.width * (2 * self.L + 1)

    @property
    def printed_parameters(self) -> int:
        """Table 7 and the total of A.1: R (2 D_k (3 L + 1) + D_v (2 L F + V + N))."""
        return self.R * (2 * self.D_k * (3 * self.L + 1) + self.D_v * (2 * self.L * self.F + self.V + self.N))

    @property
    def parameter_items(self) -> dict[str, int]:
        """The items of A.1."""
        R, D_k = self.R, self.D_k
        words = R * self.V * self.D_v
        return {
            "embeddings": words + R * self.N * self.D_v + 2 * R * D_k,
            "attention": self.L * (3 * R * D_k + R * D_k),
            "feed-forward": self.L * (R * D_k + 2 * R * self.D_v * self.F + R * D_k),
            "unembedding": R * D_k + words,
        }

    @property
    def printed_flops(self) -> int:
        """Table 7 and the total of A.2: 6 R D_k D_v (1 + L) + R (4 V D_v + L (4 N D_v + 3 N + 4 D_v F))."""
        return self.paper_flops(2, 3 * (1 + self.L))

    @property
    def flop_items(self) -> dict[str, int]:
        """The items of A.2."""
        products = self.D_k * self.D_v * self.R
        words = 2 * self.V * self.R * self.D_v
        over_keys = 2 * self.N * self.D_v * self.R
        return {
            "word embeddings": words,
            "position embeddings": words,
            "embedding keys": 4 * products,
            "attention": self.L * (6 * products + over_keys + 3 * self.R * self.N + over_keys + 2 * products),
            "feed-forward": self.L * (2 * products + 4 * self.R * self.D_v * self.F + 2 * products),
            "unembedding": 2 * products + words,
        }

    def paper_flops(self, vocabulary: int, key_sets: int | None = None) -> int:
        """By the rules of A.2, with `vocabulary` products of V R D_v each and so many sets of keys (all of them).

        Three products of the vocabulary are the items; two are the printed total; one is the logits; none is what
        Tables 3 and 4 report.
        """
        sets = self.key_sets if key_sets is None else key_sets
        layer = self.R * (4 * self.N * self.D_v + 3 * self.N + 4 * self.D_v * self.F)
        return 2 * sets * self.R * self.stream_size + self.L * layer + 2 * vocabulary * self.V * self.width


Count = Callable[[RMT], int]
"""A cost of an RMT that grows linearly with D_k."""


def growth(count: Count, model: RMT, key_dim: int) -> float:
    """Part by which a cost grows when D_k goes from the model's to `key_dim`: 0.01 for one percent."""
    return count(dataclasses.replace(model, D_k=key_dim)) / count(model) - 1


def widest_doubling(count: Count, model: RMT, share: Fraction = Fraction(1, 100)) -> int:
    """Largest D_k, even, that can be reached by a doubling which adds less than `share` to a cost; 0 for none.

    The cost is a + b D_k, so doubling from D_k adds b D_k / (a + b D_k).
    """
    one, two = (count(dataclasses.replace(model, D_k=key_dim)) for key_dim in (1, 2))
    slope = two - one
    limit = share * (one - slope) / ((1 - share) * slope)
    start = limit.numerator // limit.denominator
    return 2 * (start - 1 if start == limit else start)


def checkpoint_balance(transformer: Transformer, rmt: RMT, number: int = BF16) -> float:
    """Tokens at which RMT's wider stream, kept once a layer, uses up what its fewer parameters save in training.

    With more tokens in memory at a time RMT needs more than the transformer.
    """
    saved = transformer.training_bytes - rmt.training_bytes
    return saved / (rmt.checkpoint_bytes(number) - transformer.checkpoint_bytes(number))
