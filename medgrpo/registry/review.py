"""A person's decision about a version: approve exactly the files that were measured, reject them, or roll back.

The aliases are what serving follows: `champion`, `previous-champion`, and the alias of the version under review
(`tracking.alias`). Who decided what, when and why are tags of the version. MLflow cannot move an alias on condition
that it still points somewhere, so an approval is written in an order that survives a crash anywhere:

1. who, when, why, and the champion that is replaced, then `medgrpo.review = approved`: a version never becomes champion
   without a recorded approval;
2. alias `champion`;
3. alias `previous-champion`, which only mirrors the new champion's tag: rolling back follows the tag;
4. the alias of the version under review is removed.

A repeated approval goes on where the first one was cut off. Of two decisions on one machine's SQLite store the second
waits for the first and then finds another champion than it was compared with. On a server two approvals can pass
that comparison within the same milliseconds; the later one then wins, and the earlier one is told so.
"""

import contextlib
import fcntl
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import friendly_disk_errors
from medgrpo.registry.candidate import NOT_EVALUATED
from medgrpo.registry.connection import CALL_SECONDS, connect, http_timeout, plain_errors, public_uri
from medgrpo.registry.evidence import COMPARED_TAG, GATE_REASONS_TAG, GATE_TAG, PASS
from medgrpo.registry.lookup import CHAMPION, DIGEST_TAG, get_version, registered_name, verify_version
from medgrpo.registry.runs import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREVIOUS_CHAMPION = "previous-champion"
"""Alias of the version that the champion replaced."""
NONE = "none"
"""Stands for "no version" where a version number is expected."""

REVIEW_TAG = "medgrpo.review"
REVIEWER_TAG, NOTE_TAG, TIME_TAG = "medgrpo.reviewer", "medgrpo.review_note", "medgrpo.reviewed_at"
PREVIOUS_TAG = "medgrpo.previous_champion"
DESPITE_TAG = "medgrpo.despite_gate"
ROLLED_BACK_TAGS = ("medgrpo.rolled_back_by", "medgrpo.rolled_back_note", "medgrpo.rolled_back_at")
DECISION_TAGS = (REVIEWER_TAG, NOTE_TAG, TIME_TAG, PREVIOUS_TAG, DESPITE_TAG, *ROLLED_BACK_TAGS)
APPROVED, REJECTED, ROLLED_BACK = "approved", "rejected", "rolled back"

