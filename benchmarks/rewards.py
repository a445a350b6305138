"""Completions scored a second on one core, by kind of text, all three pillars together as the trainer calls them.

    python -m benchmarks.rewards --pubmedqa PATH/ori_pqal.json
    python -m benchmarks.rewards --profile

A completion is new each time it is scored. Its record is new too in the column "first visit"; in the other one its
abstract was read before, as it is from the second completion of a group on.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks import positive, run
from medgrpo.completions import parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.prompts import gold_completion
from medgrpo.records import Record
from medgrpo.rewards import reward_functions, score_completion
from medgrpo.rewards.agreement import read_conclusion
from medgrpo.rewards.attacks import Target
from medgrpo.rewards.audit import attacks_on
from medgrpo.rewards.grounding import read, read_source

BATCH = 64
KINDS = (
    "one altered number",
    "another record's thought",
    "negated conclusion",
    "wrong verdict in perfect form",
    "gold, then a loop",
    "pasted abstract",
    "padding to the cap",
    "verdict alone",
)


def main() -> None:
    """Measure and print."""
    options = _options()
    from medgrpo.domains import pubmedqa, synthetic

    path = options.pubmedqa
    records = pubmedqa.load(path).split("train") if path else synthetic.generate(count=300, seed=7)
    texts = completions(records)
    print("| text | words | first visit | later |\n|---|---|---|---|")
    for kind, written in texts.items():
        words = statistics.median(len(text.split()) for _, text in written)
        rates = [rate(written, options.repeats, seen) for seen in (False, True)]
        print(f"| {kind} | {words:.0f} | {rates[0]:,.0f}/s | {rates[1]:,.0f}/s |", flush=True)
    if options.profile:
        profile(lambda: [rate(written, 1, True) for written in texts.values()])


def completions(records: Sequence[Record]) -> Mapping[str, list[tuple[Record, str]]]:
    """Texts of each kind with their records: gold, some attacks, and all attacks in a random order."""
    golds = [gold_completion(record) for record in records]
    thoughts = [parse_completion(gold).thought for gold in golds]
    targets = [
        Target(record, thoughts[i], record.long_answer, _other(record.verdict), thoughts[i - 1], Random(i))
        for i, record in enumerate(records)
    ]
    texts = {"gold": list(zip(records, golds, strict=True))}
    attacks = attacks_on(records[0])
    for kind, attack in attacks.items():
        texts[kind] = [(target.record, text) for target in targets if (text := attack(target))]
    mixed = [one for kind in attacks for one in texts[kind]]
    Random(0).shuffle(mixed)
    return {kind: texts[kind] for kind in ("gold", *KINDS)} | {"all attacks": mixed[: 10 * len(records)]}


def rate(written: Sequence[tuple[Record, str]], repeats: int, seen: bool) -> float:
    """Completions a second: the median of some repeats, each with nothing of these texts in any cache."""
    known = {record.id: record for record, _ in written}
    texts, ids = [text for _, text in written], [record.id for record, _ in written]
    lengths = [range(len(text) // 4) for text in texts]
    seconds = []
    for _ in range(repeats):
        for cache in (read, read_source, read_conclusion):
            cache.cache_clear()
        if seen:
            for record in known.values():
                score_completion(record, render_completion("Other words than these.", record.verdict))
            read.cache_clear()
        functions = reward_functions(known, RewardConfig(), cap=512)
        started = time.process_time()
        for first in range(0, len(texts), BATCH):
            batch = slice(first, first + BATCH)
            for function in functions:
                function(texts[batch], ids[batch], lengths[batch])
        seconds.append(time.process_time() - started)
    return len(texts) / statistics.median(seconds)


def profile(work: Callable[[], object]) -> None:
    """Print where the time goes."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def _other(verdict: str) -> str:
    return "no" if verdict == "yes" else "yes"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.split("\n")[0])
    parser.add_argument("--pubmedqa", type=Path, help="ori_pqal.json; unset, synthetic records")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each kind")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
