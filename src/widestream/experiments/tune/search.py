"""`widestream tune`: a search for muP settings on a small trial model, as in appendix C.2.1 of the RMT paper.

Optuna keeps the trials, in a journal file or a database; every trial is a `widestream train` run in a folder of its
own. Any number of these searches may work on one storage. A search that was killed leaves trials that nobody runs; the
next one in the same folder takes them up where their newest checkpoint stands.
"""

import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, lock_descriptor

from widestream.data.manifest import read_manifest
from widestream.errors import UserError
from widestream.experiments.tune.options import TuneOptions, trial_folder
from widestream.experiments.tune.record import write_record
from widestream.experiments.tune.space import require_optuna
from widestream.files import make_folder, write_atomic
from widestream.recipe import from_dict, to_dict
from widestream.runs.pool import POLL_S, Job, terminable

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
STUDY = "widestream-tune"
COMPUTES = ("device", "threads", "stream_memory", "kernels", "attention", "tensorboard", "wandb", "trackio")
"""Settings in which machines of one search may differ: by what trials are computed, which changes roundings only."""
ABANDONED_S = 60.0
"""Age at which a trial that does not say whose it is counts as abandoned: its search was killed in its first moment."""


@dataclass(slots=True)
class Running:
    """A trial that this process looks after."""

    trial: "optuna.Trial"
    """As Optuna knows it."""
    job: Job
    """The training run."""
    lock: IO[bytes]
    """Says to other searches in this folder that the trial is looked after."""


def run_search(options: TuneOptions) -> dict[str, Any]:
    """Carry out the search, or what is left of it; then write record, recipe and page.

    Returns:
        The record (`tune_record.make_record`).

    Raises:
        UserError: the recipe cannot be searched, the storage holds another search, a trial failed for a reason other
            than divergence, or Optuna is missing. What is done stays; the same command goes on.
    """
    require_optuna()
    setup = describe_setup(options)
    make_folder(options.folder)
    study = open_study(options, setup)
    try:
        _work(study, options)
    finally:
        record = write_record(study, options, setup)
    return record


def describe_setup(options: TuneOptions) -> dict[str, Any]:
    """What all processes of one search must agree on."""
    config = options.config
    data = read_manifest(Path(config.data.path))
    splits = {"train": config.data.train_split, "heldout": config.data.heldout_split}
    return {
        "recipe": _shared(to_dict(config)),
        "data": {name: data.fingerprint(split) for name, split in splits.items()},
        "space": {name: list(ends) for name, ends in options.space.intervals.items()},
        "sampler": options.space.sampler,
    }


def _shared(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe, whole, without what may differ from machine to machine; settings that it is older than are defaults."""
    whole = to_dict(from_dict(recipe | {"data": {"path": ""} | recipe["data"]}))
    del whole["data"]["path"]
    for name in COMPUTES:
        del whole["train"][name]
    return whole


def open_study(options: TuneOptions, setup: dict[str, Any]) -> "optuna.Study":
    """Open the storage, or begin it.

    Raises:
        UserError: it cannot be opened, or holds a search of something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _storage(options)
    study = optuna.create_study(
        storage=storage, study_name=STUDY, sampler=options.space.make_sampler(), load_if_exists=True
    )
    known = study.user_attrs.get("setup")
    if known is None:
        study.set_user_attr("setup", setup)
    elif (differing := _first_difference(known | {"recipe": _shared(known["recipe"])}, setup)) is not None:
        raise UserError(
            f"{options.storage or options.folder / JOURNAL} holds another search; it differs in {differing}. "
            "Give another --out or --storage."
        )
    return study


def _storage(options: TuneOptions) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    place = options.storage or str(options.folder / JOURNAL)
    if "://" in place:
        try:
            return RDBStorage(place)
        except Exception as error:  # every database's driver has its own; an unknown one is an ImportError
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"The database {place} cannot be opened: {words}. Mend the URL of --storage.") from error
    if not Path(place).parent.is_dir():
        raise UserError(f"The folder of the journal {place} does not exist; make it first.")
    try:
        return JournalStorage(JournalFileBackend(place))
    except (ValueError, OSError) as error:
        raise UserError(f"{place} is no journal of a search; give another file with --storage.") from error


