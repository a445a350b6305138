"""Which trials are on the front, and which one is chosen."""

from collections.abc import Callable

import pytest

from medgrpo.config import GateConfig
from medgrpo.errors import InputError
from medgrpo.sweep.selection import choose, dominates, pareto
from medgrpo.sweep.trials import LABELS, OPEN_LABEL, Result, Trial

GATE = GateConfig()


def test_domination_knows_which_way_is_better(complete: Callable[..., Trial]) -> None:
    """Macro-F1 and strict form count up, unsupported figures down, and equals do not dominate each other."""
    best = complete(0, 0.5, 0.1, 0.9)
    assert dominates(best, complete(1, 0.5, 0.2, 0.9))
    assert dominates(best, complete(1, 0.4, 0.1, 0.9))
    assert not dominates(best, complete(1, 0.4, 0.05, 0.9))
    assert not dominates(best, complete(1, 0.5, 0.1, 0.9))


def test_the_front_leaves_out_what_was_not_completed(complete: Callable[..., Trial]) -> None:
    """Pruned and failed trials are on no front, and dominate nobody."""
    trials = [complete(0, 0.5, 0.1, 0.9), Trial(1, {}, Result("pruned", reason="behind")), complete(2, 0.4, 0.2, 0.8)]
    assert [trial.number for trial in pareto(trials)] == [0]


def test_the_best_reader_within_the_thresholds_is_chosen(complete: Callable[..., Trial]) -> None:
    """Macro-F1 does not make up for invented figures, and of those that keep to the thresholds it decides."""
    trials = [complete(0, 0.7, 0.4, 0.99), complete(1, 0.6, 0.1, 0.95), complete(2, 0.5, 0.0, 1.0)]
    choice = choose(trials, GATE)
    assert choice.trial.number == 1
    assert choice.sentence == (
        "Trial 1 is chosen, with macro-F1 0.600, unsupported figures 0.100, strict form 0.950 on dev. Of 3 Pareto "
        "trials 2 keep to the gate's thresholds on strict form (0.9) and unsupported figures (0.2); of these it has "
        "the highest macro-F1."
    )


def test_the_sentence_calls_the_objectives_by_their_names(complete: Callable[..., Trial]) -> None:
    """Where answers are numbers, the best reader has the highest accuracy."""
    sentence = choose([complete(0, 0.7, 0.1, 0.99)], GATE, {**LABELS, "macro_f1": OPEN_LABEL}).sentence
    assert "with accuracy 0.700" in sentence
    assert sentence.endswith("it has the highest accuracy.")


def test_where_none_keeps_to_the_thresholds_the_gate_will_say_so(complete: Callable[..., Trial]) -> None:
    """Some trial is chosen all the same, and the sentence says that none kept to them."""
    choice = choose([complete(0, 0.3, 0.5, 0.2), complete(1, 0.4, 0.6, 0.1)], GATE)
    assert choice.trial.number == 1
    assert "Of 2 Pareto trials none keep to the gate's thresholds" in choice.sentence


def test_of_equals_the_earlier_one_is_chosen(complete: Callable[..., Trial]) -> None:
    """The choice does not depend on the order in which trials are listed."""
    trials = [complete(3, 0.4, 0.1, 0.9), complete(1, 0.4, 0.1, 0.9)]
    assert choose(trials, GATE).trial.number == choose(trials[::-1], GATE).trial.number == 1


def test_without_a_complete_trial_the_reasons_are_told() -> None:
    """Where all trials failed, each reason is said once, with what to do."""
    trials = [Trial(number, {}, Result("failed", reason="no GPU.")) for number in range(3)]
    with pytest.raises(InputError, match=r"none of the 3 trials was completed.* - no GPU\. Correct") as caught:
        choose(trials, GATE)
    assert str(caught.value).count("no GPU") == 1
