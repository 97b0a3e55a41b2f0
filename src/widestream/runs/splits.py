"""The data of a run, opened and held against its recipe."""

from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.recipe import RunConfig


def open_splits(config: RunConfig) -> tuple[TokenStore, TokenStore | None]:
    """The training split, and the held-out one unless it is `none`; nothing is read through.

    Raises:
        UserError: the data are not prepared or not whole, or have more ids than the model.
    """
    data = config.data
    store = TokenStore.open(data.path, data.train_split)
    if store.vocab_size > config.model.vocab_size:
        raise UserError(
            f"The tokenizer of {data.path} has {store.vocab_size} ids but model.vocab_size is "
            f"{config.model.vocab_size}; set model.vocab_size to at least {store.vocab_size}."
        )
    return store, None if data.heldout_split == "none" else TokenStore.open(data.path, data.heldout_split)
