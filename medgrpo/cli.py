"""The medgrpo command: question and evaluate models, attack the rewards, score predictions, examine the machine.

No Prefect needed. Heavy libraries are imported by the commands that use them, so that `medgrpo --help` answers at once.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from medgrpo import review_command
from medgrpo.errors import InputError, MedgrpoError

if TYPE_CHECKING:
    from medgrpo.policies.memory import MemoryPlan

LATEST_MODEL = Path("runs/latest/train/model")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fine-tuned small readers: evaluate, answer, score.")

app.add_typer(review_command.app, name="review")

ProfileOption = Annotated[str, typer.Option(help="Profile whose data and evaluation settings are used.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat the option for more.")
]


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Registry address (models:/NAME@ALIAS), directory, Hugging Face id, or embedded name.")
    ],
    against: Annotated[
        str | None, typer.Option(help="A second model, answered and compared on the same cases.")
    ] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    out: Annotated[Path, typer.Option(help="Where data, predictions, metrics and report go.")] = Path("evaluation"),
) -> None:
    """Let a model answer held-out cases, judge it, and write predictions, metrics and a report."""
    from medgrpo.config import load_config
    from medgrpo.evaluation.compare import evaluate_models
    from medgrpo.preparation import prepare
    from medgrpo.stages import contestants, locate, with_base

    config = load_config(profile, overrides or [])
    names = {"against": against, "evaluated": model} if against else {"evaluated": model}
    located = {name: locate(config, source) for name, source in names.items()}
    prepare(with_base(config, located["evaluated"]), out / "data")
    models = contestants(config, located)
    metrics = evaluate_models(config, out / "data", models, out, out / "answers", _show_answers)
    for name, source in names.items():
        _show_metrics(f"{name}: {source}", metrics["models"][name])
    for pair in metrics["comparisons"]:
        _show_comparison(pair, model, str(against))
    typer.echo(f"\nGate: {json.loads((out / 'gate.json').read_text())['summary']}\nReport: {out / 'report.html'}")


@app.command()
def answer(
    question: Annotated[str, typer.Option(help="A question of the kind that the model was trained on.")],
    context: Annotated[list[str], typer.Option(help="The text it is about, or a part of it; repeat the option.")],
    model: Annotated[Path, typer.Option(help="Directory of a trained model.")] = LATEST_MODEL,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cap on the answer's length in tokens.")] = 256,
    samples: Annotated[int, typer.Option(help="Sampled answers behind the confidence; 0 gives none.")] = 5,
    domain: Annotated[
        str | None, typer.Option(help="Domain that the model was trained on; unset, its run's, or that of abstracts.")
    ] = None,
) -> None:
    """Ask a trained model one question about a text: an abstract, or whatever its domain reads."""
    from medgrpo import domains
    from medgrpo.policies import load_model
    from medgrpo.serving import AnswerSettings
    from medgrpo.serving import answer as answer_rows

    if not (model / "config.json").is_file():
        raise InputError(
            f"{model} is not a model directory (no config.json). Train one with `make demo`, or give one with --model."
        )
    asked = domains.get(domain or _domain_of(model))
    weights, tokenizer = load_model(model)
    settings = AnswerSettings(max_new_tokens, samples=samples, domain=asked.name)
    reply = answer_rows(weights, tokenizer, [{"question": question, "contexts": context}], settings)[0]
    typer.echo(f"thought: {reply['thought'] or '(none)'}\nanswer:  {reply['verdict'] or '(unreadable)'}")
    if reply["confidence"] is not None:
        typer.echo(f"         {reply['confidence']:.0%} of {samples} sampled answers agree")
    for cited in reply["evidence"]:
        if not cited["supported"]:
            typer.echo(f"         not supported: {cited['quote']}")
    if asked.caution:
        typer.echo(asked.caution, err=True)


def _domain_of(model: Path) -> str:
    """The domain of the run whose model it is; that of abstracts where it lies in none."""
    from medgrpo.records import DEFAULT_DOMAIN

    settings = model.parent.parent / "config.json"
    if not settings.is_file():
        return DEFAULT_DOMAIN
    return str(json.loads(settings.read_text(encoding="utf-8")).get("data", {}).get("domain", DEFAULT_DOMAIN))


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(help="{PMID: verdict} as JSON, or rows with an id and a verdict as .jsonl or .csv.")
    ],
    ground_truth: Annotated[Path, typer.Option(help="The official test_ground_truth.json, or one of your own.")],
    against: Annotated[Path | None, typer.Option(help="Other predictions of the same records to compare with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Score predictions as PubMedQA's official scorer does, with intervals; compare two on the same records."""
    from medgrpo.config import EvaluationConfig
    from medgrpo.evaluation.predictions import read_predictions, score_predictions
    from medgrpo.jsonfiles import read_json_object

    files = {"against": against, "predictions": predictions} if against else {"predictions": predictions}
    read = {name: read_predictions(path) for name, path in files.items()}
    found = score_predictions(read, read_json_object(ground_truth), EvaluationConfig())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    official = found["models"]["predictions"]["official"]
    typer.echo(f"Accuracy {official['accuracy']:.6f}\nMacro-F1 {official['macro_f1']:.6f}")
    for name, path in files.items():
        _show_verdicts(str(path), found["models"][name])
    if found["comparison"]:
        _show_comparison(found["comparison"], str(predictions), str(against))


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
def export(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or the directory of a run.")],
    to: Annotated[Path, typer.Option(help="Where the files go: a new or empty directory.")],
    push: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="Also upload them to the Hugging Face Hub.")
    ] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Write a trained model as plain transformers files, compared with its adapter, with its model card."""
    from medgrpo import export as exporting
    from medgrpo.config import load_config

    if push:
        exporting.check_push(push)
    exported = exporting.export(model, to, load_config(profile, overrides or []))
    typer.echo(f"{to}: {exported.source}\nsha256 of the model's files: {exported.digest}")
    if exported.difference is None:
        typer.echo(f"not compared with its adapter: {exported.unchecked}")
    else:
        typer.echo(f"largest difference of a logit from base and adapter: {exported.difference:.1e}")
    if push:
        typer.echo(f"pushed: {exporting.push(to, push)}")


@app.command()
def clean(
    keep: Annotated[int, typer.Option(metavar="N", help="How many of the newest runs are kept.")] = 5,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only list what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a list.")] = False,
    profile: Annotated[str, typer.Option(help="Profile that names the runs directory.")] = "demo",
    overrides: SetOption = None,
) -> None:
    """List what old runs left in the runs directory, or remove it; registered versions are never touched."""
    from medgrpo import retention
    from medgrpo.config import load_config

    config = load_config(profile, overrides or [])
    plan = retention.clean(config, keep) if yes else retention.survey(config, keep)
    if as_json:
        typer.echo(json.dumps({**plan.as_dict(), "removed": yes}, indent=2))
        return
    for entry in (*plan.remove, *plan.left):
        place = entry.path.relative_to(plan.runs_dir)
        what = entry.kind if entry.goes else "left alone"
        typer.echo(f"{decimal(entry.bytes):>10}  {what:<10}  {place}: {entry.reason}")
    kept = f"Kept: {', '.join(plan.kept) or 'no run'}."
    total = f"{decimal(plan.bytes)} in {len(plan.remove)} place{'s' * (len(plan.remove) != 1)}"
    typer.echo(f"{kept}\nRemoved {total}." if yes else f"{kept}\nWould remove {total}; --yes does it.")


@app.command()
def memory(
    profile: Annotated[str, typer.Argument(help="Profile whose training is planned.")] = "demo",
    overrides: SetOption = None,
    free: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0, help="Memory that a CUDA device has free; unset, this machine."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What memory a training will take, part by part, and the largest group and length that fit."""
    from medgrpo.config import load_config
    from medgrpo.policies.backends import read_model_config
    from medgrpo.policies.fitting import Device, largest_fit, present_device, remedy
    from medgrpo.policies.memory import GB, plan_memory

    config = load_config(profile, overrides or [])
    model_config, device = read_model_config(config.policy), present_device(config.processes)
    if free is not None:
        device = Device(cuda=True, free=int(free * GB))
    plan = plan_memory(config, model_config, device.cuda)
    fit = largest_fit(config, model_config, device)
    if as_json:
        fits = {"free": device.free / GB, "fits": plan.peak <= device.free, **fit.__dict__}
        found = {**plan.in_gb(), **fits}
        typer.echo(json.dumps(found, indent=2))
        return
    _show_plan(plan)
    typer.echo(f"\nLargest phase: {plan.sentence()}.\n{device.sentence()} {fit.sentence()}")
    if plan.peak > device.free:
        typer.echo(f"It does not fit. {remedy(config, model_config, device)}")


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


