"""Reviews: only the version that was measured and approved becomes champion, whatever happens in between."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services import MlflowServer

from medgrpo import registry
from medgrpo.config import RunConfig, TrackingConfig
from medgrpo.errors import InputError
from medgrpo.manifests import describe
from medgrpo.registry import champions, comparison, review
from medgrpo.registry.champions import Version
from medgrpo.registry.lookup import files_digest
from medgrpo.registry.review import Decision
from medgrpo.testing import tiny_version

pytestmark = [
    pytest.mark.slow,
    # Emitted by third parties while MLflow is imported and its store is opened, whoever imports it.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy is deprecated:DeprecationWarning"),
]

METRICS = {
    "domain": "pubmedqa",
    "synthetic": False,
    "models": {
        "base": {"accuracy": {"value": 0.5, "low": 0.45, "high": 0.55, "n": 500}},
        "tuned": {"accuracy": {"value": 0.6, "low": 0.55, "high": 0.65, "n": 500}, "macro_f1": {"value": None}},
    },
    "comparisons": [{"first": "base", "second": "tuned", "only_first": 10, "only_second": 60, "p_value": 1e-9}],
}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables; creating them takes longer than a test."""
    runs = tmp_path_factory.mktemp("template")
    registry.connect(RunConfig(runs_dir=runs))
    return runs / "mlflow.db"


@pytest.fixture(scope="module")
def filled_store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """The same with version 1 as champion and version 2 under review; their files are not to be changed."""
    return _filled(tmp_path_factory.mktemp("filled"), empty_store).runs_dir / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, filled_store: Path) -> RunConfig:
    """A registry with version 1 as champion and version 2 under review."""
    return _copied(tmp_path, filled_store)


@pytest.fixture
def own(tmp_path: Path, empty_store: Path) -> RunConfig:
    """The same registry, with files that a test may change."""
    return _filled(tmp_path, empty_store)


def _copied(directory: Path, store: Path) -> RunConfig:
    runs = directory / "runs"
    runs.mkdir()
    shutil.copy(store, runs / "mlflow.db")
    return RunConfig(runs_dir=runs)


def _filled(directory: Path, store: Path) -> RunConfig:
    config = _copied(directory, store)
    _fill(config)
    return config


def _fill(config: RunConfig) -> None:
    tiny_version(config, weights="1")
    review.approve(config, _decision(config, 1))
    tiny_version(config, weights="2")


def _version(config: RunConfig, number: int) -> Version:
    return next(version for version in review.list_versions(config) if version.number == number)


def _decision(config: RunConfig, number: int, **changes: Any) -> Decision:
    """An approval that lacks nothing."""
    return replace(Decision(str(number), "ann", "reads better", _version(config, number).digest), **changes)


def _aliases(config: RunConfig) -> dict[str, int]:
    return {alias: version.number for version in review.list_versions(config) for alias in version.aliases}


def _snapshot(config: RunConfig) -> list[tuple[Any, ...]]:
    return [(version.number, version.aliases, version.tags) for version in review.list_versions(config)]


def _weights(config: RunConfig, number: int) -> Path:
    uri = registry.connect(config).get_model_version_download_uri(_version(config, number).name, str(number))
    return Path(uri.removeprefix("file://")) / "artifacts" / "model" / "weights.txt"


# --- approving


def test_an_approval_moves_the_aliases_and_says_who_when_and_why(config: RunConfig) -> None:
    """The version is champion, the one before is previous-champion, nothing is under review any more."""
    champion = review.approve(config, _decision(config, 2))
    assert _aliases(config) == {"champion": 2, "previous-champion": 1}
    assert champion.aliases == ("champion",)
    tags = dict(champion.tags)
    assert tags.pop("medgrpo.reviewed_at").endswith("+00:00")
    assert {key: tags[key] for key in sorted(tags) if "digest" not in key} == {
        "medgrpo.compared_with": _version(config, 1).digest,
        "medgrpo.gate": "pass",
        "medgrpo.previous_champion": "1",
        "medgrpo.review": "approved",
        "medgrpo.review_note": "reads better",
        "medgrpo.reviewer": "ann",
    }
    assert _version(config, 1).tags["medgrpo.previous_champion"] == "none"


