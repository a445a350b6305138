"""A study proposes, remembers, and goes on where it was killed."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from services import postgres

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import write_json
from medgrpo.sweep import study as module
from medgrpo.sweep.report import decide
from medgrpo.sweep.study import open_study, resolve_storage, study_name
from medgrpo.sweep.trials import Result
from medgrpo.testing import tiny_version

pytestmark = pytest.mark.slow


def _finish(number: int) -> Result:
    """What a fake trial comes to: it depends on its number alone."""
    return Result(
        "complete", (0.1 * number, 0.02, 1 - 0.1 * number), curve={1: 0.1 * number, 2: 0.2}, run_id=f"r{number}"
    )


def _drain(config: RunConfig, until: int | None = None) -> list[dict[str, Any]]:
    """Run fake trials until there are enough, or so many; returns the values of all trials by number."""
    with open_study(config) as study:
        for proposal in study.interrupted():
            study.tell(proposal.number, _finish(proposal.number))
        while len(study.trials()) != until and (proposal := study.ask()):
            study.tell(proposal.number, _finish(proposal.number))
        return [dict(trial.values) for trial in study.trials()]


def test_the_profile_comes_first(sweep_config: Callable[..., RunConfig]) -> None:
    """Trial 0 is the profile as it is, so that every sweep has something to compare with."""
    with open_study(sweep_config()) as study:
        proposal = study.ask()
        assert proposal
        assert proposal.number == 0
        assert proposal.values == {"grpo.learning_rate": 1e-5, "grpo.group_size": 2, "rewards.correctness": 1.0}


def test_a_trial_is_judged_on_dev_and_registers_nothing(sweep_config: Callable[..., RunConfig]) -> None:
    """A trial's run has a name, its values, the dev split, alarms that end it, and the mark that it is a trial."""
    config = sweep_config()
    with open_study(config) as study:
        study.parent = "run-7"
        study.ask()
        proposal = study.ask()
        assert proposal
        assert proposal.config
        run = proposal.config
        assert run.name == f"{study.name}-001"
        assert run.grpo.learning_rate == proposal.values["grpo.learning_rate"]
        assert (run.evaluation.split, run.evaluation.cases, run.evaluation.probes) == ("dev", "all", False)
        assert run.watch.action == "stop"
        assert run.trial
        assert (run.trial.study, run.trial.number, run.trial.parent) == (study.name, 1, "run-7")
        assert run.sweep.space is None


def test_trials_start_from_one_version(sweep_config: Callable[..., RunConfig]) -> None:
    """An alias is looked up once: moved to another version in the middle, trials and the chosen one start as before."""
    config = sweep_config({"policy": {"start_from": "models:/medgrpo-synthetic@candidate"}})
    first = tiny_version(config)
    with open_study(config) as study:
        started = [study.ask()]
        study.tell(0, _finish(0))
    tiny_version(config, weights="2")
    with open_study(config) as study:
        started.append(study.ask())
        _, chosen = decide(study, config)
    expected = f"models:/medgrpo-synthetic/{first}"
    assert [proposal and proposal.config and proposal.config.policy.start_from for proposal in started] == [
        expected
    ] * 2
    assert chosen.policy.start_from == expected


def test_a_start_that_is_not_there_costs_no_trial(sweep_config: Callable[..., RunConfig]) -> None:
    """The sweep ends with a sentence before its first trial; once there is such a version, the same sweep begins."""
    config = sweep_config({"name": "early", "policy": {"start_from": "models:/medgrpo-synthetic@candidate"}})
    with pytest.raises(InputError, match="medgrpo-synthetic"), open_study(config):
        pass
    tiny_version(config)
    with open_study(config) as study:
        assert study.trials() == []


