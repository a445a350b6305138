"""The adapter that a run goes on from: where it is found, what it is held against, and what is refused, in words."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medgrpo import registry, stages, starting
from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import seal, write_json
from medgrpo.policies import describe_base, load_trainable
from medgrpo.registry import Candidate
from medgrpo.registry.evidence import ADAPTER_TAG, BASE_DIGEST_TAG, START_DIGEST_TAG, START_TAG
from medgrpo.testing import tiny_config, tiny_policy
from medgrpo.training.start import adapter_digest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The settings of a run `night` of a tiny policy, whose directory holds its adapter."""
    config = tiny_config(tmp_path_factory.mktemp("trained"), name="night")
    run = config.runs_dir / "night"
    model, _ = load_trainable(config.policy)
    model.save_pretrained(run / "train" / "grpo" / "adapter")
    seal(run / "train" / "grpo" / "adapter")
    write_json(run / "config.json", config.model_dump(mode="json"))
    write_json(run / "train" / "training.json", {"base": describe_base(config.policy), "device": "cpu"})
    return config


@pytest.fixture
def home(trained: RunConfig, tmp_path: Path) -> Path:
    """A copy of that run, to be spoilt, in runs/ of a directory of its own."""
    shutil.copytree(trained.runs_dir, tmp_path / "runs", ignore=shutil.ignore_patterns(".artifacts"))
    return tmp_path


def going_on(trained: RunConfig, home: Path, start_from: object, **policy: Any) -> RunConfig:
    """A run in `home` that starts from something, on the same base unless told otherwise."""
    changed = trained.policy.model_copy(update={"start_from": str(start_from), **policy})
    tracking = trained.tracking.model_copy(update={"uri": f"sqlite:///{home / 'runs' / 'mlflow.db'}"})
    return trained.model_copy(update={"runs_dir": home / "runs", "policy": changed, "tracking": tracking})


def adapter_of(home: Path) -> Path:
    return home / "runs" / "night" / "train" / "grpo" / "adapter"


def known(config: RunConfig) -> dict[str, Any]:
    """What is known of a start once it is fetched."""
    start = stages.fetch_start(config)
    assert start
    found: dict[str, Any] = json.loads((start.path / "start.json").read_text())
    assert adapter_digest(start.path / "adapter") == found["digest"]
    return found


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as caught:
        stages.fetch_start(config)
    return str(caught.value)


def test_without_the_setting_there_is_no_start(trained: RunConfig) -> None:
    """A fresh adapter needs nothing fetched."""
    assert stages.fetch_start(trained) is None


