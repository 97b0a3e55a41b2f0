"""`widestream streams`."""

from typing import Annotated

import typer


def streams(
    recipe: Annotated[
        str, typer.Argument(help="Recipe whose model gives the sizes at which streams are compared.")
    ] = "paper/transformer-160m",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all residual streams with state size, history, and what they cost beside the plain transformer."""
    import json
    from dataclasses import asdict

    from widestream.cli.model_tables import print_streams
    from widestream.model.catalog import list_streams
    from widestream.recipe import load_recipe

    config = load_recipe(recipe)
    rows = list_streams(config.model)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_streams(config, rows)