def test_twelve_characters_of_the_digest_are_enough(config: RunConfig) -> None:
    """The beginning of the digest, in either case, names the model."""
    digest = _version(config, 2).digest[:12].upper()
    assert review.approve(config, _decision(config, 2, digest=digest)).number == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"digest": ""}, "must be repeated, .* none was given"),
        ({"digest": "abcdef"}, "'abcdef' has 6 characters"),
        ({"digest": "0" * 64}, "not 0{64}: that is not the model that was reviewed"),
        ({"reviewer": " \t"}, "reviewer is empty"),
        ({"reviewer": "a" * 201}, "reviewer has 201 characters"),
        ({"note": "\u200b\n"}, "note is empty"),
        ({"note": "a" * 4001}, "note has 4,001 characters, at most 4,000 are kept"),
        ({"version": "7"}, "has no version '7'. Versions: 1, 2; aliases: candidate, champion"),
        ({"version": "newest"}, "has no alias 'newest'"),
        ({"version": ""}, "has no alias ''"),
        ({"version": "1" * 30}, "has no version '1{30}'"),
        ({"version": "1"}, "version 1 .* has the digest"),
        ({"replaces": "none"}, "was compared with no version as champion, but the champion is version 1 by now"),
        ({"replaces": "2"}, "was compared with version 2 as champion, but the champion is version 1 by now"),
    ],
)
def test_an_incomplete_or_wrong_approval_changes_nothing(
    config: RunConfig, changes: dict[str, str], sentence: str
) -> None:
    """What is missing or does not fit is named, and neither alias nor tag is touched."""
    with _unchanged(config), pytest.raises(InputError, match=sentence):
        review.approve(config, _decision(config, 2, **changes))


def test_a_deleted_version_and_an_unknown_model_are_sentences(config: RunConfig) -> None:
    """What is gone cannot be approved, and the sentence says what there is."""
    decision = _decision(config, 2)
    registry.connect(config).delete_model_version(_version(config, 2).name, "2")
    with pytest.raises(InputError, match=r"has no version '2'. Versions: 1; aliases: champion"):
        review.approve(config, decision)
    with pytest.raises(InputError, match="has no alias 'candidate'"):
        review.show(config)
    other = config.model_copy(update={"tracking": TrackingConfig(model_name="other")})
    for call in (review.list_versions, review.show, lambda c: review.approve(c, decision)):
        with pytest.raises(InputError, match=r"no registered model 'other-synthetic'\. Name the profile"):
            call(other)


@pytest.mark.parametrize("where", ["artifacts/model/weights.txt", "artifacts/model/config.json", "MLmodel"])
def test_a_flipped_byte_is_refused(own: RunConfig, where: str) -> None:
    """One changed byte among the stored files, and the version is not promoted: not by approval, not by rollback."""
    refusal = r"is not what was registered|holds no model of medgrpo"
    with _flipped(_weights(own, 2).parents[2] / where), _unchanged(own), pytest.raises(InputError, match=refusal):
        review.approve(own, _decision(own, 2))
    review.approve(own, _decision(own, 2))
    with _flipped(_weights(own, 1).parents[2] / where), _unchanged(own), pytest.raises(InputError, match=refusal):
        review.rollback(own, "bob", "worse")


