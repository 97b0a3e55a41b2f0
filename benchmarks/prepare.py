"""Time `widestream data prepare` beside `datasets.map` with the same tokenizer file, on the same processors.

    python benchmarks/prepare.py --datasets-python OTHER_VENV/bin/python

The text is the bundled prose, repeated with a line in front of each document that makes it another one, as one .jsonl
file. The two take turns, each in processes of its own. Reported are, for each of them: seconds by the clock (the
shortest, which a busy machine disturbs least), seconds of processor time, and the most memory that all of its processes
held together (resident, sampled twenty times a second; what processes share is counted in each). The clock of
`datasets` runs during `map` alone; that of widestream from the start of the command to its end.

`datasets` may live in an interpreter of its own: this project does not need it.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from widestream.data.sources import BUNDLED, open_corpus
from widestream.data.tokenizer import resolve_tokenizer

MAP = """
import json, os, sys, time
import datasets
from tokenizers import Tokenizer
source, tokenizer, cache, processes = sys.argv[1:]
texts = datasets.load_dataset("json", data_files=source, split="train", cache_dir=cache)
tokenizer = Tokenizer.from_file(tokenizer)
def encode(batch):
    encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"ids": [encoding.ids for encoding in encodings]}
begin, used = time.perf_counter(), os.times()
texts.map(encode, batched=True, num_proc=int(processes), remove_columns=texts.column_names)
now = os.times()
cpu = sum(now[:4]) - sum(used[:4])
print(json.dumps({"seconds": time.perf_counter() - begin, "cpu_seconds": cpu}))
"""


def write_corpus(path: Path, size: int) -> None:
    """About `size` bytes of .jsonl, no two documents the same."""
    texts = [document.text for document in open_corpus([BUNDLED]).documents()]
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < size:
            text = f"Copy {number // len(texts)}, text {number % len(texts)}.\n{texts[number % len(texts)]}"
            file.write(json.dumps({"text": text}) + "\n")
            number += 1


def tree_memory(root: int) -> int:
    """Resident bytes of a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            resident[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(folder.name))
    waiting, pages = [root], 0
    while waiting:
        process = waiting.pop()
        pages += resident.get(process, 0)
        waiting += children.get(process, [])
    return pages * resource.getpagesize()


def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run to the end: `seconds`, `cpu_seconds`, `peak_bytes`, and `output`."""
    before, begin, peak = os.times(), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.05)
        seconds, after = time.perf_counter() - begin, os.times()
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "output": output.read()}


def ours(args: argparse.Namespace, source: Path, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """One preparation, by the command."""
    out = scratch / "prepared"
    command = [sys.executable, "-m", "widestream", "data", "prepare", source, "--out", out, "--tokenizer", tokenizer]
    result = run([*map(str, command), "--workers", str(args.workers)], {})
    shutil.rmtree(out)
    return result


def theirs(args: argparse.Namespace, source: Path, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """One `map`, in a fresh cache. Its processes are the parallelism, so the tokenizer's own is off."""
    cache = scratch / "cache"
    command = [args.datasets_python, "-c", MAP, source, tokenizer, cache, args.workers]
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "home")}
    result = run([*map(str, command)], environment)
    shutil.rmtree(cache)
    return {**result, **json.loads(result["output"].splitlines()[-1])}


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=133)
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2 or a tokenizer.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datasets-python", help="interpreter that has datasets; without it, only widestream is timed")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    args = parser.parse_args()
    turns = {"widestream": ours, **({"datasets.map": theirs} if args.datasets_python else {})}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source, tokenizer = scratch / "source.jsonl", scratch / "tokenizer.json"
        write_corpus(source, int(args.megabytes * 1e6))
        resolve_tokenizer(args.tokenizer).save(scratch)
        for round_ in range(args.rounds):
            for name, turn in turns.items():
                results[name].append(result := turn(args, source, tokenizer, scratch))
                del result["output"]
                print(f"round {round_ + 1}, {name}: {describe([result])}", flush=True)
    for name, found in results.items():
        print(f"{name}: {describe(found)}")
    if args.datasets_python:
        for key in ("seconds", "cpu_seconds"):
            pairs = zip(results["widestream"], results["datasets.map"], strict=True)
            ratios = [mine[key] / other[key] for mine, other in pairs]
            print(f"{key}, widestream / datasets.map: {statistics.median(ratios):.3f} (median of the rounds)")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "results": results}, indent=1, default=str) + "\n")


def describe(results: list[dict[str, Any]]) -> str:
    """The best of every figure, and of memory the worst."""
    seconds, cpu = (min(result[key] for result in results) for key in ("seconds", "cpu_seconds"))
    return f"{seconds:.2f} s, {cpu:.2f} s of processor time, {max(r['peak_bytes'] for r in results) / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
