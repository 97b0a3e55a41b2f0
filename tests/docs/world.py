"""The folder that the pages' commands run in: a little text, the demo's data, a few tiny runs."""

import shutil
from pathlib import Path

from fake_runs import write_run

TINY = (
    *("model.num_layers=1", "model.num_heads=2", "model.head_dim=8", "model.mlp_dim=16", "model.context=64"),
    *("train.steps=2", "train.batch_size=2", "train.eval_windows=2", "train.final_eval=windows"),
)
"""Changes to a recipe that make its run a matter of a moment."""
DEMO_RUNS = ("rmt-seed0", "rmt-seed1", "transformer-seed0")


def write_checkpoint(folder: Path) -> None:
    """A small Llama of random weights, as transformers saves it, with the demo's tokenizer."""
    from conversion import saved, square

    saved(folder, "Llama", vocab_size=4096, **square("Llama"))
    shutil.copy("runs/demo/tokenizer.json", folder / "tokenizer.json")


def make_world(folder: Path, invoke) -> None:
    """Fill an empty folder. `invoke` runs a command of widestream in it."""
    invoke("demo", "--prepare-only")
    write_checkpoint(folder / "models" / "SmolLM2-135M")
    (folder / "my_texts").mkdir()
    for number in range(12):
        words = " ".join(f"The {name} keeps what the head has stored under key {number}." for name in "abcdefgh" * 12)
        (folder / "my_texts" / f"{number}.txt").write_text(f"{words}\n\n" * 4)
    (folder / "my-recipe.yaml").write_text("extends: demo/rmt\nname: my-rmt\n")
    for name in DEMO_RUNS:
        recipe, _, seed = name.partition("-seed")
        seeds = (f"train.seed={seed}", f"data.seed={seed}")
        invoke("train", f"demo/{recipe}", *TINY, *seeds, "--out", f"runs/demo/{name}")
    for name, key_dim, rate in (("rmt", 32, 0.01), ("wide", 64, 0.01), ("old-rmt", 32, 0.02)):
        changes = {"name": name, "optimizer.lr": rate, "model.stream.key_dim": key_dim}
        write_run(folder / "runs" / "mine" / name, "rmt", config=changes)
