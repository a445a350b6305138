"""The model as MLflow serves it: rows of question and abstract in, rows of verdict, confidence and evidence out.

MLflow stores this file with every model version and executes it when the version is loaded ("models from code").
Imported as `medgrpo.serving` it only defines functions and imports neither MLflow nor torch. Prompts, generation,
parsing and evidence are the ones of the evaluation, so a served verdict is an evaluated verdict.
"""

import contextlib
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from medgrpo import domains
from medgrpo.completions import parse_completion
from medgrpo.errors import InputError
from medgrpo.prompts import render_question
from medgrpo.records import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PythonModel

MAX_CHARACTERS = 200_000
"""Longest question and abstract, together, that is tokenised at all; far beyond what any model here reads."""
MAX_SAMPLES = 100
"""Most sampled answers that a request may ask for."""


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered.

    Attributes:
        max_new_tokens: cap on an answer, in tokens.
        batch_tokens: prompt plus completion tokens generated in one batch.
        samples: sampled answers to each question that its confidence is taken from; 0 gives no confidence.
        temperature: their temperature.
        seed: seed they are drawn with, so that a request gets the same reply each time.
        domain: how questions are asked and answers are read.
    """

    max_new_tokens: int
    batch_tokens: int = 16384
    samples: int = 0
    temperature: float = 0.7
    seed: int = 3
    domain: str = DEFAULT_DOMAIN


def answer(
    model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]], settings: AnswerSettings
) -> list[dict[str, Any]]:
    """Greedy answers to rows of {question, contexts}, each with its confidence and what it cites.

    Returns:
        One {verdict, confidence, thought, evidence} per row, in order. The verdict is None where the completion cannot
        be read. The confidence is the share of the sampled answers with the same verdict; None without verdict or
        samples. The evidence lists the figures and phrases of the thought, as {quote, kind, supported, section,
        source}: `source` is the passage of the abstract that it stands for and `section` the index of its section;
        both are None for a figure that is not in the abstract.

    Raises:
        InputError: a row without a question or without an abstract, or with more than the model reads; or an
            impossible number of samples.
    """
    if not 0 <= settings.samples <= MAX_SAMPLES:
        raise InputError(f"samples is {settings.samples}; expected a number from 0 to {MAX_SAMPLES}.")
    source = domains.get(settings.domain).source
    asked = [_checked(row, number, source) for number, row in enumerate(rows, start=1)]
    from medgrpo.evaluation.generate import sample
    from medgrpo.prefix.generation import Sampling

    prompts = [render_question(question, sections, settings.domain) for question, sections in asked]
    _check_lengths(model, tokenizer, prompts, settings)
    sampling = Sampling(settings.max_new_tokens, settings.temperature if settings.samples else 0.0, first_greedy=True)
    with _seeded(settings.seed):
        answers = sample(model, tokenizer, prompts, 1 + settings.samples, sampling, settings.batch_tokens)
    return [
        reply(question, sections, [generation.text for generation in generations], settings.domain)
        for (question, sections), generations in zip(asked, answers, strict=True)
    ]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw with a seed, and leave the process's generators as they were."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def reply(question: str, sections: Sequence[str], texts: Sequence[str], domain: str = DEFAULT_DOMAIN) -> dict[str, Any]:
    """What `answer` returns for one question: `texts` is the greedy completion and the sampled ones after it."""
    asked = domains.get(domain)
    greedy, *sampled = [parse_completion(text, asked.form) for text in texts]
    agreeing = [completion.verdict == greedy.verdict for completion in sampled]
    spans = asked.evidence(greedy.thought, sections, question).spans
    return {
        "verdict": greedy.verdict,
        "confidence": sum(agreeing) / len(agreeing) if agreeing and greedy.verdict else None,
        "thought": greedy.thought,
        "evidence": [
            {
                "quote": greedy.thought[span.start : span.end],
                "kind": span.kind,
                "supported": span.supported,
                **_passage(sections, span.source),
            }
            for span in spans
        ],
    }


def _passage(sections: Sequence[str], place: tuple[int, int] | None) -> dict[str, Any]:
    """Section and text of a place among the characters of the sections joined by line breaks.

    >>> _passage(["Pain.", "It fell by 2."], (14, 18))
    {'section': 1, 'source': 'by 2'}
    """
    if place is None:
        return {"section": None, "source": None}
    begins = list(accumulate((len(section) + 1 for section in sections), initial=0))
    text, (start, end) = "\n".join(sections), place
    return {"section": bisect_right(begins, start) - 1, "source": text[start:end]}


def signature(samples: int) -> "ModelSignature":
    """The MLflow signature of the served model.

    The inputs, a text and a list of texts, are declared as of any type: MLflow would turn a question of null into the
    text "None" and answer it. `answer` checks them and says which row is wrong.

    Args:
        samples: how many answers are sampled for a request that does not say.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

    cited = Object(
        [
            Property("quote", DataType.string),
            Property("kind", DataType.string),
            Property("supported", DataType.boolean),
            Property("section", DataType.long, required=False),
            Property("source", DataType.string, required=False),
        ]
    )
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "question"), ColSpec(AnyType(), "contexts")]),
        outputs=Schema(
            [
                ColSpec("string", "verdict", required=False),
                ColSpec("double", "confidence", required=False),
                ColSpec("string", "thought"),
                ColSpec(Array(cited), "evidence"),
            ]
        ),
        params=ParamSchema([ParamSpec("samples", DataType.long, samples)]),
    )


