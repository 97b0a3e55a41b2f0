"""muP: `widestream mup check`, does a recipe behave alike at every width, and `tune`, which settings are best?"""

from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import STDOUT, print_json

Changes = Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")]


def check(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one.")],
    changes: Changes = None,
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
    steps: Annotated[int, typer.Option(help="Optimizer steps, on one batch.")] = 5,
    seeds: Annotated[int, typer.Option(help="Initialisations at each width.")] = 6,
    windows: Annotated[int, typer.Option(help="Windows of the batch.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of a window, at most the recipe's context.")] = 64,
    data: Annotated[str, typer.Option(help="random tokens, or the recipe's prepared ones.")] = "random",
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the record here; - prints it and nothing else.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="STEM|HTML", help="Write STEM-light.svg and STEM-dark.svg, or one page.")
    ] = None,
) -> None:
    """Compare sizes of activations, and how far training moves them, at several widths, with muP and without.

    The exit code is 0 if all are seen to be flat under muP, 2 if training diverged, else 1. For example:

        widestream mup check tune/rmt --widths 32,64,128,256 --out mup.html
    """
    from widestream.bench.record import Outputs
    from widestream.experiments.mup.measure import CheckOptions, run_check
    from widestream.experiments.mup.section import outcome, sentences, write_check
    from widestream.files import write_json

    printed, json = json == STDOUT, None if json == STDOUT else json
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
    if printed:
        print_json(record)
    else:
        print("\n".join(sentences(record)))
    if json is not None:
        write_json(json, record)
    for path in () if out is None else write_check(record, out):
        typer.echo(path, err=printed)
    raise typer.Exit({"flat": 0, "diverged": 2}.get(outcome(record, "mup"), 1))


def tune(
    recipe: Annotated[str, typer.Argument(help="The trial model: a recipe under muP, such as tune/rmt.")],
    changes: Changes = None,
    trials: Annotated[int, typer.Option(help="Trials in all, earlier ones counted.")] = 100,
    trial_steps: Annotated[int | None, typer.Option(help="Steps of a trial. Default: the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Trials and record. Default: runs/tune/NAME.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Journal file, or database URL for many machines. Default: journal.log in the folder."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Trials at a time, a process each.")] = 1,
    interval: Annotated[
        str, typer.Option(help="paper: as printed. wide: alphas within [0.1, 10], as the paper's choices imply.")
    ] = "wide",
    sampler: Annotated[str, typer.Option(help="random: log-uniform, the paper's. tpe: Optuna's.")] = "random",
    seed: Annotated[
        int, typer.Option(help="Of random draws; trials of two models at one seed have equal settings.")
    ] = 0,
) -> None:
    """Search muP settings on a small model: learning rate, initial std; input, attention and output multipliers.

    Interrupted or killed, the same command goes on; several may work at once. For example:

        widestream tune tune/rmt --trials 20 --workers 2
    """
    from widestream.experiments.tune.search import TuneOptions, run_search
    from widestream.experiments.tune.space import Space

    folder = out or Path("runs/tune") / Path(recipe).stem
    options = TuneOptions(
        recipe=recipe,
        changes=tuple(changes or ()),
        folder=folder,
        space=Space(interval, sampler, seed),
        trials=trials,
        trial_steps=trial_steps,
        storage=storage,
        workers=workers,
    )
    record = run_search(options)

    from widestream.experiments.tune.section import sentences

    print("\n".join(sentences(record)))
    print(f"Record and page: {folder}")


def _widths(text: str | None) -> tuple[int, ...] | None:
    from widestream.errors import UserError

    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise UserError(f"--widths is {text}; give whole numbers, for example --widths 64,128,256.") from None
