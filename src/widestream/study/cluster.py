"""Studies on a cluster: jobs that Slurm starts, each a worker process of the same `widestream study run`.

Nothing of a study is told to a job but that command line. Which runs are left, and which of them another job has, the
worker sees from the folder, as any process does that carries out a study (`runs/pool.py`). So jobs may start late, be
preempted, run out of time or die, and what they leave is taken over.

A job loads this module before its worker starts, so it imports nothing heavy by itself.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widestream.errors import TERMINATED, UserError, unknown_name
from widestream.files import make_folder, read_json
from widestream.recipe.yaml_text import parse_value
from widestream.runs.folder import steps_done
from widestream.runs.pool import visible_gpus
from widestream.runs.progress import Progress

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.core.utils import DelayedSubmission

    from widestream.study.run import StudyOptions

PLACES = ("slurm", "local")
"""Where jobs run: on a Slurm cluster; or here, in the same way, to try it out."""
LOGS = "cluster"
"""Folder beside the records: what was submitted, and what jobs say."""
MINUTES = 240
"""Of a job, unless told otherwise. Then it goes back into the queue."""
REQUEUES = 1000
"""How often a job may run out of its time. It ends by itself when the study is over."""
POLL_S = 2.0
"""Seconds between looks at a worker, or at the runs of a study."""
SAVE_S = 60.0
"""Seconds that a worker has to save its runs. Slurm gives notice of 90."""
NOTICE_S = 120.0
"""Seconds that a job whose worker was told to end waits for word of its own. Slurm ends it before, or submitit's signal
comes, after which it is queued again; a job that ended by itself would not be."""
OWN = {"time": "--time", "partition": "--partition", "gpus_per_node": "--gpus-per-job", "array_parallelism": "--jobs"}
"""Settings of submitit that have options of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Where the workers of a study run, and as how many jobs. All but `on` belong to a cluster."""

    on: str | None = None
    """slurm or local; None: in this process."""
    jobs: int | None = None
    """Jobs, each with a worker; default: one."""
    minutes: int | None = None
    """Time limit of a job; default: four hours."""
    partition: str | None = None
    """Slurm's partition; default: the cluster's."""
    gpus: int | None = None
    """GPUs of a job; default: what Slurm gives, or all that are here."""
    settings: tuple[str, ...] = ()
    """Further settings of submitit's `SlurmExecutor`, KEY=VALUE."""
    wait: bool = False
    """Whether to stay until the jobs are through."""

    def __post_init__(self):
        flags = {"jobs": "--jobs", "minutes": "--time", "partition": "--partition", "gpus": "--gpus-per-job",
                 "settings": "--slurm", "wait": "--wait"}  # fmt: skip
        defaults = {one.name: one.default for one in fields(self)}
        given = [flag for name, flag in flags.items() if getattr(self, name) != defaults[name]]
        if self.on is None and given:
            raise UserError(f"{given[0]} is about jobs; say where they run: --on slurm, or --on local.")
        if self.on is not None and self.on not in PLACES:
            raise unknown_name(f"place {self.on!r} for --on", self.on, PLACES)
        if self.on == "local" and (alien := {"--partition", "--slurm"} & {*given}):
            raise UserError(f"{min(alien)} is for --on slurm; leave it out with --on local.")
        for name in ("jobs", "minutes", "gpus"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{flags[name]} must be at least 1, not {value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Jobs that were submitted, for some studies."""

    records: Mapping[Path, int]
    """The studies' records, and when they were written last, in nanoseconds; 0 where there is none yet."""
    logs: Path
    """Folder of what the jobs say."""
    jobs: Sequence["Job[None]"] = field(repr=False)
    """As submitit knows them."""
    on: str
    """slurm or local."""

    def __str__(self) -> str:
        from widestream.study.page.results import RECORD

        ids = [job.job_id for job in self.jobs]
        arrays = dict.fromkeys(one.partition("_")[0] for one in ids)
        stop = ["scancel", *arrays] if self.on == "slurm" else ["kill", "-INT", *ids]
        lines = [f"Jobs: {', '.join(ids)}; what they say: {self.logs}"]
        for folder in dict.fromkeys(path.parent for path in self.records):
            names = [path.name.removesuffix(RECORD) for path in self.records if path.parent == folder]
            report = ["widestream", "study", "report", *names, "--runs", str(folder)]
            lines.append(f"How far they are: {shlex.join(report)}")
        return "\n".join([*lines, f"To end them: {shlex.join(stop)}"])


class Worker:
    """What a job runs, as submitit calls it: a command, and how it is left off when the job has to go.

    Args:
        command: the command line.
        gpus: the GPUs it is to see, as CUDA_VISIBLE_DEVICES names them; None: those that the job has.
    """

    def __init__(self, command: Sequence[str], gpus: str | None = None):
        self.command = list(command)
        self.gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Carry the command out.

        Raises:
            RuntimeError: it ended with an error, which its log tells.
        """
        # Slurm sends the signal before a time limit to all processes of a job, and it would kill them. Only this one
        # shall heed it; the others inherit that it is blocked.
        signals = {signal.SIGUSR1, signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,  # see runs/child.py
            env=None if self.gpus is None else os.environ | {"CUDA_VISIBLE_DEVICES": self.gpus},
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        try:
            while (code := self._process.poll()) is None:
                time.sleep(POLL_S)
            if code in (TERMINATED, -signal.SIGTERM):
                time.sleep(NOTICE_S)
        finally:
            self._end()
        if code:
            raise RuntimeError(f"The worker ended with code {code}.")

    def checkpoint(self) -> "DelayedSubmission":
        """The job has to go, and will be queued again: let the runs be saved, and then go on with the same command."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(Worker(self.command, self.gpus))

    def _end(self) -> None:
        """End the command, if it runs; it saves its runs first."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(SAVE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()


def submit_studies(names: Sequence[str], options: "StudyOptions", cluster: ClusterOptions) -> Submission:
    """Submit jobs that carry out studies, one after the other, and divide the runs between them.

    Args:
        names: of the studies, or paths.
        options: of the studies. The workers of a job carry out `workers` runs at a time; default: one a GPU that it
            asks for, else one.
        cluster: where, how many, and what each gets.

    Raises:
        UserError: a study cannot be carried out as it is written, a setting is not known, submitit or Slurm is not
            here, or Slurm does not take the jobs. Nothing was submitted.
    """
    from widestream.study.load import load_study
    from widestream.study.run import command_line, prepare_study

    assert cluster.on is not None
    _require_installed(cluster.on)
    settings = _settings(cluster)
    studies = [load_study(name, options.scale, options.seeds) for name in names]  # a wrong name is told first
    records = {path: _written(path) for path, _ in (prepare_study(study, options) for study in studies)}
    beginning = shlex.join(["widestream.runs.child", "study", "run", *names])
    workers = options.workers or cluster.gpus or 1
    command = [sys.executable, "-m", *shlex.split(command_line(beginning, options)), "--workers", str(workers)]
    jobs = cluster.jobs or 1
    gpus = _local_gpus(jobs, cluster.gpus) if cluster.on == "local" else [None] * jobs
    logs = next(iter(records)).parent / LOGS
    submitted = _submit(_executor(cluster.on, logs, settings), [Worker(command, own) for own in gpus])
    return Submission(records=records, logs=logs, jobs=submitted, on=cluster.on)


def _settings(cluster: ClusterOptions) -> dict[str, Any]:
    """What submitit is told of a job."""
    from submitit import SlurmExecutor

    minutes = cluster.minutes or MINUTES
    if cluster.on == "local":
        return {"timeout_min": minutes}
    known = SlurmExecutor._valid_parameters()
    given: dict[str, Any] = {"partition": cluster.partition, "gpus_per_node": cluster.gpus}
    settings = {"job_name": "widestream", "time": minutes} | {k: v for k, v in given.items() if v is not None}
    for setting in cluster.settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm takes KEY=VALUE, for example --slurm cpus_per_task=8, not {setting!r}.")
        if key in OWN:
            raise UserError(f"--slurm {key} has an option of its own: give {OWN[key]}.")
        if key not in known:
            raise unknown_name(f"setting {key!r} for --slurm", key, known - OWN.keys())
        try:
            settings[key] = parse_value(text)
        except UserError as error:
            raise UserError(f"--slurm {setting} {error}") from None
    return settings


def _require_installed(on: str) -> None:
    """Refuse what is not installed here."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("Jobs are submitted with submitit: pip install 'widestream[cluster]'.") from None
    if on == "slurm" and (missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]):
        raise UserError(
            f"There is no {missing[0]} here, so there is no Slurm; run this where jobs are submitted, or try it with "
            "--on local."
        )


def _executor(on: str, logs: Path, settings: dict[str, Any]) -> "Executor":
    """What submits jobs with such settings."""
    from submitit import LocalExecutor, SlurmExecutor

    executor = (SlurmExecutor if on == "slurm" else LocalExecutor)(logs, max_num_timeout=REQUEUES)
    try:
        executor.update_parameters(**settings)
    except (TypeError, ValueError) as error:  # a text where a list is wanted, say
        raise UserError(f"submitit does not take the settings given with --slurm: {error}.") from None
    return executor


def _local_gpus(jobs: int, each: int | None) -> list[str | None]:
    """Which GPUs every job here is to see; submitit gives the same ones to all."""
    there = visible_gpus()
    if each is None:
        return [",".join(there)] * jobs
    if jobs * each > len(there):
        raise UserError(f"{jobs} jobs of {each} GPUs need {jobs * each}, and {len(there)} are here; ask for fewer.")
    return [",".join(there[job * each : (job + 1) * each]) for job in range(jobs)]


def _submit(executor: "Executor", workers: Sequence[Worker]) -> Sequence["Job[None]"]:
    """Submit all workers, or none."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    make_folder(executor.folder)
    before = {*executor.folder.iterdir()}
    try:
        with clean_env():  # this process may be a job itself
            return executor.submit_array(workers)
    except (FailedJobError, FailedSubmissionError) as error:
        for path in {*executor.folder.iterdir()} - before:
            path.unlink()
        raise UserError(f"Slurm does not take the jobs: {' '.join(str(error).split())}") from None


def wait_for(submission: Submission) -> None:
    """Show how far the studies are until all jobs have ended. Interrupted, the jobs of a cluster go on.

    Raises:
        UserError: they ended, and a study is not over; says what a job said last.
    """

    def running() -> bool:
        return not all(job.done() for job in submission.jobs)

    def steps() -> int:
        return sum(min(steps_done(folder), most) for folder, most in runs.items())

    while running():
        runs = _planned(submission.records)
        name = f"training {len(runs)} runs" if runs else "waiting for the first job"
        total = sum(runs.values())
        with Progress(name, steps(), total) as progress:
            while running() and _planned(submission.records) == runs:
                time.sleep(POLL_S)
                progress.show(done := steps(), f"training: {done} of {total} steps")
    for path, before in submission.records.items():
        if _written(path) == before or not _over(path):
            raise UserError(f"The jobs have ended, and {path} is not complete. {_last_words(submission)}")


def _entries(record: Path) -> list[dict[str, Any]]:
    """The runs that a record names; none where it is not there yet."""
    arms = read_json(record)["arms"] if record.is_file() else ()
    return [run for arm in arms for run in (*arm["trials"], *arm["runs"])]


def _written(record: Path) -> int:
    """When a record was written last, in nanoseconds; 0 where there is none."""
    return record.stat().st_mtime_ns if record.is_file() else 0


def _planned(records: Iterable[Path]) -> dict[Path, int]:
    """Folders and steps of all runs that are planned so far."""
    return {record.parent / run["folder"]: run["steps"] for record in records for run in _entries(record)}


def _over(record: Path) -> bool:
    """Whether every run came to an end of some kind."""
    entries = _entries(record)
    return bool(entries) and all(run["status"] != "unfinished" for run in entries)


def _last_words(submission: Submission) -> str:
    """What went wrong, as the first job says that says something of it."""
    ours = "widestream: "
    for job in submission.jobs:
        path = job.paths.stderr
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        if said := [line.removeprefix(ours) for line in lines if line.startswith(ours)]:
            return f"A job said: {said[-1]} (all of it: {path})"
    return f"Look at what the jobs said, in {submission.logs}."
