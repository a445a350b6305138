import math
import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.completions import parse_completion
from medgrpo.domains.synthetic import MAX_WORDS, apportion, generate, load
from medgrpo.domains.synthetic_findings import Finding, Risk, judge
from medgrpo.domains.synthetic_topics import KINDS
from medgrpo.prompts import gold_completion
from medgrpo.records import Record, digest, verdict_counts

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[])")
NUMBER = r"(-?\d+(?:\.\d+)?)"
MEANS = re.compile(
    rf"{NUMBER} versus {NUMBER} [a-zA-Z/]+.*difference {NUMBER}, 95% CI {NUMBER} to {NUMBER}, p([<=])(0\.\d+)"
)
COUNTS = re.compile(r"(\d+)/(\d+) \(([\d.]+)%\) versus (\d+)/(\d+) \(([\d.]+)%\)")
RATIO = re.compile(rf"relative risk {NUMBER}, 95% CI {NUMBER} to {NUMBER}, p([<=])(0\.\d+)")
SENSITIVITY = re.compile(rf"(\d+)/(\d+)\D+{NUMBER}%, 95% CI {NUMBER} to {NUMBER}")
LIMIT = re.compile(rf"(?:difference of|relative risk of|minimum sensitivity of) {NUMBER}")
SEEDS = (1, 2, 3)


@cache
def records(seed: int = 1, count: int = 500) -> tuple[Record, ...]:
    return tuple(generate(count, seed))


def abstract(record: Record) -> str:
    return " ".join(record.contexts)


def primary_sentences(record: Record) -> list[str]:
    return [sentence for sentence in SENTENCE.split(record.contexts[-1]) if "primary" in sentence.lower()]


def topics():
    return [topic for kind in KINDS for topic in kind.topics]


@given(count=st.integers(0, 60), seed=st.integers(0, 10**9))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_generate_is_deterministic_balanced_and_free_of_repetition(count, seed):
    """Any count and seed give that many different records in PubMedQA's balance, the same ones every time."""
    made = generate(count, seed)
    assert made == generate(count, seed)
    assert verdict_counts(made) == apportion(count)
    assert len({abstract(record) for record in made}) == len({record.id for record in made}) == count


def test_balance_of_500_is_pubmedqas():
    """500 records hold exactly the 276 yes, 169 no and 55 maybe of PubMedQA's test set, in no sorted order."""
    verdicts = [record.verdict for record in records()]
    assert verdict_counts(records()) == {"yes": 276, "no": 169, "maybe": 55}
    assert len(set(verdicts[:20])) > 1


def test_generate_leaves_the_global_random_state_alone():
    """Neither reads nor moves the state of the random module."""
    state = random.getstate()
    random.seed(5)
    first = generate(10, 3)
    random.seed(6)
    assert generate(10, 3) == first
    random.setstate(state)
    generate(10, 3)
    assert random.getstate() == state


def test_another_seed_gives_other_records():
    """The seed reaches the content."""
    assert digest(generate(20, 1)) != digest(generate(20, 2))


