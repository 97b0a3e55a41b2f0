"""`widestream serve`: a run's model behind uvicorn, until the process is told to end."""

import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from widestream.errors import TERMINATED, UserError, shown
from widestream.generate import cast_weights
from widestream.machine import find_device, numerics
from widestream.runs.folder import load_config
from widestream.runs.model import load_model, load_run_tokenizer
from widestream.serve.app import make_app
from widestream.serve.engine import Engine
from widestream.serve.limits import Limits

MOST_CONNECTIONS = 1024
"""Of all clients together; more are refused by uvicorn itself, with 503."""
IDLE_SECONDS = 5
"""How long a connection is kept for the next request."""
_MARGIN = 1.0
"""Seconds between the end of the last answer and the end of connections that are still open."""


def serve_run(
    run_dir: Path,
    *,
    limits: Callable[[int], Limits],
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    step: int | None = None,
    device: str | None = None,
    precision: str = "float32",
    ready: Callable[[str, Limits, int], None] = lambda address, limits, step: None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        run_dir: folder of a run.
        limits: made of the model's context.
        host: address to listen at.
        port: 0: any that is free.
        name: of the model for clients; default: the folder's.
        step: of the checkpoint; None: the newest complete one.
        device: where to compute; default: where the run was trained.
        precision: `float32` or `bf16`.
        ready: is called with the address, the limits and the checkpoint's step once clients can connect.

    Raises:
        UserError: no run, no usable checkpoint, limits that cannot be, or an address that cannot be had.
    """
    config = load_config(run_dir)
    bounds = limits(config.model.context)
    if config.model.positions == "learned" and bounds.tokens > config.model.context:
        raise UserError(
            f"The model has positions for {config.model.context} tokens, so {bounds.tokens} cannot be served; "
            "lower --context."
        )
    with _listen(host, port) as listener:
        tokenizer = load_run_tokenizer(run_dir)
        model, saved = load_model(run_dir, find_device(device or config.train.device), step)
        cast_weights(model, precision)
        engine = Engine(model, tokenizer, bounds, precision, lambda: numerics(config.train))
        app = make_app(engine, name or run_dir.resolve().name, int(saved.path.stat().st_mtime))
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=int(bounds.grace + _MARGIN + 1),
            server_header=False,
            ws="none",
        )
        ready(_address(listener, host), bounds, saved.step)
        before = signal.signal(signal.SIGTERM, _terminate)  # which uvicorn calls once all is ended
        try:
            _Server(settings, engine).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """uvicorn's server, which gives running requests their last seconds."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.end_by(time.monotonic() + self._engine.limits.grace)
        await super().shutdown(sockets)


def _terminate(_: int, __: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"There is no port {port}; give one from 0 to {2**16 - 1}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot listen at {shown(host)} port {port} ({reason}); give another --host or --port."
        ) from None


def _address(listener: socket.socket, host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
