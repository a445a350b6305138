"""What a sweep has tried and found, in a database: Optuna proposes trials when asked and is told what came of them.

One process asks and tells at a time. What a killed one left running is taken up under its own number, with its own
values; a number and its values are in the database before a trial starts, so nothing is ever counted twice. Optuna's
heartbeats are of no use here, as they would need the process that trains to be the one that asks.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import friendly_disk_errors, locked
from medgrpo.provenance import fingerprint
from medgrpo.registry.connection import public_uri
from medgrpo.runs import check_name
from medgrpo.starting import pinned
from medgrpo.sweep.pruning import bar, same_scale
from medgrpo.sweep.settings import TrialConfig
from medgrpo.sweep.space import distributions, own_values, read_space, suggest, with_values
from medgrpo.sweep.trials import OBJECTIVES, Proposal, Result, State, Trial

if TYPE_CHECKING:
    import optuna

STORAGE_VARIABLE = "MEDGRPO_SWEEP_STORAGE"
DATABASE_FILE = "sweeps.db"
BUSY_SECONDS = 60
"""How long a busy SQLite file is waited for."""
STARTUP_TRIALS = 8
"""Trials that are drawn at random before the sampler learns from them."""
SETTINGS, RESULT, CHOSEN, PARENT, IDENTITY = "settings", "result", "chosen", "parent", "identity"
STARTS = "starts"
"""Each `policy.start_from` of the space -> the same by a name that does not move."""
_FREE = {"profile", "name", "runs_dir", "tracking", "sweep", "trial", "training_timeout_minutes", "retrain"}
"""Settings that decide nothing which trials are compared by."""


def study_name(config: RunConfig) -> str:
    """The name of a sweep's study, which begins the names of its runs."""
    return config.name or f"sweep-{config.profile}-{_settings_digest(config)[:8]}"


def resolve_storage(config: RunConfig) -> str:
    """The database URL of the study: the setting, else MEDGRPO_SWEEP_STORAGE, else SQLite in the runs directory."""
    return config.sweep.storage or os.environ.get(STORAGE_VARIABLE) or f"sqlite:///{_default_file(config)}"


def _default_file(config: RunConfig) -> Path:
    return config.runs_dir.absolute() / DATABASE_FILE


@contextmanager
def open_study(config: RunConfig, wait: bool = False) -> Iterator["Study"]:
    """The study of a sweep, made or found again, for this process alone.

    Args:
        config: the sweep's settings.
        wait: whether to wait for another process that has it open: one that was taken for dead and lives.

    Raises:
        InputError: there is no space or a bad one, another process has the study open, the database or the runs
            directory cannot be used, the study was begun with other settings or in another database, or trials cannot
            start from what is named.
        ServiceUnreachable: the database does not answer, now or later, or MLflow does not.
    """
    space, name = read_space(config), study_name(config)
    check_name(name)
    with friendly_disk_errors(config.runs_dir), ExitStack() as held:
        config.runs_dir.mkdir(parents=True, exist_ok=True)
        ours = held.enter_context(locked(config.runs_dir / f".{name}.lock", wait))
        if not ours:
            raise InputError(
                f"sweep {name} is under way in another process, which would run the same trials. Wait for it, or set "
                "another name."
            )
        with _storage(resolve_storage(config)) as storage:
            _check_place(config, name, storage)
            yield Study(config, name, space, storage)


def _check_place(config: RunConfig, name: str, storage: "optuna.storages.RDBStorage") -> None:
    """Refuse to begin a study anew that lies in the runs directory: what it has tried and chosen would not count."""
    from optuna import get_all_study_names

    default, url = _default_file(config), resolve_storage(config)
    if url == f"sqlite:///{default}" or not default.is_file() or name in get_all_study_names(storage):
        return
    with closing(sqlite3.connect(f"{default.as_uri()}?mode=ro", uri=True)) as database, suppress(sqlite3.DatabaseError):
        if database.execute("SELECT 1 FROM studies WHERE study_name = ?", [name]).fetchone():
            raise InputError(
                f"sweep {name} was begun in {default}, and would begin anew in {_public(url)}, which sweep.storage or "
                f"{STORAGE_VARIABLE} names. Go on with it where it is (--set sweep.storage=sqlite:///{default}), or "
                "set another name."
            )


