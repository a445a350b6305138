"""Tests of medgrpo.evaluation.generate: greedy answers that do not depend on how prompts are batched."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.evaluation.generate import Generation, generate, length_batches, sample
from medgrpo.prefix import support
from medgrpo.prefix.generation import Sampling

prepare = support.prepare

LIMIT = 12


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 100), st.integers(1, 2000))
def test_batches_hold_every_prompt_once_within_the_bound(lengths, new_tokens, bound):
    """Each index stands in one batch, and padded to its longest prompt a batch of several fits the bound."""
    batches = list(length_batches(lengths, new_tokens, bound))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        padded = len(batch) * (max(lengths[i] for i in batch) + new_tokens)
        assert padded <= bound or len(batch) == 1


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 100), st.integers(1, 2000))
def test_the_longest_prompts_come_first(lengths, new_tokens, bound):
    """Lengths never rise from one prompt to the next, so the first batch needs the most memory."""
    ordered = [lengths[i] for batch in length_batches(lengths, new_tokens, bound) for i in batch]
    assert ordered == sorted(lengths, reverse=True)


class Scripted:
    """A model that answers with given token rows, and keeps what it was asked."""

    device, config = "cpu", SimpleNamespace(_attn_implementation="eager")

    def __init__(self, rows):
        self.config.get_text_config = lambda: self.config
        self.rows, self.asked = rows, []

    def generate(self, input_ids, attention_mask, **settings):
        self.asked.append(SimpleNamespace(ids=input_ids, mask=attention_mask, settings=settings))
        replies = [self.rows[ids[mask.bool()].tolist()[0]] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.cat([input_ids, torch.tensor(replies)], 1)


class Letters:
    """A tokenizer for the scripted model: a prompt is its list of ids, 1 ends a turn, 0 pads on the left."""

    eos_token_id = 1

    def apply_chat_template(self, messages, **settings):
        assert settings == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return messages

    def pad(self, encoded, return_tensors):
        width = max(map(len, encoded["input_ids"]))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in encoded["input_ids"]])

        class Batch(dict):
            def to(self, device):
                return self

        return Batch(input_ids=ids, attention_mask=(ids != 0).long())

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(i) for i in ids if i > 1)


REPLIES = {
    10: [97, 98, 1, 0, 0],
    11: [99, 99, 99, 99, 99],
    12: [1, 0, 0, 0, 0],
    13: [100, 101, 102, 103, 1],
}


def test_answers_come_back_in_the_order_of_the_prompts():
    """Batched by length or not, answer i belongs to prompt i."""
    prompts = [[10], [11, 2, 2], [12, 2], [13, 2, 2, 2, 2]]
    for bound in (1, 18, 1000):
        answers = generate(Scripted(REPLIES), Letters(), prompts, 5, bound)
        assert [answer.text for answer in answers] == ["ab", "ccccc", "", "defg"]


def test_the_length_includes_the_end_of_the_turn_and_no_padding():
    """An answer of two letters has three tokens, an empty one has one, and one cut off at the cap has the cap."""
    answers = generate(Scripted(REPLIES), Letters(), [[10], [11], [12], [13]], 5, 1000)
    assert [answer.tokens for answer in answers] == [3, 5, 1, 5]


def test_answers_are_handed_on_as_they_arrive():
    """The callback gets each answer once with its prompt's index, before the next batch is asked."""
    model, seen = Scripted(REPLIES), []
    prompts = [[10], [11, 2, 2], [12, 2]]
    answers = generate(model, Letters(), prompts, 5, 1, lambda i, answer: seen.append((i, answer, len(model.asked))))
    assert seen == [(1, answers[1], 1), (2, answers[2], 2), (0, answers[0], 3)]


def test_generation_is_greedy_and_capped():
    """Nothing is sampled, and no completion is longer than the cap."""
    model = Scripted(REPLIES)
    generate(model, Letters(), [[10]], 5, 1000)
    assert model.asked[0].settings == {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.0}


def test_no_prompts_give_no_answers():
    """Nothing to ask is no error."""
    assert generate(Scripted({}), Letters(), [], 5, 1000) == []