def _first_difference(known: Any, now: Any, key: str = "") -> str | None:
    if isinstance(known, dict) and isinstance(now, dict):
        names = dict.fromkeys((*now, *known))
        differences = (_first_difference(known.get(n), now.get(n), f"{key}.{n}".strip(".")) for n in names)
        return next((text for text in differences if text is not None), None)
    return None if known == now else f"{key} ({known} there, {now} now)"


def _work(study: "optuna.Study", options: TuneOptions) -> None:
    """Run trials until there are as many as asked for and none is left that could be taken up here."""
    running: list[Running] = []
    try:
        with terminable():
            while True:
                while len(running) < options.workers and (claimed := _claim(study, options)) is not None:
                    running.append(claimed)
                    claimed.job.start()
                if not running:
                    return
                time.sleep(POLL_S)
                for over in [r for r in running if r.job.process is not None and r.job.process.poll() is not None]:
                    running.remove(over)
                    over.job.end()
                    with over.lock:
                        _settle(study, over, options)
    finally:
        for left in running:
            left.job.end()
            left.lock.close()


def _claim(study: "optuna.Study", options: TuneOptions) -> Running | None:
    """A trial that was left behind in this folder, or else a new one while there are too few."""
    import optuna

    with FileLock(options.folder / "search.lock"):  # one search at a time looks round
        known = study.get_trials(deepcopy=False)
        for trial in known:
            left = trial.state == optuna.trial.TrialState.RUNNING and _mine(trial, options)
            if left and (lock := _lock(options, trial.number)) is not None:
                return _prepare(optuna.trial.Trial(study, trial._trial_id), options, lock)
        if len(known) >= options.trials:
            return None
        trial = study.ask()
        lock = _lock(options, trial.number)
        assert lock is not None, "nobody else can know of this trial"
        return _prepare(trial, options, lock)


def _mine(trial: "optuna.trial.FrozenTrial", options: TuneOptions) -> bool:
    """Whether a trial was begun in this folder."""
    place = trial.user_attrs.get("place")
    if place is None:
        assert trial.datetime_start is not None
        return (datetime.now() - trial.datetime_start).total_seconds() > ABANDONED_S
    return place == _place(options)


def _place(options: TuneOptions) -> str:
    """Name of the folder, which it keeps wherever it is moved."""
    file = options.folder / "place"
    if not file.is_file():
        write_atomic(file, uuid.uuid4().hex.encode())
    return file.read_text()


def _lock(options: TuneOptions, number: int) -> IO[bytes] | None:
    """The trial's lock, or None where another process has it. It is free again when all that share it have ended.

    It is on an open file, which a process can share with its children; a `FileLock` is one process's alone.
    """
    file = trial_folder(options, number).with_suffix(".lock").open("ab")
    if lock_descriptor(file.fileno(), blocking=False):
        return file
    file.close()
    return None


def _prepare(trial: "optuna.Trial", options: TuneOptions, lock: IO[bytes]) -> Running:
    trial.set_user_attr("place", _place(options))
    steps = options.config.train.steps
    assert steps is not None
    job = Job(
        recipe=options.recipe,
        changes=options.trial_changes(options.space.suggest(trial)),
        folder=trial_folder(options, trial.number),
        steps=steps,
        # Shared with the training process: if this one is killed, the trial is not free before that has ended too.
        pass_fds=(lock.fileno(),),
    )
    return Running(trial, job, lock)


def _settle(study: "optuna.Study", over: Running, options: TuneOptions) -> None:
    """Enter what became of a trial.

    Raises:
        UserError: it failed, and not for its settings' sake; it stays open.
    """
    from optuna.trial import TrialState

    trial, job = over.trial, over.job
    loss = job.choosing_loss
    if loss is None and not job.done and not job.diverged:
        raise job.failure
    if loss is not None:
        study.tell(trial, loss)
        outcome = f"held-out loss {loss:.4f}"
    else:
        reason = f"diverged: loss or gradient not finite after step {job.steps_done}"
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.PRUNED)
        outcome = reason
    print(f"trial {trial.number} of {options.trials}: {outcome}", flush=True)
