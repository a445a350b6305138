"""What each artifact depends on, and what it does not."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from medgrpo import registry, stages
from medgrpo.config import DataConfig, PolicyConfig, RewardConfig, RunConfig, load_config
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import Manifest, build, describe, write_json
from medgrpo.registry import Candidate, Registration
from medgrpo.stages import Champion
from medgrpo.testing import tiny_config

DATA = Manifest(uri="/runs/.artifacts/data-0", sha256="d" * 64, bytes=1, files=1)
AUDITED = Manifest(uri="/runs/.artifacts/audit-0", sha256="a" * 64, bytes=1, files=1)
TRAINED = Manifest(uri="/runs/.artifacts/train-0", sha256="e" * 64, bytes=1, files=1)
EVALUATED = Manifest(uri="/runs/.artifacts/evaluation-0", sha256="f" * 64, bytes=1, files=1)


def _keys(*overrides: str, profile: str = "demo") -> dict[str, str]:
    """The keys of all stages under some settings."""
    return _keys_of(load_config(profile, overrides))


def _keys_of(config: RunConfig) -> dict[str, str]:
    return {
        "prepare": stages.prepare_key(config),
        "audit": stages.audit_key(config, DATA),
        "train": stages.train_key(config, DATA),
        "evaluate": stages.evaluate_key(config, DATA, AUDITED, TRAINED, Champion()),
        "register": stages.register_key(config, TRAINED, EVALUATED),
    }


def _changed(*overrides: str) -> set[str]:
    """The stages whose own key changes with some settings, their inputs being equal."""
    before, after = _keys(), _keys(*overrides)
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("override", "stages_that_change"),
    [
        ("evaluation.cases=7", {"evaluate"}),
        ("evaluation.split=dev", {"evaluate"}),
        ("evaluation.resamples=10", {"evaluate"}),
        ("gate.margin=0.03", {"evaluate"}),
        ("grpo.learning_rate=1e-4", {"train"}),
        ("grpo.steps=5", {"train"}),
        ("warmup.epochs=3", {"train"}),
        ("policy.lora_rank=8", {"train"}),
        ("seed=12", {"train"}),
        ("processes=2", {"train"}),
        ("data.fold=1", {"prepare"}),
        ("data.synthetic_pool=60", {"prepare"}),
        ("policy.base=other/model", {"prepare", "train"}),
        ("policy.revision=abc", {"prepare", "train"}),
        ("grpo.max_completion_length=32", {"prepare", "train"}),
        ("rewards.agreement=0.1", {"audit", "train", "evaluate"}),
        ("rewards.evidence=2", {"prepare", "audit", "train", "evaluate"}),
        ("sweep.trials=3", set()),
        ("audit=warn", {"audit"}),
        ("tracking.alias=challenger", {"register"}),
        ("tracking.uri=sqlite:////tmp/other.db", {"register"}),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it(override: str, stages_that_change: set[str]) -> None:
    """A changed setting makes anew the stages that read it, and no other."""
    assert _changed(override) == stages_that_change


@pytest.mark.parametrize(
    "override", ["name=tonight", "profile=mine", "training_timeout_minutes=5", "policy.start_from=x"]
)
def test_names_and_limits_change_no_stage(override: str) -> None:
    """Names of run and profile, the time limit, and how a start is called decide nothing that is computed."""
    assert _changed(override) == set()


def test_the_same_settings_in_another_profile_are_the_same_work(tmp_path: Path) -> None:
    """A copy of a profile under another name finds everything in the cache."""
    copy = tmp_path / "copy.toml"
    copy.write_text("[data]\nsynthetic_pool = 60\n")
    assert _keys_of(load_config(copy)) == _keys_of(RunConfig(data=DataConfig(synthetic_pool=60)))


def test_the_default_tracking_store_is_part_of_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another MLFLOW_TRACKING_URI is another registry, where the model has yet to be registered."""
    before = _keys()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    after = _keys()
    assert {stage for stage in before if before[stage] != after[stage]} == {"register"}


@pytest.mark.parametrize("stage", ["train", "evaluate", "register"])
def test_a_stage_depends_on_the_one_before(stage: str) -> None:
    """Other data retrains; other weights are evaluated and registered anew."""
    config = RunConfig()
    data = DATA.model_copy(update={"uri": "/runs/.artifacts/data-1"})
    assert stages.train_key(config, DATA, TRAINED) != stages.train_key(config, DATA)
    trained = TRAINED.model_copy(update={"sha256": "0" * 64})
    other = {
        "train": stages.train_key(config, data),
        "evaluate": stages.evaluate_key(config, DATA, AUDITED, trained, Champion()),
        "register": stages.register_key(config, trained, EVALUATED),
    }
    assert other[stage] != _keys_of(config)[stage]


