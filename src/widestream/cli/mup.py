"""`widestream mup check`: does a recipe behave alike at every width?"""

from pathlib import Path
from typing import Annotated

import typer


def check(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(metavar="D,...", help="Widths H * D_h. Default: 1, 2, 4, 8 times the recipe's.")
    ] = None,
    grow: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS,...", help="num_heads, head_dim, mlp_dim, key_dim. Default: all of these but head_dim."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="Learning rate, as a part of the recipe's peak rate.")] = 0.1,
    steps: Annotated[int, typer.Option(help="Steps of Adam, on one batch.")] = 5,
    seeds: Annotated[int, typer.Option(help="Initialisations at each width.")] = 3,
    windows: Annotated[int, typer.Option(help="Windows of the batch.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of a window, at most the recipe's context.")] = 64,
    data: Annotated[str, typer.Option(help="random tokens, or the recipe's prepared ones.")] = "random",
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record here.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="STEM|HTML", help="Write STEM-light.svg and STEM-dark.svg, or one page.")
    ] = None,
) -> None:
    """Compare sizes of activations, and how far training moves them, at several widths, with muP and without.

    The exit code is 0 if all are flat under muP, else 1. For example:

        widestream mup check tune/rmt --widths 32,64,128,256 --out mup.html
    """
    from widestream.bench.record import Outputs
    from widestream.experiments.mup.measure import CheckOptions, run_check
    from widestream.experiments.mup.section import sentences, write_check
    from widestream.files import write_json

    Outputs(json, out).check()
    record = run_check(
        CheckOptions(
            recipe=recipe,
            changes=tuple(changes or ()),
            widths=_widths(widths),
            grow=None if grow is None else tuple(axis.strip() for axis in grow.split(",")),
            steps=steps,
            rate=rate,
            seeds=seeds,
            windows=windows,
            length=length,
            data=data,
        )
    )
    print("\n".join(sentences(record)))
    if json is not None:
        write_json(json, record)
    for path in () if out is None else write_check(record, out):
        print(path)
    raise typer.Exit(0 if record["flat"]["mup"] else 1)


def _widths(text: str | None) -> tuple[int, ...] | None:
    from widestream.errors import UserError

    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise UserError(f"--widths is {text}; give whole numbers, for example --widths 64,128,256.") from None
