"""Manifold-constrained hyper-connections (Xie et al., arXiv 2512.24880): lanes whose mixing keeps their sum.

    x = vec(H), x' = x / rms(x)                                      H [n, D], x [n D]
    H_pre  = sigmoid(alpha_pre x' phi_pre + b_pre)                   in (0, 1)^n: what the block gets of the lanes
    H_post = 2 sigmoid(alpha_post x' phi_post + b_post)              in (0, 2)^n: what of its output goes to each lane
    H_res  = Sinkhorn(exp(alpha_res mat(x' phi_res) + b_res))        doubly stochastic [n, n]: how lanes are mixed
    H'     = H_res H + H_post^T block(norm(H_pre H))

The embedding is copied to every lane. The head gets the lanes' mean, the paper's sum but for a factor that its norm
takes out, or with `readout: learned` a weighted sum, in the form of H_pre and with parameters of its own. Rows and
columns of H_res sum to 1, so that mixing can neither blow lanes up in depth nor lose their mean; Sinkhorn's 20 rounds
divide by column sums, then by row sums. Rows are exact then. Columns converge slowly where logits lie far apart; of
120,000 matrices with normal logits, n = 4, the worst column is off by 5e-3 at a standard deviation of 1, 4 % at 2, 8 %
at 4 and 47 % at 8 (there the median matrix by 2.5 %, one in a hundred by more than 8 %); near the start by 3e-4.

Released models: DeepSeek-V4 (`deepseek_v4`: eps 1e-6, a learned read-out), GLM-5.3 (`glm5_next`: eps 1e-6, the mean)
and Hy4 (`hy_v4`: H_res = I, "independent" hyper-connections or iHC, arXiv 2607.28611; a learned read-out). Hy4's H_post
is `magnitude` sigmoid(...) + eps: `residual: identity` adds eps to H_post too, as DeepSeek's form does not. Tests hold
all three to transformers' models. DeepSeek-V4 and GLM start there with phi of 0.02, alpha = 1 and no biases, which is
not plain; Hy4 as `phi: random` does here, but for phi's 0.02 in place of 1/sqrt(n D).

Start. The paper gives alpha = 0.01 and no biases. Here b_post = 0 makes H_post = 1, and b_res is 8 on its diagonal.
As long as alpha x' phi is zero, lanes that start equal stay equal whatever H_res is; with H_pre summing to 1 each
holds the plain stream, and the model is the plain transformer. Equal lanes with equal weights would stay equal for
ever, though: something must tell them apart. `phi: zero` (default) does it by b_pre: the block of site k takes 3/4 of
what it reads from lane k mod n; with n > S lanes for S blocks, lane 0 and lanes S, S + 1, ... stay equal copies.
`phi: random` does it by phi, normal with 1/sqrt(n D), and b_pre = -ln(n - 1); that starts near the plain transformer,
and as the plain transformer with alpha = 0, which then takes the first step alone.

Cost per block: n D (n^2 + 2 n) + n^2 + 2 n + 3 parameters; at GPT-2 small with n = 4 that is 1 770 120, 2.1 % of the
model, far more than hyper-connections. Fused kernels and recomputation brought 6.7 % of step time at n = 4; this file
is the mathematics in plain tensor code, with Sinkhorn's rounds unrolled. The recomputation is there for every stream
(`train.stream_memory: writes`), with the paper's distance between the states that are kept.

Paper and code: the authors' kernels (deepseek-ai/TileKernels, tile_kernels/torch/mhc.py) add 1e-6 to H_pre and in
Sinkhorn's rounds, in front of which stands a softmax over the same axis as here, and read out as `readout: learned`
does; with `eps: 1.0e-6` this file is that code (tests/parity). It matters where logits lie far apart: for those above
the two forms of H_res differ by at most 2e-5 at a standard deviation of 1, 3e-3 at 2, and by up to 0.96 at 8 (the
median matrix by 2e-3, one in a hundred by more than 0.49). With eps every H_res takes away some 1e-6 of what is in the
lanes, so the model starts as the plain transformer only to 3e-5 at 12 layers and 5e-5 at 24. Released models have the
learned read-out or the mean.

Other ways to H_res (`projection`, birkhoff.py) are exact in rows and columns to rounding, or nearly: `newton` the limit
of Sinkhorn's rounds (arXiv 2606.07574), `transport` with (n - 1)^2 numbers (2605.21724), `circulant` with n
(contactsebi/circulant-hyper-connections). Their authors claim cost and stability, not loss: at 1.3M parameters and 400
steps losses of plain, hyper-connections, mHC and circulant are 2.198, 2.192, 2.214 and 2.211. In this tensor code on a
CPU, for 1,024 tokens and n = 4, forward and back: Sinkhorn 30 ms, newton 55, transport and circulant about 1.

Evidence: 27B mixture of experts, loss 0.021 below plain; BBH 43.8 plain, 48.9 hyper-connections, 51.0; DROP 47.0, 51.6,
53.9; MMLU 59.0, 63.0, 63.4; the largest composite gain is 1.6 instead of 3000. Later work finds that H_res = I does
nearly as well (`residual: identity`), lanes that collapse (2606.03483), and near-identity mixing in a deployed model
(2609.05309); a small replication saw no gain.

In front of the first block all lanes are equal, so that its H_res changes nothing and its H_pre only a scale that the
norm removes (up to its eps); behind the last block H_res keeps the mean.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import read_norms_size
from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.kernels.norm_cpu import rms_norm
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.lanes.base import EQUAL_LANES, LaneBase, warn_of_equal_lanes
from widestream.streams.lanes.birkhoff import BUDGET, circulant, newton, newton_flops, transport

ROUNDS = 20
"""Of Sinkhorn's normalisation."""

