"""Reasons to train again: new data, a waiting candidate and fresh records, asked of a real registry and model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from medgrpo import registry, retraining, stages
from medgrpo.config import RunConfig, parse_config
from medgrpo.domains.pubmedqa import DEFAULT_GROUND_TRUTH
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.evaluation import asking
from medgrpo.evaluation.statistics import Interval, wilson
from medgrpo.manifests import Manifest, describe, write_json
from medgrpo.registry.facts import data_digest
from medgrpo.retraining import Decision, Measured, find_reason, judge, read_fresh_file, read_measured, recorded_accuracy
from medgrpo.testing import talking_policy, tiny_version

VERDICTS = ("yes", "no", "maybe")
RECORDED = Interval(0.62, 0.55, 0.69, 200)

# Emitted by third parties while MLflow is imported and its store is opened, whoever imports it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy is deprecated:DeprecationWarning"),
]


def _fields(number: int, verdict: str) -> dict[str, Any]:
    """An invented record in PubMedQA's form, whose abstract is unlike every other's."""
    return {
        "QUESTION": f"Does invented drug {number} lower pain?",
        "CONTEXTS": [" ".join(f"word{number}x{i}" for i in range(12)), f"Pain fell by {number}.5 points."],
        "final_decision": verdict,
        "LONG_ANSWER": f"Drug {number} may have done something.",
    }


def _records(first: int, verdicts: tuple[str, ...] | list[str]) -> dict[str, dict[str, Any]]:
    return {str(first + i): _fields(first + i, verdict) for i, verdict in enumerate(verdicts)}


def _measured(right: int | None, n: int) -> Measured:
    return Measured(file="fresh.json", in_pool=3, in_test=2, copies=1, n=n, right=right)


# --- the judgement, in numbers


@pytest.mark.parametrize(
    ("right", "n", "outcome"),
    [
        (20, 100, "champion-fell"),
        (45, 100, "champion-fell"),
        (46, 100, "not-enough-evidence"),
        (54, 100, "not-enough-evidence"),
        (55, 100, "no-reason"),
        (100, 100, "no-reason"),
        (0, 50, "champion-fell"),
    ],
)
def test_a_champion_fell_where_the_whole_interval_is_below(right: int, n: int, outcome: str) -> None:
    """Only an interval that ends below where the recorded one begins (55 %) is a reason; 54 of 100 is none."""
    decision = judge(4, RECORDED, _measured(right, n), cases=50)
    assert decision.outcome == outcome
    assert decision.trains is (wilson(right, n).high < RECORDED.low)
    assert f"{right / n:.1%}" in decision.sentence
    assert "55.0%" in decision.sentence


def test_a_fallen_champion_is_not_trained_a_second_time() -> None:
    """On known data the seed changes, by the same for each look at one champion; for any other reason it stays."""
    config = RunConfig(seed=11)
    fell = [judge(version, RECORDED, _measured(right, 100), cases=50) for version, right in ((4, 9), (4, 8), (5, 9))]
    assert [decision.settings(config).seed for decision in fell] == [15, 15, 16]
    assert judge(4, RECORDED, _measured(90, 100), cases=50).settings(config) == config
    assert Decision(outcome="new-data", sentence="It is new.").settings(config) == config


def test_few_fresh_records_prove_nothing() -> None:
    """A model that was not asked, because there are too few records, is no reason, and the counts are said."""
    decision = judge(4, RECORDED, _measured(None, 5), cases=50)
    assert (decision.outcome, decision.trains) == ("not-enough-evidence", False)
    for part in ("Of the 11 records in fresh.json 3 are in the training pool", "2 in the test split", "5 fresh", "50"):
        assert part in decision.sentence


def test_the_recorded_accuracy_is_that_of_the_model_in_question() -> None:
    """Of an evaluation's models the last one is meant; without one, or without its interval, there is none."""
    base, tuned = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 9}, {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    metrics = {"models": {"base": {"accuracy": base}, "tuned": {"accuracy": tuned}}}
    assert recorded_accuracy(metrics) == Interval(0.6, 0.5, 0.7, 9)
    assert recorded_accuracy({}) is None
    assert recorded_accuracy({"models": {"tuned": {}}}) is None
    assert recorded_accuracy({"models": {"tuned": {"accuracy": {**tuned, "value": None}}}}) is None


# --- the file


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("no such file",)),
        ("QUESTION,CONTEXTS\n", ("is not JSON",)),
        ("[]", ("expected a JSON object",)),
        (json.dumps({"77": {"QUESTION": "Q?", "CONTEXTS": ["c"], "LONG_ANSWER": "a"}}), ("77", "final_decision")),
        (json.dumps({"77": {**_fields(1, "yes"), "final_decision": None}}), ("77", "yes, no or maybe")),
    ],
)
def test_a_useless_file_is_named_with_its_setting(tmp_path: Path, content: str | None, parts: tuple[str, ...]) -> None:
    """A file that is not there, is no JSON or has no labels ends in a sentence with the setting and the path."""
    path = tmp_path / "fresh.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"retrain\.fresh") as caught:
        read_fresh_file(parse_config({"data": {"domain": "pubmedqa"}, "retrain": {"fresh": path}}))
    assert all(part in str(caught.value) for part in (str(path), *parts))


