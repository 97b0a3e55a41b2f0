"""A cache of transformers in the place of the package's own: the same methods, and a place for a stream's memory."""

from typing import Any

from torch import Tensor


class StreamMemory:
    """A layer of a transformers cache that holds what a stream remembers, so that beams reorder it with the rest."""

    is_compileable = False
    is_sliding = False
    is_croppable = False
    supports_early_init = False
    is_initialized = True

    def __init__(self):
        self.values: dict[str, Tensor] = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other rows."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take some rows."""
        self.values = {name: value.index_select(0, indices.to(value.device)) for name, value in self.values.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.values = {name: value.repeat_interleave(repeats, dim=0) for name, value in self.values.items()}

    def reset(self) -> None:
        """Forget."""
        self.values = {}

    def crop(self, *_: Any) -> None:
        """Refuse: what was forgotten cannot be had back.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "This stream remembers earlier tokens, and its memory cannot be rolled back, as assisted decoding wants; "
            "generate without an assistant."
        )

    def offload(self) -> None:
        """It is small and stays."""

    def prefetch(self) -> None:
        """It is small and stays."""

    def get_max_length(self) -> int:
        """It has no length."""
        return -1

    get_max_cache_shape = get_max_length

    def get_seq_length(self, *_: Any) -> int:
        """It has no length."""
        return 0


class HubCache:
    """What the decoder sees of a transformers cache during one forward pass (`blocks.cache.KVCache`).

    Args:
        cache: `DynamicCache`, `StaticCache`, ...
        valid: which tokens are real and not padding, those in the cache and the new ones [B, S]; None: all.
    """

    def __init__(self, cache: Any, valid: Tensor | None):
        self.cache, self.valid = cache, valid
        self.length = int(cache.get_seq_length())  # a static cache's own number is a tensor that grows as layers fill
        layers = getattr(cache, "layers", ())
        room = getattr(next(iter(layers), None), "max_cache_len", None)
        self.capacity = None if room is None else int(room)
        found = next((layer for layer in layers if isinstance(layer, StreamMemory)), None)
        self._layer, self._new = found or StreamMemory(), found is None

    @property
    def memory(self) -> dict[str, Tensor]:
        """A stream's own, by name."""
        return self._layer.values

    def append(self, slot: int, k: Tensor, v: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `KVCache`. A static cache returns all of its room, of which the part that is filled is wanted."""
        keys, values = self.cache.update(k, v, slot)
        end = self.length + k.shape[2]
        return keys[:, :, :end], values[:, :, :end]

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a stream's `value` for the next tokens."""
        self._layer.values[name] = value.clone()

    def remember_documents(self, segments: Tensor | None, positions: Tensor) -> Tensor | None:
        """Padding is a document of its own; transformers says anew with every token which tokens are padding."""
        return self.valid

    def advance(self, num_tokens: int) -> None:
        """Behind the attention blocks' layers, so that their numbers stay what they are."""
        if self._new and self._layer.values:
            self.cache.layers.append(self._layer)

    def check_rows(self, rows: int) -> None:
        """A transformers cache checks itself."""

    def check_room(self, num_tokens: int) -> None:
        """Refuse tokens that do not fit a static cache.

        Raises:
            ValueError: more than it holds.
        """
        if self.capacity is not None and self.length + num_tokens > self.capacity:
            raise ValueError(f"{self.length + num_tokens} tokens do not fit a cache of {self.capacity}.")
