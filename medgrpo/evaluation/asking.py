"""Put the cases to models, and keep every answer as it arrives."""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medgrpo import domains
from medgrpo.completions import parse_completion
from medgrpo.config import RunConfig
from medgrpo.evaluation.generate import Generation, sample
from medgrpo.evaluation.probes import probe_cases
from medgrpo.evaluation.report_words import probe_label
from medgrpo.manifests import describe, write_text
from medgrpo.policies import load_model
from medgrpo.prompts import render_prompt
from medgrpo.provenance import fingerprint
from medgrpo.records import Record

Progress = Callable[[str, int, int], None]
Probed = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Per probe and id of a case: {verdict, text}."""


@dataclass(frozen=True)
class Contestant:
    """A model to evaluate.

    Attributes:
        name: base, warmup, tuned, or any other label.
        source: directory or Hugging Face id of a whole model.
        adapter: adapter to fold into it, or None.
        revision: revision of a Hugging Face id.
    """

    name: str
    source: str
    adapter: Path | None = None
    revision: str | None = None

    @cached_property
    def weights(self) -> str:
        """The model by its content: digests of what is on disk, as in a registered version's tag, or id@revision."""
        source = Path(self.source)
        whole = describe(source).sha256 if source.is_dir() else f"{self.source}@{self.revision or 'main'}"
        return f"{whole} + adapter {describe(self.adapter).sha256}" if self.adapter else whole

    def identity(self) -> str:
        """What tells this model's answers from another's."""
        return fingerprint(self.weights)


@dataclass(frozen=True)
class Answered:
    """What models said.

    Attributes:
        records: the cases.
        generations: per model, the reference first and the one in question last, each case's greedy answer and the
            sampled ones after it.
        probed: what the last model said under the probes; empty without.
    """

    records: Sequence[Record]
    generations: Mapping[str, Sequence[Sequence[Generation]]]
    probed: Probed


def ask(
    models: Sequence[Contestant], records: Sequence[Record], config: RunConfig, cache: Path, on_progress: Progress
) -> Answered:
    """Ask each model the cases, and the last one under the probes too.

    The model in question is asked first: it is what somebody who follows the evaluation waits for.
    """
    given: dict[str, list[list[Generation]]] = {}
    probed: Probed = {}
    for model in reversed(models):
        interview = _Interview(model, config, cache, on_progress)
        given[model.name] = interview.answers(records, 1 + config.evaluation.samples)
        if model is models[-1] and config.evaluation.probes:
            cases = probe_cases(records, config.evaluation.seed)
            probed = {probe: interview.probed(probe, list(altered.values())) for probe, altered in cases.items()}
        interview.release()
    return Answered(records, {model.name: given[model.name] for model in models}, probed)


class _Interview:
    """One model that is being asked; it is loaded at the first question that has no kept answer."""

    def __init__(self, model: Contestant, config: RunConfig, cache: Path, on_progress: Progress) -> None:
        self._model, self._config, self._cache, self._on_progress = model, config, cache, on_progress

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_model(self._model.source, self._model.adapter, self._model.revision)

    def release(self) -> None:
        """Give the model's memory back, what CUDA keeps of it too: the next model, or another process, may need it."""
        import torch

        if "_loaded" in vars(self):
            del self._loaded
            gc.collect()
            torch.cuda.empty_cache()

    @cached_property
    def _identity(self) -> str:
        return self._model.identity()

    def probed(self, probe: str, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
        """The greedy answers under a probe, by id."""
        given = self.answers(records, 1, probe)
        return {
            record.id: {"verdict": _verdict(record, answer.text), "text": answer.text}
            for record, (answer,) in zip(records, given, strict=True)
        }

    def answers(self, records: Sequence[Record], copies: int, probe: str = "") -> list[list[Generation]]:
        """The greedy answer to each case and the sampled ones after it: kept ones, and the missing from the model."""
        from medgrpo.prefix.generation import Sampling

        settings, drawn = self._config.evaluation, copies > 1
        temperature = settings.sample_temperature if drawn else 0.0
        sampling = Sampling(self._config.grpo.max_completion_length, temperature, first_greedy=True)
        # Not by the model's name: the tuned model of one run is the champion of the next.
        how = fingerprint([self._identity, [copies, asdict(sampling), settings.seed if drawn else None]])
        path = self._cache / f"{probe or 'own_abstract'}-{how}.jsonl"
        prompts = {record.id: render_prompt(record) for record in records}
        digests = {record_id: fingerprint(prompt) for record_id, prompt in prompts.items()}
        known = _read_answers(path, digests)
        missing = [record.id for record in records if record.id not in known]
        source = domains.get(self._config.data.domain).source
        label = f"{self._model.name}, {probe_label(probe, source).lower()}" if probe else self._model.name

        def keep(index: int, answers: list[Generation]) -> None:
            record_id = missing[index]
            known[record_id] = answers
            row = {"id": record_id, "prompt": digests[record_id], "answers": [asdict(a) for a in answers]}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            self._on_progress(label, len(known), len(records))

        if missing:
            self._cache.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                # After a kill the rest must not be drawn with the numbers that the first answers were drawn with.
                seed_sampling(settings.seed + len(known))
                asked = [prompts[record_id] for record_id in missing]
                sample(*self._loaded, asked, copies, sampling, settings.batch_tokens, keep)
        return [known[record.id] for record in records]


def _verdict(record: Record, text: str) -> str | None:
    return parse_completion(text, domains.get(record.domain).form).verdict


def seed_sampling(seed: int) -> None:
    """Seed the generator that sampled answers are drawn with."""
    import torch

    torch.manual_seed(seed)


def _read_answers(path: Path, digests: Mapping[str, str]) -> dict[str, list[Generation]]:
    """Answers kept so far to these very prompts; a last line cut off by a kill is asked again."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {
        row["id"]: [Generation(**answer) for answer in row["answers"]]
        for row in rows
        if digests.get(row["id"]) == row["prompt"]
    }
