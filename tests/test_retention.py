"""What old runs left: found, removed, and never more than that."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgrpo import cli, registry, retention, stages
from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import MANIFEST, Manifest, build, describe, hold, let_go, locked, verify, write_json
from medgrpo.provenance import fingerprint
from medgrpo.retention import TRASH, Plan, clean, survey
from medgrpo.runs import CONFIG_FILE, link, open_run_directory, show_result

DAY = 86_400


@pytest.fixture
def config(tmp_path: Path) -> Iterator[RunConfig]:
    yield RunConfig(profile="demo", runs_dir=tmp_path / "runs")
    let_go()


def artifact(config: RunConfig, name: str, content: str = "weights", **files: dict[str, object]) -> Manifest:
    """An artifact `KIND-FINGERPRINT`, as a run that has ended leaves it."""

    def fill(work: Path) -> None:
        (work / "file").write_text(content)
        for file, value in files.items():
            write_json(work / f"{file}.json", value)

    made = build(place(config, name), fill)
    let_go()
    return made


def place(config: RunConfig, name: str) -> Path:
    return config.runs_dir / stages.ARTIFACTS / f"{name.partition('/')[0]}-{fingerprint(name)}"


def run(config: RunConfig, name: str, **linked: Manifest) -> Path:
    """A run's directory with links to artifacts."""
    _, directory = open_run_directory(config.model_copy(update={"name": name}))
    for stage, manifest in linked.items():
        show_result(directory, stage, manifest)
    let_go()
    return directory


def age(path: Path, days: float) -> None:
    """Let a path and all that is in it be so many days old."""
    for found in (path, *path.rglob("*")):
        if not found.is_symlink():
            moment = found.stat().st_mtime - days * DAY
            os.utime(found, (moment, moment))


def going(plan: Plan) -> set[str]:
    return {str(entry.path.relative_to(plan.runs_dir)) for entry in plan.remove}


def left(plan: Plan) -> dict[str, str]:
    return {str(entry.path.relative_to(plan.runs_dir)): entry.reason for entry in plan.left}


def tree(config: RunConfig) -> set[str]:
    return {str(path.relative_to(config.runs_dir)) for path in config.runs_dir.rglob("*")}


def named(config: RunConfig, *manifests: Manifest) -> set[str]:
    return {str(manifest.path.relative_to(config.runs_dir)) for manifest in manifests}


@pytest.fixture
def three(config: RunConfig) -> tuple[Manifest, Manifest, Manifest]:
    """Runs of one, two and three days ago: data that all share, and a training of the oldest and of the newest."""
    data, old, new = (artifact(config, name) for name in ("data/all", "train/old", "train/new"))
    for days, (name, trained) in enumerate((("today", new), ("between", new), ("past", old)), start=1):
        age(run(config, name, data=data, train=trained), days)
    for manifest in (data, old):
        age(manifest.path, 3)
    link(config.runs_dir / "latest", config.runs_dir / "today")
    return data, old, new


