"""What a training is watched for: numbers of each step, their moving averages, and the alarms that ring on them.

An alarm has the name of its threshold in `WatchConfig`, where the threshold is explained. All of it follows from the
rows of `metrics.jsonl`, so a resumed training goes on with the values of the uninterrupted one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medgrpo import domains
from medgrpo.completions import AnswerForm, parse_completion
from medgrpo.config import RunConfig
from medgrpo.records import Record

Numbers = Mapping[str, float]

ALWAYS_STOP = ("not_finite", "silence")
_FOLLOWED = (
    *("reward", "rewards/correctness/mean", "rewards/grounding/mean", "rewards/structure/mean"),
    *("completions/mean_length", "completions/clipped_ratio", "entropy", "kl", "grad_norm"),
    *("watch/strict_form", "watch/copied_share", "watch/unsupported_figures", "watch/empty", "watch/no_spread"),
)
# Share of a rise of the structure grade that correctness must rise by to count as rising with it.
FOLLOWS = 0.1
# Share of readable answers below which their verdicts are too few to tell chance from collapse.
READABLE = 0.5


def smoothed(form: AnswerForm) -> tuple[str, ...]:
    """Numbers of a row that are followed; `smooth/<name>` is the moving average of each."""
    return (*_FOLLOWED, *(f"watch/verdict_{verdict}" for verdict in (*form.labels, "none")))


def completion_facts(records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    """What the completions of a step are like, as means over them.

    Args:
        records: the record of each completion, all of one domain.
        texts: the completions.

    >>> record = Record(id="1", question="Does A lower pain?", contexts=("Pain fell by 3 points.",),
    ...     verdict="yes", long_answer="A lowers pain.")
    >>> facts = completion_facts([record] * 2, ["<thought>It fell by 7.</thought><answer>no</answer>", ""])
    >>> facts["watch/strict_form"], facts["watch/verdict_no"], facts["watch/unsupported_figures"], facts["watch/empty"]
    (0.5, 0.5, 0.5, 0.5)
    """
    domain = domains.get(records[0].domain)
    read = [parse_completion(text, domain.form) for text in texts]
    found = [
        domain.evidence(one.thought, record.contexts, record.question)
        for one, record in zip(read, records, strict=True)
    ]
    sums = {
        "strict_form": sum(one.well_formed for one in read),
        **{f"verdict_{verdict}": sum(one.verdict == verdict for one in read) for verdict in domain.form.labels},
        "verdict_none": sum(one.verdict is None for one in read),
        "copied_share": sum(one.copied_share for one in found),
        "unsupported_figures": sum(bool(one.unsupported) for one in found),
        "empty": sum(not text.strip() for text in texts),
    }
    return {f"watch/{name}": value / len(texts) for name, value in sums.items()}


class Watch:
    """Follows a training row by row.

    Args:
        config: the run's settings; the thresholds are in `config.watch`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._smoothed = config, smoothed(domains.get(config.data.domain).form)
        self._averages: dict[str, _Average] = {}
        self._trouble: dict[str, int] = {}
        self._sentences: dict[str, str] = {}

    @property
    def calm(self) -> bool:
        """Whether no alarm rings, and none is on the way to it."""
        return not self._trouble

    def look(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Take in the next row.

        Returns:
            What to add to it: the moving averages, the number of alarms that ring, and under `alarms` their sentences
            by name, if there are any.
        """
        watched = [name for name in self._smoothed if _is_number(row.get(name)) and row["phase"] == "grpo"]
        for name in watched:
            # A step without any gradient says nothing about the size of gradients.
            if row[name] or name != "grad_norm":
                self._averages.setdefault(name, _Average(self._config.watch.span)).add(row[name])
        now = {name: average.value for name, average in self._averages.items()}
        start = {name: average.start for name, average in self._averages.items() if average.start is not None}
        for alarm, (needed, judge) in _RULES.items():
            if alarm in ALWAYS_STOP and needed in row:
                self._judge(alarm, judge(row, start, self._config))
            elif needed in watched and needed in start:
                self._judge(alarm, judge(now, start, self._config))
        ringing = {alarm: self._sentences[alarm] for alarm, steps in self._trouble.items() if self._rings(alarm, steps)}
        smooth = {f"smooth/{name}": now[name] for name in watched if name in now}
        return {**smooth, "watch/alarms": len(ringing), **({"alarms": ringing} if ringing else {})}

    def stops(self, alarm: str) -> bool:
        """Whether an alarm that rings ends the training."""
        return alarm in ALWAYS_STOP or self._config.watch.action == "stop"

    def _rings(self, alarm: str, steps: int) -> bool:
        return steps >= (1 if alarm == "not_finite" else self._config.watch.patience)

    def _judge(self, alarm: str, sentence: str | None) -> None:
        if sentence is None:
            self._trouble.pop(alarm, None)
            return
        self._trouble[alarm] = self._trouble.get(alarm, 0) + 1
        self._sentences[alarm] = sentence


class _Average:
    """Exponential moving average of given span; the first values count by their number, as in a plain mean."""

    def __init__(self, span: int) -> None:
        self._span, self._count, self._sum, self._weight = span, 0, 0.0, 0.0
        self.start: float | None = None
        """Its value after the first `span` values."""

    def add(self, value: float) -> None:
        """Take in the next value."""
        kept = 1 - 2 / (self._span + 1)
        self._count += 1
        self._sum, self._weight = value + kept * self._sum, 1 + kept * self._weight
        if self._count == self._span:
            self.start = self.value

    @property
    def value(self) -> float:
        """The average now."""
        return self._sum / self._weight


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# The rules: each judges the newest averages (or, of those that always stop, the row itself) against the start, and
# answers with a sentence where there is trouble.


def _not_finite(row: Numbers, start: Numbers, config: RunConfig) -> str | None:
    for name in ("loss", "grad_norm"):
        if name in row and not math.isfinite(row[name]):
            return (
                f"{name} is {row[name]} at step {row['step']}: the numbers overflowed. Lower the learning rate, and "
                "compute in float32 (policy.autocast = 'none')."
            )
    return None


def _silence(row: Numbers, start: Numbers, config: RunConfig) -> str | None:
    if row["watch/empty"] < 1:
        return None
    return (
        f"every completion has been empty for {config.watch.patience} steps (at step {row['step']}). Check the chat "
        "template and the end-of-turn token, warm up longer, or compute in float32."
    )


def _form(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
    weights = {"structure": config.rewards.structure, "correctness": config.rewards.correctness}
    grades = {name: weight and (now[_pay(name)] - start[_pay(name)]) / weight for name, weight in weights.items()}
    if grades["structure"] <= config.watch.form or grades["correctness"] >= FOLLOWS * grades["structure"]:
        return None
    return (
        f"the structure grade rose by {grades['structure']:.2f} since the start, correctness by only "
        f"{grades['correctness']:.2f}: the policy learns to look right. Lower rewards.structure."
    )


def _verdicts(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
    domain = domains.get(config.data.domain)
    labels = domain.form.labels
    if not labels:
        return None
    shares = {verdict: now[f"watch/verdict_{verdict}"] for verdict in labels}
    verdict = max(shares, key=lambda v: shares[v])
    readable = sum(shares.values())
    if readable < READABLE or shares[verdict] <= config.watch.verdicts * readable:
        return None
    return (
        f"{shares[verdict] / readable:.0%} of the readable answers are {verdict!r}, whatever the {domain.source} says. "
        "Raise grpo.balance or grpo.beta, or lower grpo.learning_rate."
    )


def _beyond(average: str, alarm: str, sentence: str) -> "_Rule":
    """A rule: trouble is where an average exceeds the threshold of the alarm's name; the sentence tells the average."""

    def judge(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
        if now[average] <= getattr(config.watch, alarm):
            return None
        source = domains.get(config.data.domain).source
        return sentence.format(now[average], cap=config.grpo.max_completion_length, source=source)

    return judge


_length = _beyond(
    "completions/clipped_ratio",
    "length",
    "{:.0%} of the completions run into the cap of {cap} tokens, without an answer. Warm up longer, or raise "
    "grpo.max_completion_length.",
)
_copying = _beyond(
    "watch/copied_share",
    "copying",
    "thoughts copy {:.0%} of the {source}. Lower rewards.max_copied_words, rewards.max_copied_share or "
    "rewards.grounding.",
)
_no_spread = _beyond(
    "watch/no_spread",
    "no_spread",
    "in {:.0%} of the groups all completions earn the same, and teach nothing. Raise grpo.group_size or "
    "grpo.temperature, or set grpo.sampling = 'spread'.",
)
_kl = _beyond(
    "kl",
    "kl",
    "the policy is {:.2g} nats per token away from the one GRPO started from. Lower grpo.learning_rate, or raise "
    "grpo.beta.",
)


def _invention(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
    name = "watch/unsupported_figures"
    if now[name] - start[name] <= config.watch.invention:
        return None
    source = domains.get(config.data.domain).source
    return (
        f"{now[name]:.0%} of the completions cite figures that are not in the {source}, {start[name]:.0%} did at the "
        "start. Read some of them, and run `medgrpo audit`: something pays for it."
    )


def _gradient(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
    if now["grad_norm"] <= config.watch.gradient * start["grad_norm"]:
        return None
    return (
        f"the gradient's norm is {now['grad_norm']:.2g}, {now['grad_norm'] / start['grad_norm']:.0f} times that of the "
        "start. Lower grpo.learning_rate."
    )


def _entropy(now: Numbers, start: Numbers, config: RunConfig) -> str | None:
    if now["entropy"] >= config.watch.entropy:
        return None
    return (
        f"the policy's entropy is {now['entropy']:.2g} nats per token: it always writes the same. Raise "
        "grpo.temperature or grpo.beta, or lower grpo.learning_rate."
    )


def _pay(pillar: str) -> str:
    return f"rewards/{pillar}/mean"


_Rule = Callable[[Numbers, Numbers, RunConfig], str | None]
# alarm -> (what a row must hold for it to be judged, rule)
_RULES: dict[str, tuple[str, _Rule]] = {
    "not_finite": ("loss", _not_finite),
    "silence": ("watch/empty", _silence),
    "form": ("rewards/structure/mean", _form),
    "verdicts": ("watch/verdict_none", _verdicts),
    "length": ("completions/clipped_ratio", _length),
    "copying": ("watch/copied_share", _copying),
    "invention": ("watch/unsupported_figures", _invention),
    "no_spread": ("watch/no_spread", _no_spread),
    "kl": ("kl", _kl),
    "gradient": ("grad_norm", _gradient),
    "entropy": ("entropy", _entropy),
}
