"""The server as clients meet it: OpenAI's own client, limits, clients that hang up, and the drill."""

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import torch
import uvicorn

from tiny_runs import tiny_config
from widestream.generate import Batch, SamplingConfig
from widestream.runs.model import load_model, load_run_tokenizer
from widestream.runs.sample import sample_run
from widestream.serve.app import make_app
from widestream.serve.engine import Engine, Job, Prompt
from widestream.serve.limits import Limits
from widestream.serve.request import read_request
from widestream.train.loop import train

DRILL = Path(__file__).parents[2] / "benchmarks" / "serve_drill.py"
CONTEXT = 48


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A trained run whose answers go on to the context."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(data, model={"context": CONTEXT}, train={"steps": 60, "batch_size": 8}), folder)
    return folder


@contextlib.contextmanager
def serving(run, **limits):
    """A server in this process; gives its port and its engine."""
    model, _ = load_model(run, torch.device("cpu"))
    engine = Engine(model, load_run_tokenizer(run), Limits(tokens=CONTEXT, **limits))
    settings = uvicorn.Config(make_app(engine, "tiny", 0), log_level="error", timeout_graceful_shutdown=5, ws="none")
    server = uvicorn.Server(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1], engine
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(run):
    with serving(run) as (port, engine):
        yield port, engine


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key="none", max_retries=0) as made:
        yield made.completions


@pytest.fixture
def slow(monkeypatch):
    """Every token takes a twentieth of a second."""
    step = Batch.step

    def slowly(self, tokens):
        time.sleep(0.05)
        return step(self, tokens)

    monkeypatch.setattr(Batch, "step", slowly)


