"""What runs where: every deployment as typed data, and how it is created on a Prefect server."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment


@dataclass(frozen=True)
class Deployment:
    """One deployment of a flow.

    Attributes:
        name: the deployment's name.
        entrypoint: `FILE:FUNCTION` of the flow, relative to the project.
        work_pool: work pool whose workers run it.
        profile: profile it runs with unless a run names other parameters.
        description: one sentence for the Prefect page.
        concurrency_limit: runs at the same time; training fills a GPU, so one.
        tags: labels to filter by.
    """

    name: str
    entrypoint: str
    work_pool: str
    profile: str
    description: str
    concurrency_limit: int = 1
    tags: tuple[str, ...] = field(default=("medgrpo",))

    def to_deployment(self) -> "RunnerDeployment":
        """The same for Prefect, with the current directory, which must be the project's, as the place to run in."""
        from prefect.deployments.runner import RunnerDeployment

        options: dict[str, Any] = {"work_pool_name": self.work_pool, "concurrency_limit": self.concurrency_limit}
        return RunnerDeployment.from_entrypoint(
            entrypoint=self.entrypoint,
            name=self.name,
            parameters={"config": self.profile},
            description=self.description,
            tags=list(self.tags),
            **options,
        )


DEPLOYMENTS = (
    Deployment(
        name="train-medgrpo",
        entrypoint="flows/train_medgrpo.py:train_medgrpo",
        work_pool="t4",
        profile="t4",
        description="Train Gemma 3 1B on PubMedQA on a 16 GB T4, evaluate it and register the candidate.",
    ),
    Deployment(
        name="train-medgrpo-cpu",
        entrypoint="flows/train_medgrpo.py:train_medgrpo",
        work_pool="cpu",
        profile="cpu",
        description="Train SmolLM2-135M on PubMedQA without a GPU, evaluate it and register the candidate.",
    ),
)