@pytest.mark.parametrize("domain", ["synthetic", "pubmedqa"])
def test_each_key_covers_the_code_of_the_runs_domain(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain's own file, which nothing imports by name, counts in every stage; that of another one does not."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(stages, "code_version", lambda *modules: asked.append(modules) or "code")
    assert len(set(_keys_of(RunConfig(data=DataConfig(domain=domain))).values())) == 5
    assert [modules[1:] for modules in asked] == [(f"medgrpo.domains.{domain}",)] * 5


def test_keys_name_their_stage() -> None:
    """Artifact directories can be told apart by eye."""
    stems = ["data", "audit", "train", "evaluation", "registration"]
    assert [key.rpartition("-")[0] for key in _keys().values()] == stems


def _corpus(directory: Path, text: str, ground_truth: str | None = None) -> RunConfig:
    directory.mkdir()
    (directory / "ori_pqal.json").write_text(text)
    if ground_truth:
        (directory / "test_ground_truth.json").write_text(ground_truth)
    return RunConfig(data=DataConfig(domain="pubmedqa", path=directory / "ori_pqal.json"))


def test_the_content_of_the_data_file_matters_not_its_path(tmp_path: Path) -> None:
    """A moved data file is the same data; an edited one is not."""
    here, moved = _corpus(tmp_path / "here", '{"1": {}}'), _corpus(tmp_path / "moved", '{"1": {}}')
    edited = _corpus(tmp_path / "edited", '{"2": {}}')
    assert stages.prepare_key(here) == stages.prepare_key(moved)
    assert stages.prepare_key(here) != stages.prepare_key(edited)


def test_the_ground_truth_beside_the_data_file_matters(tmp_path: Path) -> None:
    """A ground truth that is found beside the data file counts although no setting names it."""
    without, beside = _corpus(tmp_path / "without", "{}"), _corpus(tmp_path / "beside", "{}", '{"1": "yes"}')
    named = RunConfig(
        data=DataConfig(
            domain="pubmedqa",
            path=tmp_path / "without" / "ori_pqal.json",
            ground_truth=tmp_path / "beside" / "test_ground_truth.json",
        )
    )
    assert stages.prepare_key(without) != stages.prepare_key(beside)
    assert stages.prepare_key(named) == stages.prepare_key(beside)


def test_a_missing_data_file_still_has_a_key(tmp_path: Path) -> None:
    """The key of unreadable data does not raise: the stage itself says in plain words what is missing."""
    config = RunConfig(data=DataConfig(domain="pubmedqa", path=tmp_path / "absent.json"))
    assert stages.prepare_key(config).startswith("data-")


@pytest.fixture
def registered(tmp_path: Path) -> Manifest:
    """The artifact of a registration."""
    return build(tmp_path / "r", lambda work: write_json(work / "registration.json", {"name": "m", "version": 3}))


@pytest.mark.parametrize("held", [True, False])
def test_a_registration_holds_while_the_registry_has_the_version(
    registered: Manifest, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """A cached registration is believed exactly if the registry still holds the version it names."""
    asked: list[tuple[str, int]] = []

    def holds(_: RunConfig, name: str, version: int) -> bool:
        asked.append((name, version))
        return held

    monkeypatch.setattr(registry, "holds", holds)
    assert stages.registration_holds(RunConfig(), registered) is held
    assert asked == [("m", 3)]


def test_a_registration_is_believed_while_the_registry_is_silent(
    registered: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """During an outage of MLflow a recorded registration is taken as it is, with a warning."""

    def silent(*_: Any) -> bool:
        raise ServiceUnreachable("MLflow did not answer.")

    monkeypatch.setattr(registry, "holds", silent)
    with caplog.at_level(logging.WARNING):
        assert stages.registration_holds(RunConfig(), registered)
    assert "MLflow did not answer. The registration is taken as it was recorded." in caplog.text


def test_a_damaged_registration_does_not_hold(registered: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration whose file was edited is not believed, whatever the registry says."""
    monkeypatch.setattr(registry, "holds", lambda *_: True)
    (registered.path / "registration.json").write_text("{}")
    assert not stages.registration_holds(RunConfig(), registered)


@pytest.fixture
def judged(tmp_path: Path) -> Manifest:
    """An evaluation, as far as the gate judged it."""

    def fill(work: Path) -> None:
        write_json(work / "gate.json", {"outcome": "fail", "checks": []})
        write_json(work / "champion.json", {"digest": "none"})

    return build(tmp_path / "e", fill)


def test_registering_hands_over_what_the_earlier_stages_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Manifest
) -> None:
    """The candidate points to the stages' artifacts, its digest is the model's, and registration.json says so."""
    candidates: list[Candidate] = []
    registration = Registration("m", 1, "run", "models:/m/1", TRAINED.sha256, ("candidate",))

    def register(candidate: Candidate) -> Registration:
        candidates.append(candidate)
        return registration

    monkeypatch.setattr(registry, "register", register)
    write_json(tmp_path / "train" / "model" / "weights.json", [1, 2])
    trained, model = describe(tmp_path / "train"), describe(tmp_path / "train" / "model")
    manifest = stages.register(RunConfig(runs_dir=tmp_path), DATA, AUDITED, trained, judged, {"medgrpo.flow_run": "f"})
    expected = {**dataclasses.asdict(registration), "aliases": ["candidate"]}
    assert stages.read_registration(manifest) == expected
    assert [(c.data_dir, c.audit_dir, c.model_dir, c.evaluation_dir, c.model_digest) for c in candidates] == [
        (DATA.path, AUDITED.path, model.path, judged.path, model.sha256)
    ]
    assert candidates[0].gate == {"outcome": "fail", "checks": []}
    assert candidates[0].champion == "none"


def test_a_registration_that_no_longer_holds_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Manifest
) -> None:
    """An intact registration is not made twice, unless the registry has lost its version in the meantime."""
    versions = iter((1, 2))
    held = [True]
    monkeypatch.setattr(registry, "holds", lambda *_: held[0])
    monkeypatch.setattr(registry, "register", lambda _: Registration("m", next(versions), "r", "models:/m", "e", ()))

    def register() -> int:
        manifest = stages.register(RunConfig(runs_dir=tmp_path), DATA, AUDITED, TRAINED, judged, {})
        return int(stages.read_registration(manifest)["version"])

    assert (register(), register()) == (1, 1)
    held[0] = False
    assert register() == 2


# --- audit


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[RunConfig, Manifest]:
    """A tiny run's settings and its prepared data."""
    config = tiny_config(tmp_path)
    return config, stages.prepare(config)


@pytest.mark.slow
def test_an_audit_keeps_what_each_attack_earned(prepared: tuple[RunConfig, Manifest]) -> None:
    """The artifact has a row per kind of attack, and none reaches gold."""
    rows = stages.audit_rows(stages.audit(*prepared))
    assert [row["attack"] for row in rows].count("pasted abstract") == 1
    assert {row["reaches gold"] for row in rows} == {0}


@pytest.mark.slow
def test_rewards_with_a_hole_end_the_run_before_it_trains(prepared: tuple[RunConfig, Manifest]) -> None:
    """The sentence names the hole and what to do; nothing is kept, so that the next run attacks again."""
    config, data = prepared
    open_config = config.model_copy(update={"rewards": RewardConfig(mode="weighted")})
    with pytest.raises(InputError, match=r"'hedged verdict' with a wrong verdict outranks a right one.*set audit=warn"):
        stages.audit(open_config, data)
    assert not (config.runs_dir.absolute() / stages.ARTIFACTS / stages.audit_key(open_config, data)).exists()


@pytest.mark.slow
def test_a_hole_may_be_only_a_warning(prepared: tuple[RunConfig, Manifest], caplog: pytest.LogCaptureFixture) -> None:
    """With audit=warn the run goes on, and the log has the sentence."""
    config, data = prepared
    config = config.model_copy(update={"rewards": RewardConfig(grounding=0), "audit": "warn"})
    with caplog.at_level(logging.WARNING):
        rows = stages.audit_rows(stages.audit(config, data))
    assert rows[0]["reaches gold"]
    assert "the rewards can be gamed" in caplog.text


# --- models from the registry


VERSION = Registration("medgrpo", 4, "run", "models:/medgrpo/4", "c" * 64, ("champion",))


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A registry with one version, the champion; the downloads made from it."""
    downloads: list[str] = []

    def download(config: RunConfig, name: str, version: str, directory: Path) -> Path:
        downloads.append(f"{name} {version}")
        write_json(directory / "config.json", {})
        return directory

    monkeypatch.setattr(registry, "find_champion", lambda config, domain: VERSION)
    monkeypatch.setattr(registry, "find_version", lambda config, uri: VERSION)
    monkeypatch.setattr(registry, "download", download)
    return downloads


@pytest.fixture
def real_data(tmp_path: Path) -> Manifest:
    """Prepared data, as far as it says where its records are from."""
    return build(tmp_path / "d", lambda work: write_json(work / "data.json", {"domain": "pubmedqa"}))


def test_a_registered_model_is_fetched_once(tmp_path: Path, shelf: list[str]) -> None:
    """However often and by whichever address a version is asked for, its files are downloaded once."""
    config = RunConfig(runs_dir=tmp_path)
    model = Path(stages.locate(config, "models:/medgrpo@champion"))
    assert stages.locate(config, "models:/medgrpo/4") == str(model)
    assert (model / "config.json").is_file()
    assert shelf == ["medgrpo 4"]


def test_a_directory_is_a_model_where_it_is(tmp_path: Path) -> None:
    """What is no registry address is taken as the base of a policy is: a directory, a Hub id, an embedded name."""
    write_json(tmp_path / "model" / "config.json", {})
    assert stages.locate(RunConfig(), str(tmp_path / "model")) == str(tmp_path / "model")
    with pytest.raises(InputError, match="is not a directory"):
        stages.locate(RunConfig(), "./none")


def test_a_run_stands_for_the_model_it_trained(tmp_path: Path) -> None:
    """Its directory holds a config.json too, which is not a model's."""
    for place in (tmp_path, tmp_path / "train" / "model"):
        write_json(place / "config.json", {})
    assert stages.locate(RunConfig(), str(tmp_path)) == str(tmp_path / "train" / "model")


def test_a_pinned_revision_is_the_bases_alone() -> None:
    """Another model than the policy's base is neither prepared for nor asked in that base's revision."""
    config = RunConfig(policy=PolicyConfig(base="organisation/base", revision="abc"))
    asked = stages.contestants(config, {"base": "organisation/base", "evaluated": "other/model"})
    assert [(one.name, one.source, one.revision) for one in asked] == [
        ("base", "organisation/base", "abc"),
        ("evaluated", "other/model", None),
    ]
    assert stages.with_base(config, "other/model").policy.revision is None
    assert stages.with_base(config, "organisation/base") == config


def test_the_champion_is_fetched_for_the_evaluation(tmp_path: Path, shelf: list[str], real_data: Manifest) -> None:
    """The registry's champion comes with its files, and is known."""
    champion = stages.fetch_champion(RunConfig(runs_dir=tmp_path), real_data)
    assert champion.model
    assert (champion.model.path / "model" / "config.json").is_file()
    assert champion.digest == VERSION.digest
    assert champion.unknown == ""


def test_no_champion_is_known_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Manifest) -> None:
    """An answer of the registry that there is none is knowledge."""
    monkeypatch.setattr(registry, "find_champion", lambda *_: None)
    assert stages.fetch_champion(RunConfig(runs_dir=tmp_path), real_data) == Champion()
    assert Champion().digest == "none"


def test_a_silent_registry_is_no_registry_without_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Manifest
) -> None:
    """During an outage of MLflow it is not known whether there is a champion: whoever asks decides what then."""

    def silent(*_: Any) -> None:
        raise ServiceUnreachable("MLflow did not answer.")

    monkeypatch.setattr(registry, "find_champion", silent)
    with pytest.raises(ServiceUnreachable):
        stages.fetch_champion(RunConfig(runs_dir=tmp_path), real_data)
    assert Champion(unknown="MLflow did not answer.").digest is None


def test_a_spoilt_champion_is_no_outage(
    tmp_path: Path, shelf: list[str], monkeypatch: pytest.MonkeyPatch, real_data: Manifest
) -> None:
    """A champion whose files are not what was registered ends the run: something is wrong with what is in service."""

    def spoilt(*_: Any) -> Path:
        raise InputError("models:/medgrpo/4 is not what was registered")

    monkeypatch.setattr(registry, "download", spoilt)
    with pytest.raises(InputError, match="not what was registered"):
        stages.fetch_champion(RunConfig(runs_dir=tmp_path), real_data)


def test_an_evaluation_depends_on_its_champion() -> None:
    """None, one that is not known, and two different ones: four evaluations."""
    config = RunConfig()
    other = TRAINED.model_copy(update={"sha256": "b" * 64})
    champions = [Champion(), Champion(unknown="away"), Champion(model=TRAINED), Champion(model=other)]
    assert len({stages.evaluate_key(config, DATA, AUDITED, TRAINED, champion) for champion in champions}) == 4
