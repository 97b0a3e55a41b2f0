"""Recipes: typed, strict, YAML with `extends` and dotted overrides."""

from widestream.recipe.build import build, from_dict, to_dict
from widestream.recipe.load import find_recipe, load_recipe, recipe_names
from widestream.recipe.run import RunConfig

__all__ = ["RunConfig", "build", "find_recipe", "from_dict", "load_recipe", "recipe_names", "to_dict"]
