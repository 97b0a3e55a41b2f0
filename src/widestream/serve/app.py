"""The routes: health, models, completions. Everything that is refused is refused in OpenAI's shape."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from widestream.serve import answers
from widestream.serve.continuing import Piece
from widestream.serve.engine import Engine, Job, Prompt
from widestream.serve.limits import Refusal
from widestream.serve.request import Asked, read_request

RETRY_AFTER = "1"
"""Seconds after which a client may ask again."""
SECONDS_TO_SEND = 10.0
"""How long a client may take to send its body."""
FORGOTTEN = 16
"""A body that is this many times too large is not read to its end."""
HUNG_UP = 499
"""Status of an answer that nobody waits for, as nginx logs it."""


def make_app(engine: Engine, name: str, created: int) -> Starlette:
    """The application.

    Args:
        engine: answers; it is started and stopped with the application.
        name: of the model.
        created: when its weights were made, in seconds since 1970.
    """
    service = _Service(engine, name, created)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    routes = [
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.model),
        Route("/v1/completions", service.completions, methods=["POST"]),
    ]
    handlers = {Refusal: _refused, HTTPException: _not_found, Exception: _failed}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


class _Service:
    def __init__(self, engine: Engine, name: str, created: int):
        self.engine, self.name = engine, name
        self.about = {"id": name, "object": "model", "created": created, "owned_by": "widestream"}

    async def health(self, _: Request) -> Response:
        """Whether requests are answered, and how many there are."""
        status = "ok" if self.engine.alive else "the engine has ended"
        values = {"status": status, "running": self.engine.running, "waiting": self.engine.waiting}
        return JSONResponse(values, 200 if self.engine.alive else 503)

    async def models(self, _: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self.about]})

    async def model(self, request: Request) -> Response:
        """What is known of it."""
        asked = request.path_params["model"]
        if asked != self.name:
            raise Refusal(404, f"There is no such model here; this server has {self.name}.", "model", "model_not_found")
        return JSONResponse(self.about)

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        limits = self.engine.limits
        body = await _read(request, limits.body)
        asked = read_request(body, self.name, limits)
        prompts = await asyncio.to_thread(self._encode, asked)
        events: asyncio.Queue[Piece | Refusal] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(piece: Piece | Refusal) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, piece)

        job = Job(asked, prompts, tell, time.monotonic() + limits.seconds)
        self.engine.submit(job)
        head = answers.Head(self.name, asked.logprobs is not None)
        if asked.stream:
            return _Stream(self.engine, job, self._stream(job, events, head))
        return await self._whole(request, job, events, head)

    def _encode(self, asked: Asked) -> list[Prompt]:
        """Prompts as the model reads them, within its limits.

        Raises:
            Refusal: one is too long, or has an id that there is none of.
        """
        tokenizer, prompts = self.engine.tokenizer, []
        for given in asked.prompts:
            if isinstance(given, str):
                ids = [tokenizer.boundary_id, *tokenizer.encode_batch([given])[0].tolist()]
                prompt = Prompt(ids, given, own=1)
            else:
                asked.sampling(len(given), self.engine.limits)
                if not 0 <= min(given) <= max(given) < tokenizer.vocab_size:
                    wrong = min(given) if min(given) < 0 else max(given)
                    message = (
                        f"The prompt has the token {wrong}; there are tokens from 0 to {tokenizer.vocab_size - 1}."
                    )
                    raise Refusal(400, message, "prompt", "invalid_value")
                prompt = Prompt(given, tokenizer.decode(given) if asked.echo else "", own=0)
            asked.sampling(len(prompt.ids), self.engine.limits)
            prompts.append(prompt)
        return prompts

    async def _stream(
        self, job: Job, events: "asyncio.Queue[Piece | Refusal]", head: answers.Head
    ) -> AsyncIterator[str]:
        with_usage = job.asked.include_usage
        try:
            async for piece in _pieces(job, events):
                yield head.part(piece, with_usage)
        except Refusal as refusal:
            yield answers.event(answers.error(refusal))
            return
        if with_usage:
            yield head.usage(_usage(job))
        yield answers.END

    async def _whole(
        self, request: Request, job: Job, events: "asyncio.Queue[Piece | Refusal]", head: answers.Head
    ) -> Response:
        async def gather() -> list[Piece]:
            return [piece async for piece in _pieces(job, events)]

        answer, hung_up = asyncio.create_task(gather()), asyncio.create_task(_hung_up(request))
        try:
            await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=HUNG_UP)
            return JSONResponse(head.whole(answer.result(), _usage(job)))
        finally:
            self.engine.leave(job)
            for task in (answer, hung_up):
                task.cancel()
            await asyncio.gather(answer, hung_up, return_exceptions=True)


class _Stream(StreamingResponse):
    """Events as they come. A client that hangs up, at whatever moment, leaves the engine."""

    def __init__(self, engine: Engine, job: Job, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._engine, self._job = engine, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.leave(self._job)


async def _pieces(job: Job, events: "asyncio.Queue[Piece | Refusal]") -> AsyncIterator[Piece]:
    """Pieces until every choice has its end.

    Raises:
        Refusal: the engine has given up.
    """
    left = len(job.prompts) * job.asked.n
    while left:
        piece = await events.get()
        if isinstance(piece, Refusal):
            raise piece
        left -= piece.finish is not None
        yield piece


def _usage(job: Job) -> dict[str, int]:
    return answers.usage_of(sum(len(prompt.ids) for prompt in job.prompts), job.answered)


async def _hung_up(request: Request) -> None:
    """Wait until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, most: int) -> bytes:
    """The body. What is too much is read and forgotten, within bounds: most clients send all before they listen.

    Raises:
        Refusal: it is too large, or comes too slowly.
    """
    too_large = Refusal(413, f"The body is larger than {most:,} bytes; send less.", code="body_too_large")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and (len(said) > 18 or int(said) > FORGOTTEN * most):
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            async for part in request.stream():
                size += len(part)
                if size > FORGOTTEN * most:
                    raise too_large
                if size <= most:
                    body += part
    except TimeoutError:
        raise Refusal(408, f"The body has not come within {SECONDS_TO_SEND:.0f} seconds.", code="timed_out") from None
    except ClientDisconnect:
        raise Refusal(HUNG_UP, "The client has hung up.") from None
    if size > most:
        raise too_large
    return bytes(body)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    again = {"Retry-After": RETRY_AFTER} if refusal.status in (429, 503) else {}
    # What is left of a body that is not read would be taken for the next request.
    unread = {"Connection": "close"} if refusal.status in (408, 413) else {}
    return JSONResponse(answers.error(refusal), refusal.status, headers=again | unread)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    there = "GET /health, GET /v1/models, POST /v1/completions"
    message = f"There is no {request.method} {request.url.path[:80]} here; there is {there}."
    return JSONResponse(answers.error(Refusal(error.status_code, message)), error.status_code, headers=error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    failed = Refusal(500, "The server has failed while it was answering; its log says how.", code="failed")
    return JSONResponse(answers.error(failed), 500)
