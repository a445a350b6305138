"""Tests of medgrpo.training.verdict_loss: which token is weighed, and which tokenizers are refused."""

import pytest
import torch

from medgrpo.completions import VERDICTS
from medgrpo.errors import InputError
from medgrpo.policies import load_tokenizer
from medgrpo.prompts import gold_completion
from medgrpo.testing import tiny_gemma, tiny_policy
from medgrpo.training.verdict_loss import verdict_tokens, weigh_verdicts


def test_a_verdicts_weight_multiplies_its_log_probability_alone(tmp_path):
    """Only the last verdict word of a row is counted more; the same word in the thought is not."""
    tokenizer = load_tokenizer(tiny_policy(tmp_path / "policy"))
    tokens = verdict_tokens(tokenizer, VERDICTS)
    ids = tokenizer.encode("<thought>yes or no</thought><answer>maybe</answer>")
    labels = torch.tensor([[-100, *ids]])
    weighted = weigh_verdicts(torch.ones(labels.shape), labels, tokens, 20.0)
    assert tokenizer.decode(labels[weighted == 20]).startswith("m")
    assert weighted.sum() == labels.numel() + 19


def test_verdicts_may_be_told_apart_at_different_places(tmp_path):
    """Where a tag and one verdict are a token of their own, and the others' come after the tag, each is found."""
    tokenizer = load_tokenizer(tiny_gemma(tmp_path / "policy"))
    answers = [
        tokenizer.encode(f"<answer>{word}</answer>", add_special_tokens=False) for word in ("yes", "no", "maybe")
    ]
    assert answers[0][0] != answers[1][0] == answers[2][0]
    tokens = verdict_tokens(tokenizer, VERDICTS)
    assert [[token in tokens for token in ids].count(True) for ids in answers] == [1, 1, 1]
    assert len(set(tokens)) == 3


def test_verdicts_that_begin_alike_cannot_be_weighed():
    """A tokenizer that starts two verdicts with one token is refused with a sentence, not weighed wrongly."""

    class Letters:
        def encode(self, text, add_special_tokens):
            return [ord(c) for c in text.replace("maybe", "yesterday")]

    with pytest.raises(InputError, match="verdict_weight"):
        verdict_tokens(Letters(), VERDICTS)


@pytest.mark.slow
def test_the_loss_is_the_same_where_a_trainer_leaves_it_to_the_model(tmp_path, monkeypatch):
    """transformers' way to a loss, which Unsloth's trainer takes on a GPU, gives TRL's, with the verdicts weighed."""
    import datasets
    import transformers
    import trl

    from medgrpo.config import PolicyConfig, RunConfig
    from medgrpo.policies import load_trainable
    from medgrpo.testing import tiny_record
    from medgrpo.training import logprobs, verdict_loss, warmup

    logprobs.install()
    model, tokenizer = load_trainable(PolicyConfig(base=str(tiny_policy(tmp_path / "policy"))))
    rows = [{"prompt": "Yes or no?", "completion": gold_completion(tiny_record(verdict=v))} for v in ("yes", "no")]
    options = {
        "model": model,
        "processing_class": tokenizer,
        "args": warmup._arguments(RunConfig(), tmp_path),
        "train_dataset": datasets.Dataset.from_list(rows),
    }
    weighing = verdict_loss.VerdictWeightedTrainer(verdict_weight=9.0, labels=VERDICTS, **options)
    inputs = dict(next(iter(weighing.get_train_dataloader())))
    for count in (None, torch.tensor(500)):
        by_trl = weighing.compute_loss(weighing.model, dict(inputs), num_items_in_batch=count)
        with monkeypatch.context() as patch:
            patch.setattr(trl.SFTTrainer, "compute_loss", transformers.Trainer.compute_loss)
            by_model = weighing.compute_loss(weighing.model, dict(inputs), num_items_in_batch=count)
        assert by_model.item() == pytest.approx(by_trl.item(), rel=1e-6)
    plain = verdict_loss.VerdictWeightedTrainer(verdict_weight=1.0, labels=VERDICTS, **options)
    assert plain.compute_loss(plain.model, dict(inputs), num_items_in_batch=count).item() < by_trl.item()
