"""Lets `prefect deployment run train-medgrpo` mean `train-medgrpo/train-medgrpo`; Prefect itself asks for `FLOW/NAME`.

Prefect loads this through the entry point `medgrpo` of group `prefect.plugins`, and only where its settings say
`[plugins] enabled = true`, as this project's prefect.toml does. It runs before Prefect reads its command line.
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pluggy import HookimplMarker

# Prefect's name for its plugins; `prefect.plugins.register_hook` is this marker, but importing it imports Prefect.
register_hook = HookimplMarker("prefect-experimental")

NAME = re.compile(r"([a-z]+-medgrpo)(-[a-z0-9-]+)?")
"""A deployment has the name of its flow, or that with a suffix."""

FLAGS = ("--watch", "--no-watch")
"""The options of `prefect deployment run` that take no value: a word after another option is that option's value."""


def full_name(name: str) -> str:
    """A deployment's name with its flow's before it; what is not the bare name of one of ours stays as it is.

    >>> full_name("train-medgrpo-cpu")
    'train-medgrpo/train-medgrpo-cpu'
    >>> full_name("train-medgrpo/train-medgrpo"), full_name("somebody-elses")
    ('train-medgrpo/train-medgrpo', 'somebody-elses')
    """
    match = NAME.fullmatch(name)
    return f"{match[1]}/{name}" if match else name


def with_full_name(arguments: Sequence[str]) -> list[str]:
    """Arguments of the prefect command, with the full name of the deployment that they run."""
    words = list(arguments)
    pairs = list(pairwise(words))
    if ("deployment", "run") not in pairs:
        return words
    start = pairs.index(("deployment", "run")) + 2
    for place in range(start, len(words)):
        before = words[place - 1]
        is_value = before.startswith("-") and "=" not in before and before not in FLAGS
        if not words[place].startswith("-") and not is_value:
            return [*words[:place], full_name(words[place]), *words[place + 1 :]]
    return words


@register_hook
def setup_environment(*, ctx: object) -> None:
    """Prefect's hook: complete the name on the command line of `prefect`, and leave every other program alone.

    Args:
        ctx: what Prefect tells its plugins; not needed, but they are refused if they take it by position.
    """
    # While `python -m prefect` still imports Prefect, the program's name is "-m".
    if Path(sys.argv[0]).stem in ("prefect", "-m"):
        sys.argv[1:] = with_full_name(sys.argv[1:])
