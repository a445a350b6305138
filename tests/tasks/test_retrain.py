"""The tasks of retrain-medgrpo."""

from medgrpo.retraining import Decision
from tasks.retrain import find_reason, show_reason
from tasks.running import RETRIES, worth_retrying


def test_a_decision_is_retried_and_never_cached() -> None:
    """What was registered last week says nothing about today, and an outage passes."""
    for each in (find_reason, show_reason):
        assert (each.cache_key_fn, each.persist_result) == (None, None), each.name
        assert each.retries >= RETRIES, each.name
        assert each.retry_condition_fn is worth_retrying


def test_the_page_says_whether_and_why() -> None:
    """The artifact begins with what is done and ends with the sentence."""
    text = Decision(outcome="new-data", sentence="It is new.").markdown()
    assert text == "**Training** (new-data). It is new.\n"
    assert Decision(outcome="no-reason", sentence="All is known.").markdown().startswith("**Nothing is trained**")
