"""What the Prefect server does by itself when a run dies, and whom it tells: automations, as typed data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

MANAGED = "managed-by-medgrpo"
"""Tag of every deployment and automation made from here. What carries it on the server and is not declared any more is
removed; what does not carry it, or is not declared here by name, is somebody else's and stays untouched."""

HEARTBEAT_SECONDS = 60
"""How often a flow run gives a sign of life: `heartbeat_frequency` in prefect.toml, which every run reads."""
DEAD_AFTER = 5 * HEARTBEAT_SECONDS
"""Seconds of silence after which a run counts as dead: four heartbeats may get lost."""
LEAST_SILENCE = 45
"""Prefect sends heartbeats no more often than every 30 seconds: one must have a chance to come late."""
START_FACTOR = 4
"""Starting may take so many times as long: a node may have to be started, and an image fetched."""
RESUMES = 3
"""How often a crashed run is put back before a person is asked."""
PAUSE_FACTOR, LEAST_PAUSE = 10, 10
"""A crashed run is put back after a tenth of that time, and at least so many seconds, Prefect's own least: some seconds
after a crash its worker reports it once more, which would take down an attempt that was begun by then."""
COUNTED_FOR = timedelta(days=30)
"""Crashes of a run are counted for this long, from when a worker first took it."""

ANY_EVENT = ("prefect.flow-run.*",)
TAKEN = "prefect.flow-run.Pending"
LEFT = tuple(
    f"prefect.flow-run.{name}"
    for name in (
        *("Scheduled", "AwaitingRetry", "Resuming", "Late", "Pending", "Submitting", "Running", "Retrying"),
        *("Cancelling", "Cancelled", "Completed", "Failed", "GivenUp"),
    )
)
"""A crash was left behind, or is final. A heartbeat shows neither: a run taken for dead by mistake still sends them."""


RUN = "{{ (flow_run|ui_url) or ('prefect flow-run inspect ' ~ flow_run.id) }}"


@dataclass(frozen=True)
class NewState:
    """What becomes of a run: a state of it that the server sets.

    Attributes:
        type: kind of state, as Prefect calls it.
        name: the state's name.
        message: why, shown beside it.
        force: whether it may follow a state of the same kind.
    """

    type: str
    name: str
    message: str
    force: bool = False

    def to_action(self, block: "Block | None") -> "ActionTypes":
        """The same for Prefect."""
        from prefect.client.schemas.objects import StateType
        from prefect.events.actions import ChangeFlowRunState

        state = StateType(self.type)
        return ChangeFlowRunState(state=state, name=self.name, message=self.message, force=self.force)


@dataclass(frozen=True)
class Block:
    """A block on the server that passes messages on.

    Attributes:
        id: its id there.
        webhook: whether it is a plain webhook, which is sent JSON, and not one of Prefect's notification blocks.
    """

    id: Any
    webhook: bool


@dataclass(frozen=True)
class Message:
    """What people are told, as Prefect's templates.

    Attributes:
        subject: one line.
        body: what happened, in which run, and what to do next.
    """

    subject: str
    body: str

    def to_action(self, block: Block | None) -> "ActionTypes":
        """The same for Prefect, sent through a block, which must be given."""
        from prefect.events.actions import CallWebhook, SendNotification

        assert block is not None, "a message goes through a block"
        if not block.webhook:
            return SendNotification(block_document_id=block.id, subject=self.subject, body=self.body)
        parts = {"subject": self.subject, "body": self.body}
        fields = [f'"{name}": {{% filter tojson %}}{text}{{% endfilter %}}' for name, text in parts.items()]
        return CallWebhook(block_document_id=block.id, payload=f"{{{', '.join(fields)}}}")


@dataclass(frozen=True)
class Automation:
    """One automation: an event, or that nothing came after it, and what the server then does.

    Attributes:
        name: the automation's name.
        description: one sentence for the Prefect page.
        on: the events.
        action: what is done, for each run by itself.
        silence: seconds within which none of `until` came after the event; None acts on the event itself.
        until: events of the same run that end the silence.
        count: how many of the events it takes, of one run, since a worker first took it or this last happened.
        managed: only runs of the deployments made from here.
    """

    name: str
    description: str
    on: tuple[str, ...]
    action: NewState | Message
    silence: int | None = None
    until: tuple[str, ...] = ANY_EVENT
    count: int | None = None
    managed: bool = True

    def to_automation(self, block: Block | None = None) -> "AutomationCore":
        """The same for Prefect; `block` is what its message, if it has one, is sent through."""
        from prefect.events.schemas.automations import AutomationCore, Posture

        settings: dict[str, Any] = {}
        if self.silence is not None:
            settings = {"after": set(self.on), "expect": set(self.until), "posture": Posture.Proactive}
            settings["within"] = timedelta(seconds=self.silence)
        elif self.count is not None:
            settings = {"after": {TAKEN}, "threshold": self.count, "within": COUNTED_FOR}
        return AutomationCore(
            name=self.name,
            description=self.description,
            tags=[MANAGED],
            trigger=self._trigger(**settings),
            actions=[self.action.to_action(block)],
        )

    def _trigger(self, **settings: Any) -> "EventTrigger":
        from prefect.events.schemas.automations import EventTrigger

        tag = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{MANAGED}"}
        # The run of a flow within a flow has the tag too, but no deployment: it comes back with the run around it.
        runs = {
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": [tag, {"prefect.resource.role": "deployment"}],
            "for_each": {"prefect.resource.id"},
        }
        return EventTrigger(**{"expect": set(self.on), **(runs if self.managed else {}), **settings})


