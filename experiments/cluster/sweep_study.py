"""The trials of a sweep in an Optuna study that several processes share and that outlives them.

A process holds a lock as long as it trains a trial. The kernel frees it with the process: so an
unfinished trial is known from one that runs elsewhere, on every node that shares the file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from datamodules.files import locked
from experiments.cluster.sweep_file import Parameter, Sweep
from experiments.config import Config, differences, to_plain
from experiments.schema import ConfigError


def open_study(sweep: Sweep, config: Config, folder: Path, journal: bool) -> optuna.Study:
    """The study in ``folder``, begun now or before, of this very sweep.

    Args:
        sweep: the sweep file.
        config: the configuration of its first trial.
        folder: where the study lies, or shall lie.
        journal: keep a new one in a file that network file systems can hold, not in SQLite's.

    Raises:
        ConfigError: the study there is of another sweep, kept otherwise than asked, or damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(folder / ".lock"):
        file = _file(folder, journal)
        try:
            study = optuna.create_study(
                study_name="sweep",
                storage=_storage(file),
                load_if_exists=True,
                direction="maximize" if sweep.maximize else "minimize",
                pruner=_pruner(sweep),
            )
        except OSError:
            raise
        except Exception as error:  # each storage has its own for a damaged file
            raise ConfigError(
                f"{file} cannot be used ({' '.join(str(error).split())[:200]}); if it is damaged, "
                "delete it and sweep again: finished runs are taken over"
            ) from error
        asked = {
            **to_plain(config),
            "sweep": {
                "method": sweep.method,
                "metric": sweep.metric,
                "goal": "maximize" if sweep.maximize else "minimize",
                "early_terminate": [sweep.min_epochs, sweep.eta],
                "parameters": {key: str(p) for key, p in sweep.parameters.items()},
                # A run may be resumed with more epochs; among trials to compare none may.
                "max_epochs": config.trainer["max_epochs"],
            },
        }
        if "asked" not in study.user_attrs:
            study.set_user_attr("asked", asked)
        changed = differences(study.user_attrs["asked"], asked)
    if changed:
        listed = "\n  ".join(changed)
        raise ConfigError(
            f"{folder} holds another sweep:\n  {listed}\nGive this one a file name or a run.root "
            "of its own, or delete that folder: it holds no runs, finished ones are taken over"
        )
    return study


def take(
    sweep: Sweep, study: optuna.Study, folder: Path, retry: set[int], held: contextlib.ExitStack
) -> Trial | None:
    """The next trial, locked as long as ``held`` is open; None when there is none.

    Unfinished trials whose process died come first, and the failed trials ``retry``.
    """
    with locked(folder / ".lock"):
        for old in [*_orphans(study, folder), *(t for t in current(study) if t.number in retry)]:
            if old.state == TrialState.RUNNING:
                study.tell(old.number, state=TrialState.FAIL)
            if values := old.user_attrs.get("values"):
                study.enqueue_trial(values, {"values": values, "instead_of": old.number})
        begun = [trial.user_attrs["values"] for trial in current(study)]
        if not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            left = [values for values in sweep.points() if values not in begun]
            if not left and (sweep.method == "grid" or len(begun) >= (sweep.run_cap or 0)):
                return None
            for values in left[:1]:
                study.enqueue_trial(values, {"values": values})
        study.sampler = _sampler(sweep.method, len(study.trials))
        trial = study.ask()
        held.enter_context(locked(_lock_of(folder, trial.number)))
        values = {key: _suggest(trial, key, p) for key, p in sweep.parameters.items()}
        trial.set_user_attr("values", values)
        return trial


def current(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: those with values that were not tried anew since."""
    trials = study.get_trials()
    replaced = {trial.user_attrs.get("instead_of") for trial in trials}
    return [t for t in trials if "values" in t.user_attrs and t.number not in replaced]


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """A row a trial that counts: its values, its state, its figures."""
    states = {"COMPLETE": "done", "FAIL": "failed", "PRUNED": "stopped early"}
    return [
        {
            "trial": trial.number,
            **trial.user_attrs["values"],
            "state": states.get(trial.state.name, trial.state.name.lower()),
            **trial.user_attrs.get("figures", {}),
            "why": trial.user_attrs.get("why", ""),
            "run": trial.user_attrs.get("run", ""),
        }
        for trial in current(study)
    ]


def is_held(path: Path) -> bool:
    """Whether some process holds the lock ``path``."""
    if not path.exists():
        return False
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_of(folder: Path, number: int) -> Path:
    return folder / f".trial{number}"


def _orphans(study: optuna.Study, folder: Path) -> list[FrozenTrial]:
    running = study.get_trials(states=[TrialState.RUNNING])
    return [trial for trial in running if not is_held(_lock_of(folder, trial.number))]


def _file(folder: Path, journal: bool) -> Path:
    """Where the study is kept: a database, or a journal that network file systems can hold."""
    database, log = folder / "study.db", folder / "study.journal"
    in_job = "SLURM_JOB_ID" in os.environ
    if not database.exists():
        return log if log.exists() or journal or in_job else database
    if journal:
        raise ConfigError(f"{database} holds this study; go on without --journal, or delete it")
    if in_job:
        print(
            f"{database} was begun outside of SLURM and is not safe for several nodes on a network "
            "file system: for an array delete it first, finished runs are taken over",
            file=sys.stderr,
        )
    return database


def _storage(file: Path) -> BaseStorage:
    if file.suffix == ".journal":
        _drop_torn_line(file)
        return JournalStorage(JournalFileBackend(str(file)))
    wait = {"connect_args": {"timeout": 60}}  # seconds, while another process writes
    # As a file:// name, in which a "?" can be quoted; SQLAlchemy before 2.1 has no other way.
    address = sqlalchemy.URL.create(
        "sqlite", database=f"file:{quote(str(file.absolute()))}", query={"uri": "true"}
    )
    return RDBStorage(address.render_as_string(), engine_kwargs=wait)


def _drop_torn_line(journal: Path) -> None:
    """Take off the end of a journal what a crash or a full disk left of a line.

    Optuna would write its next line behind it, which makes both unreadable. Whoever wrote it has
    not gone on: a line counts when it is whole. Under Optuna's own lock nobody is writing one.
    """
    if not journal.exists():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with journal.open("r+b") as handle:
            whole = handle.read().rfind(b"\n") + 1
            torn = handle.tell() - whole
            handle.truncate(whole)
    finally:
        lock.release()
    if torn:
        print(
            f"{journal}: its last line was cut off by a crash or a full disk; it is dropped, and "
            "what it told is done again",
            file=sys.stderr,
        )


def _pruner(sweep: Sweep) -> BasePruner:
    """What W&B calls hyperband is one bracket of asynchronous successive halving."""
    if sweep.min_epochs is None:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=sweep.min_epochs, reduction_factor=sweep.eta)


def _sampler(method: str, seed: int) -> BaseSampler:
    """``seed``: another for each trial, the same when a sweep is repeated from its beginning."""
    if method == "bayes":
        return TPESampler(seed=seed, constant_liar=True)  # knows of trials that still run
    return RandomSampler(seed=seed)


def _suggest(trial: Trial, key: str, parameter: Parameter) -> Any:
    """The value that was queued with the trial, else a drawn one."""
    if parameter.values:
        return trial.suggest_categorical(key, parameter.values)
    low, high = parameter.low, parameter.high
    if parameter.whole:
        return trial.suggest_int(key, int(low), int(high))
    return trial.suggest_float(key, low, high, step=parameter.step, log=parameter.log)
