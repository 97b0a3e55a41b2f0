"""The demo's search for peak learning rates: the same grid for both models, on the demo's data, 400 steps each.

    widestream demo --prepare-only        # the data, if runs/demo/data is not there yet
    python lab/demo_search.py             # about 40 minutes on two cores; writes recipes/demo/search.json

Runs that exist are not repeated. Seeds of the search are not used by the demo.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RATES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
MODELS = {"transformer": "demo/transformer", "rmt": "demo/rmt"}
SEED = 100
STEPS = 400
RECORD = Path(__file__).parent.parent / "recipes" / "demo" / "search.json"


def trial(model: str, rate: float) -> dict[str, object]:
    """Train one model at one rate. A run stopped by its finite-loss guard has diverged; any other failure is one."""
    run = Path("runs/demo-search") / f"{model}-{rate:g}"
    done = run / "done.json"
    if not done.is_file():
        command = [sys.executable, "-m", "widestream", "train", MODELS[model], f"optimizer.lr={rate}"]
        command += [f"train.seed={SEED}", f"data.seed={SEED}", f"train.steps={STEPS}"]
        command += ["train.eval_every=100", "train.save_every=200"]
        subprocess.run([*command, "--out", str(run)], check=False, stdin=subprocess.DEVNULL)
    result = json.loads(done.read_text()) if done.is_file() else None
    diverged = any(run.glob("nonfinite_step_*"))
    if result is None and not diverged:
        raise RuntimeError(f"{run} failed; its own message stands above")
    return {
        "model": model,
        "lr": rate,
        "seed": SEED,
        "steps": result["step"] if result else None,
        "heldout_loss": result["heldout"]["loss"] if result else None,
        "diverged": diverged,
    }


def main() -> None:
    """Two runs at a time: each takes one core."""
    trials = [(model, rate) for rate in RATES for model in MODELS]
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda pair: trial(*pair), trials))
    rows.sort(key=lambda row: (row["model"], row["lr"]))
    RECORD.write_text(json.dumps({"command": "python lab/demo_search.py", "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
