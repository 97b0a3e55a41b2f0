"""Recipes: typed, strict, YAML with extends and dotted overrides."""