# --- The tiny policy ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The tiny policy with larger weights, so that its answers depend on every token it sees."""
    from medgrpo.policies import load_model
    from medgrpo.testing import tiny_policy

    model, tokenizer = load_model(tiny_policy(tmp_path_factory.mktemp("policy")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, tokenizer


@pytest.fixture(scope="module")
def prompts():
    texts = [
        "Does it help?",
        "Mean pain fell by 2.4 points with treatment and by 0.9 points with placebo (p=0.003).",
        "We randomised 120 adults.",
        "No difference was found between the groups; " * 4,
        "Yes?",
    ]
    return [[{"role": "user", "content": text}] for text in texts]


def greedy_by_hand(model, tokenizer, messages):
    """One token after the other, without padding, cache or `generate`."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    answer = []
    while len(answer) < LIMIT and (not answer or answer[-1] != tokenizer.eos_token_id):
        with torch.inference_mode():
            answer.append(model(torch.tensor([ids + answer])).logits[0, -1].argmax().item())
    return Generation(tokenizer.decode(answer, skip_special_tokens=True), len(answer))


@pytest.mark.parametrize("bound", [1, 150, 10_000], ids=["one by one", "in some batches", "all at once"])
def test_the_batch_does_not_change_the_answers(policy, prompts, bound):
    """Alone, in batches of like length, or all at once padded on the left: every answer is the unpadded greedy one."""
    expected = [greedy_by_hand(*policy, messages) for messages in prompts]
    assert len({answer.text for answer in expected}) == len(prompts)
    assert generate(*policy, prompts, LIMIT, bound) == expected


@pytest.fixture
def unshared(monkeypatch):
    """No model shares prompts, so that transformers generates."""
    monkeypatch.setattr(support, "prepare", lambda model: False)


@pytest.mark.parametrize("bound", [1, 150, 10_000], ids=["one by one", "in some batches", "all at once"])
def test_transformers_own_generation_gives_the_same_answers(policy, prompts, bound, unshared):
    """Where prompts cannot be shared, padded batches give the unpadded greedy answers too."""
    assert generate(*policy, prompts, LIMIT, bound) == [greedy_by_hand(*policy, messages) for messages in prompts]


def test_padding_on_the_right_would_change_them(policy, prompts, monkeypatch, unshared):
    """The claim above is not empty: padded on the right, the same model gives other answers."""
    model, tokenizer = policy
    right = generate(model, tokenizer, prompts, LIMIT, 10_000)
    monkeypatch.setattr(tokenizer, "padding_side", "right")
    assert generate(model, tokenizer, prompts, LIMIT, 10_000) != right


@pytest.mark.parametrize("shared", [True, False])
def test_sampled_answers_are_as_many_as_asked_and_differ(policy, prompts, monkeypatch, shared):
    """Each prompt gets its k answers in one call, handed on together, whichever way they are generated."""
    monkeypatch.setattr(support, "prepare", lambda model: shared and prepare(model))
    torch.manual_seed(0)
    seen = {}
    answers = sample(*policy, prompts, 3, Sampling(LIMIT, temperature=1.0), 150, seen.__setitem__)
    assert [len(of_prompt) for of_prompt in answers] == [3] * len(prompts)
    assert seen == dict(enumerate(answers))
    assert all(len({answer.text for answer in of_prompt}) > 1 for of_prompt in answers)


@pytest.mark.parametrize("shared", [True, False])
def test_the_first_of_several_answers_can_be_the_greedy_one(policy, prompts, monkeypatch, shared):
    """One call gives the greedy answer and sampled ones beside it."""
    monkeypatch.setattr(support, "prepare", lambda model: shared and prepare(model))
    torch.manual_seed(0)
    sampling = Sampling(LIMIT, temperature=1.0, first_greedy=True)
    answers = sample(*policy, prompts, 4, sampling, 10_000)
    assert [of_prompt[0] for of_prompt in answers] == generate(*policy, prompts, LIMIT, 10_000)
    assert all(len({answer.text for answer in of_prompt[1:]}) > 1 for of_prompt in answers)


def test_the_same_prompts_give_the_same_answers(policy, prompts):
    """Asked twice, and in another order, each prompt has the same answer."""
    first = generate(*policy, prompts, LIMIT, 10_000)
    assert generate(*policy, prompts[::-1], LIMIT, 10_000) == first[::-1]
