"""The decoder: blocks that talk to each other only through the stream. No line here knows which stream it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from widestream.blocks.attention import BareAttention, DenseAttention
from widestream.blocks.attention_kind import Attention
from widestream.blocks.cache import KVCache
from widestream.blocks.context import Shared, make_context
from widestream.blocks.embedding import Embedding
from widestream.blocks.experts import BALANCE, LOAD, Experts
from widestream.blocks.mlp import MLP
from widestream.blocks.norm import Norm, NormBehind, without_norm
from widestream.blocks.roles import Declared, Role, Roles, named_roles, size
from widestream.blocks.split import BlockSplit, TokenSplit
from widestream.errors import UserError
from widestream.kernels.autocasting import autocast_dtype
from widestream.kernels.cross_entropy import linear_cross_entropy
from widestream.model.depth import Depth, Eager
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.streams.base import Block


@dataclass(frozen=True)
class LossTerms:
    """A batch's loss. Only `total` carries gradients."""

    total: Tensor
    """Mean cross-entropy + z_loss * mean squared log-partition + balance_weight * balance."""
    cross_entropy: Tensor
    """Mean cross-entropy in nats, float32; what is reported."""
    z_loss: Tensor
    """Mean squared log-partition, unweighted, float32."""
    tokens: Tensor
    """Target tokens, or the sum of their weights."""
    balance: Tensor
    """How unequally experts were picked (`Routes.balance`), averaged over layers and windows, which count by their
    targets; float32; zero without experts, and in a pass without gradients."""
    load: Tensor
    """Tokens that picked each expert [layers with experts, E]; of no layer in a pass without gradients."""


@dataclass
class Told:
    """What a forward pass tells beside its result. No dictionary, which a wrapper around a module may copy."""

    shared: Shared = field(default_factory=Shared)
    """What blocks have left for each other and for the loss, by name (`Context.shared`)."""


