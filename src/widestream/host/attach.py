"""A stream in place of the residual adds of a transformers model.

    attach(model, "mhc", lanes=4)
    model.generate(...)

Layers become layers of a subclass of their own class, whose forward pass goes through the stream; their modules, and
the keys of these in a state dictionary, stay. The state goes from layer to layer as further arguments and results of
theirs, so that whatever surrounds a layer (activation checkpointing, hooks, sharding) sees all that it depends on.

Letters: B batch, T tokens, D width.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from widestream.errors import UserError, shown
from widestream.host.families import Places, find_layers
from widestream.host.stream import ResidualStream, residual

NAME = "stream"
"""Under which the stream is registered, in the module that holds the layers."""
OF_THE_MODEL = ("dim", "sites", "layer_size", "norm", "norm_eps")
"""Arguments of `residual` that a model answers."""


@dataclass(frozen=True)
class Attachment:
    """What a layer knows of the stream."""

    owner: nn.Module
    """Holds the stream, as `stream`: looked up there, because others may wrap it (PEFT)."""
    places: Places
    """The layer's branches."""
    index: int
    """Which layer it is, from 0."""
    arguments: tuple[str, ...]
    """Names of the arguments behind the hidden states that may come without a name."""


class AttachedLayer(nn.Module):
    """Mixed into the class of a layer in front of it."""

    attachment: Attachment

    def __call__(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with the state's tensors side by side, which reentrant checkpointing needs."""
        given = hidden_states if isinstance(hidden_states, tuple) else (hidden_states,)
        named = dict(zip(self.attachment.arguments, args, strict=False))
        return super().__call__(*given, **named, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the layer's own class: this one is made while the program runs."""
        if type(self).__bases__[0] is not AttachedLayer:
            return super().__reduce_ex__(protocol)
        return _unpickled, (type(self).__bases__[1],), self.__dict__

    def forward(self, *given: Tensor, **arguments: Any) -> Any:
        """Branch and exchange, twice.

        Args:
            given: of the first layer the embedding; of others what is read [B, T, D] (or a vector each for q, k and v),
                and the state.
            arguments: as the model gives them; attention gets them.

        Returns:
            The same for the next layer; of the last one what the final norm gets [B, T, D].
        """
        attachment = self.attachment
        stream: ResidualStream = attachment.owner.get_submodule(NAME)  # pyright: ignore[reportAssignmentType]
        first = 2 * attachment.index
        if first == 0:
            state, x = stream.start(*given)
        else:
            num_read = len(stream.outlines[first].roles)
            x, state = given[0] if num_read == 1 else given[:num_read], given[num_read:]
        for site, place in enumerate(attachment.places, start=first + 1):
            state, x = stream.exchange(site, state, place(self, x, arguments))
        if first + 2 == stream.num_sites:
            return x
        return *(x if isinstance(x, tuple) else (x,)), *(state if isinstance(state, tuple) else (state,))


def attach(
    model: Any, kind: str, *, heads: int | None = None, freeze: bool = False, seed: int = 0, **settings: Any
) -> Any:
    """Put a stream in place of the residual adds of a transformers model's layers, and of nothing else.

    A kind that starts plain (`attached_stream(model).spec.starts_plain`) leaves what the model computes as it is, up to
    rounding. The model's own parameters keep their names; the stream's are `...stream.*` beside them. Norms, scaled
    embeddings and the head stay the model's: what the stream hands over is what a branch's norm would get.

    Args:
        model: a Llama, Mistral, Qwen 2, Qwen 3, OLMo 2, Gemma or GPT-2 of transformers, with any head or none; changed
            in place.
        kind: see `residual`.
        heads: see `residual`; default: the model's number of attention heads, if it divides the width.
        freeze: whether the model's own parameters are to get no gradients.
        seed: of the stream's initial values.
        settings: of the kind: `lanes=4`.

    Returns:
        The model.

    Raises:
        UserError: a model of another family, or one that has a stream already; a kind that has no place here; settings
            that are wrong.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"{shown(type(model).__name__)} is no model; give one of transformers.")
    if _owner(model) is not None:
        raise UserError("This model has a stream already; detach it first.")
    owner, layers, places = find_layers(model)
    stream = _make(owner.config, kind, len(layers), heads, seed, settings)
    devices = {parameter.device for layer in layers for parameter in layer.parameters()}
    if len(devices) != 1 or (device := devices.pop()).type == "meta":
        raise UserError("The model's layers must lie on one device, one that has memory; load it onto one first.")
    if freeze:
        model.requires_grad_(False)
    owner.add_module(NAME, stream.to(device).train(owner.training))
    names = tuple(inspect.signature(type(layers[0]).forward).parameters)[2:]  # behind self and hidden_states
    for index, layer in enumerate(layers):
        layer.attachment = Attachment(owner, places, index, names)
        layer.__class__ = _attached_class(type(layer))
    return model


def detach(model: Any) -> ResidualStream:
    """Give a model its residual adds back.

    Its own parameters are as they are. With a stream at its plain start it computes the same as before; what a trained
    stream has learned is gone from it, since no sum can do that.

    Returns:
        The stream, which is the model's no longer.

    Raises:
        UserError: nothing is attached, or layers were wrapped behind it.
    """
    stream, owner = attached_stream(model), _owner(model)
    assert owner is not None
    layers = find_attached(model)
    if any(type(layer).__bases__[0] is not AttachedLayer for layer in layers):
        raise UserError(
            "The layers were wrapped after attaching (FSDP does that); detach a model before it is wrapped."
        )
    for layer in layers:
        layer.__class__ = type(layer).__bases__[1]
        del layer.attachment
    delattr(owner, NAME)
    return stream


def attached_stream(model: Any) -> ResidualStream:
    """The stream of a model.

    Raises:
        UserError: nothing is attached.
    """
    owner = _owner(model)
    if owner is None:
        raise UserError(f"This {shown(type(model).__name__)} has no stream; attach one first.")
    wrapped: Any = owner.get_submodule(NAME)
    return wrapped.exchange.__self__  # PEFT's wrapper hands on what is asked of it


def _owner(model: nn.Module) -> nn.Module | None:
    return next((layer.attachment.owner for layer in find_attached(model)), None)


def find_attached(model: nn.Module) -> list[AttachedLayer]:
    """A model's layers with a stream."""
    return [module for module in model.modules() if isinstance(module, AttachedLayer)]


@functools.cache
def _attached_class(cls: type[nn.Module]) -> type[nn.Module]:
    """A layer's class with a stream; it stays a subclass, which hooks and wrapping policies go by."""
    return type(f"Attached{cls.__name__}", (AttachedLayer, cls), {"__doc__": AttachedLayer.__doc__})


def _unpickled(cls: type[nn.Module]) -> nn.Module:
    """A layer of an attached class, whose attributes come afterwards."""
    attached = _attached_class(cls)
    return attached.__new__(attached)


def _make(
    config: Any, kind: str, num_layers: int, heads: int | None, seed: int, settings: dict[str, Any]
) -> ResidualStream:
    """A stream for a model of transformers.

    Raises:
        UserError: see `attach`.
    """
    if taken := [name for name in OF_THE_MODEL if name in settings]:
        raise UserError(f"{taken[0]} is what the model has it to be; leave it out.")
    width, theirs = config.hidden_size, config.num_attention_heads
    if heads is None and width % theirs == 0:
        heads = theirs
    eps = getattr(config, "rms_norm_eps", None) or config.layer_norm_epsilon
    stream = residual(
        kind, width, ["attention", "mlp"] * num_layers, norm=None, norm_eps=eps, seed=seed,
        heads=heads, **settings,
    )  # fmt: skip
    if stream.spec.attention == "bare":
        raise UserError(
            f"A {kind} stream takes the place of attention's projections, which this model has; use matrix_dense, "
            "which leaves them to it."
        )
    if stream.mixes_tokens:
        raise UserError(
            f"A {kind} stream set like this looks at earlier tokens, of which a cache of transformers keeps no trace; "
            "change that setting, or choose another kind."
        )
    if {stream.embedding_dim, stream.output_dim} != {width}:
        raise UserError(
            f"A {kind} stream set like this takes embeddings {stream.embedding_dim} wide and hands {stream.output_dim} "
            f"numbers to the head; this model has {width} for both. Change that setting, or choose another kind."
        )
    return stream