DEAD = Automation(
    name="medgrpo: runs without a sign of life have crashed",
    description="A run whose process gave no heartbeat is marked Crashed: process, worker or host are gone.",
    on=("prefect.flow-run.heartbeat", "prefect.flow-run.Running"),
    action=NewState("CRASHED", "Crashed", "No sign of life from its process: it, its worker or its host is gone."),
    silence=DEAD_AFTER,
)

NEVER_STARTED = Automation(
    name="medgrpo: runs that never started have crashed",
    description="A run that a worker took and that never began is marked Crashed: its worker or host is gone.",
    on=tuple(f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending")),
    action=NewState("CRASHED", "Crashed", "A worker took it and it never began: the worker or its host is gone."),
    silence=START_FACTOR * DEAD_AFTER,
)

CANCELLED = Automation(
    name="medgrpo: runs that nobody can stop are cancelled",
    description="A run that somebody cancelled ends as Cancelled though its worker, who would stop it, is gone.",
    on=("prefect.flow-run.Cancelling",),
    action=NewState("CANCELLED", "Cancelled", "It was cancelled, and its worker is not there to stop it."),
    silence=DEAD_AFTER,
    until=("prefect.flow-run.Cancelled", "prefect.flow-run.Completed", "prefect.flow-run.Failed"),
)

RESUMED = Automation(
    name="medgrpo: crashed runs go on",
    description="A crashed run is scheduled again: finished stages are cached, training resumes from its checkpoint.",
    on=("prefect.flow-run.Crashed",),
    # Prefect cancels a run in a state of this name at once; one that is only scheduled waits for its old process.
    action=NewState("SCHEDULED", "Resuming", "It crashed, and goes on from where it was."),
    silence=DEAD_AFTER // PAUSE_FACTOR,
    until=LEFT,
)

GIVEN_UP = Automation(
    name="medgrpo: runs that crash again and again are given up",
    description="A run that was put back as often as it may be, and crashed again, stays where it is.",
    on=("prefect.flow-run.Crashed",),
    # An event of its own, which keeps the run from being put back.
    action=NewState("CRASHED", "GivenUp", "It crashed too often to be started again by itself.", force=True),
    count=RESUMES + 1,
)

FAILURE = Automation(
    name="medgrpo: tell of failures",
    description="A run failed, or crashed too often to be started again by itself.",
    on=("prefect.flow-run.Failed", "prefect.flow-run.TimedOut", "prefect.flow-run.GivenUp"),
    action=Message(
        subject="medgrpo: {{ flow_run.name }} ended as {{ event.resource['prefect.state-name'] }}",
        body="Run {{ flow_run.name }} of {{ flow.name }}/{{ deployment.name }} ended as "
        "{{ event.resource['prefect.state-name'] }}: {{ event.resource['prefect.state-message'] }}\n"
        "It is not started again by itself. Read its log, remove the cause (docs/operations.md says what each message "
        "asks for), then retry it there: finished stages are cached, and training goes on from its last checkpoint.\n"
        f"Run: {RUN}",
    ),
)

ALARMS = Automation(
    name="medgrpo: tell of alarms",
    description="An alarm rang in a training.",
    on=("medgrpo.alarm",),
    action=Message(
        subject="medgrpo: alarm {{ event.payload.alarm }} in {{ event.payload.run }}",
        body="Alarm {{ event.payload.alarm }} rang in run {{ event.payload.run }} at step {{ event.payload.step }}: "
        "{{ event.payload.sentence }}\n"
        "Training goes on unless watch.action is stop, and the gate will count it against the model. Look at the run, "
        f"and cancel it there if it is lost.\nRun: {RUN}",
    ),
    managed=False,
)

CANDIDATES = Automation(
    name="medgrpo: tell of candidates",
    description="A model version passed the gate and waits for a person's review.",
    on=("medgrpo.candidate",),
    action=Message(
        subject="medgrpo: {{ event.payload.model }} version {{ event.payload.version }} waits for review",
        body="{{ event.payload.model }} version {{ event.payload.version }} of run {{ event.payload.run }} passed the "
        "gate and waits for a person. See it beside the champion with `medgrpo review show {{ event.payload.version }} "
        "--profile {{ event.payload.profile }}`, which ends with the command that approves it, or start the flow with "
        f"`prefect deployment run review-medgrpo/review-medgrpo` (Gemma's: review-medgrpo-t4).\nRun: {RUN}",
    ),
    managed=False,
)


@dataclass(frozen=True)
class Reactions:
    """How the server reacts, as `python -m deployments apply` is told.

    Attributes:
        dead_after: seconds without a sign of life after which a run counts as dead; more than `HEARTBEAT_SECONDS`, or
            live ones would count too.
        resumes: how often a crashed run is put back; 0 leaves it where it is.
        notify: block that messages are sent through, as `TYPE/NAME`; None sends none.
    """

    dead_after: int = DEAD_AFTER
    resumes: int = RESUMES
    notify: str | None = None

    def automations(self) -> Iterator[Automation]:
        """The automations that this asks for."""
        yield replace(DEAD, silence=self.dead_after)
        yield replace(NEVER_STARTED, silence=START_FACTOR * self.dead_after)
        yield replace(CANCELLED, silence=self.dead_after)
        if self.resumes:
            yield replace(RESUMED, silence=max(LEAST_PAUSE, self.dead_after // PAUSE_FACTOR))
        yield replace(GIVEN_UP, count=self.resumes + 1)
        if self.notify:
            yield from (FAILURE, ALARMS, CANDIDATES)
