"""Structure: is the completion in strict form, its thought of sensible length and not going round in circles?"""

from medgrpo.completions import Completion
from medgrpo.config import RewardConfig
from medgrpo.rewards.grounding import MAX_CHARACTERS, tokenize

NGRAM = 4
TOLERATED_REPEATS = 0.4


def structure(completion: Completion, config: RewardConfig, used: float | None = None) -> float:
    """Structure grade in [0, 1]; 0 outside the strict form.

    Args:
        completion: what is graded.
        config: the sensible length, and where the cap begins to cost.
        used: share of the completion cap that it took, in tokens; None where that is not known.

    >>> from medgrpo.completions import parse_completion
    >>> form = "<thought>{}</thought><answer>yes</answer>"
    >>> structure(parse_completion(form.format("In the treated arm mortality fell from 9% to 4%.")), RewardConfig())
    1.0
    >>> structure(parse_completion(form.format("yes")), RewardConfig())
    0.125
    """
    if not completion.well_formed or len(completion.thought) > MAX_CHARACTERS:
        return 0.0
    words = tokenize(completion.thought)
    return _length_grade(len(words), config) * _variety_grade(words) * _cap_grade(used, config.overlong_share)


def _length_grade(words: int, config: RewardConfig) -> float:
    """1 within the sensible range, falling linearly below it and, to 0 at twice its upper end, above it."""
    if words < config.min_thought_words:
        return words / config.min_thought_words
    return min(1.0, max(0.0, 2 - words / config.max_thought_words))


def _cap_grade(used: float | None, last: float) -> float:
    """1 up to the `last` share of the cap, then falling linearly to 0 at the cap.

    The soft overlong punishment of DAPO (Yu et al., arXiv 2503.14476) as a factor, so that nothing goes below 0.
    """
    if used is None or not last:
        return 1.0
    return min(1.0, max(0.0, (1 - used) / last))


def _variety_grade(words: list[str]) -> float:
    """1 while at most 40 % of the four-word sequences repeat: evidence and conclusion may share a phrase."""
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    if not grams:
        return 1.0
    return min(1.0, len(set(grams)) / len(grams) / (1 - TOLERATED_REPEATS))
