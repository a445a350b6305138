"""Read `metrics.jsonl`, the append-only record of a training."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
"""Training metrics inside a training directory, one JSON row per line."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows, one per phase and step: after a resume the later row of a repeated step counts."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in parse_rows(path.read_text(encoding="utf-8") if path.is_file() else ""):
        rows.pop((row["phase"], row["step"]), None)
        rows[row["phase"], row["step"]] = row
    return list(rows.values())


@dataclass(frozen=True)
class RaisedAlarm:
    """An alarm that rang during a training.

    Attributes:
        name: its name, that of its threshold in `WatchConfig`.
        first, last: first and last step at which it rang.
        sentence: what it said last.
    """

    name: str
    first: int
    last: int
    sentence: str

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return f"alarm {self.name} ({steps}): {self.sentence}"


def raised_alarms(rows: Sequence[Mapping[str, Any]]) -> list[RaisedAlarm]:
    """The alarms that stand in the rows, in the order in which they began to ring.

    >>> rows = [{"step": step, "alarms": {"kl": f"KL is {step}."}} for step in (7, 8)]
    >>> str(raised_alarms(rows)[0])
    'alarm kl (steps 7 to 8): KL is 8.'
    """
    raised: dict[str, RaisedAlarm] = {}
    for row in rows:
        for name, sentence in row.get("alarms", {}).items():
            first = raised[name].first if name in raised else row["step"]
            raised[name] = RaisedAlarm(name, first, row["step"], sentence)
    return list(raised.values())


def parse_rows(text: str) -> Iterator[dict[str, Any]]:
    """The complete JSON lines of a text; a last line still being written is left out."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield json.loads(line)


def gpu_memory() -> dict[str, int]:
    """Most GPU memory that tensors of this process took, and that PyTorch reserved for them, in bytes; {} without."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {
        "gpu_memory_allocated": torch.cuda.max_memory_allocated(),
        "gpu_memory_reserved": torch.cuda.max_memory_reserved(),
    }
