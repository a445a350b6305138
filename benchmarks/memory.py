"""The memory plan against what a training really takes, size by size.

    python -m benchmarks.memory --quick
    python -m benchmarks.memory --json memory.json

Each size trains in a process of its own, as a training does: one step of warm-up, then one of GRPO, on synthetic
records lengthened to what `data.max_length` lets through, with completions that run to their cap and rewards that
differ within every group, so that nothing is shorter than planned and nothing is left out. What is measured is the peak
of the process's resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import run

WIDE = "wide"
SHORT = ("data.max_length=464", "grpo.max_completion_length=64", "grpo.prompts_per_step=2")
SIZES: Mapping[str, tuple[str, ...]] = {
    "short": (*SHORT, "grpo.micro_batch_tokens=1312"),
    "default": ("grpo.prompts_per_step=2",),
    "large groups": (
        *("grpo.prompts_per_step=2", "grpo.group_size=8"),
        *("grpo.micro_batch_tokens=2144", "warmup.micro_batch=1"),
    ),
    "checkpointing": (
        *("grpo.prompts_per_step=2", "grpo.group_size=8"),
        *("grpo.micro_batch_tokens=2144", "grpo.gradient_checkpointing=true"),
    ),
    WIDE: (*SHORT, "grpo.micro_batch_tokens=1312", f"policy.base={WIDE}"),
}
"""Settings of each size, beside those that all share; SmolLM2-135M but for the wide one, which is random. Micro-batches
are filled: 1,312 tokens are two groups of 400 + 4 x 64, and 2,144 one of 864 + 8 x 160."""
QUICK = ("short", "default", WIDE)


def main() -> None:
    """Measure the sizes, print a table, save what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"some of: {', '.join(SIZES)}; all without any")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every size"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    unknown = [name for name in options.sizes if name not in SIZES]
    if unknown:
        parser.error(f"no size is called {unknown[0]!r}; known: {', '.join(SIZES)}")
    print(f"{'size':<20}{'estimate, GB':>14}{'measured, GB':>14}{'estimate / measured':>21}  largest phase")
    rows = []
    for name in options.sizes or (QUICK if options.quick else SIZES):
        found = measure([*SIZES[name], *options.set])
        estimate, measured = found["plan_gb"]["peak"], max(found["measured_gb"].values())
        rows.append({"size": name, "estimate_gb": estimate, "peak_gb": measured, **found})
        print(
            f"{name:<20}{estimate:>14.2f}{measured:>14.2f}{estimate / measured:>21.2f}  {found['plan_gb']['largest']}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(overrides: list[str]) -> dict[str, Any]:
    """Plan and train one size in a process of its own: GB by phase and part, and the peaks at the end of each phase."""
    from medgrpo.training.launch import CHILD_ENVIRONMENT

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if f"policy.base={WIDE}" in overrides:
            _save_wide(folder / WIDE)
            overrides = [*overrides, f"policy.base={folder / WIDE}"]
        (folder / "job.json").write_text(json.dumps(overrides), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.memory_worker", place]
        with (folder / "log").open("w+") as log:
            done = subprocess.run(command, env={**CHILD_ENVIRONMENT, **os.environ}, stdout=log, stderr=log, check=False)
            log.seek(0)
            if done.returncode:
                sys.exit(log.read())
        return dict(json.loads((folder / "result.json").read_text()))


def _save_wide(directory: Path) -> None:
    """A random model, wider than deep, with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from medgrpo.config import PolicyConfig
    from medgrpo.policies import load_tokenizer, resolve_base

    logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=49_152,
        hidden_size=1_024,
        intermediate_size=4_096,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(sizes).save_pretrained(directory)
    load_tokenizer(resolve_base(PolicyConfig())).save_pretrained(directory)


if __name__ == "__main__":
    run(main)
