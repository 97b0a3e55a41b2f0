"""Attention Residuals: attention over the depth with a learned query (Kimi Team, arXiv 2603.15031).

    h_l = n sum_i alpha_{i->l} f_i                          (1) n sources
    alpha_{i->l} = softmax_i( w_l . RMSNorm_l(f_i) )        (2)

f_0 is the embedding and f_i what block i puts out; block and head read norm(h_l). In the block form the blocks' outputs
are added up in N groups of S, b_n = sum_{j in group n} f_j, and the sources are f_0, b_1, ..., b_{n-1} and the running
sum of the reader's own group, once it has a member. S = 1 is the full form; S = 2 L (N = 1) is the plain stream with
the embedding apart. The paper calls the groups blocks.

Changes: how much of each earlier output a block receives depends on the token, through keys that are the normalised
outputs themselves; a query w_l in R^D does not depend on it.
Costs: a query and a gain of the key norm per reader, 2 D (2 L + 1) parameters (38,400 at GPT2-small), 2 D FLOPs per
source and read, and the traffic of the history: per layer 24 D numbers in the full form and 5.5 D in the block form at
the authors' sizes, where the plain stream moves 3 D. The first reader has one source only, so row 0 of queries and
gains changes nothing; the authors count it, and with it all sites have the same shapes.
Starts as the plain transformer: w = 0 gives equal weights, with which h_l is the residual sum. The paper has no n in
(1). A norm does not see the factor, but its eps does: at the published RMT code's initialisation (mean squares of 4e-4,
eps 1e-6) the mean over all sources leaves the head's vectors 40 % off the plain ones at 12 layers and 64 % at 24, and
block gradients by as much or more. With n both agree to rounding at any scale, and where eps is negligible the
function is the paper's for any weights.
Evidence: validation loss at 194M, ..., 528M activated parameters, plain 1.931 / 1.895 / 1.829 / 1.766 / 1.719, N blocks
1.909 / 1.875 / 1.809 / 1.746 / 1.693, full 1.899 / 1.874 / 1.804 / 1.737 / 1.692; about 1.25 times less compute. A 48B
mixture of experts after 1.4T tokens: MMLU 73.5 -> 74.6, GPQA-D 36.9 -> 44.4. Training takes at most 4 % longer by the
authors' count. Ablated at 1.737: no key norm 1.743, static weights 1.749, query from the token 1.731.
The paper recommends N = 8. It does not say whether the key norm's eps is that of the other norms; here it is, unless
`norm_eps` says another (`inkling2` has 1e-6 there, whatever its other norms have).

Released models: Inkling-2-Small (`inkling2`; groups of 6 layers, S = 12) with `values: normed, attention_reads: three`:

    h_l = sum_i alpha_{i->l} f_i / rms(f_i)                 (1')
    alpha_{i->l} = softmax_i( w_l . f_i / rms(f_i) D^-1/2 ) (2')

without gains; the first reader gets f_0 itself and has no query; attention that sees all tokens has three queries, and
norms, for its q, k and v. All sources count alike there, however much they have grown, so that the start, w = 0, is the
mean of normed sources and not the plain transformer. `inkling2_loop` goes several times through its middle layers, with
messages from one pass to the next; with one pass it is the same, and the loop is left out here: a stream's blocks are
gone through once. Others report no gain and memory that runs out (nanochat #646, at 14 and 18 layers).

Letters: B batch, T tokens, D width, S blocks per group, N groups, n sources of a reader.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import read_norms, read_norms_size
from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.depth_sums import token_sum
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class AttnResConfig(StreamConfig):
    """How finely the history is kept."""

    kind: Literal["attn_res"] = "attn_res"
    """This stream."""
    group_size: int = 1
    """[S] Attention and MLP blocks whose outputs are added up to one source; 1: every output is a source of its own."""
    values: Literal["outputs", "normed"] = "outputs"
    """What is summed: blocks' outputs (eqs. 1 and 2), or outputs divided by their rms (eqs. 1' and 2')."""
    attention_reads: Literal["one", "three"] = "one"
    """three: attention that sees all tokens reads q, k and v with a query, and a norm, each."""
    norm_eps: float | None = None
    """Added to the mean squares of sources in the key norms; default: the model's norm_eps."""

    def __post_init__(self):
        if self.norm_eps is not None and not self.norm_eps > 0:
            raise UserError(f"model.stream.norm_eps is {self.norm_eps}; it must be above 0.")
        if self.group_size < 1:
            raise UserError(f"model.stream.group_size is {self.group_size}; it must be at least 1.")


class State(NamedTuple):
    """Sources, oldest first."""

    sources: tuple[Tensor, ...]
    """f_0, b_1, ..., and the running sum [B, T, D]."""
    inverse_rms: tuple[Tensor, ...]
    """1 / sqrt(mean f^2 + eps) of each [B, T, 1]: all that the key norm needs beside its gain."""


