"""Domains: one file each with a `DOMAIN`, and the one door through which everything else reaches them."""

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from medgrpo.config import DataConfig
from medgrpo.errors import InputError
from medgrpo.records import Corpus, Record, split_pool, verdict_counts

if TYPE_CHECKING:
    from medgrpo.domains.domain import Domain

_DEFINES = re.compile(r"^DOMAIN\b[^=\n]*=(?!=)", re.M)


@cache
def get(name: str) -> "Domain":
    """The domain of a name, which is that of its file.

    Raises:
        InputError: there is none of this name.
    """
    if name not in names():
        raise InputError(f"{name!r} is no domain. Known: {', '.join(names())}.")
    domain: Domain = importlib.import_module(f"{__name__}.{name}").DOMAIN
    if domain.name != name:
        raise InputError(f"medgrpo/domains/{name}.py: the domain's name is {domain.name!r}; name it as its file.")
    return domain


def names() -> list[str]:
    """Names of all domains: of the files here that define a `DOMAIN`, none of which is imported for this."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _defines_domain(module))


def _defines_domain(module: pkgutil.ModuleInfo) -> bool:
    path = Path(str(getattr(module.module_finder, "path", ""))) / f"{module.name}.py"
    return path.is_file() and bool(_DEFINES.search(path.read_text(encoding="utf-8")))


def load_corpus(config: DataConfig) -> Corpus:
    """The records of the configured domain, split into train, dev and test.

    Raises:
        InputError: unusable input, an empty split, or a verdict that train has no record of.
        ServiceUnreachable: the Hub did not answer.
    """
    domain = get(config.domain)
    corpus = domain.load(config)
    train, dev = split_pool(corpus.split("train"), config.fold, config.split_seed, form=domain.form)
    corpus = corpus.model_copy(
        update={"splits": {"train": tuple(train), "dev": tuple(dev), "test": corpus.splits["test"]}}
    )
    _require_all_classes(corpus, domain)
    return corpus


def read_labelled(config: DataConfig, path: Path) -> list[Record]:
    """The labelled records of a further file in the form of the configured domain's.

    Raises:
        InputError: unusable input, or a domain that has no files.
    """
    read = get(config.domain).read_labelled
    if read is None:
        others = " or ".join(f"data.domain={name}" for name in names() if get(name).read_labelled)
        raise InputError(
            f"{path} cannot be read: data.domain is {config.domain!r}, whose records are generated. Leave the file "
            f"out, or set {others}."
        )
    return read(path)


def _require_all_classes(corpus: Corpus, domain: "Domain") -> None:
    for split, ids in corpus.splits.items():
        if not ids:
            raise InputError(f"{corpus.name}: the {split} split is empty. Give more records or another fold.")
    counts = verdict_counts(corpus.split("train"), domain.form)
    missing = [verdict for verdict, count in counts.items() if not count]
    if missing:
        raise InputError(
            f"{corpus.name}: train holds no record with the {domain.form.kind} {' or '.join(missing)}, "
            "so the model could never learn it. Give more records or another fold."
        )
