"""The decoder as a model of transformers: `generate`, `Trainer`, `pipeline`, caches, left padding.

Padding is a document of its own, apart from the text: attention, convolutions and tokens before stay inside the text
without a rule of their own.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from widestream.blocks.embedding import Embedding
from widestream.blocks.roles import Declared, Role, named_roles
from widestream.hub.cache import HubCache
from widestream.hub.configuration import WidestreamConfig, derived
from widestream.hub.states import hidden_states
from widestream.kernels.autocasting import autocast_dtype, no_autocast
from widestream.model.decoder import Decoder, Told, balance_of
from widestream.model.depth import Eager, Recomputed, sites_of_layers
from widestream.model.record import record_pass

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the cache in outputs: transformers 5.24 gave it another."""
HALF = (torch.bfloat16, torch.float16)


class TokenTable(nn.Module):
    """The embedding's table as tools look for it: `weight`, and vectors of ids.

    Args:
        embedding: whose table.
    """

    def __init__(self, embedding: Embedding):
        super().__init__()
        self.embedding = embedding

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        return self.embedding.token

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids [B, T] -> what `inputs_embeds` takes in their place [B, T, D]."""
        return nn.functional.embedding(tokens, self.weight)


class WidestreamPreTrainedModel(PreTrainedModel):
    """What both models share: the decoder, and what transformers asks of it."""

    config_class = WidestreamConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Decoder"]  # noqa: RUF012
    # Keys, gates, norms and routers compute in float32, whatever the precision of matrices.
    _keep_in_fp32_modules_strict = ["stream", "norm", "norm_before", "norm_after", "router", "gain"]  # noqa: RUF012

    def __init__(self, config: WidestreamConfig):
        super().__init__(config)
        if config.architecture is None:
            raise ValueError("The configuration has no architecture; make one with WidestreamConfig.of(model_config).")
        self.decoder = Decoder(config.model())
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill a module's own parameters and buffers from their roles, but for those that a file has filled."""
        if not isinstance(module, Declared):
            return
        started = module.initial_values()
        for name, role in module.own_roles.items():
            parameter = module.get_parameter(name)
            if not getattr(parameter, "_is_hf_initialized", False):
                _fill(parameter, role, started.get(name))
        for name, value in started.items():
            if name not in module.own_roles and not getattr(getattr(module, name), "_is_hf_initialized", False):
                getattr(module, name).copy_(value)

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        self.gradient_checkpointing = enable
        self.decoder.depth = Recomputed(sites_of_layers(self.decoder.layout)) if enable else Eager()

    def enable_input_require_grads(self) -> None:
        """Layers are recomputed without reentrance, which needs no such thing."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return TokenTable(self.decoder.embedding)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> Any:
        """Give the tables of tokens other numbers of rows; new ones are drawn as at the start."""
        if new_num_tokens is None or new_num_tokens == self.config.vocab_size:
            return self.get_input_embeddings()
        roles = named_roles(self.decoder)
        for owner, name, key in ((self.decoder.embedding, "token", "embedding.token"),
                                 (self.decoder, "unembedding", "unembedding")):  # fmt: skip
            old = getattr(owner, name, None)
            if old is None:
                continue
            table = old.new_empty(new_num_tokens, old.shape[1])
            _fill(table, roles[key], None)
            kept = min(new_num_tokens, len(old))
            table[:kept] = old.data[:kept]
            setattr(owner, name, nn.Parameter(table))
        assert self.config.architecture is not None
        self.config.architecture = {**self.config.architecture, "vocab_size": new_num_tokens}
        for name, value in derived(self.config.model()).items():
            setattr(self.config, name, value)
        self.decoder.config = self.config.model()
        return self.get_input_embeddings()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: decay for matrices alone, not for embeddings, norms, gates and keys.

        `Trainer` decays by names, and would decay all of these: make the optimizer of these groups and hand it over.
        """
        roles = named_roles(self.decoder)
        decayed = [p for name, p in self.decoder.named_parameters() if roles[name].decay == "weight"]
        others = [p for name, p in self.decoder.named_parameters() if roles[name].decay != "weight"]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """The decoder makes its own masks."""
        return attention_mask

    def hidden(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        told: Told,
        others: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Hidden vectors that the head reads [B, T, D], and hidden states if they are asked for (hub/states.py).

        Raises:
            ValueError: something that this model does not take.
        """
        _refuse(others)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        self._require_here(given.device)
        valid = pairs = None
        if attention_mask is not None and attention_mask.ndim == 4:
            pairs = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] == 0
        elif attention_mask is not None and not bool(attention_mask.all()):
            valid = attention_mask.long()
        inner = None if cache is None else HubCache(cache, valid)
        tokens = given.shape[1]
        if position_ids is None and valid is not None:
            position_ids = (valid.cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
        segments = None if valid is None else valid[:, -tokens:]
        if position_ids is not None:
            position_ids = self._positions(position_ids.expand(given.shape[:2]))
        asked = others.get("output_hidden_states")
        wanted = self.config.output_hidden_states if asked is None else asked
        with self._precision(), record_pass(self.decoder) if wanted else nullcontext() as recorded:
            hidden = self.decoder(given, segments, cache=inner, mask=pairs, positions=position_ids, told=told)
        return hidden, None if recorded is None else hidden_states(self.decoder, recorded.exchanges, hidden)

    def _require_here(self, device: torch.device) -> None:
        """Refuse weights that lie elsewhere.

        accelerate brings a module's weights when the module is called. A stream is not called, but written and read,
        and a product with weights that are not there has no meaning, and on a CPU no error either.
        """
        elsewhere = {str(weight.device) for weight in self.decoder.parameters() if weight.device != device}
        if elsewhere:
            places = ", ".join("are offloaded" if place == "meta" else f"on {place}" for place in sorted(elsewhere))
            raise ValueError(
                f"The tokens are on {device}, and some weights {places}; this "
                "model cannot be spread or offloaded: load all of it on one device, for example with "
                'device_map={"": "cpu"}.'
            )

    def _positions(self, positions: Tensor) -> Tensor:
        context = self.config.max_position_embeddings
        if self.decoder.config.positions == "learned" and int(positions.max()) >= context:
            raise ValueError(
                f"Position {int(positions.max())} lies behind the model's context of {context} tokens; "
                "shorten the text, or generate fewer tokens."
            )
        return positions

    def _precision(self) -> AbstractContextManager[Any]:
        """Products in the precision of the weights; the stream stays in float32."""
        weight = self.decoder.head_weight()
        dtype = weight.dtype if weight.dtype in HALF else autocast_dtype(weight.device)
        return no_autocast(weight.device) if dtype is None else torch.autocast(weight.device.type, dtype)


class WidestreamModel(WidestreamPreTrainedModel):
    """The decoder without its head."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Tokens [B, T] -> hidden vectors [B, T, D]; see transformers."""
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if cache is None and use_cache else cache
        hidden, states = self.hidden(input_ids, inputs_embeds, attention_mask, position_ids, cache, Told(), kwargs)
        out = BaseModelOutputWithPast(last_hidden_state=hidden, hidden_states=states, **{CACHE: cache})
        return out.to_tuple() if return_dict is False else out


class WidestreamForCausalLM(WidestreamPreTrainedModel, GenerationMixin):
    """Logits, loss, and `generate`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Tokens [B, T] -> logits [B, T, V]; see transformers. In training experts' balance is in the loss."""
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if cache is None and use_cache and not self.training else cache
        told = Told()
        given = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        hidden, states = self.hidden(input_ids, inputs_embeds, attention_mask, position_ids, cache, told, given)
        behind = isinstance(logits_to_keep, int)
        kept = (slice(-logits_to_keep, None) if logits_to_keep else slice(None)) if behind else logits_to_keep
        with self._precision():
            logits = self.decoder.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            experts = self.decoder.config.moe
            balance, load = balance_of(told.shared, None, logits.device)
            if experts.balance == "loss" and len(load) and self.training:
                loss = loss + experts.balance_weight * balance
        out = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states, **{CACHE: cache})
        return out.to_tuple() if return_dict is False else out


OPTIONS = ("output_hidden_states", "output_attentions")
"""What callers may ask for beside the result."""


def _refuse(given: dict[str, Any]) -> None:
    if given.get("output_attentions"):
        raise ValueError("This model cannot do output_attentions: its attention does not hand out weights.")


def _fill(parameter: Tensor, role: Role, value: Tensor | None) -> None:
    """Initial values of a parameter: its own, ones, or random ones of the role's standard deviation."""
    with torch.no_grad():
        if value is not None:
            parameter.copy_(value)
        elif role.std is None:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, role.std)
            parameter[: role.zero_rows] = 0
