"""The medgrpo command: bad input ends in its sentence and exit code 2, never in a traceback."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medgrpo import cli, doctor
from medgrpo.doctor import Finding
from medgrpo.policies import embedded
from medgrpo.policies.embedded import EMBEDDED_CONFIG
from medgrpo.testing import tiny_policy

Run = Callable[..., tuple[int, str, str]]
TRUTH = {"1": "yes", "2": "no", "3": "maybe"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in an empty directory; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medgrpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write(tmp_path / "truth.json", TRUTH)


def test_help_is_quick_and_light() -> None:
    """`medgrpo --help` names the commands, and loads none of the heavy libraries."""
    code = (
        "import sys\nfrom medgrpo.cli import main\nsys.argv = ['medgrpo', '--help']\n"
        "try:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'mlflow', 'prefect', 'datasets') if m in sys.modules])\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 10
    assert done.stdout.strip().endswith("[]")
    assert all(command in done.stdout for command in ("evaluate", "answer", "score", "audit", "doctor"))


def test_process_ends_without_traceback(tmp_path: Path, truth: Path) -> None:
    """As a process too, bad input is a sentence on standard error and exit code 2."""
    command = [sys.executable, "-c", "from medgrpo.cli import main; main()"]
    arguments = ["score", str(tmp_path / "none.json"), "--ground-truth", str(truth)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'none.json'}: no such file")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_score(run: Run, truth: Path, tmp_path: Path) -> None:
    """Scoring prints accuracy and macro-F1 as the official scorer does."""
    code, out, _ = run("score", write(tmp_path / "p.json", TRUTH | {"3": "no"}), "--ground-truth", truth)
    assert code == 0
    official, _, rest = out.partition("\n\n")
    assert official == "Accuracy 0.666667\nMacro-F1 0.555556"
    assert "  accuracy     66.7%  95 % 20.8% to 93.9%  n=3\n" in rest
    assert "  recall maybe 0.0%" in rest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "p.jsonl",
            '{"id": "1", "verdict": "yes"}\n{"pmid": 2, "Prediction": "no"}\n{"pubid": "3", "verdict": null}\n',
        ),
        ("p.csv", "PMID,verdict\n1,yes\n2, no\n3,\n"),
    ],
)
def test_score_rows(run: Run, truth: Path, tmp_path: Path, name: str, text: str) -> None:
    """Rows of anyone's file are scored too; an empty verdict is an unreadable answer, and wrong."""
    (tmp_path / name).write_text(text)
    code, out, _ = run("score", tmp_path / name, "--ground-truth", truth)
    assert code == 0
    assert out.startswith("Accuracy 0.666667\nMacro-F1 0.666667\n")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("p.jsonl", '{"id": "1"}\n', "line 1 holds id; expected one of verdict"),
        ("p.jsonl", '{"id": "1", "verdict": "yes"}\nno\n', "line 2 is not JSON"),
        ("p.jsonl", "[1]\n", "line 1 is '[1]'; expected an object"),
        ("p.jsonl", '{"id": 1, "verdict": "yes"}\n' * 2, "line 2: record 1 stands there twice"),
        pytest.param("p.jsonl", "[" * 100_000, "line 1 is not JSON", id="deep"),
        ("p.jsonl", "\n", "holds no predictions"),
        pytest.param("p.csv", f"id,verdict\n1,{'y' * 200_000}\n", "no CSV (field larger than", id="huge field"),
        ("p.csv", "a,b\n1,yes\n", "line 2 holds a, b; expected one of id, pmid, pubid"),
        ("p.csv", "id,verdict\n1,perhaps\n2,no\n3,maybe\n", "record 1: prediction is 'perhaps'"),
    ],
)
def test_score_bad_rows(run: Run, truth: Path, tmp_path: Path, name: str, text: str, part: str) -> None:
    """A row without an id or a verdict, a row twice, or no rows at all: said with file and line."""
    (tmp_path / name).write_text(text)
    code, out, err = run("score", tmp_path / name, "--ground-truth", truth)
    assert (code, out) == (2, "")
    assert part in err