PROJECTIONS = {
    "sinkhorn": (),
    "newton": ("2606.07574",),
    "transport": ("2605.21724", "https://github.com/alyubinin/tbp-mHC"),
    "circulant": ("https://github.com/contactsebi/circulant-hyper-connections",),
}
"""Where each projection comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MHCConfig(StreamConfig):
    """Settings of manifold-constrained hyper-connections."""

    kind: Literal["mhc"] = "mhc"
    """This stream."""
    lanes: int = 4
    """[n] Lanes, each as wide as the plain stream."""
    residual: Literal["sinkhorn", "identity"] = "sinkhorn"
    """H_res: doubly stochastic and dependent on the lanes, or lanes that pass unmixed."""
    projection: Literal["sinkhorn", "newton", "transport", "circulant"] = "sinkhorn"
    """What makes H_res doubly stochastic, for all but `residual: identity`: 20 of Sinkhorn's rounds (the paper), their
    limit, a chart of all such matrices, or sums of cyclic shifts (birkhoff.py says more)."""
    phi: Literal["zero", "random"] = "zero"
    """What phi starts as, and with it what first tells the lanes apart: unequal b_pre, or phi."""
    alpha: float = 0.01
    """What all alpha start as."""
    readout: Literal["mean", "learned"] = "mean"
    """What the head gets: the lanes' mean, or a sum with sigmoid weights that depend on the lanes (released models)."""
    eps: float = 0.0
    """Added to H_pre, to Sinkhorn's sums and, with `residual: identity`, to H_post: 0 (the paper's equations), or 1e-6
    (the authors' code, and Hy4's)."""
    magnitude: float = 2.0
    """H_post is at most this; another than 2 does not start plain (Hy4's `hc_magnitude`)."""

    def __post_init__(self):
        if not 0 < self.magnitude < math.inf:
            raise UserError(f"model.stream.magnitude is {self.magnitude}; it must be above 0.")
        if self.lanes < 2:
            raise UserError(f"model.stream.lanes is {self.lanes}; it must be at least 2.")
        if self.phi == "zero" and self.alpha == 0:
            raise UserError("With phi: zero and alpha: 0 neither would ever learn; take phi: random or another alpha.")
        if self.projection != "sinkhorn" and self.residual == "identity":
            raise UserError(
                f"model.stream.projection: {self.projection} has no H_res to make with residual: identity; leave one "
                "of them out."
            )
        if not 0 <= self.eps < 1:
            raise UserError(f"model.stream.eps is {self.eps}; it must be at least 0 and below 1, such as 1.0e-6.")


def mixing_shape(settings: MHCConfig) -> tuple[int, ...]:
    """Of the numbers that H_res is made from."""
    n = settings.lanes
    return {"transport": (n - 1, n - 1), "circulant": (n,)}.get(settings.projection, (n, n))


