"""Tests of medgrpo.prefix.packing: a packed row gives what separate rows give."""

import pytest
import torch

from medgrpo.prefix import packing as module
from medgrpo.prefix.attention import install, layout_inputs
from medgrpo.prefix.packing import Packing
from tests.prefix.conftest import tiny_model

# Branches of unequal lengths, of one token, and a prompt without any.
BRANCHES = [[5, 1, 9], [4, 4], [3], []]


@pytest.fixture(params=[True, False], ids=["kernel for CPUs", "autograd's own"])
def kernel(request, monkeypatch):
    """With PyTorch's kernel for CPUs under our gradient, and as on a device that has none."""
    if not request.param:
        monkeypatch.setattr(module, "_has_flash", lambda kind: False)


def packed(model, prompts, branches):
    """[T, V] logits of the packed row, and where each group starts."""
    packing = Packing(tuple(map(len, prompts)), tuple(tuple(map(len, group)) for group in branches), model.device)
    ids = [
        token for prompt, group in zip(prompts, branches, strict=True) for part in (prompt, *group) for token in part
    ]
    return model(input_ids=torch.tensor([ids]), **layout_inputs(packing, packing.positions())).logits[0], packing


def drawn(lengths):
    generator = torch.Generator().manual_seed(3)
    return [[torch.randint(3, 400, (n,), generator=generator).tolist() for n in group] for group in lengths]


def test_every_token_has_the_logits_of_its_own_sequence(family, prompts, kernel):
    """Prompt and branch tokens get the logits they have when each prompt and completion is a row by itself."""
    model, branches = tiny_model(family), drawn(BRANCHES)
    expected = []
    with torch.no_grad():
        for prompt, group in zip(prompts, branches, strict=True):
            expected.append(model(input_ids=torch.tensor([prompt])).logits[0])
            expected += [model(input_ids=torch.tensor([prompt + part])).logits[0, len(prompt) :] for part in group]
        install(model)
        logits, _ = packed(model, prompts, branches)
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_separate_rows(family, prompts, kernel):
    """Summed over the branches' tokens, every weight has the same gradient packed and apart."""
    model, branches = tiny_model(family), drawn(BRANCHES)
    apart = sum(
        model(input_ids=torch.tensor([prompt + part])).logits[0, len(prompt) :].sin().sum()
        for prompt, group in zip(prompts, branches, strict=True)
        for part in group
    )
    wanted = torch.autograd.grad(apart, list(model.parameters()))
    install(model)
    logits, packing = packed(model, prompts, branches)
    got = torch.autograd.grad(logits[packing.branch_places()].sin().sum(), list(model.parameters()))
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_positions_go_on_where_the_prompt_ends():
    """Each branch starts at the position after its prompt's last."""
    packing = Packing((3, 1), ((2, 1), (2,)), torch.device("cpu"))
    assert packing.positions().tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert packing.branch_places().tolist() == [3, 4, 5, 7, 8]