def test_every_record_is_labelled_synthetic():
    """Synthetic, dated, and synthetic in its very id."""
    for record in records():
        assert record.synthetic
        assert re.fullmatch(r"synthetic-\d{6}", record.id)
        assert record.year is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_pool_and_test_share_nothing(seed):
    """No id and no abstract occurs twice in or between pool and test, and both keep the balance."""
    pool, test = load(300, 200, seed)
    both = [*pool, *test]
    assert len({record.id for record in both}) == len({abstract(record) for record in both}) == 500
    assert verdict_counts(pool) == apportion(300)
    assert verdict_counts(test) == apportion(200)
    assert pool == generate(300, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_are_short(seed):
    """Abstracts have 70 to 120 words, questions at most 22, conclusions at most 35, primary sentences at most 35."""
    for record in records(seed):
        assert 70 <= len(abstract(record).split()) <= MAX_WORDS
        assert len(record.contexts) == 3
        assert len(record.question.split()) <= 22
        assert record.question.endswith("?")
        assert len(record.long_answer.split()) <= 35
        assert primary_sentences(record)
        for sentence in primary_sentences(record):
            assert len(sentence.split()) <= 35
            assert re.search(r"\d", sentence)


def test_no_placeholder_is_left():
    """Every template is filled and no figure is printed as -0.0."""
    for record in records():
        text = f"{record.question} {abstract(record)} {record.long_answer}"
        assert not re.search(r"[{}@]|-0\.0\b|nan|inf\b", text), text


@pytest.mark.parametrize("seed", SEEDS)
def test_long_answer_is_new_text_without_figures(seed):
    """The conclusion is one sentence that stands nowhere in the abstract and adds no figure."""
    for record in records(seed):
        assert record.long_answer not in abstract(record)
        assert record.long_answer.rstrip(".") not in abstract(record)
        assert not re.search(r"\d", record.long_answer)
        assert len(SENTENCE.split(record.long_answer)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_differences_agree_with_their_means_interval_and_p_value(seed):
    """The difference is that of the means, the centre of its interval, and significant where that excludes 0."""
    found = [match for record in records(seed) for s in primary_sentences(record) if (match := MEANS.search(s))]
    assert len(found) > 50
    for match in found:
        treated, control, difference, low, high, p = map(float, (*match.groups()[:5], match[7]))
        assert treated - control == pytest.approx(difference, abs=0.051)
        assert (low + high) / 2 == pytest.approx(difference, abs=0.11)
        assert (p < 0.05) == (low > 0 or high < 0), match[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_relative_risks_agree_with_their_counts_interval_and_p_value(seed):
    """Counts fit groups, percentages and ratio fit counts, the interval holds the ratio, and p fits the interval."""
    found = [(COUNTS.search(s), RATIO.search(s)) for record in records(seed) for s in primary_sentences(record)]
    found = [(counts, ratio) for counts, ratio in found if counts and ratio]
    assert len(found) > 100
    for counts, ratio in found:
        a, n, a_share, b, m, b_share = map(float, counts.groups())
        estimate, low, high, p = map(float, (*ratio.groups()[:3], ratio[5]))
        assert 0 < a <= n
        assert 0 < b <= m
        assert (a_share, b_share) == pytest.approx((100 * a / n, 100 * b / m), abs=0.051)
        assert estimate == pytest.approx(a / n / (b / m), abs=0.0051)
        assert low < estimate < high
        assert low * high == pytest.approx(estimate**2, rel=0.05)
        assert (p < 0.05) == (low > 1 or high < 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_sensitivities_agree_with_their_counts(seed):
    """The percentage fits the counts, lies in its interval, and the diseased are among those examined."""
    tests = [record for record in records(seed) if "sensitivity for" in abstract(record)]
    assert len(tests) > 20
    for record in tests:
        found, diseased, estimate, low, high = map(float, SENSITIVITY.search(primary_sentences(record)[0]).groups())
        assert estimate == pytest.approx(100 * found / diseased, abs=0.051)
        assert low < estimate < high <= 100
        assert f" in {diseased:.0f} of them" in record.contexts[1]
        assert int(re.search(r", (\d+) ", record.contexts[1])[1]) > diseased


def test_groups_of_the_results_are_those_of_the_methods():
    """Group sizes in the primary result are the numbers of people in the methods."""
    for record in records():
        for sentence in primary_sentences(record):
            if counts := COUNTS.search(sentence):
                sizes = set(re.findall(r"\d+", record.contexts[1]))
                assert {counts[2], counts[5]} <= sizes


def test_a_reader_of_the_text_can_derive_the_verdict():
    """Figures printed for a single primary outcome and the printed limit give the verdict, without the generator."""
    read = 0
    for record in records():
        sentences = primary_sentences(record)
        limit = LIMIT.search(record.contexts[1])
        if len(sentences) != 1:
            assert "Improvement of both" in record.contexts[1]
            continue
        assert derive(record, sentences[0], float(limit[1])) == record.verdict, record
        read += 1
    assert read > 400


def derive(record: Record, sentence: str, limit: float) -> str | None:
    """The verdict by the rule in the module's docstring, from the printed text and the direction of the question."""
    if sensitivity := SENSITIVITY.search(sentence) if "sensitivity for" in sentence else None:
        estimate, low, high = map(float, sensitivity.groups()[2:])
        return judge(low, estimate, high, limit, limit)
    if means := MEANS.search(sentence):
        sign = -1 if re.search(r"\b(shorten|lower)\b", record.question) else 1
        difference, low, high = map(float, means.groups()[2:5])
        return judge(low, difference, high, 0, sign * limit)
    estimate, low, high = map(float, RATIO.search(sentence).groups()[:3])
    effect = judge(low, estimate, high, 1, limit)
    asks_absence = re.search(r"non-inferior|as effective|replace|\bsafe(?:ly)?\b", record.question)
    return {"yes": "no", "no": "yes"}.get(effect, effect) if asks_absence else effect


def test_two_primary_outcomes_give_maybe_only_where_they_disagree():
    """Both improved is yes, none improved is no, one improved is maybe; all three occur."""
    seen = set()
    for record in records():
        sentences = primary_sentences(record)
        if len(sentences) == 2:
            improved = [improves(record, sentence) for sentence in sentences]
            assert record.verdict == ("yes" if all(improved) else "maybe" if any(improved) else "no")
            seen.add(record.verdict)
    assert seen == {"yes", "no", "maybe"}


def improves(record: Record, sentence: str) -> bool:
    if ratio := RATIO.search(sentence):
        return float(ratio[3]) < 1
    topic = next(t for t in topics() if t.treatment in sentence and t.outcome in sentence)
    low, high = map(float, MEANS.search(sentence).groups()[3:5])
    return high < 0 if topic.scale.important < 0 else low > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_gold_completions_quote_a_primary_outcome(seed):
    """The sentence nearest to the conclusion, which gold completions quote, is nearly always a primary outcome's."""
    thoughts = [parse_completion(gold_completion(r)).thought.removesuffix(r.long_answer) for r in records(seed, 200)]
    assert sum("primary" in thought.lower() for thought in thoughts) / len(thoughts) > 0.95


def test_every_form_of_question_occurs_with_every_verdict():
    """No topic family gives its verdict away by itself."""
    for kind in KINDS:
        names = {topic.treatment for topic in kind.topics}
        found = {r.verdict for r in [*records(1), *records(2)] if any(name in abstract(r) for name in names)}
        assert found == {"yes", "no", "maybe"}


@pytest.mark.parametrize("word", ["significant", " not ", "however", "p<0.001", "early"])
def test_surface_words_occur_in_every_class(word):
    """Words that a keyword reader would trust stand in some abstracts of each verdict."""
    for verdict in ("yes", "no", "maybe"):
        texts = [abstract(r).lower() for seed in SEEDS for r in records(seed) if r.verdict == verdict]
        assert sum(word in text for text in texts) / len(texts) > 0.04


def test_an_unimportant_effect_gets_no_verdict():
    """An interval beyond the null whose estimate is below the important effect is never used."""
    assert judge(0.2, 0.6, 0.9, null=0, important=1) is None
    assert judge(0.2, 0.6, 1.1, null=0, important=1) is None


def test_finding_knows_whether_it_differs():
    """An interval that touches the null value does not exclude it."""
    scale = Risk((0.1, 0.2), 0.75)
    assert not Finding(scale, 0.8, 0.64, 1.0, 0.05, "", "", (100, 100)).differs
    assert Finding(scale, 0.6, 0.45, 0.8, 0.001, "", "", (100, 100)).differs


def test_apportion_adds_up():
    """Shares add up to the count and stay within one of the exact share."""
    for count in range(200):
        shares = apportion(count)
        assert sum(shares.values()) == count
        assert all(math.fabs(shares[v] - count * w / 500) < 1 for v, w in {"yes": 276, "no": 169, "maybe": 55}.items())