def test_a_run_is_named_by_its_directory_or_its_name(
    trained: RunConfig, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path, `runs/NAME` of whatever runs directory is set, the bare name and a link mean the same run."""
    monkeypatch.chdir(home.parent)
    (home / "runs" / "latest").symlink_to("night")
    ways = [home / "runs" / "night", "runs/night", "night", home / "runs" / "latest"]
    found = [known(going_on(trained, home, way)) for way in ways]
    assert found == [found[0]] * 4
    assert found[0]["source"] == "run night"
    assert found[0]["digest"] == adapter_digest(adapter_of(home))
    assert len(list((home / "runs" / ".artifacts").glob("start-*[0-9a-f]"))) == 1


def test_an_adapter_is_named_by_its_directory(trained: RunConfig, home: Path) -> None:
    """Of a directory that others saved, with whatever else lies there, only the adapter's two files are taken."""
    plain = home / "mine"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter_of(home) / name, plain)
    (plain / "optimizer.pt").write_text("large")
    config = going_on(trained, home, plain)
    assert known(config)["source"] == "directory mine"
    start = stages.fetch_start(config)
    assert start
    assert {path.name for path in (start.path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_another_adapter_under_the_same_name_is_another_training(trained: RunConfig, home: Path) -> None:
    """The key of a training covers the weights that it starts from, not only how they are called."""
    config, data = going_on(trained, home, "night"), starting_point(home)
    keys = [stages.train_key(config, data, stages.fetch_start(config)) for _ in range(2)]
    model, _ = load_trainable(trained.policy)
    shutil.rmtree(adapter_of(home))
    model.save_pretrained(adapter_of(home))
    seal(adapter_of(home))
    keys += [stages.train_key(config, data, stages.fetch_start(config)), stages.train_key(config, data)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def starting_point(home: Path) -> Any:
    """Stands for prepared data, of which a key takes the name."""
    from medgrpo.manifests import Manifest

    return Manifest(uri=str(home / "data-0"), sha256="d" * 64, bytes=1, files=1)


# --- what is refused


def test_what_is_not_there_is_answered_with_the_choices(trained: RunConfig, home: Path) -> None:
    """The sentence says which forms there are, and which runs have an adapter."""
    said = refusal(going_on(trained, home, "runs/nigth"))
    for part in ("policy.start_from 'runs/nigth' is not there", "models:/NAME@ALIAS", "models:/NAME/VERSION"):
        assert part in said
    assert said.endswith("runs: night.")


def test_a_run_without_an_adapter(trained: RunConfig, home: Path) -> None:
    """A run that is still training is said to have no adapter yet."""
    shutil.rmtree(adapter_of(home))
    assert "the run night holds no trained adapter" in refusal(going_on(trained, home, "night"))


def test_a_merged_model_has_no_adapter(trained: RunConfig, home: Path) -> None:
    """A whole model is refused with the reason, and with the setting that it is for."""
    said = refusal(going_on(trained, home, trained.policy.base))
    assert "is a whole model without an adapter" in said
    assert f"set policy.base={trained.policy.base}" in said


def test_an_empty_directory(trained: RunConfig, home: Path) -> None:
    """A directory of something else is neither a run nor an adapter."""
    assert "is neither a run nor an adapter: no adapter_config.json" in refusal(going_on(trained, home, home))


def test_an_adapter_without_weights(trained: RunConfig, home: Path) -> None:
    """Settings alone are no adapter."""
    (adapter_of(home) / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refusal(going_on(trained, home, adapter_of(home)))


@pytest.mark.parametrize("named", ["night", "runs/night/train/grpo/adapter"])
def test_an_adapter_that_was_changed_since(
    trained: RunConfig, home: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """What is not what a training saved is not gone on from."""
    monkeypatch.chdir(home)
    path = adapter_of(home) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert "are not what its training saved" in refusal(going_on(trained, home, named))


@pytest.mark.parametrize("named", ["night", "plain"])
def test_another_base(trained: RunConfig, home: Path, named: str) -> None:
    """An adapter of another model is refused, in a run by what it recorded, elsewhere by what PEFT did."""
    shutil.copytree(adapter_of(home), home / "runs" / "plain")
    other = tiny_policy(home / "other")
    (other / "note.txt").write_text("not the same files")
    said = refusal(going_on(trained, home, named, base=str(other)))
    assert f"was trained on {trained.policy.base}" in said
    assert f"this run's base is {other}" in said
    assert "Set policy.base and policy.revision" in said


def test_the_same_base_elsewhere(trained: RunConfig, home: Path) -> None:
    """A base is known by its files, wherever they lie."""
    shutil.copytree(trained.policy.base, home / "moved")
    assert known(going_on(trained, home, "night", base=str(home / "moved")))["source"] == "run night"


def test_another_revision_of_the_base(trained: RunConfig) -> None:
    """A model of the Hub in another revision is another base."""
    recorded = {"name": "organisation/base", "revision": "abc", "digest": None}
    policy = trained.policy.model_copy(update={"base": "organisation/base", "revision": "abc"})
    starting._check_base("run night", recorded, policy)
    starting._check_base("directory mine", recorded | {"revision": starting.ANY}, policy)
    with pytest.raises(InputError, match=r"was trained on organisation/base in revision abc, .* policy\.revision"):
        starting._check_base("run night", recorded, policy.model_copy(update={"revision": None}))


def test_another_rank_or_scale(trained: RunConfig, home: Path) -> None:
    """The sentence says what to set."""
    said = refusal(going_on(trained, home, "night", lora_rank=8, lora_alpha=16))
    assert "has rank 4 and alpha 32, but policy.lora_rank is 8 and policy.lora_alpha 16" in said
    assert "--set policy.lora_rank=4 --set policy.lora_alpha=32" in said


def _saved(trained: RunConfig, home: Path, **settings: Any) -> Path:
    """An adapter of the same base with other settings of PEFT's."""
    from peft import LoraConfig, get_peft_model

    from medgrpo.policies import load_model

    model, _ = load_model(trained.policy.base)
    usual = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapted: Any = get_peft_model(model, LoraConfig(**{**usual, **settings}))
    adapted.save_pretrained(home / "saved")
    return home / "saved"


def test_other_layers(trained: RunConfig, home: Path) -> None:
    """An adapter of some layers only is refused, and the sentence names a matrix that it lacks."""
    said = refusal(going_on(trained, home, _saved(trained, home, target_modules=["q_proj", "v_proj"])))
    assert "layers.0.mlp.down_proj.lora_A.weight is missing, expected (4, 64) (8 matrices, expected 28)" in said


@pytest.mark.parametrize(("setting", "value"), [("use_rslora", True), ("use_dora", True), ("bias", "all")])
def test_another_kind_of_adapter(trained: RunConfig, home: Path, setting: str, value: object) -> None:
    """What would be trained in another way than set is refused, by the name of PEFT's setting."""
    said = refusal(going_on(trained, home, _saved(trained, home, **{setting: value})))
    assert f"is of another kind than the LoRA that is trained here: {setting} = {value!r}" in said


# --- the registry


@pytest.fixture
def registered(trained: RunConfig, home: Path, new_candidate: Callable[[Path], Candidate]) -> Candidate:
    """A candidate of that run, ready for the registry in its runs directory."""
    spare = home / "spare"
    spare.mkdir()
    candidate = new_candidate(spare)
    shutil.copy(spare / "runs" / "mlflow.db", home / "runs" / "mlflow.db")
    config = going_on(trained, home, "")
    policy = config.policy.model_copy(update={"start_from": None})
    return replace(
        candidate, config=config.model_copy(update={"policy": policy}), train_dir=home / "runs" / "night" / "train"
    )


def test_a_registered_version_is_gone_on_from(trained: RunConfig, home: Path, registered: Candidate) -> None:
    """By number or alias: its run's adapter, under the version's number, with the base that the version records."""
    version = registry.register(registered)
    client = registry.connect(registered.config)
    client.set_registered_model_alias(version.name, "champion", str(version.version))
    found = [known(going_on(trained, home, f"models:/{version.name}{end}")) for end in ("/1", "@champion")]
    assert found == [found[0]] * 2
    assert found[0]["source"] == "models:/medgrpo-synthetic/1"
    assert found[0]["digest"] == adapter_digest(adapter_of(home))
    tags = client.get_model_version(version.name, "1").tags
    assert (tags[ADAPTER_TAG], tags[BASE_DIGEST_TAG]) == (found[0]["digest"], found[0]["base"]["digest"])
    assert START_TAG not in tags
    said = refusal(going_on(trained, home, f"models:/{version.name}/1", lora_rank=8))
    assert "the adapter of models:/medgrpo-synthetic/1 has rank 4" in said


def test_a_version_that_is_not_there(trained: RunConfig, home: Path, registered: Candidate) -> None:
    """The versions and aliases that there are, are listed."""
    version = registry.register(registered)
    assert "Versions: 1; aliases: candidate." in refusal(going_on(trained, home, f"models:/{version.name}/7"))
    assert "holds no registered model 'other'" in refusal(going_on(trained, home, "models:/other@champion"))


def test_a_version_without_an_adapter(trained: RunConfig, home: Path, registered: Candidate) -> None:
    """A version whose run keeps the merged model only is refused with the reason."""
    shutil.rmtree(adapter_of(home))
    version = registry.register(registered)
    said = refusal(going_on(trained, home, version.uri))
    assert "keeps no adapter, only the merged model, which has no adapter to go on from" in said


@pytest.mark.parametrize("tagged", [True, False])
def test_an_adapter_that_is_not_the_registered_one(
    trained: RunConfig, home: Path, registered: Candidate, tagged: bool
) -> None:
    """Files of the store that were changed are not gone on from, by the version's tag or else by their seal."""
    version = registry.register(registered)
    client = registry.connect(registered.config)
    if not tagged:
        client.delete_model_version_tag(version.name, str(version.version), ADAPTER_TAG)
    [stored] = (home / "runs" / "mlartifacts").rglob("artifacts/adapter/adapter_model.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    assert "its adapter is not what was registered" in refusal(going_on(trained, home, version.uri))


def test_what_a_training_started_from_is_registered(home: Path, registered: Candidate) -> None:
    """The run's and the version's tags, and the model card, name the start and its digest."""
    start = {"source": "models:/medgrpo/3", "digest": "5" * 64, "base": {}}
    training = registered.train_dir / "training.json"
    write_json(training, json.loads(training.read_text()) | {"started_from": start})
    version = registry.register(registered)
    client = registry.connect(registered.config)
    found = client.get_model_version(version.name, str(version.version))
    for tags in (found.tags, client.get_run(str(version.run_id)).data.tags):
        assert (tags[START_TAG], tags[START_DIGEST_TAG]) == (start["source"], start["digest"])
    assert f"- Started from: the adapter of models:/medgrpo/3, sha256 {'5' * 64}" in str(found.description)