def test_score_against(run: Run, truth: Path, tmp_path: Path) -> None:
    """Two files are compared on the same records, in points with an interval and a paired test; all of it as JSON."""
    mine, other = write(tmp_path / "mine.json", TRUTH), write(tmp_path / "other.json", TRUTH | {"1": "no", "2": "yes"})
    code, out, _ = run("score", mine, "--ground-truth", truth, "--against", other)
    assert code == 0
    assert "  accuracy     +66.7 points" in out
    assert "right in 2 that the other has wrong, wrong in 0 that it has right; exact McNemar p = 0.5" in out
    code, out, _ = run("score", mine, "--ground-truth", truth, "--against", other, "--json")
    found = json.loads(out)
    assert found["models"]["predictions"]["official"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert (found["comparison"]["only_second"], found["comparison"]["first"]) == (2, "against")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "p.json: ends in the middle"),
        ("{", "p.json: ends in the middle"),
        ("yes", "p.json: is not JSON"),
        (["yes"], "p.json: expected a JSON object"),
        ({}, "p.json: expected a JSON object"),
        ('{"1": "yes", "1": "no"}', "p.json: '1' stands there twice"),
        ({"1": "yes"}, "2 missing"),
        (TRUTH | {"4": "yes"}, "1 unknown (for example 4)"),
        (TRUTH | {"2": "perhaps"}, "record 2: prediction is 'perhaps'; expected yes, no or maybe"),
    ],
)
def test_score_bad_predictions(run: Run, truth: Path, tmp_path: Path, content: object, part: str) -> None:
    """Predictions that are unreadable, incomplete or of unknown verdicts are refused in a sentence."""
    code, out, err = run("score", write(tmp_path / "p.json", content), "--ground-truth", truth)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert part in err


def test_score_directory(run: Run, truth: Path, tmp_path: Path) -> None:
    """A directory given as predictions is said to be one."""
    code, _, err = run("score", tmp_path, "--ground-truth", truth)
    assert code == 2
    assert f"{tmp_path} is a directory" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--profile", "dmo"], "unknown profile 'dmo'; did you mean 'demo' or 'smoke'?"),
        (["--profile", "none.toml"], "none.toml: no such profile file"),
        (["--set", "grpo.stepz=1"], "unknown setting 'grpo.stepz'; did you mean 'steps'"),
        (["--set", "data.fold=77"], "setting 'data.fold' is 77"),
        (["--set", "data.domain=pubmedqa", "--set", "data.path=none.json"], "none.json: no such file"),
        (["--set", "data.domain=pubmedqa", "--set", "data.path=."], "is a directory; expected a file"),
        (["--set", "data.domain=pubmedqa", "--set", "data.path=bad.json"], "bad.json: is not JSON"),
        (["--set", "data.path=bad.json"], "set data.domain=pubmedqa"),
        (["--set", "data.synthetic_pool=3"], "train holds no record with the verdict"),
    ],
)
def test_evaluate_bad_input(run: Run, tmp_path: Path, arguments: list[str], part: str) -> None:
    """Bad profiles, settings, data and models end in a sentence and exit code 2, with nothing written."""
    write(tmp_path / "bad.json", "not json")
    code, out, err = run("evaluate", "some/model", *arguments)
    assert (code, out) == (2, "")
    assert part in err
    assert not (tmp_path / "evaluation").exists()


def test_audit_shows_what_attacks_earn(run: Run) -> None:
    """A table by kind of attack, weakest defence first, and the share of the maximum that gold completions earn."""
    code, out, _ = run("audit", "demo", "--set", "data.synthetic_pool=60")
    assert code == 0
    columns = "attack records worst margin median margin reaches gold wrong above right"
    assert " ".join(out.split("\n")[0].split()) == columns
    assert "pasted abstract" in out
    assert "Gold completions earn at least 100% of the maximum." in out


def test_audit_of_rewards_with_a_hole_shows_it(run: Run) -> None:
    """Where thoughts are not paid for, empty praise earns as much as gold: said with an example, exit code 2."""
    code, out, err = run(
        "audit", "--set", "data.synthetic_pool=60", "--set", "rewards.grounding=0", "--set", "rewards.agreement=0"
    )
    assert code == 2
    assert "<thought>This reasoning is careful" in out
    assert "the rewards can be gamed" in err


def test_audit_bad_input(run: Run) -> None:
    """A profile that does not exist is a sentence."""
    code, _, err = run("audit", "dmo")
    assert (code, "did you mean 'demo'" in err) == (2, True)