@contextlib.contextmanager
def _flipped(path: Path) -> Iterator[None]:
    """The lowest bit of a file's last byte is the other one for a while."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield
    path.write_bytes(content)


@contextlib.contextmanager
def _unchanged(config: RunConfig) -> Iterator[None]:
    """Aliases and tags are afterwards what they were."""
    before = _snapshot(config)
    yield
    assert _snapshot(config) == before


def test_an_added_and_a_missing_file_are_refused(own: RunConfig) -> None:
    """A file more or less is another model too, and so is a link to a directory full of them."""
    weights = _weights(own, 2)
    (weights.parent / "more.txt").write_text("x")
    with _unchanged(own), pytest.raises(InputError, match="is not what was registered"):
        review.approve(own, _decision(own, 2))
    (weights.parent / "more.txt").unlink()
    link = weights.parents[2] / "code"
    link.symlink_to("/usr", target_is_directory=True)
    with _unchanged(own), pytest.raises(InputError, match="code is a symbolic link"):
        review.approve(own, _decision(own, 2))
    link.unlink()
    shutil.rmtree(weights.parents[2])
    with _unchanged(own), pytest.raises(InputError, match=r"cannot be read|holds no model"):
        review.approve(own, _decision(own, 2))


def test_a_stale_candidate_is_refused(config: RunConfig) -> None:
    """Once a newer version is under review, the older one is not approved by somebody who has not noticed."""
    decision = _decision(config, 2)
    tiny_version(config, weights="3")
    before = _snapshot(config)
    with pytest.raises(InputError, match="version 3 is the one under review"):
        review.approve(config, decision)
    with pytest.raises(InputError, match="no longer the one under review: alias candidate is on version 3 by now"):
        review.approve(config, replace(decision, must_be_candidate=True, despite_gate="I insist"))
    assert _snapshot(config) == before


@pytest.mark.parametrize("gate", ["fail", "not enough evidence", ""])
def test_a_version_without_a_passed_gate_needs_a_reason(config: RunConfig, gate: str) -> None:
    """The gate is overruled only on purpose, by a reason that is kept; a later approval without one removes it."""
    client = registry.connect(config)
    client.delete_registered_model_alias(_version(config, 2).name, "candidate")
    number = tiny_version(config, gate=gate, weights="3")
    with pytest.raises(InputError, match="give the reason with --despite-gate"):
        review.approve(config, _decision(config, number))
    assert _aliases(config) == {"champion": 1}
    champion = review.approve(config, _decision(config, number, despite_gate="the gate's data were wrong"))
    assert champion.tags["medgrpo.despite_gate"] == "the gate's data were wrong"
    assert _aliases(config) == {"champion": 3, "previous-champion": 1}


def test_a_gate_that_compared_with_another_champion_does_not_count(config: RunConfig) -> None:
    """Passed beside a champion that is none any more, a version is approved only for a reason that is kept."""
    tiny_version(config, weights="3")
    review.approve(config, _decision(config, 3))
    with _unchanged(config), pytest.raises(InputError, match=r"compared it with another champion, not with version 3"):
        review.approve(config, _decision(config, 2))
    for tag, known in (("none", "no champion"), ("", "a champion that is not known")):
        number = tiny_version(config, weights=f"4{tag}", compared_with=tag)
        with _unchanged(config), pytest.raises(InputError, match=f"compared it with {known}, not with version 3"):
            review.approve(config, _decision(config, number))
    assert review.approve(config, _decision(config, number, despite_gate="compared by hand")).number == number


def test_the_weights_of_the_champion_do_not_replace_it(config: RunConfig) -> None:
    """The same model under another number would only make the next rollback a step to nowhere."""
    number = tiny_version(config, weights="1")
    with _unchanged(config), pytest.raises(InputError, match=r"the same weights as the champion, version 1"):
        review.approve(config, _decision(config, number))


def test_a_named_version_can_be_approved_while_nothing_is_under_review(config: RunConfig) -> None:
    """A version that passed its gate does not need the alias, as long as no other one has it."""
    registry.connect(config).delete_registered_model_alias(_version(config, 2).name, "candidate")
    assert review.approve(config, _decision(config, 2)).number == 2


def test_hostile_text_is_kept_harmless(config: RunConfig) -> None:
    """Control characters, invisible marks and line breaks are left out of tags; everything else stays."""
    note = "fine\x00\x1b[2J\u202e <script>alert(1)</script> | `x`\nnext"
    champion = review.approve(config, _decision(config, 2, note=note, reviewer="Zoë\ud800 O'Neil"))
    assert champion.tags["medgrpo.review_note"] == "fine [2J <script>alert(1)</script> | `x` next"
    assert champion.tags["medgrpo.reviewer"] == "Zoë O'Neil"


# --- rejecting


def test_a_rejection_is_recorded(config: RunConfig) -> None:
    """Who, when and why are kept; the version is not under review any more, and approving it takes a reason."""
    rejected = review.reject(config, Decision("candidate", "ann", "cites nothing"))
    assert (rejected.number, rejected.state, rejected.aliases) == (2, "rejected", ())
    assert {rejected.tags[f"medgrpo.{key}"] for key in ("reviewer", "review_note")} == {"ann", "cites nothing"}
    assert "medgrpo.reviewed_at" in rejected.tags
    with pytest.raises(InputError, match="it was rejected by ann"):
        review.approve(config, _decision(config, 2))
    assert review.approve(config, _decision(config, 2, despite_gate="second thoughts")).state == "approved"


def test_a_rejection_that_does_not_hold_changes_nothing(config: RunConfig) -> None:
    """The champion is rolled back, not rejected; digest, reviewer and note are checked as for an approval."""
    before = _snapshot(config)
    for decision, sentence in (
        (Decision("1", "ann", "bad"), "is the champion. Roll back instead"),
        (Decision("2", "ann", "bad", digest="0" * 12), "not the model that was reviewed"),
        (Decision("2", "", "bad"), "reviewer is empty"),
        (Decision("2", "ann", ""), "note is empty"),
    ):
        with pytest.raises(InputError, match=sentence):
            review.reject(config, decision)
    assert _snapshot(config) == before


def test_rejecting_an_old_version_leaves_the_one_under_review(config: RunConfig) -> None:
    """Only the rejected version loses the alias."""
    tiny_version(config, weights="3")
    review.reject(config, Decision("2", "ann", "replaced"))
    assert _aliases(config) == {"champion": 1, "candidate": 3}


def test_a_review_does_not_reject_what_was_approved_meanwhile(config: RunConfig) -> None:
    """A suspended review that is answered with no, after the version was approved and replaced, is refused."""
    review.approve(config, _decision(config, 2))
    tiny_version(config, weights="3")
    review.approve(config, _decision(config, 3))
    with pytest.raises(InputError, match="was approved while it was under review, by ann"):
        review.reject(config, Decision("2", "bob", "no", must_be_candidate=True))


# --- rolling back


def test_a_rollback_returns_to_the_previous_champion_in_one_step(config: RunConfig) -> None:
    """Who, when and why are tags of the version that was left, and the aliases tell the same story."""
    review.approve(config, _decision(config, 2))
    tiny_version(config, weights="3")
    review.approve(config, _decision(config, 3))
    assert review.rollback(config, "bob", "invents figures", replaces="3").number == 2
    assert _aliases(config) == {"champion": 2, "previous-champion": 1}
    left = _version(config, 3)
    assert left.state == "rolled back"
    assert [left.tags[f"medgrpo.{key}"] for key in ("reviewer", "rolled_back_by", "rolled_back_note")] == [
        "ann",
        "bob",
        "invents figures",
    ]
    assert "medgrpo.rolled_back_at" in left.tags
    assert review.rollback(config, "bob", "that one too").number == 1
    assert _aliases(config) == {"champion": 1}
    with pytest.raises(InputError, match=r"version 1 .* replaced no champion, so there is none to return to"):
        review.rollback(config, "bob", "and on")


def test_a_rollback_that_cannot_be_changes_nothing(config: RunConfig) -> None:
    """No champion, another champion than named, a previous one that was deleted or rejected: a sentence each."""
    for reviewer, note, replaces, sentence in (
        ("", "bad", None, "reviewer is empty"),
        ("bob", "", None, "note is empty"),
        ("bob", "bad", "2", "is version 1, not 2"),
        ("bob", "bad", None, "replaced no champion"),
    ):
        with pytest.raises(InputError, match=sentence):
            review.rollback(config, reviewer, note, replaces)
    review.approve(config, _decision(config, 2))
    review.reject(config, Decision("1", "ann", "never again"))
    before = _snapshot(config)
    with pytest.raises(InputError, match=r"version 1 .* was rejected since"):
        review.rollback(config, "bob", "bad")
    assert _snapshot(config) == before
    client, name = registry.connect(config), _version(config, 1).name
    client.delete_model_version(name, "1")
    with pytest.raises(InputError, match="has no version '1'"):
        review.rollback(config, "bob", "bad")
    tiny_version(config, weights="3")
    client.set_registered_model_alias(name, "champion", "3")
    with pytest.raises(InputError, match=r"version 3 .* was made champion without a review"):
        review.rollback(config, "bob", "bad")
    client.delete_registered_model_alias(name, "champion")
    with pytest.raises(InputError, match="has no champion"):
        review.rollback(config, "bob", "bad")


def test_a_version_that_was_rolled_back_needs_a_reason_to_return(config: RunConfig) -> None:
    """What was left once is not approved again by habit."""
    review.approve(config, _decision(config, 2))
    review.rollback(config, "bob", "bad")
    with pytest.raises(InputError, match="it was rolled back by bob"):
        review.approve(config, _decision(config, 2))
    champion = review.approve(config, _decision(config, 2, despite_gate="it was the data"))
    assert _aliases(config) == {"champion": 2, "previous-champion": 1}
    assert not [tag for tag in champion.tags if "rolled_back" in tag]


def test_a_rejection_does_not_keep_why_the_gate_was_overruled_before(config: RunConfig) -> None:
    """The reason belongs to the approval, and goes with it."""
    review.approve(config, _decision(config, 2, despite_gate="I know better"))
    tiny_version(config, weights="3")
    review.approve(config, _decision(config, 3))
    assert "medgrpo.despite_gate" not in review.reject(config, Decision("2", "ann", "I did not")).tags


# --- crashes and races


WRITES = (
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


class Killed(BaseException):
    """Stands for SIGKILL."""


def _killed_at(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let the process die instead of its `count`-th write to the registry."""
    from mlflow import MlflowClient

    left = [count]

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **options)

        return write

    for name in WRITES:
        patch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))


