"""Studies as jobs: carried out by submitit's processes here, sent to a Slurm that only looks like one, refused."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

from study_runs import write_study
from tiny_runs import write_data
from widestream.cli import main
from widestream.errors import UserError
from widestream.study import cluster
from widestream.study.cluster import ClusterOptions, Worker, submit_studies, wait_for
from widestream.study.run import StudyOptions

STEPS = 30
SETTINGS = {
    "model.vocab_size": 257, "model.num_layers": 1, "model.num_heads": 2, "model.mlp_dim": 16, "model.context": 32,
    "train.steps": STEPS, "train.batch_size": 2, "train.eval_windows": 2,
}  # fmt: skip
ARMS = {
    "plain": {"recipe": "study/cpu/transformer"},
    "wider": {"recipe": "study/cpu/transformer", "set": {"model.mlp_dim": 24}},
}
SBATCH = """#!/bin/sh
cat "$1" >> sent.txt
echo "Submitted batch job 4711"
"""
UNTIL_TOLD = """
import pathlib, signal, sys, time
def told(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
began = pathlib.Path("began")
began.write_text(f"{began.read_text() if began.exists() else ''}x")
while not pathlib.Path("saved").exists():
    time.sleep(0.02)
"""
"""Works until it is told to end, and saves; where it saved before, it is done."""


@pytest.fixture
def tiny(here):
    """A study of two arms and its data, in the working folder; gives the options to carry it out with."""
    write_study(here / "mine.yaml", arms=ARMS, reference="plain", seeds=1, search=None, evaluations=6, set=SETTINGS)
    return StudyOptions(folder=Path("runs"), data=write_data(here / "data"))


@pytest.fixture
def slurm(here, monkeypatch):
    """An sbatch that keeps in sent.txt what it is given."""
    programs = here / "programs"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


@pytest.fixture
def sent(monkeypatch):
    """What the workers of a submission are, which is not carried out."""
    workers = []

    def keep(executor, given):
        workers.extend(given)
        return [SimpleNamespace(job_id=str(number)) for number, _ in enumerate(given)]

    monkeypatch.setattr(submitit.LocalExecutor, "submit_array", keep)
    return workers


def call(monkeypatch, *arguments):
    """Run the command in this process; gives its exit code."""
    monkeypatch.setattr("sys.argv", ["widestream", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def record():
    return json.loads(Path("runs/cpu/mine.study.json").read_text())


def steps(folder):
    """Those that stand in its metrics, in order."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []
    return [row["step"] for row in rows if row["kind"] == "train"]


def family(pid):
    """A process and all under it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(pid), *(one for child in children for one in family(child))]


def wait_until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_made_once():
    """Both runs are done, every step of them was taken once, and nothing is claimed any more."""
    entries = [arm["runs"][0] for arm in record()["arms"]]
    assert [one["status"] for one in entries] == ["done", "done"]
    for one in entries:
        assert steps(Path("runs/cpu") / one["folder"]) == list(range(1, STEPS + 1))
    assert not list(Path("runs/cpu/runs").glob("*.claim"))


@pytest.mark.slow
def test_two_jobs_divide_a_study(tiny, monkeypatch, capfd):
    options = ["--out", "runs", "--data", str(tiny.data), "--on", "local", "--jobs", "2", "--wait"]
    assert call(monkeypatch, "study", "run", "mine.yaml", *options) == 0
    said = capfd.readouterr().out
    assert said.startswith("Jobs: ")
    assert "widestream study report mine --runs runs/cpu" in said
    assert said.endswith("Record: runs/cpu/mine.study.json\n")
    assert_made_once()
    assert "--on" not in record()["command"]
    logs = sorted(Path("runs/cpu/cluster").glob("*_log.out"))
    assert len(logs) == 2
    for log in logs:
        assert "Record: " in log.read_text(), "each worker stays until the study is over"


@pytest.mark.slow
def test_what_a_killed_job_leaves_is_finished_by_the_other(tiny):
    submission = submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local", jobs=2))
    runs = Path("runs/cpu/runs")
    wait_until(lambda: sum(len(steps(path)) > 6 for path in runs.glob("vector-*")) == 2)
    killed, other = submission.jobs
    for pid in family(killed.job_id):
        os.kill(pid, signal.SIGKILL)
    wait_for(submission)
    assert killed.state == "INTERRUPTED"
    assert other.state == "FINISHED"
    assert_made_once()


def test_a_job_out_of_time_saves_and_goes_on_once_queued_again(here):
    executor = submitit.LocalExecutor(here / "logs")
    executor.update_parameters(timeout_min=1)
    job = executor.submit(Worker([sys.executable, "-c", UNTIL_TOLD]))
    began = Path("began")
    wait_until(began.exists)
    task = family(job.job_id)[1]
    os.kill(task, signal.SIGUSR2)  # as Slurm gives notice, to a job's process
    wait_until(job.done)
    assert began.read_text() == "xx"
    assert "Caught signal SIGUSR2" in job.stderr()
    assert job.paths.result_pickle.is_file()


def test_notice_is_for_the_job_and_does_not_kill_its_worker(here, monkeypatch):
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    ignorant = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); open('alive', 'w').close()"
    Worker([sys.executable, "-c", ignorant])()
    assert Path("alive").exists()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGUSR1, signal.SIGUSR2}


@pytest.mark.parametrize("code", [2, 143])
def test_a_worker_that_fails_fails_its_job(here, monkeypatch, code):
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    slept = []
    worker = Worker([sys.executable, "-c", f"raise SystemExit({code})"])
    monkeypatch.setattr(cluster.time, "sleep", slept.append)
    with pytest.raises(RuntimeError, match=f"code {code}"):
        worker()
    assert (cluster.NOTICE_S in slept) == (code == 143), "told to end, it waits for the word that queues it again"


def test_the_workers_are_the_same_command(tiny, sent):
    options = replace(tiny, seeds=3, scale="cpu")
    submission = submit_studies(["mine.yaml"], options, ClusterOptions(on="local", jobs=3))
    assert [job.job_id for job in submission.jobs] == ["0", "1", "2"]
    expected = ["-m", "widestream.runs.child", "study", "run", "mine.yaml", "--out", "runs", "--data", str(tiny.data),
                "--seeds", "3", "--workers", "1"]  # fmt: skip
    assert [worker.command for worker in sent] == [[sys.executable, *expected]] * 3
    assert "kill -INT 0 1 2" in str(submission)
    assert not Path("runs/cpu/mine.study.json").exists(), "the jobs write it"


def test_studies_that_lie_apart_are_looked_at_apart(tiny, sent):
    for name, seeds in {"other": 2, "plain": 1}.items():
        runs = {"runs": "plain"} if name == "plain" else {}
        changes = {"arms": ARMS, "reference": "plain", "seeds": seeds, "search": None, "set": SETTINGS}
        write_study(Path(f"{name}.yaml"), **changes, **runs)
    options = replace(tiny, folder=None)
    submission = submit_studies(["mine.yaml", "other.yaml", "plain.yaml"], options, ClusterOptions(on="local"))
    said = str(submission)
    assert "widestream study report mine other --runs runs/study/cpu\n" in said
    assert "widestream study report plain --runs runs/plain\n" in said
    assert submission.logs == Path("runs/study/cpu/cluster")
    assert sent[0].command[5:8] == ["mine.yaml", "other.yaml", "plain.yaml"]


def test_gpus_here_are_shared_out(tiny, sent, monkeypatch):
    monkeypatch.setattr(cluster, "visible_gpus", lambda: ["2", "3", "5", "7"])
    submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local", jobs=2, gpus=2))
    assert [worker.gpus for worker in sent] == ["2,3", "5,7"]
    assert sent[0].command[-2:] == ["--workers", "2"]
    sent.clear()
    submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local", jobs=2))
    assert [worker.gpus for worker in sent] == ["2,3,5,7"] * 2
    with pytest.raises(UserError, match="3 jobs of 2 GPUs need 6, and 4 are here"):
        submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local", jobs=3, gpus=2))


def test_what_slurm_is_sent(tiny, slurm, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    settings = ["--slurm", "cpus_per_task=8", "--slurm", "mem=32GB", "--slurm", "setup=[module load cuda]",
                "--slurm", "additional_parameters={reservation: night}"]  # fmt: skip
    options = ["--out", "runs", "--data", str(tiny.data), "--on", "slurm", "--jobs", "4", "--partition", "gpu",
               "--time", "90", "--gpus-per-job", "2", *settings]  # fmt: skip
    assert call(monkeypatch, "study", "run", "mine.yaml", *options) == 0
    said = capfd.readouterr().out
    assert "4711_0, 4711_1, 4711_2, 4711_3" in said
    assert "scancel 4711\n" in said
    text = Path("sent.txt").read_text()
    flags = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")}
    wanted = {"array=0-3%4", "partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=8", "mem=32GB",
              "reservation=night", "job-name=widestream", "signal=USR2@90"}  # fmt: skip
    assert flags >= wanted
    assert "\nmodule load cuda\n" in text
    assert text.count("#!/bin/bash") == 1, "one array"
    logs = Path("runs/cpu/cluster")
    for number in range(4):
        worker = submitit.core.utils.DelayedSubmission.load(logs / f"4711_{number}_submitted.pkl").function
        assert isinstance(worker, Worker)
        assert worker.gpus is None
        assert worker.command[-2:] == ["--workers", "2"]


def test_slurm_is_asked_for_no_more_than_was_said(tiny, slurm):
    submission = submit_studies(["mine.yaml"], tiny, ClusterOptions(on="slurm"))
    assert [job.job_id for job in submission.jobs] == ["4711"]
    text = Path("sent.txt").read_text()
    assert "--time=240" in text
    assert not [word for word in ("--partition", "gpus", "--array", "--mem", "cpus") if word in text]


def test_jobs_that_slurm_does_not_take_leave_nothing_behind(tiny, slurm):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpuu' >&2\nexit 1\n")
    for jobs in (1, 2):
        with pytest.raises(UserError, match="does not take the jobs: sbatch: error: invalid partition: gpuu"):
            submit_studies(["mine.yaml"], tiny, ClusterOptions(on="slurm", jobs=jobs, partition="gpuu"))
    assert not list(Path("runs/cpu/cluster").iterdir())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wait": True}, "--wait is about jobs; say where they run: --on slurm, or --on local"),
        ({"jobs": 0}, "--jobs is about jobs"),
        ({"settings": ("mem=1GB",)}, "--slurm is about jobs"),
        ({"on": "slrum"}, "did you mean slurm"),
        ({"on": "local", "partition": "gpu"}, "--partition is for --on slurm"),
        ({"on": "slurm", "jobs": 0}, "--jobs must be at least 1, not 0"),
        ({"on": "slurm", "minutes": -5}, "--time must be at least 1"),
        ({"on": "slurm", "settings": ("cpus_per_tusk=8",)}, "did you mean cpus_per_task"),
        ({"on": "slurm", "settings": ("map_count=8",)}, "Unknown setting 'map_count' for --slurm"),
        ({"on": "slurm", "settings": ("mem",)}, "KEY=VALUE"),
        ({"on": "slurm", "settings": ("mem=[",)}, r"--slurm mem=\[ is not valid YAML"),
        ({"on": "slurm", "settings": ("time=5",)}, "give --time"),
        ({"on": "slurm", "settings": ("setup=module load cuda",)}, "submitit does not take the settings"),
    ],
)
def test_refused(tiny, slurm, given, words):
    with pytest.raises(UserError, match=words):
        submit_studies(["mine.yaml"], tiny, ClusterOptions(**given))
    assert not Path("sent.txt").exists()
    assert not Path("runs").exists()


def test_refused_where_something_is_missing(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(UserError, match="no sbatch here"):
            submit_studies(["mine.yaml"], tiny, ClusterOptions(on="slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'widestream\[cluster\]'"):
        submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local"))


def test_a_study_that_cannot_be_carried_out_is_not_submitted(tiny, slurm, monkeypatch, capfd):
    assert call(monkeypatch, "study", "run", "mine.yaml", "--out", "runs", "--search", "--on", "slurm") == 2
    assert "has no `search`" in capfd.readouterr().err
    assert call(monkeypatch, "study", "run", "mine.yaml", "--data", "nowhere", "--on", "slurm") == 2
    assert "holds no prepared data" in capfd.readouterr().err
    assert call(monkeypatch, "study", "run", "mine.yaml", "--wait") == 2
    assert "--wait is about jobs" in capfd.readouterr().err
    assert not Path("sent.txt").exists()


def test_jobs_that_end_before_the_study_is_over_are_told(tiny, sent, monkeypatch):
    submission = submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local"))
    log = Path("job.err")
    log.write_text("training\nwidestream: The disk is full.\nTraceback\nRuntimeError: The worker ended\n")
    ended = SimpleNamespace(job_id="1", done=lambda: True, paths=SimpleNamespace(stderr=log))
    with pytest.raises(UserError, match=r"is not complete\. A job said: The disk is full\. \(all of it: job\.err\)"):
        wait_for(replace(submission, jobs=[ended]))
    log.unlink()
    with pytest.raises(UserError, match="Look at what the jobs said, in runs/cpu/cluster"):
        wait_for(replace(submission, jobs=[ended]))


def test_a_record_from_before_does_not_make_a_study_complete(tiny, sent):
    path = Path("runs/cpu/mine.study.json")
    first = submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local"))
    path.parent.mkdir(parents=True, exist_ok=True)
    arm = {"name": "plain", "trials": [], "runs": [{"folder": "runs/a", "steps": 3, "status": "done"}]}
    text = {"study": "mine", "title": "A study", "question": "Which is better?", "file": "../../mine.yaml"}
    path.write_text(json.dumps(text | {"arms": [arm]}))
    ended = SimpleNamespace(job_id="1", done=lambda: True, paths=SimpleNamespace(stderr=Path("none")))
    wait_for(replace(first, jobs=[ended]))
    again = submit_studies(["mine.yaml"], tiny, ClusterOptions(on="local"))
    with pytest.raises(UserError, match="is not complete"):
        wait_for(replace(again, jobs=[ended]))
