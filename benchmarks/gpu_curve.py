"""The last part of `benchmarks.gpu_check`: how test scores grow with steps, in the time that there is."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import Failed, Found, Plan, apart, rows_of, say
from medgrpo.config import RunConfig

PROBED_CASES, FEWEST_CASES, MOST_POINTS, SAVING_SECONDS = 64, 20, 10, 10.0


class _Enough(Exception):
    """A training has done what it was to do."""


def curve(plan: Plan) -> Found:
    """Base, warm-up, then GRPO for as long as there is time, its checkpoints answered on the test cases.

    Training and answers take turns, so that what is known is saved when the time, or the machine, ends early.
    """
    from medgrpo import stages

    config, deadline = plan.long, time.monotonic() + plan.minutes * 60
    data = stages.prepare(config)
    key = stages.train_key(config, data)
    found: Found = plan.earlier if plan.earlier.get("key") == key else {"key": key, "points": [], "minutes": 0}
    found |= {"config": config.model_dump(mode="json"), "minutes": found["minutes"] + plan.minutes}
    race = _Race(plan, data.path, plan.work / key, found, deadline)
    race.start()
    rounds = race.rounds()
    while rounds > 0 and race.has_time():
        finished = race.train_until(race.end_of_round(rounds))
        race.evaluate("GRPO")
        rounds = 0 if finished else rounds - 1
    if not any(point["step"] for point in found["points"]):
        raise Failed("the time was over before GRPO's first point: give more --minutes, or call again to go on.", found)
    return found


@dataclass
class _Race:
    """A training against the clock.

    Attributes:
        plan: what is run.
        data: prepared records.
        directory: the training's.
        found: what is saved.
        deadline: on the monotonic clock.
        evaluation: seconds that the last evaluation took.
        launch: seconds from a launch to its first row.
    """

    plan: Plan
    data: Path
    directory: Path
    found: Found
    deadline: float
    evaluation: float = 0.0
    launch: float = 0.0

    def start(self) -> None:
        """Answer the cases with base and warm-up."""
        config = self.plan.long
        if "cases" not in self.found:
            self.found["cases"] = self._affordable()
        self.evaluate("base")
        if self._has("warm-up"):
            self.evaluation = self.evaluation or max(point["seconds"] for point in self.found["points"])
        else:
            self.train_until(0.0)
            if config.warmup.enabled:
                self.evaluate("warm-up")

    def _affordable(self) -> int | str:
        """How many cases base, warm-up and one checkpoint can answer in half of the time; "all" if all."""
        wanted = self.plan.long.evaluation.cases
        from medgrpo.preparation import load_records

        there = len(load_records(self.data, "test"))
        total = there if wanted == "all" else min(wanted, there)
        if total <= PROBED_CASES:
            return wanted
        probe = self._ask("base", None, PROBED_CASES)
        fit = int(self.plan.minutes * 60 / 2 / 3 / (probe["seconds"] / PROBED_CASES))
        return wanted if fit >= total else max(FEWEST_CASES, fit)

    def rounds(self) -> int:
        """How many checkpoints are answered, so that at most a third of the time goes there."""
        remaining = self.deadline - time.monotonic()
        return max(1, min(MOST_POINTS, int(remaining / (3 * (self.evaluation + self.launch)))))

    def has_time(self) -> bool:
        """Whether a round with at least a step or two can end in time."""
        needed = self.launch + self.evaluation + 2 * self.found.get("step_seconds", 0) + SAVING_SECONDS
        return time.monotonic() + needed < self.deadline

    def end_of_round(self, rounds: int) -> float:
        """When training has to stop, so that this and the rounds after it end in time."""
        now = time.monotonic()
        return now + (self.deadline - now) / rounds - 1.1 * self.evaluation - SAVING_SECONDS

    def train_until(self, moment: float) -> bool:
        """Train until a moment, but one step of GRPO at least, which is saved; whether it is at its end."""
        from medgrpo.training.launch import run as train

        started = time.monotonic()
        seen: list[Mapping[str, Any]] = []

        def follow(row: Mapping[str, Any]) -> None:
            self.launch = self.launch if seen else max(self.launch, time.monotonic() - started)
            seen.append(row)
            say("curve", row)
            if row["phase"] == "grpo" and time.monotonic() > moment:
                raise _Enough

        try:
            train(self.plan.long, self.data, self.directory, follow)
        except _Enough:
            return False
        finally:
            self._note_training()
        return True

    def _note_training(self) -> None:
        rows = [row for row in rows_of(self.directory) if row["phase"] == "grpo"]
        # A pause between two rows is a round's end.
        pauses = [b["time"] - a["time"] for a, b in pairwise(rows)]
        if pauses:
            self.found["step_seconds"] = statistics.median(pauses)
        self.found["rewards"] = [[row["step"], row.get("reward")] for row in rows]

    def _has(self, label: str) -> bool:
        return any(point["label"] == label for point in self.found["points"])

    def evaluate(self, label: str) -> None:
        """Answer the cases with a model, unless that is known, and save the point."""
        from medgrpo.training.callbacks import last_complete_checkpoint

        adapter, step = {"base": None, "warm-up": self.directory / "warmup" / "adapter"}.get(label), 0
        if label == "GRPO":
            adapter = last_complete_checkpoint(self.directory / "grpo")
            step = int(adapter.name.rpartition("-")[2]) if adapter else 0
        if (label == "GRPO" and not step) or any(
            (p["label"], p["step"]) == (label, step) for p in self.found["points"]
        ):
            return
        point = {"label": label, "step": step, **self._ask(label, adapter, self.found["cases"])}
        self.evaluation = point["seconds"]
        self.found["points"].append(point)
        accuracy, macro = point["accuracy"]["value"], point["macro_f1"]["value"]
        print(f"  {label}, step {step}: accuracy {accuracy:.3f}, macro-F1 {macro:.3f}, n = {point['n']}", flush=True)
        self.plan.keep(self.found)

    def _ask(self, label: str, adapter: Path | None, cases: int | str) -> Found:
        started, log = time.monotonic(), self.plan.work / "answers.log"
        point = apart(log, score_model, self.plan.long, adapter, self.data, cases, self.plan.work / "answers")
        return {**point, "seconds": round(time.monotonic() - started, 1)}


def score_model(config: RunConfig, adapter: Path | None, data: Path, cases: int | str, cache: Path) -> Found:
    """Greedy answers of the base with an adapter, and what they score, in a process of its own."""
    from medgrpo.evaluation.asking import Contestant, ask
    from medgrpo.evaluation.compare import draw_cases
    from medgrpo.evaluation.scoring import answer_row, model_metrics
    from medgrpo.policies import resolve_base
    from medgrpo.preparation import load_records

    asked = config.evaluation.model_copy(update={"cases": cases})
    records = draw_cases(load_records(data, "test"), asked)
    model = Contestant("model", resolve_base(config.policy), adapter, config.policy.revision)
    answered = ask([model], records, config, cache, lambda name, done, total: None)
    answers = [
        answer_row(record, given, config.rewards)
        for record, given in zip(records, answered.generations["model"], strict=True)
    ]
    metrics = model_metrics([record.verdict for record in records], answers, config.evaluation)
    kept = ("accuracy", "macro_f1", "strict_form", "parsed", "mean_length")
    return {"n": len(records), **{name: metrics[name] for name in kept}}
