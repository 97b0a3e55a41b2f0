"""`widestream study moments`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from widestream.cli.as_json import STDOUT, print_json


def moments(
    shape: Annotated[str, typer.Option(help="Sizes at which Table 2 is measured: gpt2-medium or small.")] = (
        "gpt2-medium"
    ),
    draws: Annotated[int, typer.Option(help="Initialisations over which Table 2 is measured; 0: leave it out.")] = 64,
    scheme: Annotated[
        Literal["xavier", "lecun", "both"], typer.Option(help="Initialisation for Table 2; Table 2 itself is Xavier's.")
    ] = "both",
    streams: Annotated[
        str, typer.Option(metavar="all|none|KIND,...", help="Streams whose moments over depth are measured.")
    ] = "all",
    depths: Annotated[str, typer.Option(metavar="L,...", help="Numbers of layers.")] = "6,24,48",
    seeds: Annotated[int, typer.Option(help="Models of each stream and depth.")] = 3,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Measure this run at its start and its checkpoints instead; may be given several times."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="--run: another prepared folder than the run's own.")] = None,
    windows: Annotated[int, typer.Option(help="--run: held-out windows.")] = 8,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the record here; - prints it and nothing else.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="STEM", help="Write the charts STEM-light.svg and STEM-dark.svg.")
    ] = None,
) -> None:
    """Moment propagation: the paper's Table 2 and all streams over depth at initialisation, or runs in training.

    For example:

        widestream study moments --json moments.json

        widestream study moments --run runs/rmt-0 --run runs/transformer-0 --json training.json
    """
    from widestream.bench.record import Outputs
    from widestream.errors import UserError
    from widestream.experiments.moments.measure import MomentsSettings, study_initial, study_runs, write_outputs
    from widestream.experiments.moments.section import moments_findings, moments_tables
    from widestream.experiments.moments.training import RunSettings
    from widestream.report.terminal import print_tables

    outputs = Outputs(None if json == STDOUT else json, out)
    outputs.check()
    if run:
        record = study_runs(run, RunSettings(windows=windows, data=data))
    else:
        if data is not None:
            raise UserError("--data is for runs; give --run RUN_FOLDER too, or leave --data out.")
        settings = MomentsSettings(
            shape=shape,
            draws=draws,
            scheme=scheme,
            streams=() if streams == "none" else tuple(name.strip() for name in streams.split(",")),
            depths=_numbers(depths),
            seeds=seeds,
        )
        record = study_initial(settings)
    written = write_outputs(record, outputs)
    if json == STDOUT:
        print_json(record)
        return
    print_tables(moments_tables(record))
    for sentence in moments_findings(record):
        print(sentence)
    for path in written:
        print(path)


def _numbers(text: str) -> tuple[int, ...]:
    from widestream.errors import UserError

    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise UserError(f"--depths is {text}; give numbers of layers, such as 6,24,48.") from None
