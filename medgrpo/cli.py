"""The medgrpo command: question and evaluate models, attack the rewards, score predictions, examine the machine.

No Prefect needed. Heavy libraries are imported by the commands that use them, so that `medgrpo --help` answers at once.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medgrpo.errors import InputError, MedgrpoError

LATEST_MODEL = Path("runs/latest/train/model")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Fine-tuned medical readers: evaluate, answer, score."
)

ProfileOption = Annotated[str, typer.Option(help="Profile whose data and evaluation settings are used.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat the option for more.")
]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory of a model, Hugging Face id, or the embedded model's name.")],
    against: Annotated[
        str | None, typer.Option(help="A second model, answered and compared on the same cases.")
    ] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    out: Annotated[Path, typer.Option(help="Where data, predictions and metrics are written.")] = Path("evaluation"),
) -> None:
    """Let a model answer held-out cases; write predictions.json and metrics.json."""
    from medgrpo.config import load_config
    from medgrpo.evaluation.compare import Contestant
    from medgrpo.evaluation.compare import evaluate as run
    from medgrpo.policies import resolve_base
    from medgrpo.preparation import prepare

    config = load_config(profile, overrides or [])
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"base": model})})
    names = [("against", against), ("model", model)] if against else [("model", model)]
    models = [
        Contestant(name, resolve_base(config.policy.model_copy(update={"base": source}))) for name, source in names
    ]
    prepare(config, out / "data")
    metrics = run(config, out / "data", models, out, out / "answers", _show_answers)
    for name, source in names:
        _show_metrics(f"{name}: {source}", metrics["models"][name])
    for pair in metrics["comparisons"]:
        typer.echo(f"only against right: {pair['only_first']}, only model right: {pair['only_second']}, "
                   f"exact McNemar p = {pair['p_value']:.3g}")  # fmt: skip


@app.command()
def answer(
    question: Annotated[str, typer.Option(help="A question that yes, no or maybe can answer.")],
    context: Annotated[list[str], typer.Option(help="The abstract, or a section of it; repeat the option for more.")],
    model: Annotated[Path, typer.Option(help="Directory of a trained model.")] = LATEST_MODEL,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cap on the answer's length in tokens.")] = 256,
) -> None:
    """Ask a trained model one question about an abstract."""
    from medgrpo.policies import load_model
    from medgrpo.serving import answer as answer_rows

    if not (model / "config.json").is_file():
        raise InputError(
            f"{model} is not a model directory (no config.json). Train one with `make demo`, or give one with --model."
        )
    weights, tokenizer = load_model(model)
    reply = answer_rows(weights, tokenizer, [{"question": question, "contexts": context}], max_new_tokens)[0]
    typer.echo(f"thought: {reply['thought'] or '(none)'}\nanswer:  {reply['verdict'] or '(unreadable)'}")
    typer.echo("Not medical advice.", err=True)


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="JSON file {PMID: verdict} of the 500 test records.")],
    ground_truth: Annotated[Path, typer.Option(help="PubMedQA's test_ground_truth.json.")],
) -> None:
    """Accuracy and macro-F1 of a predictions file, as PubMedQA's official scorer gives them."""
    from medgrpo.domains.pubmedqa import read_json_object
    from medgrpo.evaluation.scoring import official_score

    scores = official_score(read_json_object(predictions), read_json_object(ground_truth))
    typer.echo(f"Accuracy {scores['accuracy']:.6f}\nMacro-F1 {scores['macro_f1']:.6f}")


@app.command()
def audit(
    profile: Annotated[str, typer.Argument(help="Profile whose data and rewards are attacked.")] = "demo",
    overrides: SetOption = None,
) -> None:
    """Attack the rewards on every training record; fails where a completion is paid that was not earned."""
    from medgrpo.config import load_config
    from medgrpo.domains import load_corpus
    from medgrpo.rewards.audit import audit as attack

    config = load_config(profile, overrides or [])
    report = attack(load_corpus(config.data).split("train"), config.rewards, on_record=_show_audited)
    rows = report.rows()
    typer.echo("".join(f"{name:>{38 if name == 'attack' else 19}}" for name in rows[0]))
    for row in rows:
        typer.echo("".join(f"{value!s:>{38 if name == 'attack' else 19}}" for name, value in row.items()))
    typer.echo(f"\nGold completions earn at least {report.lowest_gold:.0%} of the maximum.")
    for kind in report.kinds:
        if not kind.holds:
            typer.echo(f"\n{kind.kind}, for example:\n{kind.example}")
    if not report.holds:
        raise InputError(report.holes())


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """What this machine can run, and why not."""
    from medgrpo.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:>7}  {finding.name:<16} {finding.detail}")
    sys.exit(1 if any(finding.state == "missing" for finding in findings) else 0)


def main() -> None:
    """Run the command; an error made on purpose ends in its sentence and its exit code, never in a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except MedgrpoError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


def _show_answers(model: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    typer.echo(f"\r{model}: {done}/{total} answers{end}", err=True, nl=False)


def _show_audited(done: int, total: int) -> None:
    if done % 25 == 0 or done == total:
        typer.echo(f"\rattacked {done}/{total} records", err=True, nl=done == total)


def _show_metrics(title: str, metrics: dict[str, Any]) -> None:
    typer.echo(f"\n{title}")
    for label, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("strict form", "strict_form")):
        value = metrics[key]
        typer.echo(
            f"  {label:<12} {value['value']:.1%}  95 % {value['low']:.1%} to {value['high']:.1%}  n={value['n']}"
        )
