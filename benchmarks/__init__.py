"""Comparisons with what a competent user would run otherwise."""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """How many times faster, pair by pair, from seconds.

    >>> ratios([4.0, 6.0, 9.0], [2.0, 2.0, 3.0])
    {'median': 3.0, 'min': 2.0, 'max': 3.0}
    """
    found = [one / other for one, other in zip(slower, faster, strict=True)]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def machine() -> str:
    """What computes here: the GPU's name, or the processor's number of cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what is wrong with its input ends in a sentence."""
    from medgrpo.errors import MedgrpoError

    try:
        main()
    except MedgrpoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
