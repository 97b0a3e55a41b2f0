"""Recipes: typed, strict, YAML with `extends` and dotted overrides."""

from widestream.config.build import build, from_dict, to_dict
from widestream.config.load import find_recipe, load_recipe, recipe_names
from widestream.config.schema import RunConfig

__all__ = ["RunConfig", "build", "find_recipe", "from_dict", "load_recipe", "recipe_names", "to_dict"]