SHORTEST_DIGEST = 12
"""Characters of a digest that a reviewer must repeat at least: 48 bits, which nobody hits by accident."""
MAX_REVIEWER, MAX_NOTE = 200, 4000
"""Characters of a name and of a note; some MLflow servers keep no more than 5,000 of a tag."""
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Version:
    """A registered version, as a reviewer meets it.

    Attributes:
        name: registered model.
        number: its version.
        run_id: MLflow run it came from.
        created: when it was registered.
        aliases: aliases that point to it.
        tags: its tags.
    """

    name: str
    number: int
    run_id: str
    created: datetime
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Digest of the model that was measured; empty where none is recorded."""
        return self.tags.get(DIGEST_TAG, "")

    @property
    def gate(self) -> str:
        """Outcome of the gate."""
        return self.tags.get(GATE_TAG, NOT_EVALUATED)

    @property
    def gate_reasons(self) -> list[str]:
        """What the gate said, a sentence each."""
        return self.tags.get(GATE_REASONS_TAG, "").splitlines()

    @property
    def state(self) -> str:
        """What a review decided; empty before one."""
        return self.tags.get(REVIEW_TAG, "")


@dataclass(frozen=True)
class Review:
    """A version under review, and what it is compared with.

    Attributes:
        version: the version under review.
        champion: the champion it would replace; None where there is none.
        as_candidate: whether the version was found by the alias of the version under review.
        objections: why approving it takes an explicit reason, in sentences; empty where nothing speaks against it.
        metrics: content of the evaluation's metrics.json; empty where the run does not have it.
        links: addresses for a person, by name.
    """

    version: Version
    champion: Version | None
    as_candidate: bool
    objections: tuple[str, ...]
    metrics: Mapping[str, Any]
    links: Mapping[str, str]


@dataclass(frozen=True)
class Decision:
    """What a person decided about one version.

    Attributes:
        version: number of the version, or an alias.
        reviewer: who decides.
        note: why.
        digest: the digest the reviewer saw, in full or its first 12 characters or more.
        despite_gate: why the version is approved although the gate, or an earlier review, speaks against it.
        replaces: number of the champion that the reviewer compared it with, or "none"; unset, the champion found when
            the decision is made.
        must_be_candidate: whether the version must still be the one that the alias of the version under review names.
    """

    version: str
    reviewer: str
    note: str
    digest: str = ""
    despite_gate: str = ""
    replaces: str | None = None
    must_be_candidate: bool = False


def list_versions(config: RunConfig) -> list[Version]:
    """Every version of the model, newest first.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such model.
    """
    with _registry(config) as registry:
        return registry.versions()


def show(config: RunConfig, version: str | None = None) -> Review:
    """A version (by number or alias; unset, the one under review) beside the champion that it would replace.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such model or version.
    """
    with _registry(config) as registry:
        which = (version or "").strip() or registry.candidate_alias
        found = registry.find(which)
        metrics = _metrics(registry.client, found)
        return Review(
            version=found,
            champion=registry.champion(),
            as_candidate=which == registry.candidate_alias,
            objections=tuple(registry.objections(found)),
            metrics=metrics,
            links=_links(registry.client, resolve_mlflow_uri(config), found),
        )


def approve(config: RunConfig, decision: Decision) -> Version:
    """Make a version the champion, after its stored files were found to have the digest that the reviewer saw.

    Returns:
        The new champion.

    Raises:
        ServiceUnreachable: MLflow does not answer; the same approval can be repeated.
        InputError: nothing was promoted, and why: the decision is incomplete, the version is not (any more) the one
            under review, the digest or the files differ, or the champion has changed meanwhile.
    """
    reviewer, note = plain(decision.reviewer, "reviewer", MAX_REVIEWER), plain(decision.note, "note", MAX_NOTE)
    reason = plain(decision.despite_gate, "despite_gate", MAX_NOTE) if decision.despite_gate else ""
    with _registry(config) as registry:
        decision = replace(decision, replaces=decision.replaces or registry.champion_number(), despite_gate=reason)
        with _one_at_a_time(registry.uri):
            version = registry.find(decision.version)
            registry.check_approval(version, decision)
            found = registry.verify(version)
            # Reading gigabytes takes a while: what was true before it is looked at again.
            version = registry.find(str(version.number))
            _check_digest(version, found)
            previous = registry.check_approval(version, decision)
            tags = {REVIEWER_TAG: reviewer, NOTE_TAG: note, TIME_TAG: _now(), PREVIOUS_TAG: previous}
            # What an earlier rollback left would read as if it came after this approval.
            registry.promote(version, {**dict.fromkeys(ROLLED_BACK_TAGS, ""), **tags, DESPITE_TAG: reason})
            return registry.check_won(version)


def reject(config: RunConfig, decision: Decision) -> Version:
    """Record that a version was rejected; it is no longer the one under review.

    Raises:
        ServiceUnreachable: MLflow does not answer; the same rejection can be repeated.
        InputError: nothing was recorded, and why.
    """
    reviewer, note = plain(decision.reviewer, "reviewer", MAX_REVIEWER), plain(decision.note, "note", MAX_NOTE)
    with _registry(config) as registry, _one_at_a_time(registry.uri):
        version = registry.find(decision.version)
        if decision.digest:
            _check_digest(version, decision.digest)
        if decision.must_be_candidate and version.state == APPROVED:
            raise InputError(
                f"version {version.number} of {version.name} was approved while it was under review, by "
                f"{printable(version.tags.get(REVIEWER_TAG, 'somebody'))}. The rejection was not recorded."
            )
        if CHAMPION in version.aliases:
            raise InputError(
                f"version {version.number} of {version.name} is the champion. Roll back instead: "
                "medgrpo review rollback."
            )
        tags = {REVIEWER_TAG: reviewer, NOTE_TAG: note, TIME_TAG: _now(), DESPITE_TAG: ""}
        registry.tag(version, {**tags, REVIEW_TAG: REJECTED})
        registry.end_candidacy(version)
        return registry.find(str(version.number))


def rollback(config: RunConfig, reviewer: str, note: str, replaces: str | None = None) -> Version:
    """Make the previous champion the champion again, its files verified as for an approval.

    Args:
        config: names the registry and the model.
        reviewer: who decides.
        note: why.
        replaces: number of the champion to go back from; unset, whichever it is.

    Returns:
        The champion after it.

    Raises:
        ServiceUnreachable: MLflow does not answer; the same rollback can be repeated.
        InputError: the champion is as it was, and why.
    """
    reviewer, note = plain(reviewer, "reviewer", MAX_REVIEWER), plain(note, "note", MAX_NOTE)
    with _registry(config) as registry, _one_at_a_time(registry.uri):
        champion = registry.champion()
        if champion is None:
            raise InputError(f"{registry.name} has no champion, so there is nothing to roll back.")
        if replaces and str(champion.number) != replaces.strip():
            raise InputError(f"the champion of {registry.name} is version {champion.number}, not {replaces}.")
        target = registry.previous_of(champion)
        registry.verify(target)
        registry.return_to(target, champion, dict(zip(ROLLED_BACK_TAGS, (reviewer, note, _now()), strict=True)))
        return registry.check_won(target)


def plain(text: str, field: str, longest: int) -> str:
    """A person's text without control characters, invisible marks and needless white space.

    >>> plain(" looks\\x1b[31m good\\u202e\\n", "note", 100)
    'looks [31m good'

    Raises:
        InputError: nothing is left, or it is too long for a tag.
    """
    kept = printable(text)
    if not kept:
        raise InputError(f"{field} is empty. A decision needs a reviewer and a note, so that others can ask and learn.")
    if len(kept) > longest:
        raise InputError(
            f"{field} has {len(kept):,} characters, at most {longest:,} are kept. Put the details where they can be "
            "read, and name the place."
        )
    return kept


def printable(text: str) -> str:
    """Text on one line, without the characters that could steer a terminal or hide what is there."""
    return " ".join("".join(" " if unicodedata.category(c).startswith("C") else c for c in text).split())


@dataclass(frozen=True)
class _Registry:
    """One registered model in an MLflow store that has answered."""

    client: "MlflowClient"
    uri: str
    name: str
    candidate_alias: str

    def aliases(self) -> dict[str, str]:
        """Version number, as text, of each alias, read now."""
        return {alias: str(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}

    def versions(self) -> list[Version]:
        """Every version, newest first."""
        aliases = self.aliases()
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted((_version(entry, aliases) for entry in found), key=lambda version: -version.number)

    def find(self, which: str) -> Version:
        """A version by its number or by an alias."""
        return _version(get_version(self.client, self.name, which.strip()), self.aliases())

    def verify(self, version: Version) -> str:
        """Digest of a version's model, read from its stored files now; refuse files that were changed."""
        with http_timeout(DOWNLOAD_SECONDS):
            return verify_version(self.client, get_version(self.client, self.name, str(version.number)))

    def champion(self) -> Version | None:
        """The champion, read now."""
        return self.find(CHAMPION) if CHAMPION in self.aliases() else None

    def champion_number(self) -> str:
        """Number of the champion, or "none"."""
        return self.aliases().get(CHAMPION, NONE)

    def objections(self, version: Version) -> Iterator[str]:
        """What speaks against approving a version without a reason of its own."""
        if version.gate != PASS:
            yield f"the gate's outcome is {version.gate!r}, not {PASS!r}"
        if version.state in (REJECTED, ROLLED_BACK):
            by = version.tags.get(REVIEWER_TAG if version.state == REJECTED else ROLLED_BACK_TAGS[0], "somebody")
            yield f"it was {version.state} by {printable(by)}"
        champion = self.champion()
        if champion and champion.number != version.number:
            yield from _not_measured_against(champion, version)
        under_review = self.aliases().get(self.candidate_alias, str(version.number))
        if under_review != str(version.number):
            yield f"version {under_review} is the one under review (alias {self.candidate_alias})"

    def check_approval(self, version: Version, decision: Decision) -> str:
        """Number of the champion that an approval would replace, or "none"; refuse what may not be approved."""
        _check_digest(version, decision.digest)
        aliases = self.aliases()
        if aliases.get(CHAMPION) == str(version.number):
            # The approval of the champion is repeated, perhaps because the first was cut off.
            if version.state != APPROVED:
                _check_objections(version, self.objections(version), decision.despite_gate)
            return version.tags.get(PREVIOUS_TAG, NONE)
        if decision.must_be_candidate:
            self.check_candidate(version)
        expected, current = str(decision.replaces).strip(), aliases.get(CHAMPION, NONE)
        if current != expected:
            raise InputError(
                f"version {version.number} of {self.name} was compared with {_numbered(expected)} as champion, but the "
                f"champion is {_numbered(current)} by now. Nothing was promoted. Compare again, then decide."
            )
        _check_objections(version, self.objections(version), decision.despite_gate)
        return current

    def check_candidate(self, version: Version) -> None:
        """Refuse a version that was replaced while it was under review."""
        now = self.aliases().get(self.candidate_alias, NONE)
        if now != str(version.number):
            raise InputError(
                f"version {version.number} of {self.name} is no longer the one under review: alias "
                f"{self.candidate_alias} is on {_numbered(now)} by now. Nothing was promoted. Review again."
            )

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags in the order given; an empty one is removed."""
        for key, value in tags.items():
            if value:
                self.client.set_model_version_tag(version.name, str(version.number), key, value)
            elif key in version.tags:
                self.client.delete_model_version_tag(version.name, str(version.number), key)

    def promote(self, version: Version, tags: Mapping[str, str]) -> None:
        """Record an approval and move the aliases, in the order that the top of this file explains."""
        number = str(version.number)
        if version.state != APPROVED or CHAMPION not in version.aliases:
            self.tag(version, {**tags, REVIEW_TAG: APPROVED})
            self.client.set_registered_model_alias(self.name, CHAMPION, number)
        self.mirror_previous(version.tags if CHAMPION in version.aliases else tags)
        self.end_candidacy(version)

    def mirror_previous(self, tags: Mapping[str, str]) -> None:
        """Let alias `previous-champion` name what the champion's tag names; a version deleted since has no alias."""
        previous = tags.get(PREVIOUS_TAG, NONE)
        if previous in {str(version.number) for version in self.versions()}:
            self.client.set_registered_model_alias(self.name, PREVIOUS_CHAMPION, previous)
        elif PREVIOUS_CHAMPION in self.aliases():
            self.client.delete_registered_model_alias(self.name, PREVIOUS_CHAMPION)

    def end_candidacy(self, version: Version) -> None:
        """Remove the alias of the version under review, unless it has moved to another version."""
        if self.aliases().get(self.candidate_alias) == str(version.number):
            self.client.delete_registered_model_alias(self.name, self.candidate_alias)

    def previous_of(self, champion: Version) -> Version:
        """The version that a champion replaced."""
        previous = champion.tags.get(PREVIOUS_TAG)
        if previous in (None, NONE):
            why = "replaced no champion" if previous else "was made champion without a review"
            raise InputError(
                f"version {champion.number} of {self.name} {why}, so there is none to return to. "
                "Approve the version you want instead."
            )
        target = self.find(previous)
        if target.state in (REJECTED, ROLLED_BACK):
            raise InputError(
                f"version {previous} of {self.name}, the champion before version {champion.number}, was {target.state} "
                "since. Approve the version you want instead; --despite-gate says why."
            )
        return target

    def return_to(self, target: Version, champion: Version, tags: Mapping[str, str]) -> None:
        """Move `champion` back. It moves last: a rollback that is cut off is completed by repeating it."""
        self.tag(champion, {**tags, REVIEW_TAG: ROLLED_BACK})
        self.mirror_previous(target.tags)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(target.number))

    def check_won(self, version: Version) -> Version:
        """The version as it is now; refuse to call it the champion if another decision came right after."""
        now = self.champion_number()
        if now != str(version.number):
            raise InputError(
                f"version {version.number} of {self.name} was made champion, and another decision replaced it at once: "
                f"the champion is {_numbered(now)}. Look at medgrpo review list and agree on one."
            )
        return self.find(str(version.number))