@contextmanager
def _storage(url: str) -> "Iterator[optuna.storages.RDBStorage]":
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, DatabaseError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    advice = f"Correct sweep.storage (or {STORAGE_VARIABLE}), or leave both unset for SQLite in the runs directory."
    options = {"connect_args": {"timeout": BUSY_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
    except (ArgumentError, ImportError, ValueError) as error:
        raise InputError(f"sweep.storage {_public(url)!r} is no database URL ({error}). {advice}") from error
    except DatabaseError as error:
        raise ServiceUnreachable(f"the database {_public(url)} did not answer ({error.orig}). {advice}") from error
    try:
        yield storage
    except (DatabaseError, StorageInternalError) as error:
        cause = error if isinstance(error, DatabaseError) else error.__cause__
        said = str(cause.orig if isinstance(cause, DatabaseError) else error).splitlines()[0]
        raise ServiceUnreachable(
            f"the database {_public(url)} did not answer ({said}). Run the sweep again: it goes on where it was."
        ) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _public(url: str) -> str:
    """A database's address without what could be a password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return public_uri(url)


def without_storage(config: RunConfig, name: str) -> RunConfig:
    """The settings under the study's name as files may show them: its database's address can hold a password."""
    return config.model_copy(update={"name": name, "sweep": config.sweep.model_copy(update={"storage": None})})


class Study:
    """The trials of one sweep. `open_study` makes it."""

    def __init__(
        self, config: RunConfig, name: str, space: dict[str, Any], storage: "optuna.storages.RDBStorage"
    ) -> None:
        import optuna

        self.name = name
        self._config, self._space = config, space
        self._distributions = distributions(config, space)
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=list(OBJECTIVES.values()), load_if_exists=True
        )
        self._check_settings()
        self._pin_starts()
        own = own_values(config, space)
        if own and not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(own)

    @property
    def id(self) -> str:
        """Random identity: what other places keep of a study is found by it, as a name may be given again."""
        if IDENTITY not in self._study.user_attrs:
            self._study.set_user_attr(IDENTITY, uuid4().hex)
        return str(self._study.user_attrs[IDENTITY])

    @property
    def parent(self) -> str:
        """The sweep's MLflow run; empty before there is one."""
        return str(self._study.user_attrs.get(PARENT, ""))

    @parent.setter
    def parent(self, run_id: str) -> None:
        self._study.set_user_attr(PARENT, run_id)

    @property
    def chosen(self) -> int | None:
        """Number of the trial that was chosen; None before."""
        return self._study.user_attrs.get(CHOSEN)

    @chosen.setter
    def chosen(self, number: int) -> None:
        self._study.set_user_attr(CHOSEN, number)

    def trials(self) -> list[Trial]:
        """All trials that were started, by number."""
        return [_trial(frozen) for frozen in self._frozen()]

    def interrupted(self) -> list[Proposal]:
        """Trials that a killed sweep left running, to be taken up as they were."""
        from optuna.trial import TrialState

        return [self._propose(frozen) for frozen in self._frozen() if frozen.state == TrialState.RUNNING]

    def ask(self) -> Proposal | None:
        """The next trial, in the database from now on; None when there are as many as `sweep.trials`.

        What it tries follows from `sweep.seed`, its number, and the trials that are finished by then. The first one is
        the profile as it is, where the space holds that.
        """
        if len(self._frozen()) >= self._config.sweep.trials:
            return None
        self._study.sampler = self._sampler(len(self._frozen()))
        number = self._study.ask().number
        return self._propose(self._study.get_trials(deepcopy=False)[number])

    def tell(self, number: int, result: Result) -> None:
        """Close a trial."""
        import optuna

        states = {"pruned": optuna.trial.TrialState.PRUNED, "failed": optuna.trial.TrialState.FAIL}
        kept = {"reason": result.reason, "curve": result.curve, "run_id": result.run_id}
        storage_id = self._study.get_trials(deepcopy=False)[number]._trial_id
        optuna.trial.Trial(self._study, storage_id).set_user_attr(RESULT, json.dumps(kept))
        if result.state == "complete":
            self._study.tell(number, list(result.values))
        else:
            self._study.tell(number, state=states[result.state])

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """The profile with a trial's values, starting from what `policy.start_from` named when the study was begun.

        Raises:
            InputError: the values do not fit together.
        """
        varied = with_values(self._config, values)
        start = self._study.user_attrs[STARTS].get(varied.policy.start_from)
        return varied.model_copy(update={"policy": varied.policy.model_copy(update={"start_from": start})})

    def importances(self) -> dict[str, dict[str, float]]:
        """Objective -> setting -> share of the objective's variance that the setting explains (fANOVA).

        Empty for an objective by which the complete trials do not differ, or by no setting, or with fewer than three.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        complete = [trial for trial in self.trials() if trial.complete]
        found: dict[str, dict[str, float]] = {}
        for place, name in enumerate(OBJECTIVES):
            different = len({trial.result.values[place] for trial in complete}) > 1
            found[name] = {}
            # Optuna gives up where no tree finds a setting to split by: what differs is chance.
            with suppress(RuntimeError):
                if different and len(complete) > 2:
                    shares = get_param_importances(
                        self._study,
                        evaluator=FanovaImportanceEvaluator(seed=self._config.sweep.seed),
                        target=_objective(place),
                    )
                    found[name] = {setting: float(share) for setting, share in shares.items()}
        return found

    def _frozen(self) -> "list[optuna.trial.FrozenTrial]":
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False)
        return [frozen for frozen in trials if frozen.state != TrialState.WAITING]

    def _propose(self, frozen: "optuna.trial.FrozenTrial") -> Proposal:
        """A running trial with a value for every setting: one that was killed while it was made gets the rest now."""
        import optuna

        self._study.sampler = self._sampler(frozen.number)
        values = suggest(optuna.trial.Trial(self._study, frozen._trial_id), self._distributions)
        try:
            return Proposal(frozen.number, values, self._trial_config(frozen.number, values))
        except InputError as error:
            return Proposal(frozen.number, values, None, str(error))

    def _trial_config(self, number: int, values: dict[str, Any]) -> RunConfig:
        """The run of a trial: the profile with its values, evaluated on dev, without what only a candidate needs."""
        base, sweep = self._config, self._config.sweep
        varied = self.with_values(values)
        bar = self._bar(varied)
        trial = TrialConfig(sweep=self.id, study=self.name, number=number, parent=self.parent, bar=bar)
        judged = {"split": "dev", "cases": sweep.cases, "probes": False, "samples": 0}
        action = "stop" if sweep.prune_alarms else base.watch.action
        changes = {
            "name": f"{self.name}-{number:03d}",
            "evaluation": base.evaluation.model_copy(update=judged),
            "watch": base.watch.model_copy(update={"action": action}),
            "sweep": type(sweep)(),
            "trial": trial,
        }
        return varied.model_copy(update=changes)

    def _bar(self, varied: RunConfig) -> dict[int, float]:
        """What the completed trials set whose grades mean the same as this one's."""
        sweep = self._config.sweep
        complete = [trial for trial in self.trials() if trial.complete]
        alike = [trial for trial in complete if same_scale(self.with_values(trial.values).rewards, varied.rewards)]
        first = 1 + int(sweep.prune_from * varied.grpo.steps)
        return bar((trial.result.curve for trial in alike), sweep.prune_after, first)

    def _sampler(self, number: int) -> "optuna.samplers.TPESampler":
        from optuna.samplers import TPESampler

        # Neighbouring seeds may begin alike, so they are scattered.
        seed = int(fingerprint([self._config.sweep.seed, number])[:8], 16)
        return TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)

    def _pin_starts(self) -> None:
        """Look up what trials start from, once: aliases move, and trials from different adapters do not compare."""
        if STARTS in self._study.user_attrs:
            return
        config, choices = self._config, self._space.get("policy.start_from", ())
        names = {config.policy.start_from, *(choices if isinstance(choices, tuple) else ())} - {None}
        policies = {name: config.policy.model_copy(update={"start_from": name}) for name in names}
        starts = {name: pinned(config.model_copy(update={"policy": policy})) for name, policy in policies.items()}
        self._study.set_user_attr(STARTS, starts)

    def _check_settings(self) -> None:
        """Refuse to go on with other settings than those that the study was begun with."""
        digest = _settings_digest(self._config)
        begun = self._study.user_attrs.get(SETTINGS)
        if begun is None:
            self._study.set_user_attr(SETTINGS, digest)
        elif begun != digest:
            raise InputError(
                f"study {self.name} was begun with other settings (the profile's, or its sweep.space), and trials of "
                "both could not be compared. Put them back, or set another name."
            )
        if self.chosen is not None and self._config.sweep.trials > len(self._frozen()):
            raise InputError(
                f"study {self.name} has chosen trial {self.chosen} and seen the test split, so it takes no further "
                f"trials (sweep.trials is {self._config.sweep.trials}). Set another name."
            )


def _objective(place: int) -> "Callable[[optuna.trial.FrozenTrial], float]":
    return lambda trial: trial.values[place]


def _settings_digest(config: RunConfig) -> str:
    """Digest of all that a trial's results depend on, but for its own values."""
    values = config.model_dump(mode="json", exclude=_FREE)
    sweep = config.sweep.model_dump(mode="json", include={"space", "seed", "cases", "prune_alarms"})
    return fingerprint([values, sweep])


def _trial(frozen: "optuna.trial.FrozenTrial") -> Trial:
    from optuna.trial import TrialState

    states: dict[Any, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    kept = json.loads(frozen.user_attrs.get(RESULT, "{}"))
    curve = {int(step): grade for step, grade in kept.get("curve", {}).items()}
    state = states.get(frozen.state, "running")
    values = tuple(frozen.values) if state == "complete" else ()
    result = Result(state, values, kept.get("reason", ""), curve, kept.get("run_id", ""))
    return Trial(frozen.number, dict(frozen.params), result)