def _decide(action: str, config: RunConfig) -> None:
    if action == "approve":
        review.approve(config, _decision(config, 3))
    elif action == "reject":
        review.reject(config, Decision("3", "ann", "worse"))
    else:
        review.rollback(config, "bob", "worse", replaces="2")


@pytest.mark.parametrize(
    ("action", "champions", "outcome"),
    [
        ("approve", (2, 3), {"champion": 3, "previous-champion": 2}),
        ("reject", (2,), {"champion": 2, "previous-champion": 1}),
        ("rollback", (2, 1), {"champion": 1, "candidate": 3}),
    ],
)
def test_a_decision_cut_off_anywhere_is_completed_by_repeating_it(
    tmp_path: Path,
    filled_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    champions: tuple[int, ...],
    outcome: dict[str, int],
) -> None:
    """Killed before any one of its writes, a decision leaves an approved champion, and the same again ends it."""
    start = _copied(tmp_path, filled_store)
    review.approve(start, _decision(start, 2))
    tiny_version(start, weights="3")
    for count in range(20):
        (tmp_path / str(count)).mkdir()
        config = _copied(tmp_path / str(count), start.runs_dir / "mlflow.db")
        with monkeypatch.context() as patch:
            _killed_at(patch, count)
            try:
                _decide(action, config)
            except Killed:
                pass
            else:
                break
        champion = _version(config, _aliases(config)["champion"])
        assert champion.number in champions
        assert champion.state == "approved" or action == "rollback"
        if not (action == "rollback" and champion.number == 1):
            _decide(action, config)
        assert _aliases(config) == outcome, f"killed before write {count + 1}"
    assert 3 <= count < 20
    assert _aliases(config) == outcome


