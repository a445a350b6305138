"""Read `metrics.jsonl`, the append-only record of a training."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows, one per phase and step: after a resume the later row of a repeated step counts."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in parse_rows(path.read_text(encoding="utf-8") if path.is_file() else ""):
        rows.pop((row["phase"], row["step"]), None)
        rows[row["phase"], row["step"]] = row
    return list(rows.values())


def parse_rows(text: str) -> Iterator[dict[str, Any]]:
    """The complete JSON lines of a text; a last line still being written is left out."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield json.loads(line)