def python_model() -> "PythonModel":
    """The `mlflow.pyfunc.PythonModel` around `answer`; defined here so that importing this module stays cheap."""
    import pandas
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import PythonModel, PythonModelContext

    class Reader(PythonModel):
        """Loads the artifact "model" once and answers from it, as the model's settings (`AnswerSettings`) say."""

        def load_context(self, context: PythonModelContext) -> None:
            """Load the merged model and its tokenizer."""
            from medgrpo.policies import load_model

            self.settings = AnswerSettings(**context.model_config)
            self.model, self.tokenizer = load_model(context.artifacts["model"])
            # The server answers requests in threads, while generation borrows the weights and the random generator.
            self.lock = threading.Lock()

        def predict(
            self,
            context: PythonModelContext,
            model_input: pandas.DataFrame,
            params: dict[str, Any] | None = None,
        ) -> list[dict[str, Any]]:
            """Answer a data frame (or a list) of {question, contexts}; `params` may hold another number of samples."""
            rows = model_input.to_dict("records") if isinstance(model_input, pandas.DataFrame) else model_input
            settings = replace(self.settings, **(params or {}))
            try:
                with self.lock:
                    return answer(self.model, self.tokenizer, rows, settings)
            except InputError as error:
                # This class makes the scoring server answer 400 with the sentence, not 500 with a stack trace.
                raise MlflowException.invalid_parameter_value(str(error)) from error

    return Reader()


def _checked(row: Mapping[str, Any], number: int, source: str) -> tuple[str, list[str]]:
    """Question and sections of one row; a data frame may hold NaN or numpy arrays."""
    question, contexts = row.get("question"), row.get("contexts")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"row {number}: 'question' is {_shown(question)}, expected a non-empty text.")
    sections = [] if isinstance(contexts, str) or not isinstance(contexts, Iterable) else list(contexts)
    if not sections or not all(isinstance(section, str) and section.strip() for section in sections):
        raise InputError(
            f"row {number}: 'contexts' is {_shown(contexts)}, expected a list of at least one non-empty text, "
            f"the sections of the {source}."
        )
    length = len(question) + sum(map(len, sections))
    if length > MAX_CHARACTERS:
        raise InputError(
            f"row {number}: question and {source} have {length} characters, and at most {MAX_CHARACTERS} are read. "
            f"Send one {source}."
        )
    return question.strip(), [section.strip() for section in sections]


def _shown(value: Any) -> str:
    """A value as a message shows it; a long one would hide what is said about it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _check_lengths(model: Any, tokenizer: Any, prompts: Sequence[Any], settings: AnswerSettings) -> None:
    """Refuse what is longer than the positions that the model knows."""
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is None:
        return
    source = domains.get(settings.domain).source
    for number, prompt in enumerate(prompts, start=1):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
        if len(ids) + settings.max_new_tokens > room:
            raise InputError(
                f"row {number}: question and {source} take {len(ids)} tokens, and the model reads at most "
                f"{room - settings.max_new_tokens}. Send a shorter {source}."
            )


if __name__ != "medgrpo.serving":  # executed by MLflow as a model's code
    from mlflow.models import set_model

    set_model(python_model())
