"""Tests of medgrpo.training.logprobs: the plain function against the textbook, and against TRL's own kernel."""

import itertools

import pytest
import torch

from medgrpo.training import logprobs
from medgrpo.training.logprobs import OUTPUTS, LogProbabilities

HIDDEN, VOCABULARY = 6, 11
SETTINGS = [
    pytest.param(temperature, softcap, scale, id=f"temperature={temperature}-softcap={softcap}-scale={scale}")
    for temperature, softcap, scale in itertools.product((1.0, 0.7), (None, 2.5), (1.0, 0.25))
]


def problem(tokens, with_bias=True, dtype=torch.float64, device="cpu", seed=0):
    """Random leaf tensors (hidden, weight, bias) and targets."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,)]
    leaves = [torch.randn(shape, generator=generator, dtype=dtype).to(device).requires_grad_() for shape in shapes]
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator).to(device)
    return leaves[0], leaves[1], leaves[2] if with_bias else None, targets


def textbook(hidden, weight, bias, targets, temperature, softcap, scale):
    """The five outputs from the full [N, V] logits, term by term."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    chosen = probabilities[torch.arange(len(targets)), targets].log()
    entropy = -(probabilities * probabilities.log()).sum(-1)
    collision = probabilities.square().sum(-1).log()
    return chosen, entropy, collision, logits.mean(-1), logits.max(-1).indices == targets


def gradients(outputs, leaves):
    """Gradients of a loss in which every token has a weight of its own, in log-probability and in entropy."""
    weights = torch.linspace(-1.0, 2.0, len(outputs[0]), dtype=outputs[0].dtype, device=outputs[0].device)
    loss = (weights * outputs[0]).sum() + (weights.flip(0) * outputs[1]).sum()
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), SETTINGS)
def test_every_output_equals_the_full_logits_computation(temperature, softcap, scale, with_bias):
    """Log-probability, entropy, log of the summed squares, mean logit and top-1 are those of the full logits."""
    *leaves, targets = problem(40, with_bias)
    ours = LogProbabilities.apply(*leaves, targets, temperature, 8192, softcap, scale)
    expected = textbook(*leaves, targets, temperature, softcap, scale)
    for name, got, wanted in zip(("log_probs", *OUTPUTS), ours, expected, strict=True):
        assert got.shape == (40,), name
        # The function computes in float32, whatever it is given.
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=1e-5, atol=1e-5, msg=lambda text, n=name: n + text)
    assert ours[4].dtype == torch.bool


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), SETTINGS)
def test_gradients_equal_the_full_logits_computation(temperature, softcap, scale, with_bias):
    """The gradients of log-probabilities and entropies with respect to hidden states, weight and bias are exact."""
    *leaves, targets = problem(40, with_bias)
    ours = gradients(LogProbabilities.apply(*leaves, targets, temperature, 8192, softcap, scale), leaves)
    expected = gradients(textbook(*leaves, targets, temperature, softcap, scale), leaves)
    assert len(ours) == (3 if with_bias else 2)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), SETTINGS)