def post(port, values, path="/v1/completions"):
    """Status, headers, and the body as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, values if isinstance(values, bytes) else json.dumps(values))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), json.loads(content)


def sampled(run, prompt, tokens, **how):
    return sample_run(run, prompt, SamplingConfig(max_new_tokens=tokens, **how)).text


def wait_until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}, {"top_p": 0.5, "temperature": 1}])
def test_an_answer_is_what_sample_gives(client, run, how):
    expected = sampled(run, "the matrix", 20, **how)
    asked = {"model": "tiny", "prompt": "the matrix", "max_tokens": 20, "seed": 0, **how}
    answer = client.create(**asked)
    assert answer.choices[0].text == expected
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 11, "completion_tokens": len(expected), "total_tokens": 11 + len(expected)
    }  # fmt: skip
    assert answer.choices[0].finish_reason == "length"
    parts = list(client.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts[:-1]) == expected
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 2) + ["length"]
    assert parts[-1].usage == answer.usage
    assert {part.id for part in parts} == {parts[0].id}


def test_choices_have_seeds_one_after_the_other(client, run):
    answer = client.create(model="tiny", prompt=["the", "every head"], n=3, max_tokens=9, seed=5, temperature=0.9)
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [
        sampled(run, prompt, 9, seed=seed, temperature=0.9) for prompt in ("the", "every head") for seed in (5, 6, 7)
    ]
    assert [choice.text for choice in answer.choices] == expected
    texts = [""] * 6
    asked = {"n": 3, "max_tokens": 9, "seed": 5, "temperature": 0.9, "stream": True}
    for part in client.create(model="tiny", prompt=["the", "every head"], **asked):
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == expected


def test_ids_are_taken_as_they_are(client, run):
    ids = [256, *b"the key"]
    assert client.create(model="tiny", prompt=ids, max_tokens=8, temperature=0).choices[0].text == sampled(
        run, "the key", 8, temperature=0
    )


def test_a_stop_is_left_out(client, run):
    whole = sampled(run, "the", 30, temperature=0)
    stop = whole[10:12]
    answer = client.create(model="tiny", prompt="the", max_tokens=30, temperature=0, stop=[stop]).choices[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_log_probabilities_are_the_models(client, run):
    model, _ = load_model(run, torch.device("cpu"))
    answer = client.create(model="tiny", prompt="the key", max_tokens=5, temperature=0, logprobs=2, echo=True)
    choice = answer.choices[0]
    ids = [256, *choice.text.encode()]
    with torch.no_grad():
        logs = model.logits(model(torch.tensor([ids])))[0, :, :257].log_softmax(-1)
    own = [float(logs[i, token]) for i, token in enumerate(ids[1:])]
    assert choice.text == "the key" + sampled(run, "the key", 5, temperature=0)
    assert choice.logprobs.token_logprobs == pytest.approx(own, abs=1e-4)
    assert choice.logprobs.tokens == list(choice.text)
    assert choice.logprobs.text_offset == list(range(len(choice.text)))
    best = [max(top.values()) for top in choice.logprobs.top_logprobs]
    assert best == pytest.approx(logs[:-1].max(-1).values.tolist(), abs=1e-4)
    unknown = client.create(model="tiny", prompt=ids[1:4], max_tokens=1, logprobs=0, echo=True).choices[0].logprobs
    assert unknown.token_logprobs[0] is None
    parts = client.create(
        model="tiny", prompt="the key", max_tokens=5, temperature=0, logprobs=2, echo=True, stream=True
    )
    streamed = [value for part in parts for value in part.choices[0].logprobs.token_logprobs]
    assert streamed == pytest.approx(own, abs=1e-4)


def test_models_and_health(served, client):
    port, _ = served
    models = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none").models
    assert [model.id for model in models.list().data] == ["tiny"]
    assert models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        models.retrieve("other")


@pytest.mark.parametrize(
    ("asked", "error", "word"),
    [
        ({"prompt": "a" * 200}, openai.BadRequestError, "201 tokens"),
        ({"prompt": "a", "max_tokens": 500}, openai.BadRequestError, "500 more"),
        ({"prompt": [300]}, openai.BadRequestError, "from 0 to 256"),
        ({"prompt": [-1]}, openai.BadRequestError, "token -1"),
        ({"prompt": "a", "model": "gpt"}, openai.NotFoundError, "no model gpt"),
        ({"prompt": "a", "n": 9}, openai.BadRequestError, "from 1 to 8"),
        ({"prompt": "a", "extra_body": {"guided": 1}}, openai.BadRequestError, "Unknown key guided"),
    ],
)
def test_openais_client_understands_what_is_refused(client, asked, error, word):
    with pytest.raises(error, match=word) as refused:
        client.create(**{"model": "tiny", "max_tokens": 4, **asked})
    assert refused.value.body["message"]


def test_other_paths_and_methods_are_refused_in_the_same_shape(served):
    status, _, body = post(served[0], {}, "/v1/chat/completions")
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    connection = http.client.HTTPConnection("127.0.0.1", served[0])
    connection.request("GET", "/v1/completions")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_a_body_that_is_too_large_is_refused(served):
    status, _, body = post(served[0], {"model": "tiny", "prompt": "a" * 2**21})
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    with socket.create_connection(("127.0.0.1", served[0])) as raw:  # that is refused before it is sent
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr("widestream.serve.app.SECONDS_TO_SEND", 0.2)
    with socket.create_connection(("127.0.0.1", served[0])) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue_is_said_and_a_place_is_free_at_once_when_a_client_hangs_up(run, slow):
    with serving(run, rows=1, choices=1, waiting=1) as (port, engine):
        body = json.dumps({"model": "tiny", "prompt": "the", "max_tokens": 40, "stream": True}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        running, waiting = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        running.sendall(request)
        wait_until(lambda: engine.running == 1)
        waiting.sendall(request)
        wait_until(lambda: engine.waiting == 1)
        status, headers, answer = post(port, {"model": "tiny", "prompt": "the"})
        assert (status, headers["retry-after"], answer["error"]["code"]) == (429, "1", "queue_full")
        waiting.close()
        wait_until(lambda: engine.waiting == 0)
        assert engine.running == 1
        running.close()
        wait_until(lambda: engine.running == 0, seconds=1)  # forty tokens take two
        whole = http.client.HTTPConnection("127.0.0.1", port)
        whole.request("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "the", "max_tokens": 40}))
        wait_until(lambda: engine.running == 1)
        whole.close()
        wait_until(lambda: engine.running == 0, seconds=1)


def test_time_ends_an_answer_with_what_there_is(run, slow):
    asked = {"model": "tiny", "prompt": "the", "max_tokens": 40, "temperature": 0}
    with serving(run, seconds=1) as (port, _):
        status, _, answer = post(port, asked)
        assert status == 200
        choice = answer["choices"][0]
        assert 0 < len(choice["text"]) < 30
        assert choice["finish_reason"] == "length"
        assert sampled(run, "the", 40, temperature=0).startswith(choice["text"])


def test_who_has_waited_for_too_long_is_told(run, slow):
    asked = {"model": "tiny", "prompt": "the", "max_tokens": 40, "temperature": 0}
    with serving(run, seconds=1, rows=1, choices=1) as (port, engine):
        prompt = Prompt([256, *b"the"], "the", own=1)
        first = read_request(json.dumps(asked).encode(), "tiny", engine.limits)
        pieces = []
        engine.submit(Job(first, [prompt], pieces.append, float("inf")))
        status, headers, answer = post(port, asked)
        assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "timed_out")
        wait_until(lambda: pieces[-1].finish == "length")
        assert "".join(piece.text for piece in pieces) == sampled(run, "the", 40, temperature=0)


def test_a_failure_ends_its_requests_and_no_others(run, monkeypatch, caplog):
    with serving(run) as (port, engine):
        step = Batch.step
        monkeypatch.setattr(Batch, "step", lambda self, tokens: 1 / 0)
        asked = {"model": "tiny", "prompt": "the", "max_tokens": 5, "temperature": 0}
        status, _, answer = post(port, asked)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.setattr(Batch, "step", step)
        assert post(port, asked)[2]["choices"][0]["text"] == sampled(run, "the", 5, temperature=0)
        assert engine.running == 0


def test_those_who_are_being_answered_are_not_held_up(run, slow):
    """One who comes later is answered beside the first, and not behind it."""
    with serving(run) as (port, engine):
        ends = {}

        def ask(name, tokens):
            post(port, {"model": "tiny", "prompt": "the", "max_tokens": tokens, "seed": 1, "temperature": 0})
            ends[name] = time.monotonic()

        long = threading.Thread(target=ask, args=("long", 40))
        long.start()
        wait_until(lambda: engine.running == 1)
        ask("short", 3)
        long.join()
        assert ends["short"] < ends["long"] - 0.5


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "widestream", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip


def test_what_cannot_be_served_is_one_sentence(run, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    for arguments, word in (
        ((tmp_path,), "run"),
        ((run, "--port", port), "Cannot listen"),
        ((run, "--context", 400), "lower --context"),
        ((run, "--rows", 2), "choices"),
    ):
        process = command(*arguments)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert word in said
        assert "Traceback" not in said
    taken.close()


@pytest.mark.slow
def test_the_drill(run):
    """Fifty clients at once, most of whom misbehave: good ones are served, and memory returns to where it was."""
    done = subprocess.run(
        [sys.executable, str(DRILL), str(run), "--rounds", "6", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["answers"]["greedy: 200"] == 90
    assert result["answers"]["hangs up: hung up"] == 90
    assert result["exit_code"] == 143
    warm, last = result["rss_mb"][3], result["rss_mb"][-1]
    assert last < warm + 10
    assert "Traceback" not in done.stderr


def test_limits_are_those_of_the_command():
    """Every limit can be set at the command line, and has the same default there."""
    import inspect

    from widestream.cli.serve import serve

    options = inspect.signature(serve).parameters
    names = {"tokens": "context", "waiting": "queue"}
    for field in dataclasses.fields(Limits):
        default = options[names.get(field.name, field.name)].default
        assert default == (None if field.name == "tokens" else field.default)


@pytest.mark.slow
def test_running_answers_have_their_last_seconds_when_the_server_is_told_to_end(run):
    process = command(run, "--port", 0, "--grace", 1)
    port = int(process.stdout.readline().partition("127.0.0.1:")[2].partition("/")[0])
    # As long as the context is, again and again: there is always one that runs.
    answers = []

    def ask():
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                answers.append(post(port, {"model": "tiny", "prompt": "the", "max_tokens": 40, "n": 8}))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) > 4)
    start = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=30)
    for thread in threads:
        thread.join()
    assert process.returncode == 143
    assert time.monotonic() - start < 10
    assert "Traceback" not in said
    assert {status for status, _, _ in answers} <= {200, 503}
    assert all(
        choice["finish_reason"] for _, _, answer in answers if "choices" in answer for choice in answer["choices"]
    )


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_a_sentence_says_what_to_install(run, missing):
    script = f"import sys; sys.modules['{missing}'] = None; from widestream.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", str(run)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == f"widestream: The server needs {missing}: pip install 'widestream[serve]'.\n"
