"""The model card of a version: what it is, what it was measured to do, and what it is not for."""

from collections.abc import Iterator, Mapping
from typing import Any

from medgrpo.config import RunConfig


def model_card(config: RunConfig, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Markdown description of a version: what it is, what it learned from, how well it does, what it is not for."""
    synthetic = data["synthetic"]
    origin = "**synthetic** records, invented by a generator" if synthetic else "expert-labelled abstracts"
    warmup = f"supervised warm-up ({config.warmup.epochs:g} epochs), then " if config.warmup.enabled else ""
    grpo = config.grpo
    sizes = ", ".join(
        f"{split} {sum(count.values()) if isinstance(count, Mapping) else count}"
        for split, count in data["counts"].items()
    )
    limits = "Numbers on synthetic records say nothing about real abstracts. " if synthetic else ""
    return "\n".join(
        [
            "Reads one abstract, cites it in a thought and answers a question with yes, no or maybe.",
            "",
            f"- Base model: {config.policy.base}" + (f" @ {config.policy.revision}" if config.policy.revision else ""),
            f"- Training: {warmup}GRPO, {grpo.steps} steps of {grpo.prompts_per_step} prompts x {grpo.group_size} "
            f"completions; LoRA rank {config.policy.lora_rank}, merged in float32",
            f"- Data: {data['domain']}, {origin} ({sizes})",
            f"- Profile: {config.profile}, seed {config.seed}",
            "",
            f"**Not medical advice.** {limits}It reads single English abstracts, knows nothing beyond them, and may "
            "cite correctly and still conclude wrongly; its verdict can be empty. Not validated for clinical use.",
            "",
            f"Results on the {config.evaluation.split} split, greedy, with 95 % intervals:",
            "",
            *_results_table(metrics["models"]),
        ]
    )


def _results_table(models: Mapping[str, Any]) -> list[str]:
    """One line per model and metric, so that models with different metrics fit the same table."""
    lines = ["| model | metric | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for model, results in models.items():
        for name, result in named_results(results):
            low, high = result.get("low"), result.get("high")
            interval = "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            value = "–" if result["value"] is None else f"{result['value']:.3f}"
            lines.append(f"| {model} | {name} | {value} | {interval} | {result.get('n', '–')} |")
    return lines


def named_results(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each result of a model with its name; nested ones (`f1: {yes: …}`) are named by their path.

    >>> list(named_results({"accuracy": {"value": 0.5, "n": 50}, "f1": {"yes": {"value": 0.4}}}))
    [('accuracy', {'value': 0.5, 'n': 50}), ('f1_yes', {'value': 0.4})]
    """
    for name, result in results.items():
        if isinstance(result, Mapping) and "value" not in result:
            yield from named_results(result, f"{prefix}{name}_")
        elif isinstance(result, int | float | Mapping):
            yield prefix + name, result if isinstance(result, Mapping) else {"value": result}
