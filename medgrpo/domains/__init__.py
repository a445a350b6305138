"""Domains: one file per dataset, and the one door through which a run gets its records."""

from pathlib import Path

from medgrpo.config import DataConfig
from medgrpo.domains import pubmedqa
from medgrpo.errors import InputError
from medgrpo.records import Corpus, Record, split_pool, verdict_counts


def load_corpus(config: DataConfig) -> Corpus:
    """The records of the configured domain, split into train, dev and test.

    Raises:
        InputError: unusable input, an empty split, or a verdict that train has no record of.
        ServiceUnreachable: the Hub did not answer.
    """
    corpus = _LOADERS[config.domain](config)
    train, dev = split_pool(corpus.split("train"), config.fold, config.split_seed)
    corpus = corpus.model_copy(
        update={"splits": {"train": tuple(train), "dev": tuple(dev), "test": corpus.splits["test"]}}
    )
    _require_all_verdicts(corpus)
    return corpus


def read_labelled(config: DataConfig, path: Path) -> list[Record]:
    """The labelled records of a further file in the form of the configured domain's.

    Raises:
        InputError: unusable input, or a domain that has no files.
    """
    if config.domain == "synthetic":
        raise InputError(
            f"{path} cannot be read: data.domain is 'synthetic', whose records are generated. Leave the file out, or "
            "set data.domain=pubmedqa."
        )
    return list(pubmedqa.read_records(path).values())


def _load_pubmedqa(config: DataConfig) -> Corpus:
    if config.path:
        return pubmedqa.load(config.path, config.ground_truth)
    if config.ground_truth:
        raise InputError(
            "data.ground_truth is set, but data.path is not, so it would be ignored: set data.path=PATH/ori_pqal.json, "
            "or leave both out to use the Hugging Face Hub."
        )
    return pubmedqa.load_from_hub(config.hub_id, config.hub_revision)


def _load_synthetic(config: DataConfig) -> Corpus:
    if config.path or config.ground_truth:
        raise InputError(
            "data.path is set, but data.domain is 'synthetic', which is generated: set data.domain=pubmedqa."
        )
    from medgrpo.domains import synthetic

    pool, test = synthetic.load(config.synthetic_pool, config.synthetic_test, config.synthetic_seed)
    return Corpus(
        name="synthetic",
        records={record.id: record for record in [*pool, *test]},
        splits={"train": tuple(r.id for r in pool), "dev": (), "test": tuple(r.id for r in test)},
        synthetic=True,
    )


def _require_all_verdicts(corpus: Corpus) -> None:
    for split, ids in corpus.splits.items():
        if not ids:
            raise InputError(f"{corpus.name}: the {split} split is empty. Give more records or another fold.")
    missing = [verdict for verdict, count in verdict_counts(corpus.split("train")).items() if not count]
    if missing:
        raise InputError(
            f"{corpus.name}: train holds no record with the verdict {' or '.join(missing)}, "
            "so the model could never learn it. Give more records or another fold."
        )


_LOADERS = {"pubmedqa": _load_pubmedqa, "synthetic": _load_synthetic}
