"""GSM8K: 8,792 word problems of grade-school arithmetic with worked solutions, 7,473 to train on and 1,319 to test on.

Cobbe et al. 2021, arXiv 2110.14168. `train.jsonl` and `test.jsonl` hold one object a line, one shortened here:

    {"question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total ...?",
     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\\nSo the total ... is 2+1=<<2+1=3>>3 bolts ...\\n#### 3"}

What stands in << >> are annotations for a calculator, and are left out; the expert's answer stands behind ####.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from medgrpo.arithmetic.numbers import canonical, opening_number, stated_number, strict_number
from medgrpo.completions import AnswerForm
from medgrpo.config import DataConfig, RewardConfig
from medgrpo.domains.domain import Domain
from medgrpo.domains.gsm8k_attacks import ATTACKS
from medgrpo.domains.gsm8k_gold import gold_thought, unteachable
from medgrpo.domains.gsm8k_grounding import agreement, disagrees, evidence, grounding
from medgrpo.domains.hub import load_split
from medgrpo.errors import InputError
from medgrpo.jsonfiles import Wanted, read_text
from medgrpo.records import Corpus, Record

NAME = "gsm8k"
HUB_ID, HUB_CONFIG = "openai/gsm8k", "main"
FILE = Wanted("a file in the form of GSM8K's", "train.jsonl", "line")
SPLITS = ("train", "test")
FORM = AnswerForm(strict=strict_number, lenient=opening_number, stated=stated_number, labels=(), kind="number")
SYSTEM = (
    "You work out one word problem. First solve it step by step between <thought> and </thought>, writing every "
    "calculation as an equation such as 3 * 4 = 12. Then give the final number alone, without any unit, between "
    "<answer> and </answer>."
)

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’')]?\s+(?=[^\sa-z])")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|[A-Z])\.\s*$")


def load(config: DataConfig) -> Corpus:
    """The official split: "train" is all that may be trained on, "dev" is empty.

    Raises:
        InputError: naming file, line and field of the first problem found, or a question of both splits.
        ServiceUnreachable: the Hub did not answer.
    """
    if config.ground_truth:
        raise InputError("data.ground_truth is set, but GSM8K's answers stand with its questions: leave it out.")
    if config.path:
        found = {split: read_records(path, split) for split, path in _files(config.path).items()}
        return _corpus(found, str(config.path))
    return load_from_hub(config.hub_id or HUB_ID, config.hub_revision)


def read_labelled(path: Path) -> list[Record]:
    """The records of a further file in the same form; their ids name the file, and are those of no split's.

    Raises:
        InputError: naming file, line and field of the first problem found.
    """
    return read_records(path, f"further-{path.stem}")


def read_records(path: Path, split: str) -> list[Record]:
    """The records of one file, in its order.

    Raises:
        InputError: naming file, line and field of the first problem found.
    """
    rows = ((f"{path}, line {line}", _object(text, f"{path}, line {line}")) for line, text in _lines(path))
    records = [_record(f"{NAME}-{split}-{row}", fields, where) for row, (where, fields) in enumerate(rows)]
    if not records:
        raise InputError(f"{path}: is empty; expected one JSON object with question and answer a line.")
    return records


def load_from_hub(hub_id: str, revision: str) -> Corpus:
    """The same corpus from the Hugging Face Hub.

    Raises:
        ServiceUnreachable: the Hub did not answer.
        InputError: the dataset is not GSM8K.
    """
    give = "the directory of train.jsonl and test.jsonl: --set data.path=PATH"
    tables = {
        split: load_split(hub_id, HUB_CONFIG, split, revision, title="GSM8K", give=give, own=HUB_ID) for split in SPLITS
    }
    found = {
        split: [
            _record(f"{NAME}-{split}-{row}", fields, f"{hub_id}, {split} row {row}") for row, fields in enumerate(t)
        ]
        for split, t in tables.items()
    }
    return _corpus(found, hub_id)


def _files(path: Path) -> dict[str, Path]:
    """The file of each split, of a directory or beside the file of train."""
    train = path / "train.jsonl" if path.is_dir() else path
    files = {"train": train, "test": train.with_name("test.jsonl")}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file. Set data.path to the directory that holds train.jsonl and test.jsonl, or to "
            "train.jsonl with test.jsonl beside it."
        )
    if train.resolve() == files["test"].resolve():
        raise InputError(f"{path} is the test file; set data.path to its directory, or to train.jsonl beside it.")
    return files


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1."""
    text = read_text(path, FILE)
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _object(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not a JSON object ({error}); expected one with question and answer on each line. Fetch the "
            "file again."
        ) from error


