"""The registered model as a review meets it: its versions, what their tags say, and how its aliases move."""

import contextlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import friendly_disk_errors, locked
from medgrpo.registry.candidate import NOT_EVALUATED
from medgrpo.registry.connection import CALL_SECONDS, connect, http_timeout, plain_errors, public_uri
from medgrpo.registry.evidence import COMPARED_TAG, GATE_REASONS_TAG, GATE_TAG, PASS
from medgrpo.registry.lookup import CHAMPION, DIGEST_TAG, get_version, registered_name, verify_version

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
class Registry:
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

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags in the order given; an empty one is removed."""
        for key, value in tags.items():
            if value:
                self.client.set_model_version_tag(version.name, str(version.number), key, value)
            elif key in version.tags:
                self.client.delete_model_version_tag(version.name, str(version.number), key)

    def promote(self, version: Version, tags: Mapping[str, str]) -> None:
        """Record an approval and move the aliases, in the order that `medgrpo.registry.review` explains."""
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
                f"the champion is {numbered(now)}. Look at medgrpo review list and agree on one."
            )
        return self.find(str(version.number))


@contextlib.contextmanager
def open_registry(config: RunConfig) -> Iterator[Registry]:
    """The registered model of a run's settings.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: it holds no such model.
    """
    uri, name = resolve_mlflow_uri(config), registered_name(config, config.data.domain)
    client = connect(config)
    with plain_errors(uri), http_timeout(CALL_SECONDS):
        if not client.search_registered_models(f"name = '{name}'"):
            raise InputError(
                f"MLflow at {public_uri(uri)} holds no registered model {name!r}. Name the profile it was trained "
                "with, or set tracking.uri and tracking.model_name."
            )
        yield Registry(client, uri, name, config.tracking.alias)


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Decisions on an SQLite store wait for each other; the lock dies with its process. A server offers no lock."""
    path = Path(uri.partition(":///")[2].partition("?")[0])
    if not uri.startswith("sqlite") or path == Path():
        yield
        return
    lock = path.with_name(f"{path.name}.review.lock")
    with contextlib.ExitStack() as held:
        with friendly_disk_errors(lock):
            held.enter_context(locked(lock))
        yield


def printable(text: str) -> str:
    """Text on one line, without the characters that could steer a terminal or hide what is there."""
    return " ".join("".join(" " if unicodedata.category(c).startswith("C") else c for c in text).split())


def numbered(number: str) -> str:
    """A version's number, or "none", as words in a sentence."""
    return "no version" if number == NONE else f"version {number}"


def _version(entry: "ModelVersion", aliases: Mapping[str, str]) -> Version:
    return Version(
        name=entry.name,
        number=int(entry.version),
        run_id=str(entry.run_id),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(entry.version))),
        tags=dict(entry.tags),
    )


def _not_measured_against(champion: Version, version: Version) -> Iterator[str]:
    """What is wrong with a gate that held a version against another champion than the one it would replace."""
    compared = version.tags.get(COMPARED_TAG, "")
    if champion.digest == version.digest:
        yield f"it has the same weights as the champion, version {champion.number}"
    elif compared != champion.digest:
        other = {NONE: "no champion", "": "a champion that is not known"}.get(compared, "another champion")
        yield f"its gate compared it with {other}, not with version {champion.number}, which is the champion now"
