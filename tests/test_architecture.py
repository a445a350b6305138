"""The house has four storeys and imports go down only: read from the sources, not from what happens to be imported."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgrpo.config import RunConfig, load_config, profile_names

ROOT = Path(__file__).parents[1]
STOREYS = ("medgrpo", "tasks", "flows", "deployments")
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "mlflow"}
MAX_FUNCTION_LINES = 60
# Generous: the aim is half a second on an idle machine, and tests may run beside a training.
HELP_SECONDS = 10


def _sources(storey: str) -> list[Path]:
    return sorted((ROOT / storey).rglob("*.py"))


SOURCES = [path for storey in STOREYS for path in _sources(storey)]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """The packages that some nodes import, by their first name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but bodies of functions and `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_import(node)


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_storey_is_read() -> None:
    """The three storeys with code are found, so that the other tests here are about something."""
    assert all(len(_sources(storey)) > 1 for storey in ("medgrpo", "tasks", "flows"))


@pytest.mark.parametrize(
    ("storey", "forbidden"),
    [
        ("medgrpo", {"prefect", "tasks", "flows", "deployments"}),
        ("tasks", {"flows", "deployments"}),
        ("flows", {"deployments"}),
    ],
)
def test_imports_go_down_only(storey: str, forbidden: set[str]) -> None:
    """A storey imports nothing from above it, not even inside a function, and the library never imports Prefect."""
    climbing = {
        _name(path): found for path in _sources(storey) if (found := _imported(ast.walk(_tree(path))) & forbidden)
    }
    assert climbing == {}


@pytest.mark.parametrize("storey", ["flows", "tasks"])
def test_heavy_libraries_stay_inside_functions(storey: str) -> None:
    """Importing a flow or a task imports no library that takes seconds."""
    slow = {_name(path): found for path in _sources(storey) if (found := _imported(_at_import(_tree(path))) & HEAVY)}
    assert slow == {}


@pytest.mark.slow
def test_importing_the_flow_loads_no_heavy_library() -> None:
    """What the flows import in turn loads neither torch nor MLflow either, so a wrong setting shows up at once."""
    loaded = f"sorted({HEAVY!r} & sys.modules.keys())"
    done = _python("-c", f"import sys, flows.train_medgrpo, flows.retrain_medgrpo; print({loaded})")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_guard_against_heavy_imports_sees_through_conditions() -> None:
    """An import under `if` or `try` counts as one at import time; one in a function or for type checking does not."""
    source = """
try:
    import torch
except ImportError:
    pass
if TYPE_CHECKING:
    import mlflow
def f():
    import trl
"""
    assert _imported(_at_import(ast.parse(source))) & HEAVY == {"torch"}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_error_is_swallowed(path: Path) -> None:
    """Nothing says `except:` or `except Exception`, and `except BaseException` only tidies up and raises again."""
    handlers = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ExceptHandler)]
    assert [handler.lineno for handler in handlers if _swallows(handler)] == []


def _swallows(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    raises_again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return "Exception" in caught or ("BaseException" in caught and not raises_again)


@pytest.mark.parametrize(
    ("clause", "swallowed"),
    [
        ("except: pass", True),
        ("except Exception: raise", True),
        ("except (OSError, Exception): pass", True),
        ("except BaseException: pass", True),
        ("except BaseException: raise", False),
        ("except OSError: pass", False),
    ],
)
def test_the_guard_against_swallowed_errors_knows_them(clause: str, swallowed: bool) -> None:
    """The guard tells a handler that catches everything from one that does not, or that raises again."""
    [statement] = ast.parse(f"try: f()\n{clause}").body
    assert isinstance(statement, ast.Try)
    assert _swallows(statement.handlers[0]) is swallowed


@pytest.mark.parametrize("path", _sources("medgrpo"), ids=_name)
def test_the_library_does_not_print(path: Path) -> None:
    """The library reports through logging and callbacks; its command writes with typer."""
    calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_function_fits_a_screen(path: Path) -> None:
    """No function is longer than 60 lines."""
    functions = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f"{node.name}:{node.lineno}": int(node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", _sources("flows"), ids=_name)
def test_a_flow_reads_like_its_docstring(path: Path) -> None:
    """The body of a flow is under 30 lines."""
    flows = [
        node
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef) and any("flow" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    assert {flow.name: length for flow in flows if (length := _body_lines(flow)) >= 30} == {}


def _body_lines(function: ast.FunctionDef) -> int:
    return int(function.end_lineno or 0) - function.body[0].lineno + 1


@pytest.mark.parametrize("profile", profile_names())
def test_every_shipped_profile_is_a_complete_run(profile: str) -> None:
    """A shipped profile parses, and carries the name of its file."""
    config = load_config(profile)
    assert isinstance(config, RunConfig)
    assert config.profile == profile


def test_configuration_needs_neither_torch_nor_prefect() -> None:
    """Importing `medgrpo.config` in a fresh process loads neither torch nor Prefect nor MLflow."""
    done = _python(
        "-c", "import sys, medgrpo.config; print(sorted({'torch', 'prefect', 'mlflow'} & sys.modules.keys()))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_help_answers_at_once() -> None:
    """`medgrpo --help` names the commands without loading torch."""
    started = time.monotonic()
    done = _python(
        "-X", "importtime", "-c", "import sys; sys.argv = ['medgrpo', '--help']; import medgrpo.cli as c; c.main()"
    )
    assert done.returncode == 0
    assert {"evaluate", "answer", "score", "doctor"} <= set(done.stdout.replace("│", " ").split())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert imported & {*HEAVY, "prefect"} == set()
    assert time.monotonic() - started < HELP_SECONDS
