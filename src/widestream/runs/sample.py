"""Sample from the model in a run folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from widestream.errors import UserError
from widestream.generate.decoding import cast_weights
from widestream.generate.sampling import SamplingConfig, generate
from widestream.machine import find_device
from widestream.runs.folder import SAMPLES, load_config
from widestream.runs.model import load_model, load_run_tokenizer


@dataclass(frozen=True)
class Sample:
    """A continuation."""

    prompt: str
    """What was given."""
    text: str
    """What the model added."""
    step: int
    """The checkpoint's step."""
    num_tokens: int
    """Tokens added."""


def sample_run(
    run_dir: str | Path,
    prompt: str,
    config: SamplingConfig,
    *,
    device: str | None = None,
    use_cache: bool = True,
    keep: bool = False,
    precision: str = "float32",
    compiled: bool = False,
) -> Sample:
    """Continue `prompt` with a run's newest complete checkpoint.

    A document boundary stands in front of the prompt, as in training; a drawn boundary ends the text.

    Args:
        run_dir: folder of a run.
        prompt: text; may be empty.
        config: how tokens are chosen.
        device: where to compute; default: where the run was trained.
        use_cache: see `generate`.
        keep: append the sample to the run's samples.jsonl.
        precision: `float32` or `bf16`.
        compiled: see `Decoding`.

    Raises:
        UserError: no run, no checkpoint, no tokenizer, or a prompt that does not fit or is no text.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):  # bytes of the command line that are no UTF-8
        raise UserError("The prompt is not valid text; give it in UTF-8.")
    run_dir = Path(run_dir)
    run_config = load_config(run_dir)
    tokenizer = load_run_tokenizer(run_dir)
    model, found = load_model(run_dir, find_device(device or run_config.train.device))
    if run_config.train.threads is not None:
        torch.set_num_threads(run_config.train.threads)
    ids = [tokenizer.boundary_id, *tokenizer.encode_batch([prompt])[0].tolist()]
    cast_weights(model, precision)
    new = generate(
        model,
        ids,
        config,
        stop=tokenizer.boundary_id,
        num_ids=tokenizer.vocab_size,
        use_cache=use_cache,
        precision=precision,
        compiled=compiled,
    )
    sample = Sample(prompt, tokenizer.decode(new), found.step, len(new))
    if keep:
        row = {**asdict(sample), **asdict(config)}
        with (run_dir / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return sample