APPROVE = """
import sys, time
from pathlib import Path
from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.registry import review
runs, number, digest = sys.argv[1:]
config = RunConfig(runs_dir=Path(runs))
review.list_versions(config)
Path(runs, f"ready-{number}").touch()
while len(list(Path(runs).glob("ready-*"))) < 2:
    time.sleep(0.01)
try:
    review.approve(config, review.Decision(number, "ann", "better", digest, replaces="1"))
except InputError as error:
    print(error)
else:
    print("won")
"""


def test_of_two_approvals_at_once_one_wins_and_the_other_is_told(config: RunConfig) -> None:
    """Two processes that compared different versions with the same champion: the second finds another champion."""
    tiny_version(config, weights="3")
    registry.connect(config).delete_registered_model_alias(_version(config, 2).name, "candidate")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPROVE, str(config.runs_dir), str(number), _version(config, number).digest],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (2, 3)
    ]
    said = {number: process.communicate(timeout=100)[0].strip() for number, process in enumerate(processes, start=2)}
    [winner] = [number for number, text in said.items() if text == "won"]
    assert _aliases(config) == {"champion": winner, "previous-champion": 1}
    loser = 5 - winner
    assert f"version {loser} of medgrpo-synthetic was compared with version 1 as champion" in said[loser]
    assert f"the champion is version {winner} by now. Nothing was promoted" in said[loser]
    assert _version(config, loser).state == ""


