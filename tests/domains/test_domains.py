"""The one door through which a run gets its records."""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgrpo import domains
from medgrpo.config import DataConfig
from medgrpo.domains import load_corpus
from medgrpo.errors import InputError
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import digest
from medgrpo.rewards import score_completion

ROOT = Path(domains.__file__).parents[2]
NAMED = ("pubmedqa", "gsm8k")
# Of the code before there were other domains than these two.
PINNED = {
    "digest": "1e376c84e22cc7e895a147845a0a47f4b877a20ab2a1ff5c2e880773b3cb205e",
    "prompts": "ecd95b1434ec587f0caf0c7bfe3e038bfe67c6be5aff6e6e6127a4a07ea85607",
    "golds": "a3f9264da578e4a6f66594547a9cd590f31713ec00ebdc49cd464eb9c4adae9a",
    "paid": "3c31eaa5c7c7918bd92c38a73c86e0c8f994b89c5e7c16673a2f38c99184027e",
}


def pqal(directory: Path, pool: str, test: str = "yn") -> DataConfig:
    """Settings for invented records whose verdicts are given by their initials."""
    verdicts = {"y": "yes", "n": "no", "m": "maybe"}
    records = {
        str(i): {
            "QUESTION": f"Is invented question {i} answered?",
            "CONTEXTS": [f"Of {i + 10} people some said so."],
            "final_decision": verdicts[initial],
            "LONG_ANSWER": "Nobody can tell from this.",
        }
        for i, initial in enumerate(pool + test)
    }
    truth = {i: records[i]["final_decision"] for i in list(records)[len(pool) :]}
    (directory / "ori_pqal.json").write_text(json.dumps(records))
    (directory / "truth.json").write_text(json.dumps(truth))
    return DataConfig(domain="pubmedqa", path=directory / "ori_pqal.json", ground_truth=directory / "truth.json")


