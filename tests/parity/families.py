"""Models of transformers as models of this package, by the maps that `widestream import hf` goes by."""

import dataclasses
from typing import Any

from torch import Tensor

from widestream.convert import families
from widestream.convert.weights import sources
from widestream.model.build import meta_model
from widestream.recipe.model import ModelConfig


def model_config(theirs: Any, stream: dict[str, Any] | None = None) -> ModelConfig:
    """What a model of transformers is called here; it knows no documents."""
    return dataclasses.replace(families.model_config(theirs.to_dict(), stream), document_mask=False)


def weights(theirs: Any, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (or gradients) of a model of transformers under their names here."""
    config = model_config(theirs)
    own = [name for name, _ in meta_model(config).named_parameters()]
    table = sources(theirs.model_type, config.num_layers, config.moe.num_experts, own, named)
    return {name: source.gather(named.__getitem__) for name, source in table.items()}
