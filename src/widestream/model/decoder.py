"""The decoder: blocks that talk to each other only through the stream. No line here knows which stream it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from widestream.blocks.attention import BareAttention, DenseAttention
from widestream.blocks.attention_kind import Attention
from widestream.blocks.cache import KVCache
from widestream.blocks.context import Context, Window, make_context
from widestream.blocks.embedding import Embedding
from widestream.blocks.mlp import MLP
from widestream.blocks.roles import Declared, Role, Roles, named_roles, size
from widestream.errors import UserError
from widestream.kernels.cross_entropy import linear_cross_entropy
from widestream.model.depth.operator import Saved
from widestream.model.depth.reversible import ExchangePlan, Reversible, Tape
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

VERSIONS = 8
"""In how many forms a block may be compiled: batch sizes, masks, with gradients or without."""


@dataclass(frozen=True)
class LossTerms:
    """A batch's loss. Only `total` carries gradients."""

    total: Tensor
    """Mean cross-entropy + z_loss * mean squared log-partition."""
    cross_entropy: Tensor
    """Mean cross-entropy in nats, float32; what is reported."""
    z_loss: Tensor
    """Mean squared log-partition, unweighted, float32."""
    tokens: Tensor
    """Target tokens, or the sum of their weights."""


class Decoder(Declared):
    """A decoder-only language model with an exchangeable residual stream. Make one with `build_model`.

    Args:
        config: sizes and the stream.
    """

    unembedding: Tensor
    """[V, D], unless the head is tied."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        roles = Roles(config)
        kind = stream_class(config.stream.kind)
        self.stream = kind(config, roles)
        self.layout = kind.blocks(config)
        self.embedding = Embedding(config, roles, self.stream.embedding_axes(roles), self.stream.position_axes(roles))
        self.blocks = nn.ModuleList(self._make_block(index, roles) for index in range(len(self.layout)))
        axes = self.stream.head_axes(roles)
        head = roles.unembedding(axes)
        self.output_multiplier = head.multiplier
        if config.tied_head:
            if size(axes) != self.embedding.token.shape[1]:
                raise UserError(
                    f"A {config.stream.kind} stream embeds and reads out at different widths; use tied_head: false."
                )
            # The shared table keeps the embedding's scale; as a head it acts at the scale a head of its own would have.
            embedding = self.embedding.own_roles["token"]
            assert head.std
            assert embedding.std
            self.output_multiplier *= head.std / embedding.std
        else:
            self.declare("unembedding", (config.vocab_size, size(axes)), head)
        self.checkpoint_layers = False
        """Keep only what crosses layer (`Reversible`: block) boundaries for the backward pass; recompute the rest."""
        self.exchanges: ExchangePlan | None = None
        """How exchanges are computed and what is kept of them; None: as the stream has them, and its states."""
        self.attention: Attention = "sdpa"
        """What computes attention; see `blocks.attention_kind`."""
        self._compiled_depth: Callable[..., Tensor] | None = None
        self._compiled_blocks: list[Callable[..., Tensor]] | None = None

    def _make_block(self, index: int, roles: Roles) -> nn.Module:
        config, block = self.config, self.layout[index]
        spec, axes = type(self.stream).spec(config), self.stream.width_axes(roles)
        if block.kind == "mlp":
            return MLP(config, roles, axes, scale_output=not spec.scales_mlp_write, num_neurons=block.num_neurons)
        slot = sum(earlier.kind == "attention" for earlier in self.layout[:index])
        if spec.attention == "bare":
            return BareAttention(config, block.layer, slot, block.window)
        return DenseAttention(config, block.layer, roles, axes, slot, block.window)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden vectors that the head reads.

        Args:
            tokens: [B, T] int64.
            segments: document of every token [B, T]; attention stays inside (if `config.document_mask`).
            cache: keys and values of earlier tokens; those of `tokens` are appended.
            mask: allowed (query, key) pairs [B, T, T] bool, instead of causal and same document.

        Returns:
            [B, T, D].

        Raises:
            UserError: more tokens than the cache holds or, with learned positions, than the context.
        """
        start = cache.length if cache else 0
        num_tokens = tokens.shape[1]
        if self.config.positions == "learned" and start + num_tokens > self.config.context:
            raise UserError(
                f"{start + num_tokens} tokens exceed the model's context of {self.config.context}; shorten the text."
            )
        if cache is not None:
            cache.check_room(num_tokens)
        positions = torch.arange(start, start + num_tokens, device=tokens.device)
        context = make_context(self.config, positions, segments, mask, cache, self._windows, attention=self.attention)
        if isinstance(self.exchanges, Reversible) and (cache is None or not torch.is_grad_enabled()):
            through_depth = self._exchange_and_undo
        else:
            through_depth = self._compiled_depth or self._exchange_through_depth
        hidden = through_depth(self.embedding(tokens, positions), context)
        if cache is not None:
            cache.advance(num_tokens)
        return hidden

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
        context = make_context(self.config, positions, cache=cache, windows=self._windows, fixed=True)
        hidden = self._exchange_through_depth(self.embedding(tokens, positions), context)
        return self.logits(hidden[:, -1])

    @property
    def _windows(self) -> set[Window]:
        """How far the attention blocks see."""
        return {block.window for block in self.layout if block.kind == "attention"}

    def _exchange_through_depth(self, embedding: tuple[Tensor, Tensor | None], context: Context) -> Tensor:
        """The whole decoder: write, read, compute; and again.

            state, inputs = stream.exchange(0, stream.empty(context), embedding)
            for site, block in enumerate(blocks, start=1):
                state, inputs = stream.exchange(site, state, block(inputs, context))

        Here it goes layer by layer, so that a layer can be forgotten and computed again in the backward pass.
        """
        state, inputs = self._exchange(0, self.stream.empty(context), embedding)
        passed = state, inputs, context.shared
        for sites in self._layers():
            if self.checkpoint_layers and torch.is_grad_enabled():
                passed = checkpoint(self._layer, sites, *passed, context, use_reentrant=False)
            else:
                passed = self._layer(sites, *passed, context)
        return passed[1]["x"]

    def _layer(
        self, sites: list[int], state: Any, inputs: dict[str, Tensor], shared: dict[str, Tensor], context: Context
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """The blocks of one layer, and the exchange behind each.

        What they share is passed on, so that a layer that is computed again, or compiled, changes nothing outside.
        """
        context = replace(context, shared=dict(shared))
        for site in sites:
            written = self.blocks[site - 1](inputs, context)
            state, inputs = self._exchange(site, state, written)
        return state, inputs, context.shared

    def _exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        """The stream's exchange, as it is written or as one operator."""
        if isinstance(self.exchanges, Saved):
            return self.exchanges.exchange(self.stream, site, state, written)
        return self.stream.exchange(site, state, written)

    def _exchange_and_undo(self, embedding: tuple[Tensor, Tensor | None], context: Context) -> Tensor:
        """The same with a tape in the stream's place, on which the backward pass rebuilds the states.

        Block by block: those may be compiled, or forgotten and computed again, but an exchange happens once.
        """
        assert isinstance(self.exchanges, Reversible)
        tape = Tape(self.stream, self.config, self.exchanges)
        state, inputs = tape.exchange(0, tape.empty(context), embedding)
        shared = context.shared
        for site in range(1, len(self.blocks) + 1):
            if self.checkpoint_layers and torch.is_grad_enabled():
                written, shared = checkpoint(self._block, site, inputs, shared, context, use_reentrant=False)
            else:
                written, shared = self._block(site, inputs, shared, context)
            state, inputs = tape.exchange(site, state, written)
        return inputs["x"]

    def _block(
        self, site: int, inputs: dict[str, Tensor], shared: dict[str, Tensor], context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the block before `site` puts out, and what the blocks share after it."""
        context = replace(context, shared=dict(shared))
        block = self.blocks[site - 1] if self._compiled_blocks is None else self._compiled_blocks[site - 1]
        return block(inputs, context), context.shared

    def _layers(self) -> list[list[int]]:
        """Sites behind the blocks, layer by layer."""
        layers: dict[int, list[int]] = {}
        for site, block in enumerate(self.layout, start=1):
            layers.setdefault(block.layer, []).append(site)
        return list(layers.values())

    def head_weight(self) -> Tensor:
        """The unembedding [V, D]."""
        return self.embedding.token if self.config.tied_head else self.unembedding

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return nn.functional.linear(hidden * self.output_multiplier, self.head_weight())

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        weights: Tensor | None = None,
        z_loss: float = 0.0,
        mask: Tensor | None = None,
    ) -> LossTerms:
        """Loss of predicting `targets` [B, T] from `tokens` [B, T]; tokens of weight 0 are left out. See `forward`."""
        hidden = self(tokens, segments, mask=mask).flatten(0, 1) * self.output_multiplier
        flat = None if weights is None else weights.flatten()
        total, cross_entropy, z = linear_cross_entropy(hidden, self.head_weight(), targets.flatten(), flat, z_loss)
        # Filled and not copied there: a copy would make the host wait for the device.
        full = torch.full((), targets.numel(), dtype=torch.float32, device=targets.device)
        count = full if flat is None else flat.float().sum()
        return LossTerms(total, cross_entropy, z, count)

    def new_cache(self, batch_size: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty KV cache for sequences up to `length` tokens."""
        config, weight = self.config, self.head_weight()
        dtype = torch.float32 if config.upcast_attention else dtype or weight.dtype
        shape = (batch_size, config.num_heads, length, config.head_dim)
        num_slots = sum(block.kind == "attention" for block in self.layout)
        return KVCache(num_slots, shape, dtype, weight.device, one_value=config.value_residual == "shared")

    def compile_blocks(self, **options: Any) -> None:
        """Compile everything between embedding and head; masks are built outside, so shapes stay fixed.

        Where `exchanges` rebuild states as it runs, every block is compiled by itself, and they are left as they are.

        Args:
            options: for `torch.compile`.
        """
        self._compiled_depth = torch.compile(self._exchange_through_depth, dynamic=False, **options)
        # Blocks share their code and differ in constants of their layer, so that each is a version of its own.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VERSIONS * len(self.blocks))
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VERSIONS * len(self.blocks))
        self._compiled_blocks = [torch.compile(block, dynamic=False, **options) for block in self.blocks]

    @property
    def compiled(self) -> bool:
        """Whether `compile_blocks` was called."""
        return self._compiled_depth is not None

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name."""
        return named_roles(self)