def _show_plan(plan: "MemoryPlan") -> None:
    """GB of each part in each phase."""
    names = list(dict.fromkeys(name for parts in plan.phases.values() for name in parts))
    typer.echo(f"{'GB':<14}" + "".join(f"{phase:>10}" for phase in plan.phases))
    for name in names:
        sizes = (parts.get(name) for parts in plan.phases.values())
        typer.echo(f"{name:<14}" + "".join(f"{'' if size is None else f'{size / 1e9:.2f}':>10}" for size in sizes))
    sums = (sum(parts.values()) for parts in plan.phases.values())
    typer.echo(f"{'together':<14}" + "".join(f"{size / 1e9:>10.2f}" for size in sums))


def _show_answers(model: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    typer.echo(f"\r{model}: {done}/{total} answers{end}", err=True, nl=False)


def _show_audited(done: int, total: int) -> None:
    if done % 25 == 0 or done == total:
        typer.echo(f"\rattacked {done}/{total} records", err=True, nl=done == total)


def _show_metrics(title: str, metrics: dict[str, Any]) -> None:
    typer.echo(f"\n{title}")
    for label, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("strict form", "strict_form")):
        if key in metrics:
            typer.echo(_interval(label, metrics[key]))


def _show_verdicts(title: str, metrics: dict[str, Any]) -> None:
    typer.echo(f"\n{title}\n{_interval('accuracy', metrics['accuracy'])}\n{_interval('macro-F1', metrics['macro_f1'])}")
    for verdict, recall in metrics["recall"].items():
        typer.echo(_interval(f"recall {verdict}", recall))


def _interval(label: str, value: dict[str, Any]) -> str:
    return f"  {label:<12} {value['value']:.1%}  95 % {value['low']:.1%} to {value['high']:.1%}  n={value['n']}"


def _show_comparison(pair: dict[str, Any], name: str, other: str) -> None:
    """The difference of two sets of predictions, in points, and whether it can be told from chance."""
    typer.echo(f"\n{name} less {other}")
    for label, key in (("accuracy", "accuracy_difference"), ("macro-F1", "macro_f1_difference")):
        if key in pair:
            low, value, high = (100 * pair[key][part] for part in ("low", "value", "high"))
            typer.echo(f"  {label:<12} {value:+.1f} points  95 % {low:+.1f} to {high:+.1f}")
    typer.echo(
        f"  right in {pair['only_second']} that the other has wrong, wrong in {pair['only_first']} that it has right; "
        f"exact McNemar p = {pair['p_value']:.3g}"
    )
