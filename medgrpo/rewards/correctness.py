"""Correctness: the verdict against the expert's, with a smaller loss for hedging than for the opposite claim."""

from medgrpo.config import RewardConfig


def correctness(verdict: str | None, expert: str, config: RewardConfig) -> float:
    """Correctness grade in [0, 1]: 1 right, `hedge` where one of the two is "maybe", 0 for the opposite or nothing.

    >>> [correctness(v, "yes", RewardConfig()) for v in ("yes", "maybe", "no", None)]
    [1.0, 0.2, 0.0, 0.0]
    """
    if verdict is None:
        return 0.0
    if verdict == expert:
        return 1.0
    return config.hedge if "maybe" in (verdict, expert) else 0.0
