"""The model card: what a model is for, what it was measured to do, what it learned from, and what it is not for."""

from collections.abc import Iterator, Mapping
from typing import Any

from medgrpo import domains
from medgrpo.evaluation.report_words import probe_label
from medgrpo.registry.candidate import NOT_EVALUATED, Evidence
from medgrpo.registry.facts import UNKNOWN

CARD_FILE = "model_card.md"
"""The whole card among a run's artifacts."""
# Results that a short card keeps, by the beginning of their names; the whole card has all but the confusion counts.
MAIN_RESULTS = ("accuracy", "macro_f1", "strict_form", "recall", "grounding", "faithfulness")
SYNTHETIC_LIMIT = "Numbers on **synthetic** records say nothing about real {source}s."


def model_card(evidence: Evidence, limit: int | None = None) -> str:
    """Markdown card of a candidate; one with a limit keeps the main results and has at most so many characters."""
    domain = domains.get(evidence.data["domain"])
    said, synthetic = domain.card, SYNTHETIC_LIMIT.format(source=domain.source)
    sections = {
        "Intended use": [said["intended_use"]],
        "Gate": list(_gate(evidence.candidate.gate)),
        "Evaluation": list(_evaluation(evidence, brief=limit is not None)),
        "Limits": [said["limitations"], *([synthetic] if evidence.data["synthetic"] else [])],
        "Training": list(_training(evidence)),
        "Data": list(_data(evidence)),
    }
    text = "\n".join(line for title, lines in sections.items() for line in (f"## {title}", "", *lines, ""))
    return text if limit is None else _shortened(text, limit)


def hub_card(evidence: Evidence) -> str:
    """The whole card as a README for the Hugging Face Hub, with its front matter."""
    from huggingface_hub import ModelCardData

    config, facts, domain = evidence.candidate.config, evidence.facts, domains.get(evidence.data["domain"])
    front = ModelCardData(
        license=facts.licence if facts.licence != UNKNOWN else None,
        base_model=facts.hub_base,
        datasets=[config.data.hub_id or domain.hub_id] if domain.hub_id else None,
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["medgrpo", "grpo", *domain.topics, "question-answering", domain.name],
    )
    return f"---\n{front.to_yaml()}\n---\n\n# {evidence.name}\n\n{model_card(evidence)}"


def _gate(gate: Mapping[str, Any] | None) -> Iterator[str]:
    if gate is None:
        yield f"**{NOT_EVALUATED}**: no gate judged this model."
        return
    yield f"**{gate['outcome']}**: {gate.get('summary', '')}"
    yield ""
    yield from (
        f"- {check['name']} ({check['outcome']}): {check['reason']}"
        for check in gate["checks"]
        if check["outcome"] != "pass"
    )


def _evaluation(evidence: Evidence, brief: bool) -> Iterator[str]:
    metrics = evidence.metrics
    if not metrics.get("models"):
        yield "This model was not evaluated."
        return
    yield f"On the held-out {evidence.candidate.config.evaluation.split} split, greedy answers, with 95 % intervals:"
    yield ""
    yield from _results_table(metrics["models"], brief)
    yield ""
    yield from _comparisons(metrics)
    yield from _probes(metrics, domains.get(evidence.data["domain"]).source)


def _comparisons(metrics: Mapping[str, Any]) -> Iterator[str]:
    for pair in metrics.get("comparisons", ()):
        difference = _interval(pair["accuracy_difference"])
        test = f"exact McNemar p = {pair['p_value']:.2g}"
        yield f"- {pair['second']} minus {pair['first']}, accuracy: {difference}; {test}"
    found = metrics.get("contamination")
    if found:
        compared = found["compared"]
        yield (
            f"- near-duplicates between {compared['train']} training records and {compared['cases']} cases: "
            f"{len(found['pairs'])}"
        )


def _probes(metrics: Mapping[str, Any], source: str) -> Iterator[str]:
    """What the model does without its contexts, which it should need; `source` is what the domain calls them."""
    for model, probes in metrics.get("probes", {}).items():
        for probe, result in probes.items():
            yield f"- {model}, {probe_label(probe, source).lower()}: accuracy falls by {_interval(result['drop'])}"


def _training(evidence: Evidence) -> Iterator[str]:
    config, facts = evidence.candidate.config, evidence.facts
    grpo, revision = config.grpo, f" @ {config.policy.revision}" if config.policy.revision else ""
    warmup = f"supervised warm-up ({config.warmup.epochs:g} epochs), then " if config.warmup.enabled else ""
    advice = "; find it out before you share the model" if facts.licence == UNKNOWN else ", which binds this model too"
    yield f"- Base model: {facts.base}{revision}; its licence: {facts.licence}{advice}"
    if facts.started_from:
        yield f"- Started from: the adapter of {facts.started_from['source']}, sha256 {facts.started_from['digest']}"
    yield (
        f"- Training: {warmup}GRPO, {grpo.steps} steps of {grpo.prompts_per_step} prompts x {grpo.group_size} "
        f"completions; LoRA rank {config.policy.lora_rank}, merged in float32"
    )
    yield f"- Profile: {config.profile}, seed {config.seed}, commit {evidence.candidate.git_commit or UNKNOWN}"
    if facts.hours is not None:
        cost = "" if facts.cost is None else f", {facts.cost:.2f} at {config.tracking.price_per_hour:g} an hour"
        yield f"- Training took {facts.hours:.2f} {(facts.device or '').upper()} hours{cost}"


def _data(evidence: Evidence) -> Iterator[str]:
    data = evidence.data
    origin = domains.get(data["domain"]).card["data"]
    sizes = ", ".join(
        f"{split} {sum(count.values()) if isinstance(count, Mapping) else count}"
        for split, count in data["counts"].items()
    )
    yield f"- {data['domain']} ({sizes}): {origin}"
    yield f"- sha256 of the data: {evidence.facts.data_digest}"


def _results_table(models: Mapping[str, Any], brief: bool) -> Iterator[str]:
    """One line per model and metric, so that models with different metrics fit the same table."""
    yield "| model | metric | value | 95 % interval | n |"
    yield "|---|---|---|---|---|"
    for model, results in models.items():
        for name, result in named_results(results):
            if name.startswith("confusion") or (brief and not name.startswith(MAIN_RESULTS)):
                continue
            low, high = result.get("low"), result.get("high")
            interval = "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            value = "–" if result["value"] is None else f"{result['value']:.3f}"
            yield f"| {model} | {name} | {value} | {interval} | {result.get('n', '–')} |"


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


def _interval(result: Mapping[str, Any]) -> str:
    if result["value"] is None or result.get("low") is None:
        return "unknown"
    return f"{result['value']:.1%} ({result['low']:.1%} to {result['high']:.1%})"


def _shortened(text: str, limit: int) -> str:
    """The whole lines of a text that fit, and where the rest is."""
    rest = f"… The rest is in {CARD_FILE} among the run's artifacts."
    if len(text) <= limit:
        return text
    return text[: text.rfind("\n", 0, limit - len(rest)) + 1] + rest
