"""Tests of medgrpo.training.verdict_loss: which token is weighed, and which tokenizers are refused."""

import pytest
import torch

from medgrpo.errors import InputError
from medgrpo.policies import load_tokenizer
from medgrpo.testing import tiny_policy
from medgrpo.training.verdict_loss import verdict_tokens, weigh_verdicts


def test_a_verdicts_weight_multiplies_its_log_probability_alone(tmp_path):
    """Only the last verdict word of a row is counted more; the same word in the thought is not."""
    tokenizer = load_tokenizer(tiny_policy(tmp_path / "policy"))
    tokens = verdict_tokens(tokenizer)
    ids = tokenizer.encode("<thought>yes or no</thought><answer>maybe</answer>")
    labels = torch.tensor([[-100, *ids]])
    weighted = weigh_verdicts(torch.ones(labels.shape), labels, tokens, 20.0)
    assert tokenizer.decode(labels[weighted == 20]).startswith("m")
    assert weighted.sum() == labels.numel() + 19


def test_verdicts_that_begin_alike_cannot_be_weighed():
    """A tokenizer that starts two verdicts with one token is refused with a sentence, not weighed wrongly."""

    class Letters:
        def encode(self, text, add_special_tokens):
            return [ord(c) for c in text.replace("maybe", "yesterday")]

    with pytest.raises(InputError, match="verdict_weight"):
        verdict_tokens(Letters())