@contextlib.contextmanager
def _registry(config: RunConfig) -> Iterator[_Registry]:
    uri, name = resolve_mlflow_uri(config), registered_name(config, config.data.domain == "synthetic")
    client = connect(config)
    with plain_errors(uri), http_timeout(CALL_SECONDS):
        if not client.search_registered_models(f"name = '{name}'"):
            raise InputError(
                f"MLflow at {public_uri(uri)} holds no registered model {name!r}. Name the profile it was trained "
                "with, or set tracking.uri and tracking.model_name."
            )
        yield _Registry(client, uri, name, config.tracking.alias)


def _version(entry: "ModelVersion", aliases: Mapping[str, str]) -> Version:
    return Version(
        name=entry.name,
        number=int(entry.version),
        run_id=str(entry.run_id),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(entry.version))),
        tags=dict(entry.tags),
    )


def _check_digest(version: Version, given: str) -> None:
    """Refuse a digest that is not the version's own."""
    given = given.strip().lower()
    if len(given) < SHORTEST_DIGEST:
        found = f"{given!r} has {len(given)} characters" if given else "none was given"
        raise InputError(
            f"the digest that is approved must be repeated, in full or its first {SHORTEST_DIGEST} characters or more; "
            f"{found}. medgrpo review show {version.number} shows it."
        )
    if not version.digest.startswith(given):
        raise InputError(
            f"version {version.number} of {version.name} has the digest {version.digest or 'none'}, not {given}: that "
            "is not the model that was reviewed. Nothing was recorded."
        )