def test_synthetic_records_have_no_file(tmp_path: Path) -> None:
    """A file of fresh records is not silently ignored where records are generated."""
    with pytest.raises(InputError, match=r"retrain\.fresh.*synthetic"):
        read_fresh_file(parse_config({"retrain": {"fresh": tmp_path / "fresh.json"}}))


# --- a registry whose champion says yes to everything


@dataclass(frozen=True)
class Service:
    """Prepared data, and a registry with a champion that was trained on it."""

    directory: Path
    config: RunConfig
    data: Manifest

    def with_fresh(self, records: dict[str, Any], **settings: Any) -> RunConfig:
        """The settings with a file of fresh records."""
        path = self.directory / f"fresh-{len(list(self.directory.glob('fresh-*')))}.json"
        path.write_text(json.dumps(records))
        return self.changed(retrain={"fresh": path}, **settings)

    def changed(self, **sections: dict[str, Any]) -> RunConfig:
        """The settings with some replaced."""
        values = self.config.model_dump()
        return parse_config(values | {name: values[name] | given for name, given in sections.items()})

    def measure(self, config: RunConfig) -> Callable[[registry.Registration], Measured]:
        """What lets a champion answer."""
        return lambda champion: read_measured(stages.ask_fresh(config, self.data, champion, lambda *_: None).path)

    def decide(self, config: RunConfig) -> Decision:
        """The decision with these settings."""
        return find_reason(config, self.data.path, self.measure(config))

    @property
    def digest(self) -> str:
        """Digest of the data, as in a version's tag."""
        return data_digest(json.loads((self.data.path / "data.json").read_text()))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, new_candidate: Callable[[Path], registry.Candidate]) -> Service:
    """24 records of training pool, 6 of test, and a champion measured right in 62 % of 200 cases."""
    directory = tmp_path_factory.mktemp("service")
    pool, test = _records(100, VERDICTS * 8), _records(200, VERDICTS * 2)
    (directory / "ori_pqal.json").write_text(json.dumps({**pool, **test}))
    (directory / DEFAULT_GROUND_TRUTH).write_text(json.dumps({i: test[i]["final_decision"] for i in test}))
    model = talking_policy(directory / "talking", "yes")
    candidate = new_candidate(directory)
    config = parse_config(
        {
            "runs_dir": candidate.config.runs_dir,
            "data": {"domain": "pubmedqa", "path": directory / "ori_pqal.json", "max_length": 400},
            "policy": {"base": str(model)},
            "grpo": {"max_completion_length": 1},
        }
    )
    data = stages.prepare(config)
    done = registry.register(
        replace(candidate, config=config, data_dir=data.path, model_dir=model, model_digest=describe(model).sha256)
    )
    client = registry.connect(config)
    client.set_registered_model_alias(done.name, registry.CHAMPION, str(done.version))
    client.delete_registered_model_alias(done.name, config.tracking.alias)
    return Service(directory, config, data)


@pytest.mark.slow
def test_data_that_no_version_was_trained_on_is_a_reason(service: Service) -> None:
    """An empty registry, and changed data, are a reason by themselves: the champion is not asked."""
    asked: list[registry.Registration] = []
    config = service.with_fresh(_records(500, ["no"] * 60), tracking={"model_name": "other"})
    decision = find_reason(config, service.data.path, asked.append)  # type: ignore[arg-type]
    assert (decision.outcome, decision.trains, asked) == ("new-data", True, [])
    assert service.digest[:12] in decision.sentence
    changed = service.directory / "changed"
    shutil.copytree(service.data.path, changed, dirs_exist_ok=True)
    summary = json.loads((changed / "data.json").read_text())
    write_json(changed / "data.json", summary | {"digests": {**summary["digests"], "train": "0" * 64}})
    assert find_reason(service.config, changed, asked.append).outcome == "new-data"  # type: ignore[arg-type]


@pytest.mark.slow
def test_known_data_alone_is_no_reason(service: Service) -> None:
    """Data that a version was trained on is no reason, whatever its gate said, and the version is named."""
    decision = service.decide(service.config)
    assert (decision.outcome, decision.trains, decision.fresh) == ("no-reason", False, None)
    assert "Version 1 of medgrpo was trained on" in decision.sentence


@pytest.mark.slow
def test_a_candidate_that_waits_is_no_reason(service: Service) -> None:
    """While a version trained on this very data waits for review, even a fallen champion starts nothing."""
    config = service.with_fresh(_records(500, ["no"] * 60), tracking={"model_name": "waiting"})
    version = tiny_version(config, data_digest=service.digest)
    decision = service.decide(config)
    assert (decision.outcome, decision.trains) == ("waits-for-review", False)
    assert f"Version {version} of waiting" in decision.sentence