def _record(record_id: str, fields: Any, where: str) -> Record:
    if not isinstance(fields, Mapping):
        raise InputError(f"{where}: expected an object with question and answer, found a {type(fields).__name__}.")
    question, answer = (_text(fields, name, where) for name in ("question", "answer"))
    solution, marker, final = _ANNOTATION.sub("", answer).rpartition("####")
    number = opening_number(final)
    if not marker:
        raise InputError(f"{where}: field answer has no #### with the final number behind it. Fetch the file again.")
    if number is None or strict_number(number) != number:
        raise InputError(f"{where}: field answer ends in {final.strip()[:40]!r}; expected a decimal number after it.")
    if not solution.strip():
        raise InputError(f"{where}: field answer has no worked solution before ####.")
    statement, asked = split_problem(question)
    return Record(
        id=record_id, domain=NAME, question=asked, contexts=(statement,), verdict=number, long_answer=solution
    )


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be text which can be stored as UTF-8."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip() or re.search("[\ud800-\udfff]", value):
        found = "missing" if name not in fields else f"{json.dumps(value, default=str)[:80]}; expected a text"
        raise InputError(f"{where}: field {name} is {found}.")
    return value


def split_problem(text: str) -> tuple[str, str]:
    """A problem's statement and its question: the last sentence that asks, or the last one where none does.

    A problem of one sentence is its own statement.

    >>> split_problem("Ann has 3 dogs. Mr. Ray has 2. How many have they? Count all.")
    ('Ann has 3 dogs. Mr. Ray has 2. Count all.', 'How many have they?')
    """
    cuts = [match.end() for match in _SENTENCE_END.finditer(text) if not _ABBREVIATION.search(text[: match.start()])]
    sentences = [text[start:end].strip() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    asking = [place for place, sentence in enumerate(sentences) if "?" in sentence]
    place = asking[-1] if asking else len(sentences) - 1
    statement = " ".join(sentences[:place] + sentences[place + 1 :])
    return statement or sentences[place], sentences[place]


def render(question: str, contexts: Sequence[str]) -> str:
    """The user's turn: statement and question, or a problem of one sentence once."""
    statement = "\n".join(contexts)
    return f"Problem: {statement}" if statement == question else f"Problem: {statement}\n\nQuestion: {question}"


def correctness(answer: str | None, expert: str, config: RewardConfig, agreed: float = 0.0) -> float:
    """Correctness grade in [0, 1]: a number is right or wrong, so any wrong one costs all, whatever `config` says of
    confusing verdicts; a right one earns 1, less the share `config.agreement` where the thought computes another.

    >>> [correctness(answer, "18", RewardConfig(), 1.0) for answer in ("18", "17", None)]
    [1.0, 0.0, 0.0]
    """
    return 1 - config.agreement * (1 - agreed) if answer == expert else 0.0


def other(record: Record) -> str:
    """A wrong answer near the right one."""
    return canonical(Fraction(record.verdict) + 1)


def _corpus(found: Mapping[str, Sequence[Record]], source: str) -> Corpus:
    _refuse_twice((record for records in found.values() for record in records), source)
    train, test = (tuple(record.id for record in found[split]) for split in SPLITS)
    if not train or not test:
        raise InputError(f"{source}: the {'test' if train else 'train'} split is empty; expected GSM8K's two splits.")
    records = {record.id: record for records in found.values() for record in records}
    return Corpus(name=NAME, records=records, splits={"train": train, "dev": (), "test": test})


def _refuse_twice(records: Iterable[Record], source: str) -> None:
    """A problem that stands in both splits would be trained on and tested."""
    seen: dict[str, str] = {}
    for record in records:
        problem = " ".join(f"{record.contexts[0]} {record.question}".split()).casefold()
        before = seen.setdefault(problem, record.id)
        if before != record.id:
            raise InputError(
                f"{source}: {before} and {record.id} are the same problem; each must stand there once, or what is "
                "tested could have been trained on. Remove one of them."
            )


DOMAIN = Domain(
    name=NAME,
    summary="Works out a word problem and answers with a number",
    load=load,
    read_labelled=read_labelled,
    system=SYSTEM,
    render=render,
    gold_thought=gold_thought,
    correctness=correctness,
    agreement=agreement,
    grounding=grounding,
    evidence=evidence,
    disagrees=disagrees,
    other=other,
    attacks=ATTACKS,
    card={
        "intended_use": "Research on training small models with verifiable rewards. It answers word problems of "
        "grade-school arithmetic in English with one number, and shows the calculations it got it from.",
        "limitations": "Calculations that are true may still not be the ones that the problem asks for, and no reward "
        "tells them apart but by their result. It has not been trained on equations with unknowns, units of science, "
        "geometry or other languages, and no answer should be relied on that nobody has checked.",
        "data": "GSM8K (Cobbe et al. 2021, arXiv 2110.14168, MIT licence): 7,473 problems to train on and 1,319 to "
        "test on, written and solved by people.",
    },
    form=FORM,
    files=lambda config: list(_files(config.path).values()) if config.path else [],
    hub_id=HUB_ID,
    unteachable=unteachable,
    source="problem",
    example={
        "question": "How many pencils are left?",
        "contexts": ["A shop has 4 boxes of 12 pencils each and sells 15 pencils."],
    },
)