def _not_measured_against(champion: Version, version: Version) -> Iterator[str]:
    """What is wrong with a gate that held a version against another champion than the one it would replace."""
    compared = version.tags.get(COMPARED_TAG, "")
    if champion.digest == version.digest:
        yield f"it has the same weights as the champion, version {champion.number}"
    elif compared != champion.digest:
        other = {NONE: "no champion", "": "a champion that is not known"}.get(compared, "another champion")
        yield f"its gate compared it with {other}, not with version {champion.number}, which is the champion now"


def _check_objections(version: Version, objections: Iterator[str], reason: str) -> None:
    against = "; ".join(objections)
    if against and not reason:
        raise InputError(
            f"version {version.number} of {version.name} is not approved as it stands: {against}. To approve it all "
            "the same, give the reason with --despite-gate; it is recorded."
        )


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Decisions on an SQLite store wait for each other; the lock dies with its process. A server offers no lock."""
    path = Path(uri.partition(":///")[2].partition("?")[0])
    if not uri.startswith("sqlite") or path == Path():
        yield
        return
    lock = path.with_name(f"{path.name}.review.lock")
    with contextlib.ExitStack() as opened:
        with friendly_disk_errors(lock):
            stream = opened.enter_context(lock.open("w"))
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _metrics(client: "MlflowClient", version: Version) -> dict[str, Any]:
    """The evaluation that the version was registered with; empty where its run does not hold it."""
    name = "metrics.json"
    if name not in {item.path for item in client.list_artifacts(version.run_id)}:
        return {}
    with tempfile.TemporaryDirectory(prefix="medgrpo-review-") as directory:
        return read_json(Path(client.download_artifacts(version.run_id, name, directory)))


def _links(client: "MlflowClient", uri: str, version: Version) -> dict[str, str]:
    """Pages of an MLflow server; for a store without one, where the report lies."""
    run = client.get_run(version.run_id)
    if urlsplit(uri).scheme not in ("http", "https"):
        return {"report": f"{run.info.artifact_uri}/report.html"}
    base = public_uri(uri).rstrip("/")
    return {
        "version": f"{base}/#/models/{quote(version.name, safe='')}/versions/{version.number}",
        "run": f"{base}/#/experiments/{run.info.experiment_id}/runs/{version.run_id}",
        "report": f"{base}/get-artifact?run_uuid={version.run_id}&path=report.html",
    }


def _numbered(number: str) -> str:
    return "no version" if number == NONE else f"version {number}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
