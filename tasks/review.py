"""A review as Prefect runs it: what a person is shown, the form they answer, and what happens to the answer.

A suspended flow run ends its process and, once resumed, starts from the top, perhaps on another machine. What the
reviewer was shown is therefore kept on Prefect's server, beside the form, and not read a second time.
"""

import time
from typing import Any

from prefect import pause_flow_run, suspend_flow_run, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.input import (
    RunInput,
    create_flow_run_input,
    delete_flow_run_input,
    keyset_from_base_key,
    read_flow_run_input,
)
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import BaseModel, Field

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from tasks.running import RETRIES, RETRY_SECONDS, worth_retrying

SHOWN = "medgrpo-shown"
"""Key, on Prefect's server, of what a flow run showed its reviewer."""
KEY = "review"
"""Names the question among those that a flow run may ask."""
PAUSE_SECONDS = 24 * 60 * 60
"""How long a review that was started by hand waits for its answer; one of a deployment waits for ever."""
POLL_SECONDS = 5
HANDLED_SECONDS = 5
"""The longest that Prefect's server is expected to take over an event."""

_SURVIVES: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": worth_retrying,
    # A decision meets the registry as it is, never as it was.
    "cache_policy": NO_CACHE,
}


class Shown(BaseModel):
    """What a reviewer decides about.

    Attributes:
        name: registered model.
        version: number of the version.
        digest: digest of its model.
        replaces: number of the champion it was compared with, or "none".
        as_candidate: whether it was found as the version under review, and so must still be that.
    """

    name: str
    version: int
    digest: str
    replaces: str
    as_candidate: bool


class ReviewDecision(RunInput):
    """The form of a review. Left as it is, nothing is decided."""

    approve: bool = Field(default=False, description="Make this version the champion.")
    reviewer: str = Field(default="", description="Your name; kept with the version.")
    note: str = Field(default="", description="Why; kept with the version.")
    digest: str = Field(default="", description="To approve: the digest shown above, its first 12 characters or more.")
    despite_gate: str = Field(default="", description="Why you approve although something is against it; kept too.")


@task(name="show-review", **_SURVIVES)
def show_review(config: RunConfig, version: str | None) -> Shown:
    """Post the comparison as an artifact of the flow run, once, and remember which version it was about."""
    from medgrpo.registry import review
    from medgrpo.registry.comparison import champion_number, markdown

    known = read_flow_run_input(SHOWN)
    if known is not None:
        return Shown.model_validate(known)
    found = review.show(config, version)
    create_markdown_artifact(markdown(found), key="review-medgrpo", description=f"Version {found.version.number}")
    shown = Shown(
        name=found.version.name,
        version=found.version.number,
        digest=found.version.digest,
        replaces=champion_number(found),
        as_candidate=found.as_candidate,
    )
    create_flow_run_input(SHOWN, shown.model_dump())
    return shown


def ask(shown: Shown) -> ReviewDecision:
    """A person's answer. A deployment's flow run is suspended until it is resumed; another one waits in its process.

    Raises:
        InputError: nobody could answer, or nobody did in time.
    """
    form: Any = ReviewDecision.with_initial_data(
        description=f"**{shown.name} version {shown.version}**, digest `{shown.digest}`. The comparison is this flow "
        "run's artifact `review-medgrpo`. To approve: switch approve on, give reviewer and note, repeat the digest. To "
        "reject: leave approve off, give reviewer and note."
    )
    if deployment.id:
        return _answer_after_suspension(form)
    by_hand = f"medgrpo review approve {shown.version} --digest {shown.digest} --replaces {shown.replaces}"
    if not PREFECT_API_URL.value():
        raise InputError(
            "this review runs on Prefect's temporary server, where nobody could answer it. Decide on the command line "
            f"({by_hand} --note WHY, with the same --profile and --set), or set PREFECT_API_URL to a server whose "
            "pages you can open."
        )
    try:
        return pause_flow_run(wait_for_input=form, timeout=PAUSE_SECONDS, poll_interval=POLL_SECONDS, key=KEY)
    except FlowPauseTimeout as error:
        raise InputError(
            f"nobody answered within {PAUSE_SECONDS // 3600} hours, so nothing was decided. Run the review again, or "
            f"decide on the command line: {by_hand} --note WHY, with the same --profile and --set."
        ) from error


def _answer_after_suspension(form: Any) -> ReviewDecision:
    """The answer, if the flow run has one; otherwise it is suspended, which ends its process.

    A run that crashed after it had asked and was put back is asked anew by Prefect, which has forgotten that: an answer
    that was given counts all the same, and a form that was left open gives way to the same form.
    """
    keys = keyset_from_base_key(f"suspended-{KEY}")
    answer = read_flow_run_input(keys["response"])
    if answer is not None:
        return ReviewDecision.model_validate(answer)
    for key in (keys["schema"], keys["description"]):
        if read_flow_run_input(key) is not None:
            delete_flow_run_input(key)
    try:
        return suspend_flow_run(wait_for_input=form, key=KEY)
    except Pause:
        # A heartbeat sent while the server suspended the run would be the last that is heard of it: a dead run's. The
        # server handles two events at a time, so this one waits until that one must have been handled.
        time.sleep(HANDLED_SECONDS)
        emit_event("prefect.flow-run.left", {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"})
        raise


@task(name="decide", **_SURVIVES)
def decide(config: RunConfig, shown: Shown, answer: ReviewDecision) -> dict[str, Any]:
    """Promote the version or record its rejection; what was true when it was shown must still be true."""
    from medgrpo.registry import champions, review

    if not answer.approve and not (answer.reviewer.strip() or answer.note.strip()):
        raise InputError(
            f"the review of {shown.name} version {shown.version} was resumed without a decision, so nothing was "
            "promoted or rejected. Start it again; give reviewer and note, and approve to approve."
        )
    decision = review.Decision(
        version=str(shown.version),
        reviewer=answer.reviewer,
        note=answer.note,
        digest=answer.digest,
        despite_gate=answer.despite_gate,
        replaces=shown.replaces,
        must_be_candidate=shown.as_candidate,
    )
    decided = (review.approve if answer.approve else review.reject)(config, decision)
    return {
        "name": decided.name,
        "version": decided.number,
        "decision": decided.state,
        "aliases": list(decided.aliases),
        "digest": decided.digest,
        "reviewer": decided.tags[champions.REVIEWER_TAG],
        "previous_champion": decided.tags.get(champions.PREVIOUS_TAG, champions.NONE),
    }