@pytest.mark.parametrize("arguments", [["./none"], ["some/model", "--against", "./none"]])
def test_evaluate_without_a_model(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    """A model that is none, on either side of a comparison, is refused before any data is prepared."""
    code, _, err = run("evaluate", *arguments)
    assert code == 2
    assert "'./none' is not a directory" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_evaluate_unreachable_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub model that cannot be fetched ends in a sentence and exit code 2."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = run("evaluate", "some-org/not-cached", "--set", "data.synthetic_pool=60")
    assert code == 2
    assert "'some-org/not-cached' is neither cached nor reachable" in err


@pytest.mark.slow
def test_evaluate_no_space_for_the_cache(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full cache disk ends in a sentence and exit code 2."""

    def full(source: Path, directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MEDGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "find_embedded", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded, "_convert_gguf", full)
    code, _, err = run("evaluate", "smollm2-135m-instruct", "--set", "data.synthetic_pool=60")
    assert code == 2
    assert f"no space left on the disk of {tmp_path / 'cache'}" in err


@pytest.mark.parametrize("arguments", [[], ["--model", "none"], ["--model", "file"]])
def test_answer_without_a_model(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    """Without a trained model the sentence says how to get one."""
    write(tmp_path / "file", "")
    code, _, err = run("answer", "--question", "Does it?", "--context", "It did.", *arguments)
    assert code == 2
    assert "is not a model directory" in err
    assert "make demo" in err


@pytest.mark.slow
def test_answer(run: Run, tmp_path: Path) -> None:
    """An answer is printed as thought and verdict, with the note that it is no medical advice beside it."""
    code, out, err = run(
        "answer", "--question", "Does it?", "--context", "It did.", "--context", "It helped.",
        "--model", tiny_policy(tmp_path / "tiny"), "--max-new-tokens", 4,
    )  # fmt: skip
    assert code == 0
    assert [line.split(":")[0] for line in out.strip().splitlines() if ":" in line][-1] == "answer"
    assert "Not medical advice." in err


def test_a_model_is_asked_as_its_run_asks(tmp_path: Path) -> None:
    """A model in a run's directory is of that run's domain; one from elsewhere is of abstracts."""
    model = tmp_path / "train" / "model"
    assert cli._domain_of(model) == "synthetic"
    for written, domain in (('{"model_type": "llama"}', "synthetic"), ('{"data": {"domain": "gsm8k"}}', "gsm8k")):
        (tmp_path / "config.json").write_text(written)
        assert cli._domain_of(model) == domain


@pytest.mark.slow
@pytest.mark.parametrize(("question", "context"), [("", "It did."), ("Does it?", " ")])
def test_answer_to_nothing(run: Run, tmp_path: Path, question: str, context: str) -> None:
    """An empty question or abstract is refused in a sentence."""
    code, _, err = run(
        "answer", "--question", question, "--context", context, "--model", tiny_policy(tmp_path / "tiny")
    )
    assert code == 2
    assert "error: " in err


def test_usage_errors(run: Run) -> None:
    """A missing or unknown option ends in exit code 2, before anything is read."""
    assert run("score", "p.json")[0] == 2
    assert run("answer", "--question", "Does it?")[0] == 2
    assert run("evaluate", "some/model", "--sett", "a=b")[0] == 2


@pytest.mark.parametrize(("state", "expected"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_doctor(run: Run, state: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor lists what it found, as a table or as JSON, and fails only where nothing can be trained."""
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("memory", state, "16 GB")])  # type: ignore[arg-type]
    code, out, _ = run("doctor")
    assert code == expected
    assert out.split() == [state, "memory", "16", "GB"]
    assert json.loads(run("doctor", "--json")[1]) == [{"name": "memory", "state": state, "detail": "16 GB"}]


def test_memory_on_a_device(run: Run) -> None:
    """The plan of a profile is a table of parts and phases, with what fits into so much memory."""
    code, out, _ = run("memory", "demo", "--free", "15")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.partition("\n\n")[0].splitlines()}
    assert rows["GB"] == ["warm-up", "rollout", "loss"], "the merge is on the processor"
    assert rows["runtime"] == ["0.50"] * 3
    assert len(rows["together"]) == 3
    assert "The CUDA device has 15.0 GB free. The largest grpo.group_size that fits is" in out
    assert "It does not fit" not in out


def test_memory_that_is_too_little(run: Run) -> None:
    """Where the plan does not fit, the command says what to set, for people and for programs."""
    code, out, _ = run("memory", "demo", "--free", "3", "--set", "grpo.group_size=8")
    assert code == 0
    assert "It does not fit. It fits with --set " in out
    found = json.loads(run("memory", "demo", "--free", "3", "--json")[1])
    assert found["fits"] is False
    assert found["free"] == 3
    assert found["peak"] == pytest.approx(sum(found["phases"][found["largest"]].values()), abs=0.01)


def test_memory_of_this_machine(run: Run) -> None:
    """Without --free it is this machine's memory that counts, and a model of one's own is read from its directory."""
    write(Path("config.json"), {**EMBEDDED_CONFIG, "num_hidden_layers": 1})
    code, out, _ = run("memory", "demo", "--set", "policy.base=.")
    assert code == 0
    assert "GB free." in out


@pytest.mark.parametrize(
    ("base", "words"), [("./none", "is not a directory"), ("some-org/not-cached", "neither cached nor reachable")]
)
def test_memory_of_a_model_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch, base: str, words: str) -> None:
    """A directory or a Hugging Face id that cannot be read ends in its sentence."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = run("memory", "demo", "--free", "15", "--set", f"policy.base={base}")
    assert code == 2
    assert words in err