def test_a_champion_replaced_at_once_is_not_called_one(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can lock, the earlier of two approvals within milliseconds is told that it did not last."""
    from mlflow import MlflowClient

    real = MlflowClient.set_registered_model_alias

    def and_another(client: MlflowClient, name: str, alias: str, number: str) -> None:
        real(client, name, alias, number)
        if alias == "champion":
            real(client, name, alias, "1")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", and_another)
    with pytest.raises(InputError, match="another decision replaced it at once: the champion is version 1"):
        review.approve(config, _decision(config, 2))


def test_what_happens_while_files_are_read_is_seen(own: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading gigabytes takes a while: another candidate, or another model under the same number, is found after it."""
    decision, real = _decision(own, 2), champions.verify_version
    weights, name = _weights(own, 2), _version(own, 2).name

    def replaced_by_another_model(*arguments: Any) -> str:
        weights.write_text("other")
        client = registry.connect(own)
        client.set_model_version_tag(name, "2", "medgrpo.digest", describe(weights.parent).sha256)
        client.set_model_version_tag(name, "2", "medgrpo.files_digest", files_digest(weights.parents[2]))
        return real(client, client.get_model_version(name, "2"))

    def replaced_by_another_version(*arguments: Any) -> str:
        tiny_version(own, weights="3")
        return real(*arguments)

    monkeypatch.setattr(champions, "verify_version", replaced_by_another_version)
    with pytest.raises(InputError, match="version 3 is the one under review"):
        review.approve(own, decision)
    registry.connect(own).set_registered_model_alias(name, "candidate", "2")
    monkeypatch.setattr(champions, "verify_version", replaced_by_another_model)
    with pytest.raises(InputError, match="that is not the model that was reviewed"):
        review.approve(own, decision)
    assert _aliases(own) == {"champion": 1, "candidate": 2}


# --- what the reviewer sees


def test_the_comparison_shows_numbers_links_and_objections(config: RunConfig) -> None:
    """Version, champion, digest, gate, intervals and the paired test; what others wrote is text, not markup."""
    number = tiny_version(config, gate="fail", weights="3", gate_reasons="<img src=x onerror=y> [a](javascript:b)")
    client = registry.connect(config)
    client.log_text(_version(config, number).run_id, json.dumps(METRICS), "metrics.json")
    found = review.show(config, str(number))
    assert not found.as_candidate
    assert found.champion is not None
    assert found.champion.number == 1
    assert found.objections == (
        "the gate's outcome is 'fail', not 'pass'",
        "version 2 is the one under review (alias candidate)",
    )
    text = comparison.markdown(found)
    assert found.version.digest in text
    assert "| metric | base | tuned |" in text
    assert "50.0% (45.0% to 55.0%)" in text
    assert "| macro-F1 | – | – |" in text
    assert "exact McNemar p = 1e-09" in text
    assert "500 pubmedqa cases" in text
    assert "<img" not in text
    assert r"\[a\](javascript:b)" in text
    assert "report.html" in text


def test_without_an_evaluation_it_says_so(config: RunConfig) -> None:
    """A run without metrics.json is shown with the sentence that there is nothing to compare."""
    found = review.show(config)
    assert found.as_candidate
    assert all(review.show(config, which).as_candidate for which in ("", " ", "candidate", " candidate "))
    assert found.objections == ()
    assert comparison.comparison_rows(found.metrics) == []
    assert "nothing to compare" in comparison.markdown(found)


# --- a real server


@pytest.fixture
def served(tmp_path: Path, empty_store: Path) -> Iterator[RunConfig]:
    """Settings of an MLflow server that keeps the files itself."""
    shutil.copy(empty_store, tmp_path / "server.db")
    server = MlflowServer(tmp_path)
    try:
        server.start()
        yield RunConfig(runs_dir=tmp_path / "runs", tracking=TrackingConfig(uri=server.uri))
    finally:
        server.stop()


def test_a_server_is_reviewed_as_a_file_is(served: RunConfig, tmp_path: Path) -> None:
    """Files are downloaded to be verified, the links lead to the server's pages, and a flipped byte is refused."""
    tiny_version(served, weights="2")
    found = review.show(served)
    assert found.links["version"] == f"{served.tracking.uri}/#/models/medgrpo-synthetic/versions/1"
    assert found.links["report"].startswith(f"{served.tracking.uri}/get-artifact?")
    decision = Decision("1", "ann", "reads better", found.version.digest)
    [weights] = (tmp_path / "served").rglob("weights.txt")
    with _flipped(weights), pytest.raises(InputError, match="is not what was registered"):
        review.approve(served, decision)
    assert review.approve(served, decision).aliases == ("champion",)
