"""The served model: the evaluation's answers, with confidence and evidence, in Python and over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medgrpo import registry, serving
from medgrpo.completions import VERDICTS
from medgrpo.config import EvaluationConfig, GrpoConfig
from medgrpo.domains.abstracts import EXAMPLE
from medgrpo.errors import InputError
from medgrpo.manifests import describe
from medgrpo.registry.versions import SERVED_WITH
from medgrpo.serving import AnswerSettings, answer
from medgrpo.testing import talking_policy

GREEDY = AnswerSettings(max_new_tokens=6)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"contexts": ["a"]}, "'question' is None, expected a non-empty text"),
        ({"question": " ", "contexts": ["a"]}, "'question' is ' '"),
        ({"question": "q", "contexts": []}, r"'contexts' is \[\], expected a list of at least one"),
        ({"question": "q", "contexts": "one string"}, "'contexts' is 'one string'"),
        ({"question": "q", "contexts": ["a", None]}, "'contexts' is"),
        ({"question": "q", "contexts": ["a" * 200_000]}, "question and abstract have 200001 characters"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, object], found: str) -> None:
    """A row that is no question with an abstract is refused with its number, in a message of bounded length."""
    with pytest.raises(InputError, match=f"^row 2: {found}") as refusal:
        answer(None, None, [EXAMPLE, row], GREEDY)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("samples", [-1, 101])
def test_an_impossible_number_of_samples_is_refused(samples: int) -> None:
    """A request can neither ask for less than none nor keep the model busy for ever."""
    with pytest.raises(InputError, match=f"samples is {samples}; expected a number from 0 to 100"):
        answer(None, None, [EXAMPLE], replace(GREEDY, samples=samples))


SECTIONS = ["METHODS: 120 adults walked\nor not.", "RESULTS: Heart rate fell by 6 beats per minute with walking."]


def test_a_reply_shows_where_each_citation_stands() -> None:
    """Figures and phrases come with their section and the abstract's words; an invented figure has none."""
    text = "<thought>Of 120 adults, heart rate fell by 6 beats per minute, and 99 died.</thought><answer>yes</answer>"
    reply = serving.reply("Does walking help?", SECTIONS, [text])
    assert (reply["verdict"], reply["confidence"]) == ("yes", None)
    assert [tuple(cited.values()) for cited in reply["evidence"]] == [
        ("120", "figure", True, 0, "120"),
        ("heart rate fell by 6 beats per minute", "phrase", True, 1, "Heart rate fell by 6 beats per minute"),
        ("6", "figure", True, 1, "6"),
        ("99", "figure", False, None, None),
    ]
    assert list(reply["evidence"][0]) == ["quote", "kind", "supported", "section", "source"]


@pytest.mark.parametrize(
    ("sampled", "confidence"),
    [(["yes", "yes", "no", "mumble"], 0.5), (["no"], 0.0), (["yes"] * 3, 1.0), ([], None)],
)
def test_confidence_is_the_share_of_samples_with_the_same_verdict(sampled: list[str], confidence: float | None) -> None:
    """An unreadable sample agrees with nothing, and without samples there is no confidence."""
    assert serving.reply("q", ["a"], ["yes", *sampled])["confidence"] == confidence


def test_an_unreadable_answer_has_neither_verdict_nor_confidence() -> None:
    """What says nothing cannot be sure of it, however often it is said."""
    reply = serving.reply("q", ["a"], ["mumble", "mumble"])
    assert reply == {"verdict": None, "confidence": None, "thought": "", "evidence": []}


# --- as MLflow loads it

ROWS = [EXAMPLE, {"question": "Is it so?", "contexts": ["It fell by 6 points (p=0.01)."]}]

LOAD = """
import builtins, json, sys
import mlflow
sys.path[:] = [entry for entry in sys.path if entry != sys.argv[3]]
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
imported, real = set(), builtins.__import__

def record(name, globals=None, locals=None, fromlist=(), level=0):
    if "mlartifacts" in str((globals or {}).get("__file__")) and not level:
        imported.add(name.partition(".")[0])
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = record
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = json.loads(sys.stdin.read())
predicted = [model.predict(rows), model.predict(rows), model.predict(rows, params={"samples": 0})]
import medgrpo
from importlib import metadata
owners = metadata.packages_distributions()
foreign = imported - set(sys.stdlib_module_names) - {"medgrpo"}
needed = {owner for name in foreign for owner in owners.get(name, [name])}
print(json.dumps({"code": medgrpo.__file__, "predicted": predicted, "needed": sorted(needed)}))
"""


@pytest.mark.slow
def test_a_version_answers_where_medgrpo_is_not_installed(
    candidate: registry.Candidate, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loaded elsewhere from its own copy of the code, a version answers what the library answers, each time the same.

    All that this code imports is installed with the version's requirements.
    """
    from medgrpo.policies import load_model

    done = _register(candidate, tmp_path / "model")
    runs, project = candidate.config.runs_dir, str(Path(serving.__file__).parents[1])
    command = [sys.executable, "-P", "-c", LOAD, f"sqlite:///{runs}/mlflow.db", done.uri, project]
    process = subprocess.run(
        command,
        input=json.dumps(ROWS),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["code"].startswith(str(runs / "mlartifacts"))
    model, tokenizer = load_model(tmp_path / "model")
    settings = AnswerSettings(max_new_tokens=1, samples=7, seed=candidate.config.evaluation.seed)
    expected = answer(model, tokenizer, ROWS, settings)
    assert all(0 < row["confidence"] < 1 for row in expected)
    assert result["predicted"] == [expected, expected, [{**row, "confidence": None} for row in expected]]
    assert {"torch", "transformers", "rapidfuzz"} <= (needed := set(map(canonicalize_name, result["needed"])))
    assert needed <= _installed_with(SERVED_WITH)


def _installed_with(names: Iterable[str]) -> set[str]:
    """Distributions that pip installs with some others, markers that do not hold left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in metadata.requires(name) or []]
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