def test_a_link_to_a_run_is_followed_once(sweep_config: Callable[..., RunConfig]) -> None:
    """runs/latest leads to each run that trained, trials included: all start from the one that it led to at first."""
    config = sweep_config({"policy": {"start_from": "runs/latest"}})
    for name in ("first", "second"):
        run = config.runs_dir / name
        write_json(run / "config.json", {"policy": {"base": "tiny"}})
        write_json(run / "train" / "training.json", {})
        write_json(run / "train" / "grpo" / "adapter" / "adapter_config.json", {})
        (run / "train" / "grpo" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    latest = config.runs_dir / "latest"
    latest.symlink_to("first")
    with open_study(config):
        latest.unlink()
        latest.symlink_to("second")
    with open_study(config) as study:
        proposal = study.ask()
        assert proposal
        assert proposal.config
        assert proposal.config.policy.start_from == str(config.runs_dir / "first")


def test_the_same_seed_tries_the_same(tmp_path: Path, sweep_config: Callable[..., RunConfig]) -> None:
    """Two sweeps of the same settings propose the same trials, another seed others."""
    first = _drain(sweep_config(trials=12, storage=f"sqlite:///{tmp_path / 'one.db'}"))
    again = _drain(sweep_config(trials=12, storage=f"sqlite:///{tmp_path / 'two.db'}"))
    other = _drain(sweep_config(trials=12, storage=f"sqlite:///{tmp_path / 'three.db'}", seed=6))
    assert first == again
    assert len({str(values) for values in first}) == 12
    assert other != first


def test_a_killed_sweep_tries_what_it_would_have(tmp_path: Path, sweep_config: Callable[..., RunConfig]) -> None:
    """Stopped between trials and in the middle of one, it takes the open one up and repeats no number or proposal."""
    whole = _drain(sweep_config(trials=10, storage=f"sqlite:///{tmp_path / 'whole.db'}"))
    config = sweep_config(trials=10)
    _drain(config, until=4)
    with open_study(config) as study:
        open_one = study.ask()
        assert open_one
    with open_study(config) as study:
        [taken_up] = study.interrupted()
        assert (taken_up.number, taken_up.values) == (4, open_one.values)
    assert _drain(config) == whole


def test_a_trial_killed_while_it_was_made_gets_the_rest_of_its_values(
    sweep_config: Callable[..., RunConfig],
) -> None:
    """A number without all of its values is completed, not counted twice."""
    config = sweep_config()
    with open_study(config) as study:
        study.ask()
        bare = study._study.ask()
        bare.suggest_categorical("grpo.group_size", (2, 4))
    with open_study(config) as study:
        first, second = study.interrupted()
        assert (first.number, second.number) == (0, 1)
        assert second.values.keys() == first.values.keys()


def test_what_came_of_trials_is_remembered(sweep_config: Callable[..., RunConfig]) -> None:
    """Values, reasons, curves and MLflow runs are there after the study was closed; failed trials are counted."""
    config = sweep_config(trials=3)
    with open_study(config) as study:
        results = [_finish(0), Result("pruned", reason="behind"), Result("failed", reason="no GPU")]
        for result in results:
            proposal = study.ask()
            assert proposal
            study.tell(proposal.number, result)
    with open_study(config) as study:
        assert [trial.result for trial in study.trials()] == results
        assert study.ask() is None


def test_later_trials_are_held_against_completed_ones(sweep_config: Callable[..., RunConfig]) -> None:
    """Once enough trials were completed, a proposal carries their median from the share of the steps that is set."""
    config = sweep_config(prune_after=2, prune_from=0.5)
    with open_study(config) as study:
        for _ in range(2):
            proposal = study.ask()
            assert proposal
            assert proposal.config
            assert proposal.config.trial
            assert proposal.config.trial.bar == {}
            study.tell(proposal.number, _finish(proposal.number))
        proposal = study.ask()
        assert proposal
        assert proposal.config
        assert proposal.config.trial
        assert proposal.config.trial.bar == {2: 0.2}


def test_settings_decide_which_sweep_it_is(sweep_config: Callable[..., RunConfig]) -> None:
    """Other settings are another sweep, more trials or another runner the same; under a given name they are refused."""
    config = sweep_config()
    assert study_name(config) == study_name(sweep_config(trials=40, parallel=2, deployment="a/b"))
    assert study_name(config) != study_name(sweep_config(others={"grpo": {"steps": 3}}))
    assert study_name(config) != study_name(sweep_config(space={"grpo.beta": [0, 0.1]}))
    _drain(sweep_config(others={"name": "mine"}), until=1)
    with (
        pytest.raises(InputError, match="was begun with other settings"),
        open_study(sweep_config(others={"name": "mine", "grpo": {"steps": 3}})),
    ):
        pass


def test_after_the_choice_there_are_no_further_trials(sweep_config: Callable[..., RunConfig]) -> None:
    """The test split is looked at once: a sweep that has chosen takes the same trials, and no more."""
    _drain(sweep_config(trials=2))
    with open_study(sweep_config(trials=2)) as study:
        study.chosen = 1
    with open_study(sweep_config(trials=2)) as study:
        assert study.chosen == 1
    with pytest.raises(InputError, match="has chosen trial 1"), open_study(sweep_config(trials=3)):
        pass


def test_a_name_that_is_no_directory_is_refused(sweep_config: Callable[..., RunConfig]) -> None:
    """The name begins those of the trials' directories, so it is checked before anything is made."""
    with (
        pytest.raises(InputError, match="expected a plain directory name"),
        open_study(sweep_config(others={"name": "a/b"})),
    ):
        pass


def test_two_processes_do_not_run_one_sweep(sweep_config: Callable[..., RunConfig]) -> None:
    """A sweep that is under way is refused to a second process, which would take up the trials that are running."""
    with (
        open_study(sweep_config()),
        pytest.raises(InputError, match="under way in another process"),
        open_study(sweep_config()),
    ):
        pass


def test_a_second_process_can_wait(sweep_config: Callable[..., RunConfig]) -> None:
    """One that was put back because its first process was taken for dead goes on when that one has ended."""
    config, opened = sweep_config(), threading.Event()

    def put_back() -> None:
        with open_study(config, wait=True):
            opened.set()

    second = threading.Thread(target=put_back)
    with open_study(config):
        second.start()
        assert not opened.wait(1)
    assert opened.wait(30)
    second.join()


def test_a_place_that_cannot_be_used_is_named(sweep_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """A runs directory that is a file ends in a sentence with its path."""
    taken = tmp_path / "taken"
    taken.write_text("")
    with (
        pytest.raises(InputError, match=f"{taken} cannot be written"),
        open_study(sweep_config().model_copy(update={"runs_dir": taken})),
    ):
        pass


def test_only_grades_on_one_scale_are_compared(sweep_config: Callable[..., RunConfig]) -> None:
    """What a conclusion is worth is part of the grade: trials that differ in it set no bar for each other."""
    config = sweep_config(space={"rewards.agreement": [0.0, 0.3]}, trials=8, prune_after=2, prune_from=0)
    with open_study(config) as study:
        met = dict[float, int]()
        while proposal := study.ask():
            assert proposal.config
            assert proposal.config.trial
            worth = proposal.config.rewards.agreement
            assert bool(proposal.config.trial.bar) == (met.get(worth, 0) >= 2)
            met[worth] = met.get(worth, 0) + 1
            study.tell(proposal.number, _finish(proposal.number))
    assert min(met.values()) > 2


def test_importances_where_only_chance_differs(sweep_config: Callable[..., RunConfig]) -> None:
    """Trials that came to different things with the same values explain nothing, and end no sweep."""
    with open_study(sweep_config(space={"grpo.group_size": [2, 4]}, trials=8)) as study:
        while proposal := study.ask():
            fits = proposal.values["grpo.group_size"] == 2
            study.tell(proposal.number, _finish(proposal.number) if fits else Result("failed", reason="no memory"))
        assert len({trial.result.values for trial in study.trials() if trial.complete}) > 2
        assert study.importances() == {"macro_f1": {}, "unsupported_figures": {}, "strict_form": {}}


def test_importances_tell_what_mattered(sweep_config: Callable[..., RunConfig]) -> None:
    """Shares of the variance add up to one; where all trials came to the same there is nothing to explain."""
    config = sweep_config(trials=8)
    with open_study(config) as study:
        assert study.importances() == {"macro_f1": {}, "unsupported_figures": {}, "strict_form": {}}
    _drain(config)
    with open_study(config) as study:
        found = study.importances()
    assert sum(found["macro_f1"].values()) == pytest.approx(1)
    assert found["macro_f1"].keys() == {"grpo.learning_rate", "grpo.group_size", "rewards.correctness"}
    assert found["unsupported_figures"] == {}


def test_the_database_is_found(monkeypatch: pytest.MonkeyPatch, sweep_config: Callable[..., RunConfig]) -> None:
    """The setting comes first, then the environment's, then a file in the runs directory."""
    config = sweep_config()
    assert resolve_storage(config) == f"sqlite:///{config.runs_dir / module.DATABASE_FILE}"
    monkeypatch.setenv(module.STORAGE_VARIABLE, "postgresql://db/sweeps")
    assert resolve_storage(config) == "postgresql://db/sweeps"
    assert resolve_storage(sweep_config(storage="sqlite:///x.db")) == "sqlite:///x.db"


def test_the_database_may_be_postgresql(sweep_config: Callable[..., RunConfig]) -> None:
    """In the service's database a sweep goes on as it does in a file."""
    with postgres({}) as server:
        # The bare cluster's encoding is that of the C locale; a service's is UTF-8.
        place = f"host={server.directory}&port={server.port}&client_encoding=utf8"
        config = sweep_config(storage=f"postgresql+psycopg://postgres@/postgres?{place}")
        _drain(config, until=2)
        assert _drain(config) == _drain(sweep_config())


def test_a_study_is_not_begun_twice(sweep_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """One that lies in the runs directory goes on there: another database is refused, for a new name it is taken."""
    elsewhere = f"sqlite:///{tmp_path / 'else.db'}"
    _drain(sweep_config({"name": "begun"}), until=1)
    with pytest.raises(InputError, match=r"begun was begun in .*sweeps.db, and would begin anew in sqlite:.*else.db"):
        _drain(sweep_config({"name": "begun"}, storage=elsewhere))
    assert len(_drain(sweep_config({"name": "new"}, storage=elsewhere), until=1)) == 1


def test_a_database_that_goes_away_is_a_sentence(sweep_config: Callable[..., RunConfig]) -> None:
    """In the middle of a sweep, too; run again, it goes on where it was."""
    with postgres({}) as server:
        place = f"host={server.directory}&port={server.port}&client_encoding=utf8"
        config = sweep_config(storage=f"postgresql+psycopg://postgres@/postgres?{place}")

        def lose() -> None:
            with open_study(config) as study:
                study.ask()
                server.stop()
                study.tell(0, _finish(0))

        with pytest.raises(ServiceUnreachable, match=r"did not answer .*goes on where it was"):
            lose()
        server.start()
        with open_study(config) as study:
            assert [proposal.number for proposal in study.interrupted()] == [0]


def test_a_study_is_not_its_name(sweep_config: Callable[..., RunConfig]) -> None:
    """Opened again it is the same; with its database gone, one of the same name is another, and finds nothing of it."""
    config = sweep_config()
    with open_study(config) as study:
        first = study.id
    with open_study(config) as study:
        assert study.id == first
    (config.runs_dir / "sweeps.db").unlink()
    with open_study(config) as study:
        assert study.id != first


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("nonsense", InputError, "is no database URL"),
        ("oracle+nothing://db", InputError, "is no database URL"),
        ("postgresql+psycopg://u:secret@h:abc/s", InputError, "is no database URL"),
        ("postgresql+psycopg://u:secret/@127.0.0.1:9/s?password=secret", ServiceUnreachable, "127.0.0.1:9/s did not"),
        ("postgresql+psycopg://u:secret@127.0.0.1:9/s", ServiceUnreachable, "127.0.0.1:9/s did not answer"),
    ],
)
def test_a_bad_database_is_a_sentence(
    url: str, error: type[Exception], sentence: str, sweep_config: Callable[..., RunConfig]
) -> None:
    """A URL that is none, and a database that is away, are told without the password."""
    with pytest.raises(error) as caught, open_study(sweep_config(storage=url)):
        pass
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