def test_a_frozen_head_gives_the_same_values_and_gradients(temperature, softcap, scale, with_bias, monkeypatch):
    """Where only the hidden states are trained, N x H numbers are kept, and values and gradient stay exact."""
    monkeypatch.setattr(logprobs, "TOKENS_AT_ONCE", 17)
    hidden, weight, bias, targets = problem(40, with_bias)
    frozen = [None if leaf is None else leaf.detach() for leaf in (weight, bias)]
    ours = LogProbabilities.apply(hidden, *frozen, targets, temperature, 8192, softcap, scale)
    expected = textbook(hidden, weight, bias, targets, temperature, softcap, scale)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1.0, 2.0, 40)
    got, wanted = (torch.autograd.grad((weights * values[0]).sum(), hidden)[0] for values in (ours, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert [value.requires_grad for value in ours] == [True, False, False, False, False]


def test_results_do_not_depend_on_how_tokens_are_chunked(monkeypatch):
    """Tokens are cut into chunks to save memory; the values, their order and the gradients stay the same."""
    *leaves, targets = problem(23)
    whole = LogProbabilities.apply(*leaves, targets, 0.9, 8192)
    expected = gradients(whole, leaves)
    monkeypatch.setattr(logprobs, "TOKENS_AT_ONCE", 5)
    cut = LogProbabilities.apply(*leaves, targets, 0.9, 8192)
    for got, wanted in zip((*cut, *gradients(cut, leaves)), (*whole, *expected), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("wanted", [(), ("entropy",), ("is_top1", "mean_logits"), OUTPUTS], ids=str)
@pytest.mark.parametrize("tokens", [0, 7])
def test_only_the_outputs_asked_for_are_computed(tokens, wanted):
    """Statistics that were not asked for are None, those asked for have a value per token, also for no tokens."""
    *leaves, targets = problem(tokens)
    log_probs, *statistics = LogProbabilities.apply(*leaves, targets, 1.0, 8192, outputs=wanted)
    assert log_probs.shape == (tokens,)
    assert {name for name, value in zip(OUTPUTS, statistics, strict=True) if value is not None} == set(wanted)
    assert all(value.shape == (tokens,) for value in statistics if value is not None)


def test_an_empty_selection_still_contributes_a_differentiable_zero():
    """A micro-batch without a predicted token gives a zero loss whose gradient is zero, not an error."""
    hidden, weight, bias, targets = problem(0)
    log_probs = LogProbabilities.apply(hidden, weight, bias, targets, 1.0, 8192)[0]
    (gradient,) = torch.autograd.grad(log_probs.sum(), hidden)
    assert log_probs.sum().item() == 0
    assert gradient.shape == hidden.shape


def test_statistics_for_logging_carry_no_gradient():
    """Only log-probability and entropy are differentiable, as in TRL's kernel."""
    *leaves, targets = problem(5)
    outputs = LogProbabilities.apply(*leaves, targets, 1.0, 8192)
    assert [value.requires_grad for value in outputs] == [True, True, False, False, False]


def test_half_precision_inputs_are_summed_in_float32():
    """Hidden states in bfloat16 give float32 results close to the exact ones, not rounded ones."""
    *leaves, targets = problem(40)
    short = [leaf.detach().bfloat16() for leaf in leaves]
    log_probs, entropy, *_ = LogProbabilities.apply(*short, targets, 1.0, 8192)
    exact = textbook(*[leaf.double() for leaf in short], targets, 1.0, None, 1.0)
    assert log_probs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), exact[0], rtol=0.02, atol=0.05)


def test_logits_far_apart_stay_finite():
    """Logits of thousands give finite log-probabilities, entropies and gradients."""
    *leaves, targets = problem(9)
    outputs = LogProbabilities.apply(*leaves, targets, 1e-3, 8192)
    values = [*outputs[:4], *gradients(outputs, leaves)]
    assert all(torch.isfinite(value).all() for value in values)


def test_install_replaces_trls_kernel_where_it_cannot_run(monkeypatch):
    """Without Triton, or without a CUDA device for it, TRL is given the plain function, also when asked twice."""
    import trl.trainer.utils as trl_utils

    for kernel, cuda in ((None, False), (None, True), (object(), False)):
        monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", kernel)
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert logprobs.install()
        assert trl_utils._ChunkedLogProbFunction is LogProbabilities


def test_install_leaves_a_kernel_that_can_run(monkeypatch):
    """With Triton and a CUDA device TRL keeps its own kernel."""
    import trl.trainer.utils as trl_utils

    kernel = object()
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", kernel)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not logprobs.install()
    assert trl_utils._ChunkedLogProbFunction is kernel


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), SETTINGS)
def test_the_plain_function_agrees_with_trls_kernel(temperature, softcap, scale, with_bias):
    """On a CUDA device, values and gradients equal those of TRL's Triton kernel, chunked over the vocabulary."""
    kernel = pytest.importorskip("trl.kernels").ChunkedLogProbFunction
    *leaves, targets = problem(40, with_bias, torch.float32, "cuda")
    ours = LogProbabilities.apply(*leaves, targets, temperature, 4, softcap, scale)
    theirs = kernel.apply(*leaves, targets, temperature, 4, softcap, scale)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    for got, wanted in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
