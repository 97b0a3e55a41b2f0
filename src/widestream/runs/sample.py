"""Sample from the model in a run folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError
from widestream.generate.decoding import cast_weights
from widestream.generate.sampling import SamplingConfig, generate, why_ended
from widestream.machine import find_device, numerics
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
    ended: str
    """Why there are no more: `length` (as many as asked for), `document` (its end was drawn) or `context` (full)."""


def sample_run(
    run_dir: str | Path,
    prompt: str,
    config: SamplingConfig,
    *,
    step: int | None = None,
    device: str | None = None,
    use_cache: bool = True,
    keep: bool = False,
    precision: str = "float32",
    compiled: bool = False,
) -> Sample:
    """Continue `prompt` with a run's model.

    A document boundary stands in front of the prompt, as in training; a drawn boundary ends the text.

    Args:
        run_dir: folder of a run.
        prompt: text; may be empty.
        config: how tokens are chosen.
        step: of the checkpoint; None: the newest complete one.
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
    model, saved = load_model(run_dir, find_device(device or run_config.train.device), step)
    ids = [tokenizer.boundary_id, *tokenizer.encode_batch([prompt])[0].tolist()]
    cast_weights(model, precision)
    with numerics(run_config.train):
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
    text = continuation(tokenizer, ids, new)
    sample = Sample(prompt, text, saved.step, len(new), why_ended(model, ids, new, config))
    if keep:
        with (run_dir / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(sample), **asdict(config)}, ensure_ascii=False) + "\n")
    return sample


def continuation(tokenizer: Tokenizer, ids: list[int], new: list[int]) -> str:
    """What new ids add to a text. They are decoded with what stands before them, for some tokenizers (Metaspace,
    WordPiece) put a space in front of a token only where it is not the first.
    """
    before, whole = tokenizer.decode(ids), tokenizer.decode([*ids, *new])
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return whole[shared:]


def remove_samples(run_dir: Path) -> None:
    """Remove the texts that were kept."""
    (run_dir / SAMPLES).unlink(missing_ok=True)
