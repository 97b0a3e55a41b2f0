"""`widestream summary`."""

from typing import Annotated

import typer


def summary(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (paper/rmt-134m).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part, stream size, FLOPs and activation bytes per token, without allocating the model."""
    import json

    from widestream.cli.model_tables import print_summary
    from widestream.model.costs import summarize
    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])
    summary = summarize(config.model)
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print_summary(config, summary)
