"""Tests of medgrpo.prefix.generation: the same logits as stock generation, the same distribution, rows that leave."""

import pytest
import torch
from transformers import LogitsProcessorList

from medgrpo.prefix.adapters import folded_adapters
from medgrpo.prefix.attention import install
from medgrpo.prefix.generation import Batch, Sampling, generate_completions
from tests.prefix.conftest import tiny_model, with_lora

LIMIT = 40


def greedy_by_hand(model, prompt, limit=LIMIT, stop=1):
    """One token after the other without a cache."""
    ids = []
    while len(ids) < limit and (not ids or ids[-1] != stop):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax().item())
    return ids


def test_greedy_completions_are_those_of_whole_sequences(family, prompts):
    """Past a buffer's first capacity and past the windows, the tokens are those of a model without a cache."""
    model = tiny_model(family)
    expected = [greedy_by_hand(model, prompt) for prompt in prompts]
    install(model)
    completions = generate_completions(model, prompts, [1] * len(prompts), Sampling(LIMIT), [1])
    assert [completion.tokens for completion in completions] == expected


@pytest.mark.parametrize("lora", [False, True])
def test_forced_tokens_have_the_logits_of_stock_generation(family, prompts, lora):
    """At every step, for every row, whoever has left: the logits of the whole sequence, to 1e-4."""
    model = tiny_model(family)
    if lora:
        model = with_lora(model).eval()
    generator = torch.Generator().manual_seed(4)
    copies, lengths = [3, 1, 2, 4], [9, 2, 5, 40, 3, 3, 1, 12, 12, 30]
    rows = [prompt for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
    forced = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in lengths]
    with torch.no_grad():
        wanted = [
            model(input_ids=torch.tensor([p + f])).logits[0, len(p) - 1 :] for p, f in zip(rows, forced, strict=True)
        ]
        install(model)
        with folded_adapters(model):
            batch = Batch(model, prompts, copies, Sampling(LIMIT))
            logits = batch.first_logits
            for step in range(max(lengths) + 1):
                for place, row in enumerate(batch.rows):
                    scale = wanted[row].abs().max()
                    assert (logits[place] - wanted[row][step]).abs().max() <= 1e-4 * scale
                batch.live = [step < lengths[row] for row in batch.rows]
                if not any(batch.live):
                    break
                batch.compact()
                logits = batch.advance(torch.tensor([forced[row][step] for row in batch.rows]))


def test_samples_follow_the_models_distribution(prompts):
    """4,000 first tokens at a temperature are drawn as the softmax says (chi-square over the ten likeliest)."""
    model = tiny_model("llama")
    prompt = prompts[1]
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
    install(model)
    torch.manual_seed(0)
    drawn = generate_completions(model, [prompt], [4000], Sampling(1, temperature=0.5), [])
    counts = torch.bincount(torch.tensor([completion.tokens[0] for completion in drawn]), minlength=400).float()
    likeliest = expected.topk(10).indices
    deviation = (counts[likeliest] - 4000 * expected[likeliest]) / (4000 * expected[likeliest]).sqrt()
    assert deviation.square().sum() < 30


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
)
def test_tokens_are_kept_and_weighed_as_transformers_does(settings):
    """Temperature, top-k, nucleus and repetition penalty give the scores that `generate` would draw from."""
    from transformers import GenerationConfig

    model = tiny_model("llama")
    config = GenerationConfig(do_sample=True, pad_token_id=0, eos_token_id=1, **({"top_k": 0} | settings))
    stock = model._get_logits_processor(config, 4, torch.tensor([[5, 6, 7, 7]]), logits_processor=LogitsProcessorList())
    logits = torch.randn(2, 400, generator=torch.Generator().manual_seed(6))
    history = torch.tensor([[5, 6, 7, 7], [8, 8, 8, 9]])
    ours = Sampling(4, **settings).processors()(history, logits.clone())
    torch.testing.assert_close(ours, stock(history, logits.clone()))


def test_a_repetition_penalty_sees_prompt_and_completion(prompts):
    """A prohibitive penalty never lets a token of the prompt, or one already written, come again."""
    model = tiny_model("llama")
    install(model)
    drawn = generate_completions(model, prompts, [1] * 4, Sampling(20, repetition_penalty=1e6), [])
    for prompt, completion in zip(prompts, drawn, strict=True):
        ids = completion.tokens
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(prompt)


def test_rows_end_at_their_stop_and_leave(prompts, monkeypatch):
    """A row holds its stop token last and is handed on at once; later steps compute fewer rows."""
    model = tiny_model("llama")
    install(model)
    widths = []
    advance = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda self, tokens: widths.append(len(tokens)) or advance(self, tokens))
    torch.manual_seed(0)
    stops, seen = list(range(40)), {}
    drawn = generate_completions(
        model, prompts, [4] * 4, Sampling(LIMIT, temperature=1.0), stops, lambda row, ids: seen.update({row: list(ids)})
    )
    assert seen == {row: completion.tokens for row, completion in enumerate(drawn)}
    for ids in seen.values():
        assert all(token not in stops for token in ids[:-1])
        assert ids[-1] in stops or len(ids) == LIMIT
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 16


def test_a_model_in_training_stays_in_training(prompts):
    """Generation switches dropout and recomputation off, and the mode back on; nothing needs a gradient."""
    model = tiny_model("llama").train()
    install(model)
    model.gradient_checkpointing_enable()
    generate_completions(model, prompts[:1], [2], Sampling(3), [])
    assert model.training


def test_log_probabilities_are_those_of_the_tokens_drawn(prompts):
    """At the temperature, before any token is left out, for each token of each row, also after rows have left."""
    model = tiny_model("llama")
    install(model)
    torch.manual_seed(0)
    sampling = Sampling(LIMIT, temperature=0.8, top_k=50, log_probs=True)
    drawn = generate_completions(model, prompts, [3] * 4, sampling, list(range(40)))
    for row, completion in enumerate(drawn):
        prompt = prompts[row // 3]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion.tokens])).logits[0, len(prompt) - 1 : -1]
        wanted = (logits / 0.8).log_softmax(-1).gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.log_probs), wanted, rtol=1e-4, atol=1e-4)


def test_a_token_without_probability_is_never_drawn(monkeypatch):
    """Not even where the uniform number is 0 or as near to 1 as it can be."""
    scores = torch.tensor([[-torch.inf, 0.0, -1.0, -torch.inf]] * 2)
    for uniform, wanted in ((0.0, 1), (1.0 - 2**-53, 2), (0.5, 1), (0.8, 2)):
        monkeypatch.setattr(torch, "rand_like", lambda like, u=uniform: torch.full_like(like, u))
        drawn = Sampling(1, temperature=1.0).pick(scores, None, LogitsProcessorList())
        assert drawn.tolist() == [wanted, wanted]