@pytest.mark.slow
def test_without_a_champion_fresh_records_say_nothing(service: Service) -> None:
    """Before the first approval there is nobody to ask."""
    config = service.with_fresh(_records(500, ["no"] * 60), tracking={"model_name": "unapproved"})
    tiny_version(config, gate="fail", data_digest=service.digest)
    decision = service.decide(config)
    assert (decision.outcome, decision.fresh) == ("no-reason", None)
    assert "no version is the champion" in decision.sentence


@pytest.mark.slow
def test_a_champion_without_an_evaluation_cannot_fall(service: Service) -> None:
    """A version that was made champion without recorded metrics is not compared with anything."""
    config = service.with_fresh(_records(500, ["no"] * 60), tracking={"model_name": "unmeasured"})
    version = tiny_version(config, gate="fail", data_digest=service.digest)
    registry.connect(config).set_registered_model_alias("unmeasured", registry.CHAMPION, str(version))
    assert service.decide(config).outcome == "not-enough-evidence"


@pytest.mark.slow
def test_a_champion_that_is_wrong_on_fresh_records_is_a_reason(service: Service) -> None:
    """It says yes to 60 questions whose answer is no, where its evaluation found 62 %."""
    decision = service.decide(service.with_fresh(_records(500, ["no"] * 60)))
    assert (decision.outcome, decision.trains) == ("champion-fell", True)
    assert decision.fresh is not None
    assert (decision.fresh.right, decision.fresh.n) == (0, 60)


@pytest.mark.slow
def test_a_champion_that_is_right_is_no_reason(service: Service) -> None:
    """It says yes to 60 questions, 40 of them rightly: as its evaluation promised."""
    decision = service.decide(service.with_fresh(_records(600, ["yes"] * 40 + ["no"] * 20)))
    assert (decision.outcome, decision.trains) == ("no-reason", False)
    assert decision.fresh is not None
    assert (decision.fresh.right, decision.fresh.n) == (40, 60)


@pytest.mark.slow
def test_the_same_question_again_costs_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same champion, data and fresh records nothing is fetched, loaded or asked a second time."""
    config = service.with_fresh(_records(700, ["no"] * 60))
    first = service.decide(config)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was fetched or loaded")

    monkeypatch.setattr(asking, "load_model", never)
    monkeypatch.setattr(stages, "fetch", never)
    assert service.decide(config) == first
    champion = registry.find_version(config, "models:/medgrpo/1")
    [row, *_] = (
        (stages.ask_fresh(config, service.data, champion, never).path / "predictions.jsonl").read_text().split("\n")
    )
    assert json.loads(row)["answers"]["champion"]["verdict"] == "yes"


@pytest.mark.slow
def test_records_that_are_not_fresh_are_left_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of pool and test split, and copies of them under other ids, do not count; too few are left to ask."""
    monkeypatch.setattr(asking, "load_model", None)
    copies = {str(900 + i): {**_fields(100 + i, "no"), "QUESTION": "Is it so?"} for i in range(4)}
    given = {**_records(100, VERDICTS * 8), **_records(200, VERDICTS), **copies, **_records(500, ["no"] * 5)}
    decision = service.decide(service.with_fresh(given))
    fresh = Measured(file=decision.fresh.file if decision.fresh else "", in_pool=24, in_test=3, copies=4, n=5)
    assert (decision.outcome, decision.fresh) == ("not-enough-evidence", fresh)


@pytest.mark.slow
def test_records_dropped_for_their_length_are_not_fresh(service: Service) -> None:
    """A record of the pool that was too long to train on is known all the same."""
    config = service.with_fresh(_records(300, ["no"]))
    data = service.directory / "dropped"
    shutil.copytree(service.data.path, data, dirs_exist_ok=True)
    summary = json.loads((data / "data.json").read_text())
    write_json(data / "data.json", summary | {"dropped": [{"id": "300", "split": "train", "reason": "long"}]})
    counts = retraining.find_fresh(config, data).counts
    assert (counts.in_pool, counts.n) == (1, 0)


@pytest.mark.slow
def test_without_mlflow_nothing_is_decided(service: Service) -> None:
    """A registry that does not answer is an outage to retry, and never "no reason"."""
    with pytest.raises(ServiceUnreachable, match="did not answer"):
        service.decide(service.changed(tracking={"uri": "http://127.0.0.1:9"}))


@pytest.mark.slow
def test_a_useless_file_is_found_before_it_is_needed(service: Service) -> None:
    """The file is read even in a week in which the data decides."""
    config = service.changed(tracking={"model_name": "other"}, retrain={"fresh": service.directory / "nowhere.json"})
    with pytest.raises(InputError, match=r"retrain\.fresh.*nowhere\.json"):
        service.decide(config)