def sinkhorn(logits: Tensor, eps: float = 0.0) -> Tensor:
    """exp(logits) [..., n, n], its columns and then its rows divided by their sums, `ROUNDS` times.

    All rounds but the first keep two vectors of factors, not the matrix.

    Args:
        logits: [..., n, n].
        eps: added to every sum, and to the first columns once they are divided (the authors' code); 0: to nothing.
    """
    if eps:
        matrix = logits.softmax(-2) + eps
        matrix = matrix / (matrix.sum(-1, keepdim=True) + eps)
    else:  # in logarithms, where nothing overflows
        logits = logits - logits.logsumexp(-2, keepdim=True)
        matrix = (logits - logits.logsumexp(-1, keepdim=True)).exp()
    rows = columns = matrix.new_ones(())
    for _ in range(ROUNDS - 1):
        columns = _factors((matrix * rows).sum(-2, keepdim=True), columns, eps)
        rows = _factors((matrix * columns).sum(-1, keepdim=True), rows, eps)
    return rows * matrix * columns


def _factors(sums: Tensor, factors: Tensor, eps: float) -> Tensor:
    """Factors times what divides their lines' sums, plus eps; `sums`: of the lines without these factors."""
    return (sums + eps / factors if eps else sums).reciprocal()


class MHCStream(LaneBase[MHCConfig]):
    """H [B, T, n, D]; weights per site, those of all blocks in one table."""

    Config = MHCConfig
    limits = (EQUAL_LANES.replace("some lanes", "(and phi: zero) some lanes", 1),)
    models: ClassVar = {
        "deepseek_v4": {"eps": 1e-6, "phi": "random", "readout": "learned"},
        "glm5_next": {"eps": 1e-6, "phi": "random"},
        "hy_v4": {"eps": 1e-6, "phi": "random", "residual": "identity", "readout": "learned"},
    }
    examples = (
        {},
        {"phi": "random", "lanes": 3},
        {"phi": "random", "alpha": 0.0},
        {"residual": "identity", "lanes": 2},
        {"residual": "identity", "lanes": 2, "eps": 1e-6, "magnitude": 3.0},
        {"readout": "learned"},
        {"readout": "learned", "phi": "random", "eps": 1e-6},
    )

    phi: Tensor
    """phi_pre, phi_post and phi_res of every block, one above the other [S, 2 n + n^2, n D]."""
    alpha: Tensor
    """alpha_pre, alpha_post and alpha_res of every block [S, 3]."""
    b_pre: Tensor
    """[S, n]."""
    b_post: Tensor
    """[S, n]."""
    b_res: Tensor
    """[S, n, n], or as `mixing_shape` says; absent, as phi_res and alpha_res are, where the lanes pass unmixed."""
    head_phi: Tensor
    """The read-out's phi [n, n D]; it, alpha and b only with `readout: learned`."""
    head_alpha: Tensor
    """[1]."""
    head_b: Tensor
    """[n]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        settings = self.settings_of(config)
        super().__init__(config, roles, settings.lanes)
        self.eps, self.mixes = config.norm_eps, settings.residual == "sinkhorn"
        self.learned = settings.readout == "learned"
        n, S, state = settings.lanes, self.num_blocks, settings.lanes * config.embed_dim
        mixing = mixing_shape(settings)
        self.parts = [n, n, math.prod(mixing)] if self.mixes else [n, n]
        table = Role(std=0.0, decay="none", part="stream")
        weights = roles.hidden((roles.width,), (), "stream", decay="key")
        weights = replace(weights, std=1 / math.sqrt(state) if settings.phi == "random" else 0.0, muon=False)
        self.declare("phi", (S, sum(self.parts), state), weights)
        self.declare("alpha", (S, len(self.parts)), table)
        self.declare("b_pre", (S, n), table)
        self.declare("b_post", (S, n), table)
        if self.mixes:
            self.declare("b_res", (S, *mixing), table)
        if self.learned:
            self.declare("head_phi", (n, state), weights)
            self.declare("head_alpha", (1,), table)
            self.declare("head_b", (n,), table)

    def initial_values(self) -> dict[str, Tensor]:
        """H_pre sums to 1, H_post = 1 (b_post = 0 from its role), H_res close to I, and the head gets the mean."""
        n, S = self.lanes, self.num_blocks
        share = torch.full((S, n), 1 / n)
        if self.settings.phi == "zero":
            share.fill_(0.25 / (n - 1))
            share[torch.arange(S), torch.arange(S) % n] = 0.75
        values = {"b_pre": share.logit(), "alpha": torch.full((S, len(self.parts)), self.settings.alpha)}
        if self.mixes:
            shape = self.b_res.shape[1:]
            values["b_res"] = (8 * torch.eye(*shape) if len(shape) == 2 else torch.zeros(shape)).expand(S, *shape)
        if self.learned:
            values |= {"head_alpha": torch.tensor([self.settings.alpha]), "head_b": torch.full((n,), 1 / n).logit()}
        return values

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Too many lanes, unless a random phi tells them apart."""
        settings = cls.settings_of(config)
        return warn_of_equal_lanes(settings.lanes, config) if settings.phi == "zero" else []

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Lanes of width D, n of them."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(settings.lanes, config.embed_dim),
            starts_plain=(settings.phi == "zero" or settings.alpha == 0)
            and not settings.eps
            and settings.magnitude == 2,
            undo="replay",
            papers=("2512.24880", "2607.28611", *PROJECTIONS[settings.projection]),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 L (n D (n^2 + 2 n) + n^2 + 2 n + 3), and (2 L + 1) D gains; H_res = I: without n^2, and 2 for 3.

        Of n^2 (n - 1)^2 are left with projection: transport, and n with circulant.

        A learned read-out has n (n D + 1) + 1.
        """
        settings = cls.settings_of(config)
        n, D, blocks = settings.lanes, config.embed_dim, config.num_blocks
        mixes = settings.residual == "sinkhorn"
        outputs, alphas = (math.prod(mixing_shape(settings)) + 2 * n, 3) if mixes else (2 * n, 2)
        head = n * (n * D + 1) + 1 if settings.readout == "learned" else 0
        return blocks * (n * D * outputs + outputs + alphas) + head + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Mixing, writing and the product with phi, which keeps x', as does what makes H_res.

        A learned read-out keeps the lanes, x' and what becomes of its product.
        """
        state, n = self.lanes * self.lane_width, self.lanes
        own = newton_flops(n) if self.settings.projection == "newton" else 0
        kept = state + (self._kept_by_mixing() if self.mixes else 0)
        cost = self.lane_cost(2 * state * sum(self.parts) + own, mixes=self.mixes, dynamic=True, kept=kept)
        if not self.learned:
            return cost
        flops, saved = cost.flops + 2 * state * (n + 1), cost.bytes_saved + 4 * (2 * state + 2 * n)
        return replace(cost, flops=flops, bytes_saved=saved)

    def _kept_by_mixing(self) -> int:
        """Sinkhorn: factors, 4 n numbers a round, with eps 2 n more; transport: 6 numbers an entry, and its logit."""
        n = self.lanes
        match self.settings.projection:
            case "newton":
                return 2 * n * n
            case "transport":
                return 7 * (n - 1) ** 2
            case "circulant":
                return 2 * n
            case _:
                return (6 * n if self.settings.eps else 4 * n) * (ROUNDS - 1) + 6 * n * n

    def coefficients(self, site: int, H: Tensor) -> tuple[Tensor, Tensor]:
        """H_pre above H_res, and H_post."""
        logits = self._logits(H, self.phi[site]).split(self.parts, dim=-1)
        alpha, eps = self.alpha[site], self.settings.eps
        mixing = ((alpha[0] * logits[0] + self.b_pre[site]).sigmoid() + eps).unsqueeze(-2)
        weights = self.settings.magnitude * (alpha[1] * logits[1] + self.b_post[site]).sigmoid().unsqueeze(-2)
        weights = weights if self.mixes else weights + eps
        if self.mixes:
            mixing = torch.cat([mixing, self._mixing(site, alpha[2], logits[2])], dim=-2)
        return mixing, weights

    def _mixing(self, site: int, alpha: Tensor, logits: Tensor) -> Tensor:
        """H_res [..., n, n]."""
        b = self.b_res[site]
        A = alpha * logits.unflatten(-1, b.shape) + b
        match self.settings.projection:
            case "newton":
                return newton(A)
            case "transport":
                return transport(A)
            case "circulant":
                return circulant(A, min(1.0, BUDGET / (2 * self.num_blocks)))
            case _:
                return sinkhorn(A, self.settings.eps)

    def read_out(self, H: Tensor) -> Tensor:
        """The mean, or sigmoid(alpha x' phi + b) H."""
        if not self.learned:
            return super().read_out(H)
        weights = (self.head_alpha * self._logits(H, self.head_phi) + self.head_b).sigmoid() + self.settings.eps
        return (weights.unsqueeze(-2) @ H).squeeze(-2)

    def _logits(self, H: Tensor, phi: Tensor) -> Tensor:
        """Products x' phi [B, T, ...] of the lanes [B, T, n, D]."""
        x = H.flatten(-2)
        return F.linear(rms_norm(x, 1, None, self.eps), phi)
