"""`widestream serve`: a run behind HTTP."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def serve(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: the folder's name.")] = None,
    step: Annotated[int | None, typer.Option(help="Step of a checkpoint. Default: the newest one.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together, in tokens. Default: the model's context.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Sequences that are computed side by side.")] = 16,
    choices: Annotated[int, typer.Option(help="Most sequences of one request: prompts times n.")] = 8,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; more get 429.")] = 64,
    seconds: Annotated[float, typer.Option(help="Longest time for a request, waiting included.")] = 60.0,
    body: Annotated[int, typer.Option(help="Largest body of a request, in bytes; more get 413.")] = 2**20,
    grace: Annotated[float, typer.Option(help="Seconds that running requests have once SIGTERM comes.")] = 10.0,
    precision: Annotated[Literal["float32", "bf16"], typer.Option(help="Of products.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: where the run was trained.")] = None,
) -> None:
    """Serve a run's newest checkpoint to OpenAI's clients: completions, also streamed.

    Requests are computed side by side, each token for all of them at once, and come and go at any token.
    """
    from widestream.errors import UserError

    try:
        from widestream.serve.server import serve_run
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"The server needs {package}: pip install 'widestream[serve]'.") from None
    from widestream.serve.limits import Limits

    def limits(own_context: int) -> Limits:
        return Limits(
            tokens=own_context if context is None else context,
            rows=rows,
            choices=choices,
            waiting=queue,
            seconds=seconds,
            body=body,
            grace=grace,
        )

    def ready(address: str, limits: Limits, step: int) -> None:
        print(f"{run} at step {step:,}: {address}/v1 (up to {limits.tokens} tokens a request; Ctrl-C ends)", flush=True)

    serve_run(
        run, limits=limits, host=host, port=port, name=name, step=step, device=device, precision=precision, ready=ready
    )  # fmt: skip
