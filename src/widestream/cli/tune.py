"""`widestream tune`."""

from pathlib import Path
from typing import Annotated

import typer


def tune(
    recipe: Annotated[str, typer.Argument(help="The trial model: a recipe under muP, such as tune/rmt.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the recipe.")
    ] = None,
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
