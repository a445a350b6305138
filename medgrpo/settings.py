"""What all settings have in common: how they are declared, and how a wrong one is told of."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all parts: frozen, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def explain_value(name: str, problem: Any) -> str:
    """One sentence for pydantic's error about a setting's value."""
    if problem["type"] == "value_error":
        return f"{name + ': ' if name else ''}{problem['ctx']['error']}."
    return f"setting {name!r} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def nearest(name: str, choices: list[str]) -> str:
    """The end of a sentence about an unknown name: which known ones are near it, and which there are."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(choice) for choice in near)}?" if near else "."
    return f"{hint} Known: {', '.join(choices)}."