# --- over HTTP


@pytest.fixture(scope="module")
def champion(
    tmp_path_factory: pytest.TempPathFactory, new_candidate: Callable[[Path], registry.Candidate]
) -> Iterator[str]:
    """Address of `mlflow models serve` with a champion."""
    directory = tmp_path_factory.mktemp("champion")
    candidate = new_candidate(directory)
    done = _register(candidate, directory / "talking")
    client = registry.connect(candidate.config)
    client.set_registered_model_alias(done.name, registry.CHAMPION, str(done.version))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{done.name}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_TRACKING_URI": f"sqlite:///{candidate.config.runs_dir}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (directory / "serve.log").open("wb") as log:
        # A session of its own: the command starts a server, and both have to go.
        server = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/ping", server, directory / "serve.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _wait(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text())


def _post(address: str, body: bytes) -> tuple[int, Any]:
    """Status and content of the reply to a POST of JSON."""
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
def test_the_champion_answers_over_http(champion: str) -> None:
    """`mlflow models serve` gives verdict, confidence, thought and evidence, the same to the same request."""
    body = json.dumps({"inputs": ROWS}).encode()
    status, content = _post(champion, body)
    assert status == 200
    first, second = content["predictions"]
    assert list(first) == ["verdict", "confidence", "thought", "evidence"]
    assert first["verdict"] in ("yes", "no", "maybe")
    assert first["confidence"] in [share / 7 for share in range(8)]
    assert {(cited["quote"], cited["supported"], cited["section"]) for cited in second["evidence"]} == {
        ("It fell by 6", True, 0),
        ("6", True, 0),
        ("99", False, None),
    }
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: _post(champion, body), range(4)))
    assert again == [(200, content)] * 4
    records = json.dumps({"dataframe_records": ROWS, "params": {"samples": 0}}).encode()
    unsure = [{**row, "confidence": None} for row in content["predictions"]]
    assert _post(champion, records) == (200, {"predictions": unsure})


GOOD = ROWS[1]
LONG = "It fell. " * 1_200_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"{", "Ensure that input is a valid JSON formatted string"),
        (b"[]", "Received a list"),
        (b"{}", "The input must be a JSON dictionary with exactly one of the input fields"),
        ({"inputs": [{"question": "Is it?"}]}, "contexts"),
        ({"inputs": [{"contexts": ["It is."]}]}, "question"),
        ({"inputs": [{**GOOD, "question": " "}]}, "row 1: 'question' is ' ', expected a non-empty text."),
        ({"inputs": [GOOD, {**GOOD, "contexts": []}]}, "row 2: 'contexts' is"),
        ({"inputs": [{**GOOD, "question": 5}]}, "row 1: 'question' is 5, expected a non-empty text."),
        ({"inputs": [{**GOOD, "question": None}]}, "row 1: 'question' is None, expected a non-empty text."),
        ({"inputs": [{**GOOD, "contexts": "It fell."}]}, "row 1: 'contexts' is 'It fell.', expected a list of"),
        ({"inputs": [{**GOOD, "contexts": ["It fell.", None]}]}, "row 1: 'contexts' is ['It fell.', None]"),
        ({"dataframe_records": [{**GOOD, "question": 5}]}, "row 1: 'question' is 5"),
        ({"inputs": [GOOD], "params": {"samples": -1}}, "samples is -1; expected a number from 0 to 100."),
        ({"inputs": [GOOD], "params": {"samples": "many"}}, "samples"),
        ({"inputs": [{**GOOD, "contexts": ["It fell. " * 1000]}]}, "the model reads at most"),
        ({"inputs": [{**GOOD, "contexts": [LONG]}]}, "and at most 200000 are read. Send one abstract."),
        ({"dataframe_split": 5}, "Dataframe split format must be a dictionary"),
        ({"inputs": 5}, "Model is missing inputs ['question', 'contexts']"),
        ({"inputs": []}, "Model is missing inputs ['question', 'contexts']"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_request_gets_a_sentence(champion: str, body: bytes | Mapping[str, Any], found: str) -> None:
    """Whatever is wrong with a request, the reply is 400 with a message that says so, and the server goes on."""
    status, content = _post(champion, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert status == 400, content
    assert found in content["message"]
    assert "Traceback" not in json.dumps(content)


def _register(candidate: registry.Candidate, directory: Path) -> registry.Registration:
    """Register a model that says something."""
    changes = {"grpo": GrpoConfig(max_completion_length=1), "evaluation": EvaluationConfig(samples=7)}
    model = talking_policy(directory, *VERDICTS)
    digest = describe(model).sha256
    config = candidate.config.model_copy(update=changes)
    return registry.register(replace(candidate, config=config, model_dir=model, model_digest=digest))
