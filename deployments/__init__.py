"""What runs where, as typed data: deployments of flows, work pools, limits and schedules."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.automations import MANAGED, Reactions
from medgrpo.config import load_config

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment


@dataclass(frozen=True)
class Pool:
    """A work pool: the hosts whose workers take runs from it.

    Attributes:
        name: the pool's name.
        description: one sentence for the Prefect page.
        types: kinds of pool that will do; it is created as the first. A pool that exists as another of them stays so.
    """

    name: str
    description: str
    types: tuple[str, ...] = ("process",)


@dataclass(frozen=True)
class Limit:
    """A named limit (Prefect: global concurrency limit): runs of all its deployments together, the others wait.

    Attributes:
        name: the limit's name.
        slots: runs at the same time.
    """

    name: str
    slots: int = 1


@dataclass(frozen=True)
class Schedule:
    """When a deployment runs by itself.

    Attributes:
        cron: minute, hour, day of month, month, day of week.
        timezone: IANA name of the time zone that they are read in, so that summer time moves nothing.
    """

    cron: str
    timezone: str


@dataclass(frozen=True)
class Deployment:
    """One deployment of a flow.

    Attributes:
        name: the deployment's name: its flow's, or that with a suffix.
        entrypoint: `FILE:FUNCTION` of the flow, relative to the project.
        work_pool: work pool whose workers run it.
        profile: profile whose settings it runs with unless a run is given others.
        description: one sentence for the Prefect page.
        limit: name of the limit that its runs count for; None is without limit.
        schedules: when it runs by itself.
        work_queue: queue of the work pool.
        tags: labels to filter by.
    """

    name: str
    entrypoint: str
    work_pool: str
    profile: str
    description: str
    limit: str | None = None
    schedules: tuple[Schedule, ...] = ()
    work_queue: str = "default"
    tags: tuple[str, ...] = ("medgrpo",)

    @property
    def flow(self) -> str:
        """The flow's name."""
        return self.entrypoint.rpartition(":")[2].replace("_", "-")

    @property
    def full_name(self) -> str:
        """What `prefect deployment run` takes: `FLOW/NAME`."""
        return f"{self.flow}/{self.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The profile's settings, every one, so that Prefect's form shows them with what they are set to."""
        return {"config": load_config(self.profile).model_dump(mode="json")}

    def to_deployment(self) -> "RunnerDeployment":
        """The same for Prefect, with the current directory, which must be the project's, as the place to run in."""
        from prefect.deployments.runner import RunnerDeployment
        from prefect.schedules import Cron

        options: dict[str, Any] = {
            "work_pool_name": self.work_pool,
            "work_queue_name": self.work_queue,
            # Otherwise a worker copies the whole project, runs included, to a temporary directory and runs there.
            "job_variables": {"working_dir": str(Path.cwd())},
            "schedules": [Cron(schedule.cron, timezone=schedule.timezone) for schedule in self.schedules],
        }
        return RunnerDeployment.from_entrypoint(
            entrypoint=self.entrypoint,
            name=self.name,
            parameters=self.parameters,
            description=self.description,
            tags=[*self.tags, MANAGED],
            **options,
        )


@dataclass(frozen=True)
class Declaration:
    """All that `python -m deployments apply` brings a server in line with."""

    pools: tuple[Pool, ...]
    limits: tuple[Limit, ...]
    deployments: tuple[Deployment, ...]
    reactions: Reactions = field(default_factory=Reactions)

    def with_t4s(self, count: int) -> "Declaration":
        """The same for a work pool `t4` with so many GPUs: one training at a time on each."""
        limits = tuple(replace(limit, slots=count) if limit.name == T4_LIMIT else limit for limit in self.limits)
        return replace(self, limits=limits)


T4_LIMIT = "medgrpo-t4"

POOLS = (
    Pool(
        name="t4",
        description="Hosts with a 16 GB T4: one worker for each GPU.",
        types=("process", "kubernetes"),
    ),
    Pool(name="cpu", description="Hosts without a GPU: two cores, and 8 GB for the demo, 12 for profile cpu."),
)

LIMITS = (
    Limit(T4_LIMIT),
    Limit("medgrpo-cpu"),
    Limit("medgrpo-evaluation"),
)

DEPLOYMENTS = (
    Deployment(
        name="train-medgrpo",
        entrypoint="flows/train_medgrpo.py:train_medgrpo",
        work_pool="t4",
        profile="t4",
        description="Train Gemma 3 1B on real abstracts on a 16 GB T4, evaluate it and register the candidate.",
        limit=T4_LIMIT,
    ),
    Deployment(
        name="train-medgrpo-cpu",
        entrypoint="flows/train_medgrpo.py:train_medgrpo",
        work_pool="cpu",
        profile="cpu",
        description="Train SmolLM2-135M on real abstracts without a GPU, evaluate it and register the candidate.",
        limit="medgrpo-cpu",
    ),
    Deployment(
        name="retrain-medgrpo",
        entrypoint="flows/retrain_medgrpo.py:retrain_medgrpo",
        work_pool="t4",
        profile="t4",
        description="Once a week: train as train-medgrpo does, but only on new data or where the champion fell.",
        limit=T4_LIMIT,
        schedules=(Schedule("0 2 * * 6", "UTC"),),
    ),
    Deployment(
        name="retrain-medgrpo-cpu",
        entrypoint="flows/retrain_medgrpo.py:retrain_medgrpo",
        work_pool="cpu",
        profile="cpu",
        description="The same without a GPU, when somebody starts it. For a time of its own declare its `schedules` in "
        "`deployments/__init__.py` and deploy again.",
        limit="medgrpo-cpu",
    ),
    Deployment(
        name="sweep-medgrpo",
        entrypoint="flows/sweep_medgrpo.py:sweep_medgrpo",
        # It waits while its trials, runs of train-medgrpo, take their turns on the T4s.
        work_pool="cpu",
        profile="t4",
        description="Try settings on all T4s, choose on dev, and let train-medgrpo judge the best one.",
    ),
    Deployment(
        name="evaluate-medgrpo",
        entrypoint="flows/evaluate_medgrpo.py:evaluate_medgrpo",
        work_pool="cpu",
        profile="cpu",
        description="Let any model, the champion unless one is named, answer the held-out cases beside the base model.",
        limit="medgrpo-evaluation",
    ),
    Deployment(
        name="evaluate-medgrpo-t4",
        entrypoint="flows/evaluate_medgrpo.py:evaluate_medgrpo",
        work_pool="t4",
        profile="t4",
        description="The same on a T4: Gemma 3 1B, or its champion, beside the base model.",
        limit=T4_LIMIT,
    ),
    Deployment(
        name="review-medgrpo",
        entrypoint="flows/review_medgrpo.py:review_medgrpo",
        work_pool="cpu",
        profile="cpu",
        description="Show the version under review beside the champion, wait for a person, promote or reject it.",
    ),
    Deployment(
        name="review-medgrpo-t4",
        entrypoint="flows/review_medgrpo.py:review_medgrpo",
        work_pool="cpu",
        profile="t4",
        description="The same for what the T4s train, Gemma 3 1B: its versions are a registered model of their own.",
    ),
)

DECLARED = Declaration(POOLS, LIMITS, DEPLOYMENTS)
