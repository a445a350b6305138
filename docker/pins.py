"""What an image installs (`requirements`), and whether it got exactly that (`check`)."""

import argparse
import importlib.metadata
import importlib.util
import re
import runpy
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Literal

# pip comes with the base image; the project is what is installed.
UNPINNED = {"pip", "medgrpo"}
CUDA = re.compile("(cuda|nvidia)-|triton$")


def requirements(pyproject: Path, extra: str | None = None) -> list[str]:
    """The project's dependencies, or those of one extra alone.

    They are installed before the project is copied, so that a change to its code does not install them again.

    Raises:
        SystemExit: the project has no such extra.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    if extra is None:
        return list(project["dependencies"])
    extras = project["optional-dependencies"]
    if extra not in extras:
        sys.exit(f"{pyproject} has no extra {extra!r}. Name one of: {', '.join(extras)}.")
    return list(extras[extra])


def pins(constraints: Path) -> dict[str, str]:
    """The pinned version of each distribution, by its normalized name."""
    found = re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {_normalized(name): version for name, version in found}


def deviations(pinned: dict[str, str], installed: Iterable[Distribution], cuda: bool = False) -> list[str]:
    """What was installed in another version than pinned, or without a pin.

    With `cuda`, the libraries of torch's CUDA build need none: torch names their versions itself.
    """
    sentences = []
    for distribution in sorted(installed, key=lambda found: _normalized(found.name)):
        name, version = _normalized(distribution.name), distribution.version
        # A local version names the build (2.13.0+cpu), which `torch_build` judges.
        if name in pinned and version.partition("+")[0] != pinned[name]:
            sentences.append(f"{name} {version} is installed, {pinned[name]} is pinned")
        if name not in pinned and name not in UNPINNED and not (cuda and CUDA.match(name)):
            sentences.append(f"{name} {version} is installed, and nothing pins it")
    return sentences


def torch_build() -> Literal["cpu", "cuda", "none"]:
    """What the installed torch was built for, read without importing it: its import takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    return "cuda" if runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"] else "cpu"


def check(constraints: Path, torch: str) -> None:
    """Stop the build unless the environment is the pinned one.

    Raises:
        SystemExit: with a line for each deviation.
    """
    sentences = deviations(pins(constraints), importlib.metadata.distributions(), cuda=torch == "cuda")
    if (built := torch_build()) != torch:
        sentences.append(f"torch is built for {built!r}, expected {torch!r}: see the build argument TORCH_INDEX")
    if sentences:
        sys.exit("\n".join(["The environment is not the pinned one:", *sentences]))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("requirements", help="print what is to be installed, a line each")
    listing.add_argument("pyproject", type=Path)
    listing.add_argument("extra", nargs="?")
    checking = commands.add_parser("check", help="stop unless what is installed is what is pinned")
    checking.add_argument("constraints", type=Path)
    checking.add_argument("--torch", choices=["cpu", "cuda", "none"], required=True)
    given = parser.parse_args()
    if given.command == "requirements":
        sys.stdout.write("\n".join(requirements(given.pyproject, given.extra)) + "\n")
    else:
        check(given.constraints, given.torch)


if __name__ == "__main__":
    main()