def test_what_only_an_old_run_links_to_goes(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """The newest runs stay with all that they link to; an older run goes with what is its own, and links stay whole."""
    data, old, new = three
    assert going(survey(config, 2)) == {"past", *named(config, old)}
    removed = clean(config, 2)
    assert (going(removed), removed.kept) == ({"past", *named(config, old)}, ("today", "between"))
    assert verify(data)
    assert verify(new)
    assert not old.path.exists()
    assert (config.runs_dir / "latest" / "train" / MANIFEST).is_file()
    assert not list(config.runs_dir.rglob("*.lock")) or not old.path.with_name(f"{old.path.name}.lock").exists()
    assert going(survey(config, 2)) == set()


def test_a_survey_changes_nothing(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """A dry run leaves every file as it is, and knows the size of what would go."""
    before = tree(config)
    plan = survey(config, 1)
    assert tree(config) == before
    assert plan.bytes >= three[1].bytes
    assert plan.bytes == sum(entry.bytes for entry in plan.remove)


def test_the_latest_run_stays(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """The run that `latest` names is kept however old, and what only it links to."""
    link(config.runs_dir / "latest", config.runs_dir / "past")
    clean(config, 1)
    assert verify(three[1])
    assert not (config.runs_dir / "between").exists()


def test_a_run_under_way_stays(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """A run whose process lives is kept however old, until that process is gone."""
    hold(config.runs_dir / "past" / CONFIG_FILE)
    assert going(clean(config, 2)) == set()
    let_go()
    assert "past" in going(clean(config, 2))


def test_an_artifact_in_use_stays(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """An artifact that a process holds, or makes anew, is left alone and named; afterwards it goes."""
    old = three[1]
    hold(old.path / MANIFEST)
    assert left(clean(config, 2)) == dict.fromkeys(named(config, old), "in use")
    let_go()
    with locked(old.path.with_name(f"{old.path.name}.lock")):
        assert left(clean(config, 2)) == dict.fromkeys(named(config, old), "in use")
    assert going(clean(config, 2)) == named(config, old)


def test_what_comes_into_use_meanwhile_stays(
    config: RunConfig, three: tuple[Manifest, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a new run took up after it was found to be unused is not removed."""
    old, found = three[1], survey(config, 2)
    hold(old.path / MANIFEST)
    again = run(config, "again", train=old)
    hold(config.runs_dir / "past" / CONFIG_FILE)
    monkeypatch.setattr(retention, "survey", lambda *_: found)
    assert set(left(clean(config, 2)).values()) == {"came into use"}
    let_go()
    assert "past" in going(clean(config, 2))
    assert verify(old)
    assert (again / "train" / MANIFEST).is_file()


def test_a_kill_leaves_artifacts_whole_or_absent(
    config: RunConfig, three: tuple[Manifest, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaning that ends while it deletes leaves no half artifact in place, and the next one takes the rest away."""

    def half(path: Path) -> None:
        next(path.rglob("*")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        clean(config, 2)
    assert not (config.runs_dir / "past").exists()
    assert verify(three[1])
    monkeypatch.setattr(shutil, "rmtree", lambda path: half(path) if path.name.startswith("train") else None)
    with pytest.raises(KeyboardInterrupt):
        clean(config, 2)
    monkeypatch.undo()
    assert not three[1].path.exists()
    assert {Path(name).parent.name for name in going(survey(config, 2))} == {TRASH}
    clean(config, 2)
    assert going(survey(config, 2)) == set()
    assert not list(config.runs_dir.rglob(f"{TRASH}/*"))


def test_unfinished_work_goes_once_it_is_abandoned(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """A work directory from before the oldest kept run goes with its lock; a newer or a locked one stays."""
    work = {name: place(config, f"train/{name}").with_suffix(".partial") for name in ("gone", "resumed", "locked")}
    for name, directory in work.items():
        write_json(directory / "job.json", {})
        directory.with_suffix(".lock").touch()
        age(directory, 0 if name == "resumed" else 30)
    with locked(work["locked"].with_suffix(".lock")):
        clean(config, 2)
    assert {name for name, directory in work.items() if directory.exists()} == {"resumed", "locked"}
    assert {name for name, directory in work.items() if directory.with_suffix(".lock").exists()} == {
        "resumed",
        "locked",
    }


def test_a_lock_that_guards_nothing_goes(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """A lock file without artifact or work directory goes, unless a process has it."""
    for name in ("free", "taken"):
        place(config, f"train/{name}").with_suffix(".lock").touch()
    with locked(place(config, "train/taken").with_suffix(".lock")):
        clean(config, 3)
    assert not place(config, "train/free").with_suffix(".lock").exists()
    assert place(config, "train/taken").with_suffix(".lock").exists()


def test_what_a_killed_run_made_but_never_linked_stays(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """An artifact newer than the oldest kept run may be its work, and stays without a link; an older one goes."""
    newer, older = artifact(config, "train/newer"), artifact(config, "train/older")
    age(older.path, 5)
    clean(config, 2)
    assert verify(newer)
    assert not older.path.exists()


def test_what_a_kept_run_met_and_registered_stays(config: RunConfig) -> None:
    """The fetched champion that a kept run was compared with, and its registration, stay; others of long ago go."""
    evaluated = artifact(config, "evaluation/kept", champion={"digest": "d1"})
    met, other = (artifact(config, f"model/{digest}", version={"digest": digest}) for digest in ("d1", "d2"))
    mine, past = (
        artifact(config, f"registration/{number}", registration={"name": "m", "version": number}) for number in (1, 2)
    )
    directory = run(config, "night", evaluation=evaluated)
    write_json(directory / "summary.json", {"model": {"name": "m", "version": 1}})
    for manifest in (evaluated, met, other, mine, past):
        age(manifest.path, 9)
    assert going(clean(config, 1)) == named(config, other, past)


def test_answers_of_older_code_go(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """Answers that an older code gave long ago go; those of this code stay."""
    current = stages.answers_directory(config)
    old = current.with_name(f"answers-{'0' * 16}")
    for directory in (current, old):
        write_json(directory / "1.json", {})
        age(directory, 9)
    assert going(clean(config, 3)) == {str(old.relative_to(config.runs_dir))}


def test_what_is_not_ours_is_left_alone(config: RunConfig, three: tuple[Manifest, ...], tmp_path: Path) -> None:
    """What no run makes stays and is named; MLflow's store and the world outside stay too."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / CONFIG_FILE).write_text((config.runs_dir / "past" / CONFIG_FILE).read_text())
    (config.runs_dir / "linked").symlink_to(tmp_path / "outside")
    shutil.copytree(config.runs_dir / "past", config.runs_dir / "copied", symlinks=True)
    write_json(config.runs_dir / "notes" / "a.json", {})
    (config.runs_dir / "past" / "notes.txt").write_text("mine")
    store = ("mlflow.db", "mlflow.db-wal", "mlartifacts")
    for name in store:
        (config.runs_dir / name).mkdir()
        age(config.runs_dir / name, 99)
    (config.runs_dir / stages.ARTIFACTS / "mine").mkdir()
    plan = clean(config, 1)
    assert going(plan) == {"between"}
    assert left(plan) == {
        "copied": "has no config.json of a run of this name",
        "linked": "not made by a run",
        "notes": "has no config.json of a run of this name",
        "past": "holds notes.txt, which no run leaves",
        ".artifacts/mine": "not made by a run",
    }
    assert all((config.runs_dir / name).is_dir() for name in (*store, "notes", "past"))
    assert (tmp_path / "outside" / CONFIG_FILE).is_file()


def test_artifacts_elsewhere_are_left_alone(config: RunConfig, three: tuple[Manifest, ...], tmp_path: Path) -> None:
    """An artifacts directory that is a link is outside of the runs directory, and so stays as it is."""
    (config.runs_dir / stages.ARTIFACTS).rename(tmp_path / "elsewhere")
    (config.runs_dir / stages.ARTIFACTS).symlink_to(tmp_path / "elsewhere")
    plan = clean(config, 1)
    assert left(plan) == {".artifacts": "leads out of the runs directory"}
    assert verify(three[1])


@pytest.mark.parametrize("keep", [-1, 0])
def test_too_few_runs_to_keep(config: RunConfig, keep: int) -> None:
    """Keeping no run is refused in a sentence."""
    with pytest.raises(InputError, match=f"--keep {keep}: expected 1 or more"):
        survey(config, keep)


def test_no_runs_directory(config: RunConfig) -> None:
    """A runs directory that does not exist is named, and not made."""
    with pytest.raises(InputError, match=r"runs is no directory.*--set runs_dir"):
        clean(config, 1)
    assert not config.runs_dir.exists()


def test_one_cleaning_at_a_time(config: RunConfig, three: tuple[Manifest, ...]) -> None:
    """A second cleaning of the same directory is refused in a sentence while the first is at work."""
    with (
        locked(config.runs_dir / retention.CLEANING),
        pytest.raises(InputError, match="another process is cleaning"),
    ):
        clean(config, 1)
    assert verify(three[1])


def test_the_command_lists_first(
    config: RunConfig,
    three: tuple[Manifest, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`medgrpo clean` lists what would go with its size, and removes it only with --yes; --json says the same."""

    def command(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["medgrpo", "clean", "--set", f"runs_dir={config.runs_dir}", *options])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    listed = command("--keep", "2")
    assert "  artifact    .artifacts/train-" in listed
    assert "kB  run         past: older than the runs that are kept" in listed
    assert "in 2 places; --yes does it" in listed
    assert verify(three[1])
    found = json.loads(command("--keep", "2", "--json"))
    assert (found["kept"], found["removed"], found["remove"][0]["kind"]) == (["today", "between"], False, "run")
    assert "Removed" in command("--keep", "2", "--yes")
    assert not three[1].path.exists()
    assert command("--keep", "2", "--yes").endswith("Kept: today, between.\nRemoved 0 bytes in 0 places.\n")


@pytest.mark.slow
def test_a_registered_version_outlives_its_artifacts(candidate: registry.Candidate, tmp_path: Path) -> None:
    """Without its cached registration a version is found again by its digests: same number, same MLflow run, whole."""
    config = candidate.config
    write_json(candidate.evaluation_dir / "gate.json", candidate.gate)
    write_json(candidate.evaluation_dir / stages.CHAMPION_FILE, {"digest": "none"})
    shutil.copytree(candidate.model_dir, candidate.train_dir / "model")
    directories = (candidate.data_dir, candidate.audit_dir, candidate.train_dir, candidate.evaluation_dir)
    parts = [describe(directory) for directory in directories if directory]
    registered = stages.register(config, *parts, {})
    version = stages.read_registration(registered)
    let_go()
    age(registered.path, 9)
    run(config, "later")
    assert str(registered.path) in {str(entry.path) for entry in clean(config, 1).remove}
    assert not stages.registration_holds(config, registered)
    client = registry.connect(config)
    assert registry.verify_version(client, registry.get_version(client, version["name"], str(version["version"])))
    again = stages.read_registration(stages.register(config, *parts, {}))
    assert (again["version"], again["run_id"]) == (version["version"], version["run_id"])
    let_go()