def sentence(config: DataConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_corpus(config)
    return str(caught.value)


def test_synthetic_corpus_is_labelled_and_split() -> None:
    """Synthetic records say that they are synthetic, and fall into three splits without overlap."""
    corpus = load_corpus(DataConfig(synthetic_pool=60, synthetic_test=30))
    assert corpus.synthetic
    assert all(record.synthetic for record in corpus.records.values())
    sizes = {name: len(ids) for name, ids in corpus.splits.items()}
    assert (sizes["train"] + sizes["dev"], sizes["test"]) == (60, 30)
    assert len(set().union(*corpus.splits.values())) == 90


def test_same_settings_same_corpus() -> None:
    """The same settings give the same records in the same splits."""
    config = DataConfig(synthetic_pool=60, synthetic_test=30)
    assert load_corpus(config) == load_corpus(config)


def test_folds_change_dev_and_never_test(tmp_path: Path) -> None:
    """Another fold holds out other records of the pool; the test split stays."""
    config = pqal(tmp_path, "ynm" * 10)
    first, second = (load_corpus(config.model_copy(update={"fold": fold})) for fold in (0, 1))
    assert first.splits["test"] == second.splits["test"] == ("30", "31")
    assert not set(first.splits["dev"]) & set(second.splits["dev"])


@pytest.mark.parametrize(
    ("pool", "part"),
    [("ynm", "train split is empty"), ("yn" * 10, "no record with the verdict maybe"), ("y" * 20, "no or maybe")],
)
def test_unlearnable_pools(tmp_path: Path, pool: str, part: str) -> None:
    """A pool too small to split, or without records of a verdict, is refused with what to do."""
    text = sentence(pqal(tmp_path, pool))
    assert text.startswith("pubmedqa: ")
    assert part in text
    assert "Give more records or another fold." in text


def test_empty_dev(tmp_path: Path) -> None:
    """A fold that holds no record is refused."""
    config = pqal(tmp_path, "ynm" * 3).model_copy(update={"fold": 9})
    assert "the dev split is empty" in sentence(config)


@pytest.mark.parametrize("setting", ["path", "ground_truth"])
def test_files_for_the_synthetic_domain(setting: str) -> None:
    """A file given to the synthetic domain is not silently ignored."""
    assert "set data.domain=pubmedqa" in sentence(DataConfig.model_validate({setting: "x.json"}))


def test_ground_truth_without_records() -> None:
    """A ground truth without the records it belongs to is not silently ignored."""
    assert "data.ground_truth is set, but data.path is not" in sentence(
        DataConfig(domain="pubmedqa", ground_truth=Path("truth.json"))
    )


def test_every_domain_is_found_by_its_file() -> None:
    """The names are those of the files with a `DOMAIN`, and a domain has the name of its file."""
    assert {"pubmedqa", "synthetic"} <= set(domains.names())
    assert not {"domain", "abstracts", "synthetic_topics"} & set(domains.names())
    assert [domains.get(name).name for name in domains.names()] == domains.names()


@pytest.mark.parametrize("name", ["pubmed", "domain", "os", "", "../synthetic"])
def test_what_is_no_domain(name: str) -> None:
    """Another name is refused with the choices, whether or not a file has it."""
    with pytest.raises(InputError, match=r"is no domain\. Known: .*pubmedqa.*synthetic"):
        domains.get(name)


@pytest.mark.parametrize("name", domains.names())
def test_a_domain_is_told_by_its_models_name(name: str) -> None:
    """Models of two domains never have the same name; PubMedQA's is the plain one."""
    suffixes = [domains.get(other).model_suffix for other in domains.names()]
    assert suffixes.count(domains.get(name).model_suffix) == 1
    assert domains.get("pubmedqa").model_suffix == ""
    assert domains.get("synthetic").model_suffix == "-synthetic"


def test_synthetic_prompts_golds_and_rewards_stay_as_they_are() -> None:
    """What models were trained on and paid for is pinned to the byte: other code would be another experiment."""
    corpus = load_corpus(DataConfig(synthetic_pool=60, synthetic_test=30))
    train = corpus.split("train")
    golds = [gold_completion(record) for record in train]
    paid = [score_completion(record, gold) for record in train[:10] for gold in golds[:10]]
    pinned = {
        "digest": digest(train),
        "prompts": fingerprint([render_prompt(record) for record in train]),
        "golds": fingerprint(golds),
        "paid": fingerprint([(score.correctness, score.grounding, score.structure) for score in paid]),
    }
    assert pinned == PINNED


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def test_which_domain_reads_a_record_is_not_its_content() -> None:
    """The same records under another domain's name have the same digest."""
    record = load_corpus(DataConfig(synthetic_pool=60, synthetic_test=30)).split("test")[0]
    assert digest([record]) == digest([record.model_copy(update={"domain": "pubmedqa"})])


@pytest.mark.parametrize("storey", ["medgrpo", "flows", "tasks", "deployments"])
def test_no_code_outside_the_domains_names_one(storey: str) -> None:
    """No name and no text of the code mentions a real domain; docstrings may."""
    home = ROOT / "medgrpo" / "domains"
    files = [path for path in sorted((ROOT / storey).rglob("*.py")) if not path.is_relative_to(home)]
    assert files
    assert {path.name: found for path in files if (found := list(_named(ast.parse(path.read_text()))))} == {}


@pytest.mark.parametrize(
    ("source", "names_one"),
    [
        ("from medgrpo.domains import pubmedqa", True),
        ("from medgrpo.domains.gsm8k import DOMAIN", True),
        ("if config.domain == 'PubMedQA': pass", True),
        ("f'{x} of GSM8K'", True),
        ("gsm8k_only = 1", True),
        ("def f(pubmedqa): pass", True),
        ("x.pubmedqa", True),
        ("f(pubmedqa=1)", True),
        ('"""PubMedQA."""\nclass A:\n    x = 1\n    """Of GSM8K."""', False),
    ],
)
def test_the_guard_against_named_domains_knows_them(source: str, names_one: bool) -> None:
    """The guard sees imports, names, arguments, attributes and texts, and passes over docstrings."""
    assert bool(list(_named(ast.parse(source)))) is names_one


def _named(tree: ast.Module) -> Iterator[str]:
    """The identifiers and texts of a source that mention a real domain, without its docstrings."""
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        for _, value in ast.iter_fields(node):
            texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
            yield from (text for text in texts if any(name in text.lower() for name in NAMED))
