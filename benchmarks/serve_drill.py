"""A drill of `widestream serve`: many clients at once, most of whom misbehave, in rounds; does everyone get their due?

    python benchmarks/serve_drill.py RUN --clients 50 --rounds 20

Starts a server for RUN. In every round all clients connect at once: some ask well (whole answers, streams, seeded
draws), some send no JSON, wrong values, prompts beyond the context or bodies beyond the limit, some hang up while they
wait or while they are being answered. Checked: every good answer is to the letter what `widestream sample` gives;
everything else gets its status and a sentence; nobody who hung up is still computed; memory at the end of the
last round is what it was after the first ones. Then the good requests are timed, one after the other and all at once.

HTTP is spoken by hand, so that what is sent may be wrong and connections may end at any moment.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.generate.sampling import SamplingConfig
from widestream.runs.folder import load_config
from widestream.runs.sample import sample_run

PROMPTS = ("the matrix", "every head", "k", "")
BODY = 2**18
"""Largest body, as the server is told."""
WARM = 3
"""Rounds before memory is first looked at: allocators fill their pools in them."""


@dataclass(frozen=True)
class Answer:
    """What a client was sent."""

    status: int
    """Of HTTP; 0: it did not wait for one."""
    body: bytes
    """Behind the headers, put together."""
    seconds: float
    """From the connection to the end."""


@dataclass(frozen=True)
class Client:
    """What one client does."""

    kind: str
    """For the table."""
    body: bytes
    """What it sends."""
    status: int
    """What it has to get; 0: it hangs up."""
    text: str = ""
    """What a good one has to get."""
    until: str = "end"
    """Hangs up `sent`: with the request sent; `begun`: with the first bytes of the answer; `end`: does not."""


def clients(run: Path, number: int, tokens: int) -> list[Client]:
    """A mixed crowd: half of it asks well."""
    context = load_config(run).model.context
    made = []
    for i in range(number):
        prompt, seed = PROMPTS[i % len(PROMPTS)], i
        greedy = {"model": run.name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        drawn = {**greedy, "temperature": 0.8, "seed": seed}
        kind = i % 10
        if kind < 5:
            asked = [greedy, {**greedy, "stream": True}, drawn, {**drawn, "stream": True}, greedy][kind]
            name = ("greedy", "greedy, streamed", "drawn", "drawn, streamed", "greedy")[kind]
            made.append(Client(name, json.dumps(asked).encode(), 200, expected(run, asked)))
        elif kind == 5:
            body = [b'{"model": ', b"\xff\xfe", b"[" * 10000, b"[]"][i // 10 % 4]
            made.append(Client("no JSON", body, 400))
        elif kind == 6:
            wrong = [{"max_tokens": "many"}, {"temperature": -1}, {"promt": "x"}, {"prompt": [{}]}][i // 10 % 4]
            made.append(Client("wrong value", json.dumps({**greedy, **wrong}).encode(), 400))
        elif kind == 7:
            long = i // 10 % 2
            body = json.dumps({**greedy, "prompt": "the key " * (BODY if long else context)}).encode()
            made.append(Client("too large", body, 413 if long else 400))
        else:
            body = json.dumps({**greedy, "stream": kind == 9, "n": 4}).encode()
            made.append(Client("hangs up", body, 0, until="begun" if kind == 9 else "sent"))
    return made


def expected(run: Path, asked: dict[str, Any]) -> str:
    """What `widestream sample` gives."""
    temperature, seed = float(asked["temperature"]), asked.get("seed", 0)
    config = SamplingConfig(max_new_tokens=asked["max_tokens"], temperature=temperature, seed=seed)
    return sample_run(run, asked["prompt"], config).text


async def ask(port: int, client: Client) -> Answer:
    """Be one client."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: drill\r\nContent-Length: {len(client.body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + client.body)
        await writer.drain()
        if client.until == "sent":
            return Answer(0, b"", 0.0)
        if client.until == "begun":
            await reader.read(1)
            return Answer(0, b"", 0.0)
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    headers, _, body = answer.partition(b"\r\n\r\n")
    if b"chunked" in headers.lower():
        body = unchunked(body)
    return Answer(int(headers.split()[1]), body, time.perf_counter() - start)


def unchunked(body: bytes) -> bytes:
    """Chunks as one; a body without its last chunk raises."""
    parts = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(parts)
        parts.append(body[:length])
        body = body[length + 2 :]


def text_of(answer: Answer) -> str:
    """The text of an answer, whole or streamed."""
    if not answer.body.startswith(b"data: "):
        return json.loads(answer.body)["choices"][0]["text"]
    events = answer.body.decode().removesuffix("\n\n").split("\n\n")
    if events[-1] != "data: [DONE]":
        return f"a stream without an end: {events[-1]}"
    return "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events[:-1])


def complaint(client: Client, answer: Answer) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if answer.status != client.status:
        return f"{client.kind}: {answer.status} in place of {client.status}: {answer.body[:200]!r}"
    if client.status == 200 and text_of(answer) != client.text:
        return f"{client.kind}: {text_of(answer)!r} in place of {client.text!r}"
    if client.status >= 400:
        message = json.loads(answer.body)["error"]["message"]
        if not message or "\n" in message or "Traceback" in message:
            return f"{client.kind}: no sentence: {message!r}"
    return None


async def get(port: int, path: str) -> dict[str, Any]:
    """A page of the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def quiet(port: int, within: float = 5.0) -> bool:
    """Whether nothing is computed for anybody any more, soon after the last client is gone."""
    end = time.perf_counter() + within
    while (health := await get(port, "/health"))["running"] or health["waiting"]:
        if time.perf_counter() > end:
            return False
        await asyncio.sleep(0.02)
    return True


def memory(process: int) -> float:
    """Resident memory in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


async def drill(port: int, process: int, crowd: list[Client], rounds: int) -> dict[str, Any]:
    """All rounds."""
    wrong, seconds, megabytes, counts = [], [], [memory(process)], Counter()
    for _ in range(WARM + rounds):
        answers = await asyncio.gather(*(ask(port, client) for client in crowd))
        for client, answer in zip(crowd, answers, strict=True):
            counts[f"{client.kind}: {answer.status or 'hung up'}"] += 1
            if (said := complaint(client, answer)) is not None:
                wrong.append(said)
            if client.status == 200:
                seconds.append(answer.seconds)
        if not await quiet(port):
            wrong.append("somebody who hung up is still computed")
        megabytes.append(memory(process))
    good = [client for client in crowd if client.status == 200]
    start = time.perf_counter()
    for client in good:
        await ask(port, client)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    await asyncio.gather(*(ask(port, client) for client in good))
    return {
        "clients": len(crowd),
        "rounds": WARM + rounds,
        "answers": dict(sorted(counts.items())),
        "wrong": wrong,
        "good_seconds_median": statistics.median(seconds),
        "good_seconds_most": max(seconds),
        "rss_mb": [round(value, 1) for value in megabytes],
        "good_one_after_the_other_seconds": alone,
        "good_all_at_once_seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20, help=f"behind {WARM} to warm up")
    parser.add_argument("--tokens", type=int, default=24, help="of every answer")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    crowd = clients(args.run, args.clients, args.tokens)
    command = [sys.executable, "-m", "widestream", "serve", str(args.run), "--port", "0", "--body", str(BODY)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert server.stdout
    said = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    if not found:
        sys.exit(f"The server did not start: {said}")
    result = asyncio.run(drill(int(found[1]), server.pid, crowd, args.rounds))
    server.send_signal(signal.SIGTERM)
    result["exit_code"] = server.wait(30)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
