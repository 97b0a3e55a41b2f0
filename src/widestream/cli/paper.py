"""`widestream paper`: the RMT paper's arithmetic, computed anew."""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import Json, print_json


def errata(
    name: Annotated[str | None, typer.Argument(metavar="[E1...E18]", help="One of them. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page of all of them here.")] = None,
    as_json: Json = False,
) -> None:
    """What the paper prints, and what we find."""
    from widestream.errors import UserError
    from widestream.files import write_text
    from widestream.paper.errata import errata_page, find_erratum, list_errata, to_dict, to_markdown

    if out is not None:
        if name is not None or as_json:
            raise UserError("--out writes the page of all errata; leave the erratum's name and --json out.")
        write_text(out, errata_page())
        print(out)
    elif as_json:
        chosen = [find_erratum(name)] if name else list_errata()
        print_json([to_dict(erratum) for erratum in chosen])
    else:
        print(to_markdown(find_erratum(name)) if name else errata_page())


def resources(
    as_json: Json = False,
    chart: Annotated[
        Path | None, typer.Option(metavar="STEM", help="Draw Figure 1 as STEM-light.svg and STEM-dark.svg.")
    ] = None,
) -> None:
    """Parameters, FLOPs and memory of the paper's models: as printed, as itemised in its appendix, as they are."""
    from widestream.paper.figure_1 import resources_record, write_chart

    written = write_chart(chart) if chart is not None else ()
    if as_json:
        print_json(resources_record())
        return
    from widestream.paper.resources_table import print_resources

    print_resources(resources_record())
    for path in written:
        print(path)
