"""JSON and text files of other people, read with errors that say what is wrong with them."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """What file is asked for, as messages name it.

    Attributes:
        file: what it is, as "PubMedQA's file".
        example: what such a file is called.
        key: what the entries of its object are named by.
    """

    file: str = "the file"
    example: str = "predictions.json"
    key: str = "record id"


ANY = Wanted()


class JsonObject(dict[str, Any]):
    """A JSON object that remembers the first key it was given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.twice = next((key for key, count in counts.items() if count > 1), None)


def read_json_object(path: Path, wanted: Wanted = ANY) -> dict[str, Any]:
    """A JSON file whose top level is a non-empty object with distinct keys.

    Raises:
        InputError: missing, a directory, not UTF-8, not JSON, truncated, another type, empty, or duplicate keys.
    """
    text = read_text(path, wanted)
    try:
        value = json.loads(text, object_pairs_hook=JsonObject)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        found = "ends in the middle (truncated?)" if cut else "is not JSON"
        problem = error.msg.removesuffix(" at")
        raise InputError(f"{path}: {found}: {problem} at line {error.lineno}. Fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not usable JSON: {error}. Fetch the file again.") from error
    if not isinstance(value, dict) or not value:
        found = f"a {type(value).__name__}" if value != {} else "an empty object"
        raise InputError(f"{path}: expected a JSON object with one entry per {wanted.key}, found {found}.")
    for where, part in [(path, value), *((f"{path}, record {key}", entry) for key, entry in value.items())]:
        if isinstance(part, JsonObject) and part.twice:
            unique = f"every {wanted.key} and field must be unique"
            raise InputError(f"{where}: {part.twice!r} stands there twice; {unique}.")
    return value


def read_text(path: Path, wanted: Wanted = ANY) -> str:
    """A UTF-8 file's text, with or without a byte-order mark.

    Raises:
        InputError: missing, a directory, not UTF-8, or not readable.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; expected a file, for example {path / wanted.example}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        give = f"Give the path of {wanted.file}, e.g. PATH/{wanted.example}."
        raise InputError(f"{path}: no such file. {give}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8 and try again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error
