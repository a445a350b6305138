"""Correctness: the verdict against the expert's, at the cost of each confusion."""

from medgrpo.config import RewardConfig


def correctness(verdict: str | None, expert: str, config: RewardConfig, agreement: float = 0.0) -> float:
    """Correctness grade in [0, 1].

    A right verdict earns 1, less the share `config.agreement` as far as the thought's conclusion does not agree with
    the expert's; a wrong one earns 1 less its cost; none earns nothing.

    Args:
        verdict: what the completion answers.
        expert: the expert's verdict.
        config: costs, and the share of agreement.
        agreement: the grade of `medgrpo.rewards.agreement`.

    >>> [round(correctness(v, "yes", RewardConfig(), agreement=1.0), 2) for v in ("yes", "maybe", "no", None)]
    [1.0, 0.2, 0.0, 0.0]
    """
    if verdict is None:
        return 0.0
    if verdict == expert:
        return 1 - config.agreement * (1 - agreement)
    return 1 - _cost(verdict, expert, config)


def _cost(verdict: str, expert: str, config: RewardConfig) -> float:
    if verdict == "maybe":
        return config.cost_maybe_for_either
    if expert == "maybe":
        return config.cost_either_for_maybe
    return config.cost_yes_for_no if verdict == "yes" else config.cost_no_for_yes