class Decoder(Declared):
    """A decoder-only language model with an exchangeable residual stream. Make one with `build_model`.

    Args:
        config: sizes and the stream.
        depth: the way through the depth: what is kept for the backward pass, and what computes (model/depth).
        attention: what computes attention; see `blocks.attention_kind`.
        split: the processes that share windows, if several do (train/context.py). Each is given whole windows and
            computes with its own t of their T tokens.
        block_split: the processes that share blocks, if several do (train/tensor.py). Blocks then have the heads and
            neurons of this one alone.
    """

    unembedding: Tensor
    """[V, D], unless the head is tied."""
    head_bias: Tensor | None
    """[D], with `head_bias`."""

    def __init__(
        self,
        config: ModelConfig,
        depth: Depth | None = None,
        attention: Attention = "sdpa",
        split: TokenSplit | None = None,
        block_split: BlockSplit | None = None,
    ):
        super().__init__()
        self.config = config
        self.depth = Eager() if depth is None else depth
        self.attention: Attention = attention
        self.split, self.block_split = split, block_split
        roles = Roles(config)
        kind = stream_class(config.stream.kind)
        self.stream = kind(config, roles)
        self.layout = kind.blocks(config)
        check_mlps(config, self.layout)
        self.windows = {block.window for block in self.layout if block.kind == "attention"}
        """How far the attention blocks see."""
        self.embedding = Embedding(config, roles, self.stream.embedding_axes(roles), self.stream.position_axes(roles))
        self.blocks = nn.ModuleList(self._make_block(index, roles) for index in range(len(self.layout)))
        if block_split is not None:
            block_split.divide(self.blocks)
        axes = self.stream.head_axes(roles)
        head = roles.unembedding(axes)
        self.output_multiplier = head.multiplier
        if config.tied_head:
            self.output_multiplier *= self._tied_scale(head, size(axes))
        else:
            self.declare("unembedding", (config.vocab_size, size(axes)), head)
        if config.head_bias:
            self.declare("head_bias", (size(axes),), roles.bias("norm"))
        else:
            self.register_parameter("head_bias", None)

    def _make_block(self, index: int, roles: Roles) -> nn.Module:
        block, config = self._make_bare_block(index, roles), self.config
        if config.norm_place == "before":
            return block
        bare = isinstance(block, BareAttention)
        axes = (roles.heads, roles.head_dim) if bare else self.stream.written_axes(roles, self.layout[index])
        return NormBehind(block, Norm(config, roles, (size(axes),)))

    def _make_bare_block(self, index: int, roles: Roles) -> nn.Module:
        config, block = self.config, self.layout[index]
        spec, axes = type(self.stream).spec(config), self.stream.width_axes(roles)
        if block.kind == "mlp":
            scale_output, own = not spec.scales_mlp_write, block.num_neurons
            if config.has_experts(block.layer):
                return Experts(config, block.layer, roles, axes, scale_output, own)
            return MLP(config, roles, axes, scale_output, own)
        slot = sum(earlier.kind == "attention" for earlier in self.layout[:index])
        if spec.attention == "bare":
            return BareAttention(config, block.layer, slot, block.window)
        return DenseAttention(config, block.layer, roles, axes, slot, block.window)

    def _tied_scale(self, head: Role, width: int) -> float:
        """A shared table keeps the embedding's scale; as a head it acts at the scale a head of its own would have."""
        if width != self.embedding.token.shape[1]:
            raise UserError(
                f"A {self.config.stream.kind} stream embeds and reads out at different widths; use tied_head: false."
            )
        embedding = self.embedding.own_roles["token"]
        assert head.std
        assert embedding.std
        return head.std / embedding.std

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        told: Told | None = None,
    ) -> Tensor:
        """Hidden vectors that the head reads.

        Args:
            tokens: [B, T] int64; or vectors in the place of rows of the embedding's table [B, T, D].
            segments: document of every token [B, T]; attention stays inside (if `config.document_mask`).
            cache: keys and values of earlier tokens, and their documents; those of `tokens` are appended. Tokens
                without `segments` go on with the document of the last one.
            mask: allowed (query, key) pairs [B, T, S] bool, instead of causal and same document; S with those cached.
            positions: numbers of the tokens [B, T] where rows do not all begin at 0 (padded on the left), for learned
                and rotary positions; windows and ALiBi go by distance. With `mask`, which leaves the padding out.
            told: gets what the blocks have left.

        Returns:
            [B, T, D]; of own tokens [B, t, D] where processes share windows.

        Raises:
            UserError: more tokens than the cache holds or, with learned positions, than the context; shapes that do
                not fit; segments behind cached tokens that had none; weights in half precision (see below).
        """
        start = cache.length if cache else 0
        rows, num_tokens = shape = tokens.shape[:2]
        if segments is not None:
            if segments.shape not in (shape, (1, num_tokens)):
                raise UserError(f"segments are {[*segments.shape]}, and the tokens {[*shape]}; both are [B, T].")
            segments = segments.expand(shape)
        self._check_precision()
        if self.config.positions == "learned" and (positions is None) and start + num_tokens > self.config.context:
            raise UserError(
                f"{start + num_tokens} tokens exceed the model's context of {self.config.context}; shorten the text."
            )
        if positions is not None and positions.shape != shape:
            raise UserError(f"positions are {[*positions.shape]}, and the tokens {[*shape]}; both are [B, T].")
        if cache is not None:
            cache.check_rows(rows)
            cache.check_room(num_tokens)
        order = torch.arange(start, start + num_tokens, device=tokens.device)
        context = make_context(
            self.config,
            order,
            segments,
            mask,
            cache,
            self.windows,
            attention=self.attention,
            numbers=positions,
            split=self.split,
            heads=self._own_heads(),
        )
        numbers = order if positions is None else positions
        if self.split is not None:
            assert cache is None, "a cache holds whole windows"
            tokens, numbers = self.split.own(tokens, 1), self.split.own(numbers, -1)
        # With gradients a cache is written once: nothing may be computed again, or gone back through.
        once = cache is not None and torch.is_grad_enabled()
        depth = Eager() if once and not self.depth.edits else self.depth
        hidden = depth(self.stream, self.blocks, self.embedding(tokens, numbers, context), context)
        if cache is not None:
            cache.advance(num_tokens)
        if told is not None:
            told.shared = context.shared
        return hidden

    def _own_heads(self) -> slice:
        """The heads whose attention this process computes: of those of its blocks, where these are shared, its part."""
        heads = range(self.config.num_heads)
        for split in filter(None, (self.block_split, self.split)):
            heads = heads[split.own_heads(len(heads))]
        return slice(heads.start, heads.stop)

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Logits after one more token, with no shape and no number of the host that changes from token to token.

        It can so be compiled, or captured in a CUDA graph, once for all tokens; `generate.decoding` does both.

        Args:
            tokens: [B, 1] int64.
            positions: its position [1] int64.
            cache: of the tokens before; the caller checks that there is room and calls `advance`.

        Returns:
            [B, V].
        """
        context = make_context(self.config, positions, cache=cache, windows=self.windows, fixed=True)
        depth = self.depth if self.depth.edits else Eager()
        hidden = depth(self.stream, self.blocks, self.embedding(tokens, positions, context), context)
        return self.logits(hidden[:, -1])

    def _check_precision(self) -> None:
        """Refuse weights that are narrower than what they are multiplied with.

        Keys, gates and norms compute in float32, whatever the precision of matrices.

        Raises:
            UserError: the stream's parameters are in half precision, or blocks' are and there is no autocast.
        """
        stream, blocks = (_narrow(module) for module in (self.stream, self.blocks))
        if stream is not None:
            raise UserError(
                f"The stream's parameters are {stream.dtype}, but its keys, gates and norms compute in float32. Keep "
                "the weights in float32 and compute under torch.autocast; generate.cast_weights casts what may be."
            )
        if blocks is not None and autocast_dtype(blocks.device) is None:
            raise UserError(f"The blocks' weights are {blocks.dtype}; compute under torch.autocast with that dtype.")

    @contextmanager
    def using(self, depth: Depth) -> Iterator[None]:
        """Go through the depth another way, for as long as this lasts."""
        before, self.depth = self.depth, depth
        try:
            yield
        finally:
            self.depth = before

    def head_weight(self) -> Tensor:
        """The unembedding [V, D]."""
        return self.embedding.token if self.config.tied_head else self.unembedding

    def _for_head(self, hidden: Tensor) -> Tensor:
        return (hidden if self.head_bias is None else hidden + self.head_bias) * self.output_multiplier

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        logits = nn.functional.linear(self._for_head(hidden), self.head_weight())
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        weights: Tensor | None = None,
        z_loss: float = 0.0,
        mask: Tensor | None = None,
    ) -> LossTerms:
        """Loss of predicting `targets` [B, T] from `tokens` [B, T]; tokens of weight 0 are left out. See `forward`.

        Where processes share windows it is that of own tokens.
        """
        if self.split is not None:
            targets = self.split.own(targets, 1)
            weights = None if weights is None else self.split.own(weights, 1)
        told = Told()
        hidden = self._for_head(self(tokens, segments, mask=mask, told=told).flatten(0, 1))
        flat = None if weights is None else weights.flatten()
        total, cross_entropy, z = linear_cross_entropy(
            hidden, self.head_weight(), targets.flatten(), flat, z_loss, self.config.logit_soft_cap
        )
        # Filled and not copied there: a copy would make the host wait for the device.
        full = torch.full((), targets.numel(), dtype=torch.float32, device=targets.device)
        count = full if flat is None else flat.float().sum()
        balance, load = balance_of(told.shared, weights, targets.device)
        if self.config.moe.balance == "loss" and len(load):
            total = total + self.config.moe.balance_weight * balance
        return LossTerms(total, cross_entropy, z, count, balance.detach(), load)

    @property
    def experts(self) -> list[Experts]:
        """The mixtures of experts, layer by layer."""
        return [block for block in map(without_norm, self.blocks) if isinstance(block, Experts)]

    def new_cache(self, batch_size: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty KV cache for sequences up to `length` tokens."""
        config, weight = self.config, self.head_weight()
        dtype = torch.float32 if config.upcast_attention else dtype or weight.dtype
        shape = (batch_size, config.kv_heads, length, config.head_dim)
        num_slots = sum(block.kind == "attention" for block in self.layout)
        return KVCache(num_slots, shape, dtype, weight.device, one_value=config.value_residual == "shared")

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name."""
        return named_roles(self)


def _narrow(module: nn.Module) -> Tensor | None:
    """A parameter in half precision, if there is one."""
    return next((parameter for parameter in module.parameters() if parameter.itemsize < 4), None)


def check_mlps(config: ModelConfig, layout: list[Block]) -> None:
    """Refuse settings of MLPs that a stream does not leave to the blocks.

    Raises:
        UserError: names the setting.
    """
    if all(block.num_neurons != 0 for block in layout) and any(block.kind == "mlp" for block in layout):
        return
    for name, is_set in (("mlp_bias", config.mlp_bias), ("moe.num_experts", config.moe.num_experts > 0)):
        if is_set:
            raise UserError(
                f"A {config.stream.kind} stream takes the place of the MLP's matrices, so model.{name} has nothing to "
                "act on; leave it out."
            )


def balance_of(shared: Shared, weights: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Balance [], averaged over layers and windows, which count by their targets; load [layers, E].

    Args:
        shared: what blocks have left behind.
        weights: of the targets [B, T], or None where all are 1.
        device: where both are put.
    """
    balances, loads = ([x for name, x in shared.items() if name.startswith(f"{kind}/")] for kind in (BALANCE, LOAD))
    if not loads:
        return torch.zeros((), device=device), torch.zeros(0, 0, dtype=torch.int64, device=device)
    by_window = torch.stack(balances).mean(0)
    windows = torch.ones_like(by_window) if weights is None else weights.sum(-1)
    return (by_window * windows).sum() / windows.sum(), torch.stack(loads)
