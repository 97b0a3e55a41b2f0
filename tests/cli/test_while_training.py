"""A training process and what others may do meanwhile: sample from it, not train in its folder, interrupt it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tiny_runs import RECIPE


def interruptible():
    """A suite that runs in the background of a shell has SIGINT ignored, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def widestream(*arguments, **options):
    command = [sys.executable, "-m", "widestream", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, preexec_fn=interruptible, **options)


@pytest.mark.slow
def test_a_run_is_sampled_guarded_interrupted_and_taken_up_again(tmp_path):
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": f"words {i} " * 30}) for i in range(20)))
    recipe = RECIPE | {"train": RECIPE["train"] | {"steps": 10**6, "eval_every": 10**6, "save_every": 20}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(recipe))
    prepared = widestream("data", "prepare", "text.jsonl", "--out", "data", "--heldout", "0.1", cwd=tmp_path)
    assert prepared.wait(60) == 0
    training = widestream("train", "long.yaml", cwd=tmp_path)
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    try:
        for _ in range(600):
            if any(checkpoints.glob("step_*")):
                break
            time.sleep(0.1)
        second = widestream("train", "long.yaml", cwd=tmp_path)
        sampling = widestream("sample", "runs/tiny", "--prompt", "wörds 🙂", "--tokens", "2", cwd=tmp_path)
        out, err = second.communicate(timeout=60)
        assert second.returncode == 2
        assert err.splitlines()[-1].startswith("widestream: Another process is training in runs/tiny; wait for it")
        out, err = sampling.communicate(timeout=60)
        assert sampling.returncode == 0, err
        assert out.startswith("wörds 🙂")
        assert training.poll() is None
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=60)
    finally:
        training.kill()
    assert training.returncode == 130
    assert err.splitlines()[-1] == "widestream: interrupted; run the same command again to go on."
    assert "Traceback" not in err
    reached = max(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    going_on = widestream("train", "long.yaml", cwd=tmp_path)
    try:
        for _ in range(600):
            if any(int(path.name.removeprefix("step_")) > reached for path in checkpoints.glob("step_*")):
                break
            time.sleep(0.1)
        else:
            pytest.fail("the run did not go on")
    finally:
        going_on.kill()
        going_on.communicate()
