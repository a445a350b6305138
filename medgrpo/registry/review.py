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

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.registry.champions import (
    APPROVED,
    DESPITE_TAG,
    NONE,
    NOTE_TAG,
    PREVIOUS_TAG,
    REJECTED,
    REVIEW_TAG,
    REVIEWER_TAG,
    ROLLED_BACK_TAGS,
    TIME_TAG,
    Registry,
    Version,
    numbered,
    one_at_a_time,
    open_registry,
    printable,
)
from medgrpo.registry.connection import public_uri
from medgrpo.registry.lookup import CHAMPION
from medgrpo.registry.runs import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHORTEST_DIGEST = 12
"""Characters of a digest that a reviewer must repeat at least: 48 bits, which nobody hits by accident."""
MAX_REVIEWER, MAX_NOTE = 200, 4000
"""Characters of a name and of a note; some MLflow servers keep no more than 5,000 of a tag."""


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
    with open_registry(config) as registry:
        return registry.versions()


def show(config: RunConfig, version: str | None = None) -> Review:
    """A version (by number or alias; unset, the one under review) beside the champion that it would replace.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such model or version.
    """
    with open_registry(config) as registry:
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
    with open_registry(config) as registry:
        decision = replace(decision, replaces=decision.replaces or registry.champion_number(), despite_gate=reason)
        with one_at_a_time(registry.uri):
            version = registry.find(decision.version)
            _check_approval(registry, version, decision)
            found = registry.verify(version)
            # Reading gigabytes takes a while: what was true before it is looked at again.
            version = registry.find(str(version.number))
            _check_digest(version, found)
            previous = _check_approval(registry, version, decision)
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
    with open_registry(config) as registry, one_at_a_time(registry.uri):
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
    with open_registry(config) as registry, one_at_a_time(registry.uri):
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


def _check_approval(registry: Registry, version: Version, decision: Decision) -> str:
    """Number of the champion that an approval would replace, or "none"; refuse what may not be approved."""
    _check_digest(version, decision.digest)
    aliases = registry.aliases()
    if aliases.get(CHAMPION) == str(version.number):
        # The approval of the champion is repeated, perhaps because the first was cut off.
        if version.state != APPROVED:
            _check_objections(version, registry.objections(version), decision.despite_gate)
        return version.tags.get(PREVIOUS_TAG, NONE)
    if decision.must_be_candidate:
        _check_candidate(registry, version)
    expected, current = str(decision.replaces).strip(), aliases.get(CHAMPION, NONE)
    if current != expected:
        raise InputError(
            f"version {version.number} of {registry.name} was compared with {numbered(expected)} as champion, but the "
            f"champion is {numbered(current)} by now. Nothing was promoted. Compare again, then decide."
        )
    _check_objections(version, registry.objections(version), decision.despite_gate)
    return current


def _check_candidate(registry: Registry, version: Version) -> None:
    """Refuse a version that was replaced while it was under review."""
    now = registry.aliases().get(registry.candidate_alias, NONE)
    if now != str(version.number):
        raise InputError(
            f"version {version.number} of {registry.name} is no longer the one under review: alias "
            f"{registry.candidate_alias} is on {numbered(now)} by now. Nothing was promoted. Review again."
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


def _check_objections(version: Version, objections: Iterator[str], reason: str) -> None:
    against = "; ".join(objections)
    if against and not reason:
        raise InputError(
            f"version {version.number} of {version.name} is not approved as it stands: {against}. To approve it all "
            "the same, give the reason with --despite-gate; it is recorded."
        )


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
