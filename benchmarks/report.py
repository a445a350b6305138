"""Time of statistics and report on simulated answers of four models, the report's size, and its screenshot.

    python -m benchmarks.report --cases 500
    python -m benchmarks.report --cases 200 --screenshot docs/report.png

Records and answers are invented: nothing of it is a result.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import positive, run
from medgrpo.records import Record

# Shares of each simulated model: right verdicts, strict form, thoughts with a figure that is not in the abstract.
MODELS = {
    "base": (0.42, 0.3, 0.5),
    "warmup": (0.56, 0.9, 0.25),
    "tuned": (0.74, 0.99, 0.04),
    "champion": (0.66, 0.97, 0.1),
}
# Shares of answers that are mere guesses under each probe.
PROBES = {"no_abstract": 0.7, "other_abstract": 0.8, "no_conclusion": 0.5, "altered_numbers": 0.4}
TRAIN = 300
TOP, CASE, PHONE, GAP = (1200, 1120), (1200, 640), (400, 1772), 12
# Scroll to a case that holds both kinds of marks, once the browser has laid out what it had put off.
SHOW_CASE = """(async () => {
  document.querySelector("[data-show=invents]").click();
  for (let i = 0; i < 5; i++) {
    document.querySelector(".case:not([hidden]) .answer:nth-child(4) mark.unsupported").closest(".case")
      .scrollIntoView();
    await new Promise((done) => setTimeout(done, 100));
  }
})()"""


@dataclass(frozen=True)
class Example:
    """Everything that a report is made of."""

    run: Mapping[str, Any]
    metrics: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    training: Sequence[Mapping[str, Any]]
    gate: Mapping[str, Any]

    def write(self, path: Path) -> Path:
        """Write the report."""
        from medgrpo.evaluation.report import write_report

        return write_report(path, self.run, self.metrics, self.cases, self.training, self.gate)


@dataclass(frozen=True)
class Simulated:
    """What simulated models said about generated records, and what those would have been trained on."""

    train: Sequence[Record]
    records: Sequence[Record]
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    probed: Mapping[str, Mapping[str, Mapping[str, Any]]]
    random: Random


def example(count: int, seed: int = 5) -> Example:
    """A whole evaluation of simulated models on synthetic records, the same for the same arguments."""
    return judged(simulate(count, seed))


def simulate(count: int, seed: int) -> Simulated:
    """The answers of all models to so many cases."""
    from medgrpo.domains import synthetic

    random, (train, records) = Random(seed), synthetic.load(pool=TRAIN, test=count, seed=seed)
    answers = {name: [_answer(record, name, random) for record in records] for name in MODELS}
    return Simulated(train, records, answers, _probed(records, answers["tuned"], random), random)


def judged(said: Simulated) -> Example:
    """Statistics and gate of an evaluation, as a run computes them."""
    from medgrpo.config import EvaluationConfig, RunConfig
    from medgrpo.evaluation.compare import case_row, score, score_probes
    from medgrpo.evaluation.gate import judge

    # As in the profile `demo`: synthetic abstracts share their templates.
    config = RunConfig(name="simulated-models", profile="demo", evaluation=EvaluationConfig(near_duplicate=0.8))
    metrics = score(config, {"domain": "synthetic", "synthetic": True}, said.train, said.records, said.answers)
    metrics["probes"] = {"tuned": score_probes(said.records, said.answers["tuned"], said.probed)}
    about = {
        "name": config.name,
        "profile": config.profile,
        "base": "SmolLM2-135M-Instruct (simulated)",
        "config": config.model_dump(mode="json"),
        "data": {"train": TRAIN, "test": len(said.records)},
        "seconds": {"train": 1262.0, "evaluate": 311.0},
    }
    cases = [case_row(record, said.answers, i, said.probed) for i, record in enumerate(said.records)]
    gate = judge("tuned", metrics, config.gate, audit_holes="", alarms=[]).as_dict()
    return Example(about, metrics, cases, _training(said.random), gate)


def _answer(record: Record, model: str, random: Random) -> dict[str, Any]:
    """What a model of given shares might have said: the expert's thought, whole or spoilt."""
    from medgrpo.completions import parse_completion, render_completion
    from medgrpo.config import RewardConfig
    from medgrpo.evaluation.generate import Generation
    from medgrpo.evaluation.scoring import answer_row
    from medgrpo.prompts import gold_completion

    right, strict, invents = MODELS[model]
    thought = parse_completion(gold_completion(record)).thought
    verdict = record.verdict if random.random() < right else random.choice(["yes", "no", "maybe"])
    if random.random() < invents:
        thought += (
            f" The effect held in {random.randint(11, 99)}.{random.randint(1, 9)}% of {random.randint(300, 999)}."
        )
    text = render_completion(thought, verdict)
    if random.random() > strict:
        text = random.choice(
            [f"{verdict.title()}, {record.question.lower().rstrip('?')}.", f"<answer>{verdict}", thought]
        )
    samples = [text if random.random() < right else render_completion("Unsure.", "maybe") for _ in range(8)]
    made = [Generation(one, len(one.split()) * 4 // 3) for one in [text, *samples]]
    return answer_row(record, made, RewardConfig())


def _probed(
    records: Sequence[Record], own: Sequence[Mapping[str, Any]], random: Random
) -> dict[str, dict[str, dict[str, Any]]]:
    """The tuned model's answers with its evidence taken away: some change, to any verdict."""
    from medgrpo.completions import render_completion
    from medgrpo.config import RewardConfig
    from medgrpo.evaluation.generate import Generation
    from medgrpo.evaluation.probes import probe_cases
    from medgrpo.evaluation.scoring import answer_row

    given = {record.id: answer["text"] for record, answer in zip(records, own, strict=True)}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for probe, altered in probe_cases(records, seed=1).items():
        found[probe] = {}
        for record_id, record in altered.items():
            verdict = random.choice(["yes", "no", "maybe"])
            guess = render_completion("The abstract does not say.", verdict)
            text = guess if random.random() < PROBES[probe] else given[record_id]
            found[probe][record_id] = answer_row(record, [Generation(text, 9)], RewardConfig())
    return found


def _training(random: Random) -> list[dict[str, Any]]:
    """Rows of a training that went well."""
    rows: list[dict[str, Any]] = [
        {"phase": "warmup", "step": step, "loss": 2.4 * 0.96**step + 0.5 + random.random() / 9} for step in range(60)
    ]
    for step in range(1, 81):
        rise = 1 - 0.97**step
        rows.append(
            {
                "phase": "grpo",
                "step": step,
                "reward": 0.8 + 1.1 * rise + random.random() / 4,
                "rewards/correctness/mean": 0.4 + 0.6 * rise + random.random() / 6,
                "rewards/grounding/mean": 0.2 + 0.3 * rise + random.random() / 9,
                "rewards/structure/mean": 0.2 + 0.1 * rise,
                "watch/strict_form": 0.6 + 0.38 * rise,
                "watch/no_spread": 0.1 + 0.2 * rise + random.random() / 12,
                "watch/unsupported_figures": 0.3 - 0.25 * rise + random.random() / 20,
                "watch/verdict_yes": 0.55 + random.random() / 15,
                "watch/verdict_no": 0.3 + random.random() / 15,
                "watch/verdict_maybe": 0.1,
            }
        )
    return rows


def main() -> None:
    """Measure and print; take the screenshot where one is asked for."""
    options = _options()
    said = simulate(options.cases, seed=5)
    with tempfile.TemporaryDirectory() as directory:
        path, times = Path(directory) / "report.html", [time.perf_counter()]
        made = judged(said)
        times.append(time.perf_counter())
        made.write(path)
        times.append(time.perf_counter())
        statistics, report = (round(end - start, 2) for start, end in pairwise(times))
        seconds = {"statistics": statistics, "report": report}
        print(json.dumps({"cases": options.cases, "seconds": seconds, "bytes": path.stat().st_size}))
        if options.screenshot:
            options.screenshot.write_bytes(screenshot(path))


def screenshot(path: Path) -> bytes:
    """PNG of a report: its top and a case on a desktop, and a case on a phone in the dark."""
    from PIL import Image

    from benchmarks.browser import Browser

    with Browser() as browser:
        top = _view(browser, path, TOP, "scrollTo(0, 0)")
        case = _view(browser, path, CASE, SHOW_CASE)
        phone = _view(browser, path, PHONE, SHOW_CASE, dark=True)
    width, height = TOP[0] + GAP + PHONE[0], PHONE[1]
    canvas = Image.new("RGB", (width, height), "#9aa3ad")
    for image, place in ((top, (0, 0)), (case, (0, TOP[1] + GAP)), (phone, (TOP[0] + GAP, 0))):
        canvas.paste(image, place)
    file = io.BytesIO()
    canvas.quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


def _view(browser: Any, path: Path, size: tuple[int, int], script: str, dark: bool = False) -> Any:
    from PIL import Image

    browser.look(*size, dark=dark)
    browser.open(path)
    browser.evaluate(script)
    return Image.open(io.BytesIO(browser.screenshot()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=positive, default=200, help="number of cases")
    parser.add_argument("--screenshot", type=Path, help="PNG file to write")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
