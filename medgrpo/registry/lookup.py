"""Model versions that the registry holds: found by number or alias, fetched, and checked against their digest."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from medgrpo import domains
from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import describe, friendly_disk_errors
from medgrpo.registry.connection import connect, plain_errors, public_uri
from medgrpo.registry.runs import VERSION_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""Alias of the version that is in use; only a review moves it."""
DIGEST_TAG = "medgrpo.digest"
"""Tag of a version: sha256 of the merged model, as `medgrpo.manifests.describe` gives it."""
DATA_TAG = "medgrpo.data_digest"
"""Tag of a version: sha256 of the data that it was trained and evaluated on (see `registry.facts.data_digest`)."""
FILES_TAG = "medgrpo.files_digest"
"""Tag of a version: the same of everything that is served, the code and its requirements included."""
_MODEL_URI = re.compile(r"models:/(?P<name>[^/:@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/:@]+))")


class ModelUri(NamedTuple):
    """A registered model and one of its versions.

    Attributes:
        name: the registered model.
        version: number of the version, or an alias.
    """

    name: str
    version: str

    def __str__(self) -> str:
        """The URI as MLflow writes it."""
        return f"models:/{self.name}{'/' if self.version.isdecimal() else '@'}{self.version}"


@dataclass(frozen=True)
class Registration:
    """A registered model version.

    Attributes:
        name: registered model.
        version: its version.
        run_id: MLflow run the version came from.
        uri: `models:/<name>/<version>`, what `mlflow.pyfunc.load_model` takes.
        digest: sha256 of the model.
        aliases: aliases that point to this version now.
    """

    name: str
    version: int
    run_id: str
    uri: str
    digest: str
    aliases: tuple[str, ...]


def parse_model_uri(text: str) -> ModelUri:
    """Read `models:/name/version` or `models:/name@alias`.

    Raises:
        InputError: the text is neither.

    >>> parse_model_uri("models:/medgrpo@champion")
    ModelUri(name='medgrpo', version='champion')
    >>> str(parse_model_uri("models:/medgrpo/3"))
    'models:/medgrpo/3'
    """
    match = _MODEL_URI.fullmatch(text)
    if not match:
        raise InputError(
            f"{text!r} names no version of a registered model. Expected models:/NAME/VERSION with a number, or "
            "models:/NAME@ALIAS, for example models:/medgrpo@champion."
        )
    return ModelUri(match["name"], match["version"] or match["alias"])


def registered_name(config: RunConfig, domain: str) -> str:
    """The registered model of a run: models that learned from the records of two domains never mix."""
    return config.tracking.model_name + domains.get(domain).model_suffix


