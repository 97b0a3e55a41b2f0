"""`widestream summary` and `streams`: what models cost, without allocating one."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def summary(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one (paper/rmt-134m).")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters by part, stream size, FLOPs and activation bytes per token, without allocating the model."""
    import json

    from widestream.recipe import load_recipe

    config = load_recipe(recipe, changes or [])

    from widestream.cli.model_tables import print_summary
    from widestream.model.costs import summarize

    summary = summarize(config.model)
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        print_summary(config, summary)


def streams(
    recipe: Annotated[
        str, typer.Argument(help="Recipe whose model gives the sizes at which streams are compared.")
    ] = "paper/transformer-160m",
    as_json: Json = False,
) -> None:
    """List all residual streams with state size, history, and what they cost beside the plain transformer."""
    import json
    from dataclasses import asdict

    from widestream.recipe import load_recipe

    config = load_recipe(recipe)

    from widestream.cli.model_tables import print_streams
    from widestream.model.catalog import list_streams

    rows = list_streams(config.model)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_streams(config, rows)