class AttnResStream(VectorBase[AttnResConfig]):
    """Softmax over the depth with a learned query per reader; norms as in the plain stream.

    Where a reader has three queries, `norms` holds the norm of q.
    """

    Config = AttnResConfig
    depth_settings = ("group_size",)
    models: ClassVar = {
        "inkling2": {"group_size": 12, "values": "normed", "attention_reads": "three", "norm_eps": 1e-6}
    }
    examples = (
        {},
        {"group_size": 2},
        {"group_size": 4, "values": "normed", "attention_reads": "three"},
        {"group_size": 1000},
    )

    queries: Tensor
    """w_l, one per read [2 L + 1, D]: a reader's one or three, one reader after the other."""
    key_gains: Tensor
    """Gains of the key norms, as many; absent with `values: normed`."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.eps = config.norm_eps if self.settings.norm_eps is None else self.settings.norm_eps
        self.normed = self.settings.values == "normed"
        self.num_reads = num_reads(self.settings, self.blocks(config))
        self.key_scale = 1 / math.sqrt(self.width) if self.normed else 1.0
        shape = (sum(self.num_reads), self.width)
        # A product over the width: its learning rate falls as the width grows, as far as D^-1/2 does not see to it.
        lr_factor = (roles.width.base or self.width) / self.width
        lr_factor = math.sqrt(lr_factor) if self.normed else lr_factor
        self.declare("queries", shape, Role(0.0, "key", lr_factor=lr_factor, part="stream"))
        if not self.normed:
            self.declare("key_gains", shape, Role(None, "none", part="stream"))
        threes = three_readers(self.settings, self.blocks(config))
        self.key_norms, self.value_norms = (
            nn.ModuleDict({str(site): read_norms(config, roles, ["attention"], (self.width,))[0] for site in threes})
            for _ in range(2)
        )
        """By site."""

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D per source."""
        sublayers, size = config.num_blocks, cls.settings_of(config).group_size
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=cls.settings_of(config).values == "outputs",
            history="outputs of all blocks" if size == 1 else f"sums of the outputs of {min(size, sublayers)} blocks",
            history_size=math.ceil(sublayers / size) * config.embed_dim,
            undo="replay",
            papers=("2603.15031",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(2 L + 1) D each of queries, key gains and gains.

        Three reads: for each such reader 2 D more of each. Normed values: no key gains, and no queries of the first.
        """
        settings, D, blocks = cls.settings_of(config), config.embed_dim, cls.blocks(config)
        reads = sum(num_reads(settings, blocks)) * (1 if settings.values == "normed" else 2)
        return reads * D + read_norms_size(config, D, len(blocks) + 2 * len(three_readers(settings, blocks)))

    def cost(self) -> StreamCost:
        """A product over D per source and read. Saved: what is written and what the norm receives, per exchange."""
        sites, vector = len(self.readers), 4 * self.width
        sources = [1 + math.ceil(site / self.settings.group_size) for site in range(sites)]
        reads = sum(number * n for number, n in zip(self.num_reads, sources, strict=True))
        kept = (3 if self.normed else 2) * reads + sites
        return StreamCost(
            flops=2 * self.width * reads,
            bytes_moved=vector * (sum(sources) + sites),
            bytes_saved=vector * (sites + sum(self.num_reads)) + 4 * kept,
            bytes_saved_writes=vector * sites + self._bytes_anchored(),
        )

    def _bytes_anchored(self) -> int:
        """Of all anchors: the sources' scales, and sums of several outputs; one alone is kept as what was written."""
        size = self.settings.group_size
        groups = {
            (group, min(size, site - group * size)) for site in self.anchored for group in range(math.ceil(site / size))
        }
        scales = len(groups) + bool(self.anchored)  # f_0 is a source too
        return 4 * (scales + self.width * sum(members > 1 for _, members in groups))

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Append f to the sources, or add it to the last one, the running sum of its group."""
        if state is None:
            return State((written,), (self.inverse_rms(written),))
        sources, scales = state
        written = written.to(sources[0].dtype)
        if (site - 1) % self.settings.group_size:
            written, sources, scales = sources[-1] + written, sources[:-1], scales[:-1]
        return State((*sources, written), (*scales, self.inverse_rms(written)))

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """The sums, then the norms."""
        reads = self.sums(site, state)
        if str(site) not in self.key_norms:
            return super().read(site, reads[0])
        norms = self.norms[site], self.key_norms[str(site)], self.value_norms[str(site)]
        return {role: norm(x) for role, norm, x in zip("qkv", norms, reads, strict=True)}

    def sums(self, site: int, state: State) -> list[Tensor]:
        """Eqs. 1 and 2, one sum for each of the reader's queries.

        w . (g * f / rms(f)) = ((w * g) . f) / rms(f) saves a copy of the history, and so does alpha f / rms(f).
        """
        number, first = self.num_reads[site], sum(self.num_reads[:site])
        if not number:  # the first reader of normed values
            return [state.sources[0]] * (3 if str(site) in self.key_norms else 1)
        key = self.queries[first : first + number] * self.key_scale
        key = key if self.normed else key * self.key_gains[first : first + number]
        with no_autocast(key.device):
            scores = [F.linear(f, key) * scale for f, scale in zip(*state, strict=True)]
            alpha = torch.stack(scores, dim=-1).softmax(-1)  # [B, T, reads, n]
            factor = torch.cat(state.inverse_rms, dim=-1).unsqueeze(-2) if self.normed else len(scores)
            alpha = factor * alpha
        return [token_sum(weights, state.sources) for weights in alpha.unbind(-2)]

    def inverse_rms(self, f: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, 1]."""
        return torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps)


def three_readers(settings: AttnResConfig, blocks: list[Block]) -> list[int]:
    """Sites whose readers have three reads, for q, k and v."""
    if settings.attention_reads == "one":
        return []
    sites = [site for site, block in enumerate(blocks) if block.kind == "attention" and block.window is None]
    if not sites:
        raise UserError(
            "model.stream.attention_reads is three, and no attention sees all tokens (model.attention_window); leave "
            "it out."
        )
    return sites


def num_reads(settings: AttnResConfig, blocks: list[Block]) -> list[int]:
    """How many queries each reader has, the head last."""
    threes = three_readers(settings, blocks)
    numbers = [3 if site in threes else 1 for site in range(len(blocks) + 1)]
    return [0, *numbers[1:]] if settings.values == "normed" else numbers
