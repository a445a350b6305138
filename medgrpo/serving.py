"""The model as MLflow serves it: rows of question and abstract in, rows of verdict and thought out.

MLflow stores this file with every model version and executes it when the version is loaded ("models from code").
Imported as `medgrpo.serving` it only defines functions and imports neither MLflow nor torch. Prompts, generation and
parsing are the ones of the evaluation, so a served verdict is an evaluated verdict.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from medgrpo.completions import parse_completion
from medgrpo.errors import InputError
from medgrpo.prompts import render_question

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PythonModel

BATCH_TOKENS = 16384
"""Prompt plus completion tokens generated in one batch, where the model's settings name no other number."""

INPUT_EXAMPLE: list[dict[str, Any]] = [
    {
        "question": "Does daily walking lower resting heart rate? (synthetic example)",
        "contexts": [
            "METHODS: 120 invented adults walked daily or not for 12 weeks.",
            "RESULTS: Resting heart rate fell by 6 beats per minute with walking and by 1 without (p=0.01).",
        ],
    }
]


def answer(
    model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]], max_new_tokens: int, batch_tokens: int = BATCH_TOKENS
) -> list[dict[str, str | None]]:
    """Greedy answers to rows of {question, contexts}.

    Returns:
        One {verdict, thought} per row, in order; the verdict is None where the completion cannot be read.

    Raises:
        InputError: a row without a question or without an abstract.
    """
    from medgrpo.evaluation.generate import generate

    prompts = [_prompt(row, number) for number, row in enumerate(rows, start=1)]
    generations = generate(model, tokenizer, prompts, max_new_tokens, batch_tokens) if prompts else []
    completions = [parse_completion(generation.text) for generation in generations]
    return [{"verdict": completion.verdict, "thought": completion.thought} for completion in completions]


def signature() -> "ModelSignature":
    """The MLflow signature of the served model."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("string", "question"), ColSpec(Array(DataType.string), "contexts")]),
        outputs=Schema([ColSpec("string", "verdict", required=False), ColSpec("string", "thought")]),
    )


def python_model() -> "PythonModel":
    """The `mlflow.pyfunc.PythonModel` around `answer`; defined here so that importing this module stays cheap."""
    import pandas
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import PythonModel, PythonModelContext

    class Reader(PythonModel):
        """Loads the artifact "model" once and answers from it; `max_new_tokens` comes from the model's settings."""

        def load_context(self, context: PythonModelContext) -> None:
            """Load the merged model and its tokenizer."""
            from medgrpo.policies import load_model

            self.model, self.tokenizer = load_model(context.artifacts["model"])

        def predict(
            self,
            context: PythonModelContext,
            model_input: pandas.DataFrame,
            params: dict[str, Any] | None = None,
        ) -> list[dict[str, str | None]]:
            """Answer a data frame (or a list) of {question, contexts}."""
            rows = model_input.to_dict("records") if isinstance(model_input, pandas.DataFrame) else model_input
            settings = context.model_config or {}
            batch_tokens = settings.get("batch_tokens", BATCH_TOKENS)
            try:
                return answer(self.model, self.tokenizer, rows, settings["max_new_tokens"], batch_tokens)
            except InputError as error:
                # This class makes the scoring server answer 400 with the sentence, not 500 with a stack trace.
                raise MlflowException.invalid_parameter_value(str(error)) from error

    return Reader()


def _prompt(row: Mapping[str, Any], number: int) -> list[dict[str, str]]:
    """The chat messages of one row, checked first; a data frame may hold NaN or numpy arrays."""
    question, contexts = row.get("question"), row.get("contexts")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"row {number}: 'question' is {question!r}, expected a non-empty text.")
    sections = [] if isinstance(contexts, str) or not isinstance(contexts, Iterable) else list(contexts)
    if not sections or not all(isinstance(section, str) and section.strip() for section in sections):
        raise InputError(
            f"row {number}: 'contexts' is {contexts!r}, expected a list of at least one non-empty text, "
            "the sections of the abstract."
        )
    return render_question(question.strip(), [section.strip() for section in sections])


if __name__ != "medgrpo.serving":  # executed by MLflow as a model's code
    from mlflow.models import set_model

    set_model(python_model())
