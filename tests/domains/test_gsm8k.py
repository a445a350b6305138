"""GSM8K: reading the files, what a worked solution is paid for, and what never is paid as much.

Problems here are invented. Tests on the published data run where MEDGRPO_GSM8K names the directory that holds
`train.jsonl` and `test.jsonl`.
"""

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.completions import parse_completion, render_completion
from medgrpo.config import DataConfig, RewardConfig
from medgrpo.domains import gsm8k
from medgrpo.domains.gsm8k_attacks import ATTACKS
from medgrpo.domains.gsm8k_gold import earns_all, gold_thought, unteachable
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.preparation import load_records, prepare
from medgrpo.records import Corpus, Record
from medgrpo.rewards import score_completion
from medgrpo.rewards.attacks import Target
from medgrpo.rewards.audit import attacks_on
from medgrpo.testing import tiny_config

CONFIG = RewardConfig()
GOLD = CONFIG.correctness + CONFIG.grounding + CONFIG.structure
Row = dict[str, str]

PROBLEMS: list[Row] = [
    {
        "question": "Mira fills 14 jars with plums. She gives 5 jars away and sells the others for $3 each. How many "
        "dollars does Mira get?",
        "answer": "Mira keeps 14 - 5 = <<14-5=9>>9 jars.\nShe gets 9 * 3 = $<<9*3=27>>27.\n#### 27",
    },
    {
        "question": "A tent costs $80 and is sold at 25% off. Mr. Ode buys 2 of them. What does Mr. Ode pay?",
        "answer": "Off are 80 * 25/100 = $<<80*25/100=20>>20\nA tent is 80 - 20 = $<<80-20=60>>60\n"
        "Two are 60 * 2 = $<<60*2=120>>120\n#### $120",
    },
    {
        "question": "A herd of 1,236 goats grazes on four fields, as many on each. How many goats graze on a field?",
        "answer": "On a field graze 1,236 / 4 = <<1236/4=309>>309 goats\n#### 309",
    },
    {
        "question": "Calculate how much half a dozen pens cost at $1.25 a pen.",
        "answer": "Half a dozen is 12 / 2 = <<12/2=6>>6\nThey cost 6 * 1.25 = $<<6*1.25=7.5>>7.50\n#### 7.5",
    },
    {
        "question": "Tom runs 7 miles on Monday and twice that on Friday. How far is that?",
        "answer": "On Friday it is 7 * 2 = <<7*2=14>>15 miles.\nTogether 7 + 14 = <<7+14=21>>21 miles\n#### 21",
    },
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three invented problems to train on, and two to test on."""
    write(tmp_path / "train.jsonl", PROBLEMS[:3])
    write(tmp_path / "test.jsonl", PROBLEMS[3:])
    return tmp_path


def load(path: Path) -> Corpus:
    return gsm8k.load(DataConfig(path=path))


def sentence(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    return str(caught.value)


@pytest.fixture
def records(directory: Path) -> list[Record]:
    return list(load(directory).records.values())


def target(record: Record, stranger: str) -> Target:
    return Target(record, gold_thought(record, CONFIG), "", gsm8k.other(record), stranger, Random(record.id))


def test_load(directory: Path) -> None:
    """Ids name split and row, the question is apart from the statement, and annotations and #### are gone."""
    corpus = load(directory)
    record = corpus.records["gsm8k-train-0"]
    assert corpus.splits == {
        "train": ("gsm8k-train-0", "gsm8k-train-1", "gsm8k-train-2"),
        "dev": (),
        "test": ("gsm8k-test-0", "gsm8k-test-1"),
    }
    assert (record.domain, record.verdict) == ("gsm8k", "27")
    assert record.question == "How many dollars does Mira get?"
    assert record.contexts[0].endswith("sells the others for $3 each.")
    assert record.long_answer == "Mira keeps 14 - 5 = 9 jars.\nShe gets 9 * 3 = $27."
    assert corpus.records["gsm8k-train-1"].question == "What does Mr. Ode pay?"


def test_the_file_of_train_finds_the_other(directory: Path) -> None:
    """The path of train.jsonl gives what its directory gives."""
    assert load(directory / "train.jsonl") == load(directory)


def test_further_file(directory: Path) -> None:
    """Records of a further file carry its name in their ids, which are never those of a split."""
    (directory / "further").mkdir()
    for name in ("june", "train"):
        path = write(directory / "further" / f"{name}.jsonl", PROBLEMS[:1])
        assert [record.id for record in gsm8k.read_labelled(path)] == [f"gsm8k-further-{name}-0"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("text", "expected an object with question and answer, found a str"),
        ({"question": "How many?"}, "field answer is missing"),
        ({"answer": "1 + 1 = 2\n#### 2"}, "field question is missing"),
        ({"question": "", "answer": "1 + 1 = 2\n#### 2"}, 'field question is ""; expected a text'),
        ({"question": 7, "answer": "1 + 1 = 2\n#### 2"}, "field question is 7; expected a text"),
        ({"question": "\ud800", "answer": "1 + 1 = 2\n#### 2"}, "field question is"),
        ({"question": "How many?", "answer": "1 + 1 = 2"}, "field answer has no ####"),
        (
            {"question": "How many?", "answer": "1 + 1 = 2\n#### many"},
            "ends in 'many'; expected a decimal number after it",
        ),
        ({"question": "How many?", "answer": "1 / 3 = 0.33\n#### 1/3"}, "ends in '1/3'; expected a decimal number"),
        ({"question": "How many?", "answer": "#### 2"}, "no worked solution before ####"),
    ],
)
def test_bad_rows(directory: Path, row: object, part: str) -> None:
    """A row that cannot be used is named with its file, line and field, and what was expected."""
    path = write(directory / "train.jsonl", [PROBLEMS[0], row])
    text = sentence(directory)
    assert f"{path}, line 2: " in text
    assert part in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"question": "How', "line 1: not a JSON object"),
        (b"[" * 200_000, "line 1: not a JSON object"),
        ('{"question": "é"}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_unusable_files(directory: Path, content: bytes, part: str) -> None:
    """A file that is no file of problems is named, with what is wrong."""
    (directory / "test.jsonl").write_bytes(content)
    text = sentence(directory)
    assert str(directory / "test.jsonl") in text
    assert part in text


def test_missing_files(directory: Path) -> None:
    """A missing file is named, with what data.path should be."""
    assert "no such file. Set data.path to the directory" in sentence(directory / "none")
    (directory / "test.jsonl").unlink()
    assert str(directory / "test.jsonl") in sentence(directory)
    assert str(directory / "test.jsonl") in sentence(directory / "train.jsonl")


def test_the_test_file_is_no_training_file(directory: Path) -> None:
    """The path of the test file is refused, for it would be trained on."""
    assert "is the test file" in sentence(directory / "test.jsonl")


def test_a_problem_of_both_splits_is_refused(directory: Path) -> None:
    """The same problem in both splits is named by both ids, whatever its blanks and capitals."""
    row = {**PROBLEMS[0], "question": PROBLEMS[0]["question"].upper().replace(" ", "  ")}
    write(directory / "test.jsonl", [PROBLEMS[3], row])
    assert "gsm8k-train-0 and gsm8k-test-1 are the same problem" in sentence(directory)


def test_a_ground_truth_is_refused(directory: Path) -> None:
    """A ground truth, which would be ignored, is refused."""
    with pytest.raises(InputError, match=r"data\.ground_truth is set"):
        gsm8k.load(DataConfig(path=directory, ground_truth=directory / "truth.json"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put rows by split, or an error, in the Hub's place."""

    def serve(answer: Any) -> None:
        def load_dataset(name: str, config: str, split: str, revision: str) -> Any:
            assert (name, config, revision) == ("openai/gsm8k", "main", "v1")
            if isinstance(answer, Exception):
                raise answer
            return answer[split]

        monkeypatch.setattr("datasets.load_dataset", load_dataset)

    return serve


def from_hub() -> Corpus:
    return gsm8k.load(DataConfig(hub_id="openai/gsm8k", hub_revision="v1"))


def test_hub_rows_give_the_same_records(hub: Callable[[Any], None], directory: Path) -> None:
    """The Hub's rows become the records that the files give."""
    hub({"train": PROBLEMS[:3], "test": PROBLEMS[3:]})
    assert from_hub() == load(directory)


@pytest.mark.parametrize("error", [ConnectionError("offline"), OSError("timed out")])
def test_unreachable_hub(hub: Callable[[Any], None], error: Exception) -> None:
    """A Hub that does not answer is worth a retry, and the sentence says how to do without it."""
    hub(error)
    with pytest.raises(ServiceUnreachable, match=r"openai/gsm8k could not be fetched.*--set data\.path="):
        from_hub()


def test_unknown_dataset_on_the_hub(hub: Callable[[Any], None]) -> None:
    """A dataset that the Hub does not know is named."""
    from datasets.exceptions import DatasetNotFoundError

    hub(DatasetNotFoundError("no"))
    with pytest.raises(ServiceUnreachable, match="openai/gsm8k could not be fetched"):
        from_hub()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (ValueError("no config main"), "is not GSM8K: no config main"),
        ({"train": [{"text": "a"}], "test": []}, "openai/gsm8k, train row 0: field question is missing"),
        ({"train": PROBLEMS, "test": []}, "the test split is empty"),
        ({"train": [], "test": PROBLEMS}, "the train split is empty"),
    ],
)
def test_another_dataset_on_the_hub(hub: Callable[[Any], None], answer: Any, part: str) -> None:
    """A dataset of another form is refused in a sentence."""
    hub(answer)
    with pytest.raises(InputError) as caught:
        from_hub()
    assert part in str(caught.value)


def test_the_prompt_holds_the_problem_and_no_solution(records: list[Record]) -> None:
    """The user's turn holds statement and question, a problem of one sentence once, and nothing of the solution."""
    turns = {record.id: gsm8k.render(record.question, record.contexts) for record in records}
    assert turns["gsm8k-train-0"].endswith("\n\nQuestion: How many dollars does Mira get?")
    assert turns["gsm8k-test-0"] == f"Problem: {PROBLEMS[3]['question']}"
    assert not any(record.long_answer in turns[record.id] for record in records)


def test_gold_completions_earn_the_maximum(records: list[Record]) -> None:
    """Each gold completion earns all three pillars in full, also where the published solution is false."""
    texts = [render_completion(gold_thought(record, CONFIG), record.verdict) for record in records]
    totals = [score_completion(record, text).total for record, text in zip(records, texts, strict=True)]
    assert totals == pytest.approx([GOLD] * len(records))


def test_a_false_line_is_left_out_of_gold(records: list[Record]) -> None:
    """A published line whose equation is false does not stand in the gold thought, and what it should be does."""
    thought = gold_thought(records[-1], CONFIG)
    assert "15 miles" not in thought
    assert "= 21" in thought


def test_a_solution_that_does_not_compute_is_not_taught(tmp_path: Path) -> None:
    """Where the gold thought's last equations had to be searched for, the record is dropped from train, with why."""
    rows = [
        {
            "question": f"A hat costs ${price} and a scarf $15. How many dollars are both?",
            "answer": f"Both are {price} + 15 = <<{price}+15={price + 15}>>{price + 15}\n#### {price + 15}",
        }
        for price in range(20, 32)
    ]
    mute = {"question": "Boots cost $40 and a belt $9. How many dollars are both?", "answer": "Sum it up.\n#### 49"}
    write(tmp_path / "train.jsonl", [mute, *rows])
    write(tmp_path / "test.jsonl", [{**mute, "question": "Shoes cost $40, a tie $9. How many dollars are both?"}])
    reasons = [unteachable(record, CONFIG) for record in load(tmp_path).records.values()]
    assert [bool(reason) for reason in reasons] == [True, *[False] * 12, True]
    config = tiny_config(tmp_path, data={"domain": "gsm8k", "path": tmp_path})
    summary = prepare(config, tmp_path / "data")
    why = "the published solution has no equations that compute its answer"
    assert summary["dropped"] == [{"id": "gsm8k-train-0", "split": "train", "reason": why}]
    assert "gsm8k-train-0" not in {record.id for record in load_records(tmp_path / "data", "train")}
    assert [record.id for record in load_records(tmp_path / "data", "test")] == ["gsm8k-test-0"]
    write(tmp_path / "train.jsonl", [{**row, "answer": "Sum it up.\n#### 49"} for row in rows])
    with pytest.raises(InputError, match=r"gsm8k: of every train record the published solution has no equations"):
        prepare(config, tmp_path / "none")


@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks_never_reach_gold(records: list[Record], kind: str) -> None:
    """No attack earns as much as the gold completion, and no wrong number as much as the plainest right."""
    for record, before in zip(records, [records[-1], *records], strict=False):
        text = ATTACKS[kind](target(record, gold_thought(before, CONFIG)))
        if text is None:
            continue
        total = score_completion(record, text).total
        assert total < GOLD - 1e-9, text
        if parse_completion(text, gsm8k.FORM).verdict != record.verdict:
            assert total < score_completion(record, render_completion("?", record.verdict)).total


def test_every_attack_applies_somewhere(records: list[Record]) -> None:
    """Each kind of attack finds something to attack among five problems."""
    stranger = gold_thought(records[0], CONFIG)
    assert all(any(attack(target(record, stranger)) for record in records[1:]) for attack in ATTACKS.values())


def test_a_solution_that_comes_out_the_same_is_no_attack(records: list[Record]) -> None:
    """Another problem's solution is tried where it gives another number: elsewhere it may hold of this problem too."""
    record = records[0]
    kinds = [kind for kind in ATTACKS if "another record" in kind or "another problem" in kind]
    assert len(kinds) == 3
    for made, tried in ((Fraction(record.verdict), False), (Fraction(record.verdict) + 1, True)):
        stranger = f"{made - 1} + 1 = {made}. So the answer is {made}."
        assert [attacks_on(record)[kind](target(record, stranger)) is not None for kind in kinds] == [tried] * 3


@pytest.mark.parametrize(
    ("thought", "grade"),
    [
        ("14 - 5 = 9 jars, and 9 * 3 = 27 dollars", 1.0),
        ("5 away from 14 are 14 – 5 = 9, times $3: 9 × 3 = $27", 1.0),
        ("(14 - 5) * $3 = $27", 1.0),
        ("14 minus 5 equals 9 and 9 times 3 equals 27", 1.0),
        ("14 - 5 = 8, and 8 * 3 = 24", 0.0),
        ("She gets 27 dollars.", 0.0),
        ("", 0.0),
    ],
)
def test_agreement_is_of_what_is_computed(records: list[Record], thought: str, grade: float) -> None:
    """A thought agrees where its last equation gives the answer, however it is written."""
    found = gsm8k.agreement(thought, records[0], CONFIG)
    assert found == (1.0 if thought.startswith("She") else grade)


@pytest.mark.parametrize(
    ("thought", "unsupported"),
    [
        ("14 - 5 = 9. 9 * 3 = 27.", ()),
        ("14 - 5 = 19. 19 * 3 = 57.", ("14 - 5 = 19", "19")),
        ("14 - 5 = 9. She has 41 sisters.", ("41",)),
        ("She has seventeen jars.", ("17",)),
        ("14 - 5 = 9 = 10 = 9.", ("9 = 10", "10 = 9")),
        ("She has 9 jars, for 14 - 5 = 9.", ()),
    ],
)
def test_what_is_unsupported(records: list[Record], thought: str, unsupported: tuple[str, ...]) -> None:
    """Figures from nowhere and false equations are unsupported; what a true equation makes is not, before it either."""
    record = records[0]
    found = gsm8k.evidence(thought, record.contexts, record.question)
    assert {*unsupported} <= {*found.unsupported}
    assert bool(found.unsupported) is bool(unsupported)


def test_spans_are_where_the_figures_stand(records: list[Record]) -> None:
    """Each figure's span is its characters in the thought, and its source those in the statement."""
    record, thought = records[0], "Sold are １４ − 5 = 9 jars, 77 not."
    found = gsm8k.evidence(thought, record.contexts, record.question)
    cited = {thought[s.start : s.end]: s.source and record.contexts[0][slice(*s.source)] for s in found.spans}
    assert cited == {"１４": "14", "5": "5", "77": None}


@given(st.text(max_size=300))
def test_no_text_makes_the_rewards_fail(text: str) -> None:
    """Any thought has grades between 0 and 1, spans inside it, and a completion of it a total within the bounds."""
    [record] = [gsm8k._record("gsm8k-train-0", PROBLEMS[0], "here")]
    found = gsm8k.evidence(text, record.contexts, record.question)
    assert 0 <= gsm8k.grounding(text, record.contexts, record.question, CONFIG) <= 1
    assert gsm8k.agreement(text, record, CONFIG) in (0.0, 1.0)
    assert all(0 <= span.start < span.end <= len(text) for span in found.spans)
    assert isinstance(gsm8k.disagrees(text, "27", record.question), bool)


@pytest.fixture(scope="module")
def published() -> Corpus:
    directory = os.environ.get("MEDGRPO_GSM8K")
    if not directory:
        pytest.skip("MEDGRPO_GSM8K does not name a directory with train.jsonl and test.jsonl")
    return load(Path(directory))


def test_published_split(published: Corpus) -> None:
    """There are 7,473 problems to train on and 1,319 to test on, each a problem of its own, with whole answers."""
    assert (len(published.splits["train"]), len(published.splits["test"])) == (7473, 1319)
    assert all(record.verdict.lstrip("-").replace(".", "", 1).isdigit() for record in published.records.values())


def test_published_prompts_do_not_leak(published: Corpus) -> None:
    """No prompt holds the worked solution."""
    found = published.records.values()
    assert not any(record.long_answer in gsm8k.render(record.question, record.contexts) for record in found)


@pytest.mark.slow
def test_published_answers_and_attacks(published: Corpus) -> None:
    """On all 1,319 test problems the gold completion earns the maximum, and no attack of any kind earns as much."""
    test = published.split("test")
    thoughts = [gold_thought(record, CONFIG) for record in test]
    assert sum(earns_all(thought, record, CONFIG) for thought, record in zip(thoughts, test, strict=True)) == 1319
    holes: list[tuple[str, str]] = []
    for place, record in enumerate(test):
        attacked = Target(
            record, thoughts[place], "", gsm8k.other(record), thoughts[place - 1], Random(f"0 {record.id}")
        )
        plain = score_completion(record, render_completion("?", record.verdict)).total
        for kind, attack in ATTACKS.items():
            text = attack(attacked)
            if text is not None:
                is_wrong = parse_completion(text, gsm8k.FORM).verdict != record.verdict
                most = min(GOLD, plain) if is_wrong else GOLD
                if score_completion(record, text).total >= most - 1e-9:
                    holes.append((kind, record.id))
    assert holes == []