def get_version(client: "MlflowClient", name: str, version_or_alias: str) -> "ModelVersion":
    """A version by its number or alias.

    Raises:
        InputError: the registry holds no such model, version or alias; the sentence lists what it holds.
    """
    aliases = _aliases(client, name)
    if aliases is None:
        raise InputError(
            f"MLflow at {public_uri(client.tracking_uri)} holds no registered model {name!r}. Register one with a run "
            "of train-medgrpo, or correct the name or tracking.uri."
        )
    number = version_or_alias if version_or_alias.isdecimal() else aliases.get(version_or_alias)
    versions = {str(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    if number is None or str(number) not in versions:
        kind = "version" if version_or_alias.isdecimal() else "alias"
        held = f"Versions: {_listed(sorted(versions, key=int))}; aliases: {_listed(sorted(aliases))}."
        raise InputError(f"the registered model {name!r} has no {kind} {version_or_alias!r}. {held}")
    return client.get_model_version(name, str(number))


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _aliases(client: "MlflowClient", name: str) -> dict[str, str] | None:
    """The aliases of a registered model and the versions they point to; None where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_champion(config: RunConfig, domain: str) -> Registration | None:
    """The version that alias `champion` points to; None where there is none yet.

    Args:
        config: the run's settings; `tracking` says which registry and which model.
        domain: whose model is meant.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: MLflow refuses.
    """
    client, name = connect(config), registered_name(config, domain)
    with plain_errors(resolve_mlflow_uri(config)):
        number = (_aliases(client, name) or {}).get(CHAMPION)
        return registration(client.get_model_version(name, str(number))) if number else None


def trained_on(config: RunConfig, domain: str, data_digest: str) -> list[Registration]:
    """The versions whose data had this digest, newest first, whatever became of them; none without such a model.

    One whose registration was cut short does not count: it has no alias yet, and whoever trains again completes it.

    Args:
        config: the run's settings; `tracking` says which registry and which model.
        domain: whose model is meant.
        data_digest: what `registry.facts.data_digest` gives.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: MLflow refuses.
    """
    client, name = connect(config), registered_name(config, domain)
    with plain_errors(resolve_mlflow_uri(config)):
        found = client.search_model_versions(f"name = '{name}' and tags.`{DATA_TAG}` = '{data_digest}'")
        numbers = sorted((int(version.version) for version in found if _is_complete(client, version)), reverse=True)
        # A search does not tell which aliases a version has.
        return [registration(client.get_model_version(name, str(number))) for number in numbers]


def _is_complete(client: "MlflowClient", version: "ModelVersion") -> bool:
    """Whether a version's registration came to its end, as far as its run still tells."""
    from mlflow.exceptions import MlflowException

    try:
        return VERSION_TAG in client.get_run(str(version.run_id)).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


def champion_uri(config: RunConfig) -> str:
    """Address of the champion among the models that learned from records like this run's."""
    return str(ModelUri(registered_name(config, config.data.domain), CHAMPION))


def find_version(config: RunConfig, uri: str) -> Registration:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: the address is no such one, or names no version that there is.
    """
    name, version = parse_model_uri(uri)
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        return registration(get_version(client, name, version))


def registration(version: "ModelVersion") -> Registration:
    """What we keep of a version; its digest is empty where it has no such tag."""
    return Registration(
        name=version.name,
        version=int(version.version),
        run_id=str(version.run_id),
        uri=f"models:/{version.name}/{version.version}",
        digest=version.tags.get(DIGEST_TAG, ""),
        aliases=tuple(sorted(version.aliases)),
    )


def download(config: RunConfig, name: str, version_or_alias: str, directory: Path) -> Path:
    """Copy the merged model of a version to `directory`, once all of the version's files are found unchanged.

    Args:
        config: the run's settings; `tracking` says which registry.
        name: the registered model.
        version_or_alias: number of the version, or an alias.
        directory: where the model goes: float32 safetensors with its tokenizer.

    Returns:
        `directory`.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such version, its files are gone or are not the ones that were registered, or `directory` holds
            something else.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        version = get_version(client, name, version_or_alias)
        if not directory.exists() or not any(directory.iterdir()):
            _download(client, version, directory.absolute())
        elif describe(directory).sha256 != version.tags.get(DIGEST_TAG):
            raise InputError(f"{directory} holds something other than {_named(version)}. Name an empty directory.")
    return directory


def _download(client: "MlflowClient", version: "ModelVersion", directory: Path) -> None:
    """Everything goes beside the directory first, so that this never holds a part, or a model that was not checked."""
    # One name, so that what a killed try left is overwritten and does not stay.
    beside = directory.with_name(f".{directory.name}.download")
    with friendly_disk_errors(directory):
        try:
            _checked(version, _fetch(client, version, beside)).replace(directory)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def verify_version(client: "MlflowClient", version: "ModelVersion") -> str:
    """Digest of a version's model, computed from the files as the registry hands them out now.

    Files on this machine are read where they are; others are downloaded once, and deleted.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: the files are gone, or they are not the ones that were registered.
    """
    with plain_errors(client.tracking_uri), _stored(client, version) as directory:
        _checked(version, directory)
    return str(version.tags[DIGEST_TAG])


@contextlib.contextmanager
def _stored(client: "MlflowClient", version: "ModelVersion") -> Iterator[Path]:
    """A directory with a version's files: the store's own where it is on this machine, else a temporary copy."""
    uri = client.get_model_version_download_uri(version.name, str(version.version))
    if urlsplit(uri).scheme in ("", "file"):
        yield _fetch(client, version, None)
    else:
        with tempfile.TemporaryDirectory(prefix="medgrpo-verify-") as directory:
            yield _fetch(client, version, Path(directory))


def _fetch(client: "MlflowClient", version: "ModelVersion", directory: Path | None) -> Path:
    """Download a version's files; without a directory, the store's own where it is on this machine."""
    import requests
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = client.get_model_version_download_uri(version.name, str(version.version))
    target = str(directory.absolute()) if directory else None
    try:
        with friendly_disk_errors(directory or Path()):
            return Path(download_artifacts(artifact_uri=uri, dst_path=target, tracking_uri=client.tracking_uri))
    except requests.RequestException:
        raise
    except (OSError, MlflowException) as error:
        if isinstance(error, MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{_named(version)}: its files at {public_uri(uri)} cannot be read ({error}).") from error


def _checked(version: "ModelVersion", directory: Path) -> Path:
    """The merged model inside a version's files, once those are found to be the registered ones."""
    model = _model_directory(version, directory)
    if DIGEST_TAG not in version.tags:
        raise InputError(f"{_named(version)} has no tag {DIGEST_TAG}, so nothing says what its model should be.")
    try:
        # A linked directory would not be hashed, and a link can lead elsewhere after it was.
        links = [path for path in directory.rglob("*") if path.is_symlink()]
        found = {DIGEST_TAG: describe(model).sha256, FILES_TAG: files_digest(directory)}
    except OSError as error:
        raise InputError(f"{_named(version)}: its files cannot be read ({error}).") from error
    if links:
        raise InputError(f"{_named(version)} is not what was registered: {links[0]} is a symbolic link.")
    _check_digest(version, DIGEST_TAG, "model", found)
    # Versions from before this tag have only the model's.
    if FILES_TAG in version.tags:
        _check_digest(version, FILES_TAG, "set of served files", found)
    return model


def _check_digest(version: "ModelVersion", tag: str, what: str, found: Mapping[str, str]) -> None:
    if found[tag] != version.tags[tag]:
        raise InputError(
            f"{_named(version)} is not what was registered: its {what} has the digest {found[tag]}, its tag {tag} says "
            f"{version.tags[tag]}. The files or the tag were changed since; train and register it again."
        )


def files_digest(directory: Path) -> str:
    """Digest of everything that is served; Python's caches, which loading the model may add, are left out."""
    return describe(directory, ignore="__pycache__").sha256


def _model_directory(version: "ModelVersion", directory: Path) -> Path:
    """Where the merged model lies among a version's files."""
    import yaml
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        flavor = Model.load(str(directory)).flavors["python_function"]
        model = (directory / flavor["artifacts"]["model"]["path"]).resolve()
    except (MlflowException, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{_named(version)} holds no model of medgrpo ({error}).") from error
    if not model.is_relative_to(directory.resolve()) or not (model / "config.json").is_file():
        raise InputError(f"{_named(version)} holds no model of medgrpo: {model} is no model directory of its own.")
    return model


def _named(version: "ModelVersion") -> str:
    return f"models:/{version.name}/{version.version}"
