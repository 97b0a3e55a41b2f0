"""`widestream summary` and `streams`: what models cost, without allocating one."""

from typing import Annotated

import typer

from widestream.cli.as_json import Json, print_json


def summary(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (paper/rmt-134m).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters by part and optimizer, stream size, FLOPs and activation bytes, without allocating the model."""
    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])

    from widestream.cli.model_tables import print_summary
    from widestream.model.costs import summarize
    from widestream.train.optim import count_by_optimizer

    summary, updated = summarize(config.model), count_by_optimizer(config)
    if as_json:
        print_json({**summary.to_dict(), "parameters_by_optimizer": updated})
    else:
        print_summary(config, summary, updated)


def streams(
    recipe: Annotated[
        str, typer.Argument(help="Recipe whose model gives the sizes at which streams are compared.")
    ] = "paper/transformer-160m",
    as_json: Json = False,
) -> None:
    """List all residual streams with state size, history, and what they cost beside the plain transformer."""
    from widestream.recipe import load_recipe

    config = load_recipe(recipe)

    from widestream.cli.model_tables import print_streams
    from widestream.model.catalog import list_streams

    rows = list_streams(config.model)
    if as_json:
        print_json(rows)
    else:
        print_streams(config, rows)
