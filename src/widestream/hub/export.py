"""`widestream export hf`: a run as a folder that transformers loads, checked in a fresh process before it is there."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from widestream.data.tokenizer import Tokenizer
from widestream.errors import UserError
from widestream.hub.bundle import modeling_file
from widestream.hub.card import model_card
from widestream.hub.tokenizer import tokenizer_files
from widestream.model.decoder import Decoder
from widestream.runs.folder import MADE, load_config, read_done, read_info
from widestream.runs.made import made_folder
from widestream.runs.model import load_model, load_run_tokenizer
from widestream.runs.rows import metrics_rows

LARGEST_DIFFERENCE = 1e-5
"""Between logits of the run and of the folder, of the largest logit."""
TEXTS = ("The matrix keeps what every head has stored.", "", "  Zwölf\n\n\tßäü \U0001f600 <|endoftext|> 0123")
"""Whose ids must be the same."""
MODELING = "modeling_widestream"


def export_run(run_dir: Path, folder: Path, step: int | None = None, licence: str | None = None,
               shard_size: str = "5GB") -> float:  # fmt: skip
    """Write a run as a folder for transformers.

    Args:
        run_dir: the run.
        folder: must not be there yet.
        step: of a checkpoint; None: the newest one of a finished run.
        licence: of the weights, for the card.
        shard_size: largest size of a file of weights.

    Returns:
        How far the logits of the folder are from the run's, as a share of the largest; at most `LARGEST_DIFFERENCE`.

    Raises:
        UserError: it is no finished run, the folder is there, or transformers is missing or loads something else.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already; give another name, or remove it.")
    if not folder.parent.is_dir():
        raise UserError(f"The folder {folder.parent} does not exist; make it first.")
    _require_transformers()
    config, info = load_config(run_dir), read_info(run_dir)
    if step is None and MADE not in info and read_done(run_dir) is None:
        raise UserError(f"{run_dir} is not finished; let it train to its end, or name a checkpoint with --step.")
    model, checkpoint = load_model(run_dir, torch.device("cpu"), step)
    tokenizer = load_run_tokenizer(run_dir)
    heldout = None if MADE in info else _evaluation_at(run_dir, checkpoint.step)
    with made_folder(folder) as aside:
        write_model(model, aside, tokenizer.boundary_id, shard_size)
        for name, text in tokenizer_files(tokenizer).items():
            (aside / name).write_text(text, encoding="utf-8")
        card = model_card(config, info, checkpoint.step, heldout, licence)
        (aside / "README.md").write_text(card, encoding="utf-8")
        difference = _check(model, tokenizer, aside)
        for path in aside.iterdir():
            path.chmod(0o644)  # safetensors keeps its files from others
    return difference


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(
            "The folder is checked with transformers, which is missing: pip install transformers."
        ) from None


def write_model(model: Decoder, folder: Path, boundary_id: int | None = None, shard_size: str = "5GB") -> None:
    """Write modelling file, configuration and weights.

    Args:
        model: any.
        folder: is made if need be.
        boundary_id: token that begins and ends texts, and pads.
        shard_size: largest size of a file of weights.

    Raises:
        UserError: the stream is the user's own.
    """
    from huggingface_hub import save_torch_state_dict

    from widestream.hub.configuration import WidestreamConfig

    code = modeling_file(model.config.stream.kind)
    ids = {} if boundary_id is None else dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), boundary_id)
    classes = {
        "AutoConfig": "WidestreamConfig",
        "AutoModel": "WidestreamModel",
        "AutoModelForCausalLM": "WidestreamForCausalLM",
    }
    config = WidestreamConfig.of(
        model.config,
        architectures=["WidestreamForCausalLM"],
        auto_map={auto: f"{MODELING}.{own}" for auto, own in classes.items()},
        dtype="float32",
        **ids,
    )
    folder.mkdir(exist_ok=True)
    (folder / f"{MODELING}.py").write_text(code, encoding="utf-8")
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    weights = {f"decoder.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_torch_state_dict(weights, folder, max_shard_size=shard_size, metadata={"format": "pt"})


def _evaluation_at(run_dir: Path, step: int) -> tuple[float, int] | None:
    """Held-out loss at a step, and the tokens that it is a mean over; None: there was no evaluation."""
    rows = [row for row in metrics_rows(run_dir) if row["kind"] == "eval" and row["step"] == step]
    return (rows[-1]["loss"], rows[-1]["target_tokens"]) if rows else None


# What a process does that cannot import this package: load the folder, and say what it computes.
_LOADER = """
import json, os, sys
sys.modules["widestream"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, work = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokens = load_file(os.path.join(work, "tokens.safetensors"))["tokens"]
with torch.no_grad():
    whole = model(tokens).logits
    out = model(tokens[:, :-1], use_cache=True)
    cache = out["cache"] if "cache" in out else out["past_key_values"]
    stepped = model(tokens[:, -1:], use_cache=True, past_key_values=cache).logits[:, -1]
save_file({"whole": whole, "stepped": stepped}, os.path.join(work, "logits.safetensors"))
texts = json.load(open(os.path.join(work, "texts.json")))
json.dump([tokenizer(text)["input_ids"] for text in texts], open(os.path.join(work, "ids.json"), "w"))
"""


def _check(model: Decoder, tokenizer: Tokenizer, folder: Path) -> float:
    """Load the folder where the package cannot be imported, and compare.

    Raises:
        UserError: it does not load there, or gives other logits or ids.
    """
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(0)
    length = min(model.config.context, 32)
    tokens = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        expected = model.logits(model(tokens))
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        save_file({"tokens": tokens}, work / "tokens.safetensors")
        (work / "texts.json").write_text(json.dumps(TEXTS))
        _load_elsewhere(folder, work)
        found = load_file(work / "logits.safetensors")
        ids = json.loads((work / "ids.json").read_text())
    own = [[tokenizer.boundary_id, *map(int, row)] for row in tokenizer.encode_batch(list(TEXTS))]
    if ids != own:
        raise UserError("The folder's tokenizer gives other ids than the run's; this tokenizer cannot be exported.")
    scale = expected.abs().max()
    whole = (found["whole"] - expected).abs().max() / scale
    stepped = (found["stepped"] - expected[:, -1]).abs().max() / scale
    difference = float(torch.maximum(whole, stepped))
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"transformers computes other logits from the folder than the run has ({difference:.1e} of the largest); "
            "nothing was written."
        )
    return difference


def _load_elsewhere(folder: Path, work: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    command: list[Any] = [sys.executable, "-c", _LOADER, folder.resolve(), work]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
        raise UserError(f"transformers cannot load the folder: {last.strip()}")
