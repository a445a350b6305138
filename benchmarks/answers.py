"""Greedy answers to real cases: `model.generate` on padded batches of 16 in file order, against ours.

    python -m benchmarks.answers --pubmedqa PATH/ori_pqal.json --model runs/latest/train/model

Both answer the same cases with the same float32 model, alternating in blocks; tokens are compared, too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import positive, ratios, run

BATCH = 16


def main() -> None:
    """Measure and print."""
    options = _options()
    from medgrpo.domains import pubmedqa, synthetic
    from medgrpo.policies import load_model
    from medgrpo.policies.embedded import materialize_embedded
    from medgrpo.prompts import render_prompt

    path = options.pubmedqa
    records = pubmedqa.load(path).split("test") if path else synthetic.generate(count=options.cases, seed=7)
    prompts = [render_prompt(record) for record in records[: options.cases]]
    model, tokenizer = load_model(str(options.model or materialize_embedded()))
    ways = {"transformers": _transformers, "medgrpo": _medgrpo}
    blocks = [prompts[start :: options.blocks] for start in range(options.blocks)]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = 0
    for block in blocks:
        texts = {}
        for name, answer in ways.items():
            started = time.perf_counter()
            texts[name] = answer(model, tokenizer, block, options.new_tokens)
            seconds[name].append(time.perf_counter() - started)
        same += sum(one == other for one, other in zip(*texts.values(), strict=True))
        print(
            f"{len(block)} cases: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in seconds.items()),
            flush=True,
        )
    result = {
        "cases": len(prompts),
        "throughput_ratio": ratios(seconds["transformers"], seconds["medgrpo"]),
        "same_text": same,
        "seconds": {name: sum(times) for name, times in seconds.items()},
    }
    print(json.dumps(result, indent=1))


def _transformers(model: Any, tokenizer: Any, prompts: Sequence[Any], new_tokens: int) -> list[str]:
    """What one would write by hand."""
    import torch

    usual = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = tokenizer.apply_chat_template(batch, padding=True, **options).to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.set_attn_implementation(usual)
    return texts


def _medgrpo(model: Any, tokenizer: Any, prompts: Sequence[Any], new_tokens: int) -> list[str]:
    from medgrpo.config import EvaluationConfig
    from medgrpo.evaluation.generate import generate

    budget = EvaluationConfig().batch_tokens
    return [answer.text for answer in generate(model, tokenizer, prompts, new_tokens, budget)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__.split("\n")[0])
    parser.add_argument("--pubmedqa", type=Path, help="ori_pqal.json; unset, synthetic records")
    parser.add_argument("--model", type=Path, help="model directory; unset, the embedded base model")
    parser.add_argument("--cases", type=positive, default=100, help="number of cases")
    parser.add_argument("--blocks", type=positive, default=3, help="parts in which the two take turns")
    parser.add_argument("--new-tokens", type=positive, default=160, help="cap on an answer")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
