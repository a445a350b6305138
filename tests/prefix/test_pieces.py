"""Tests of medgrpo.prefix.pieces: a kept prompt and its branches in pieces give what separate rows give."""

import pytest
import torch

from medgrpo.prefix import packing
from medgrpo.prefix.attention import install, layout_inputs
from medgrpo.prefix.pieces import KeptPrompt, Piece
from tests.prefix.conftest import tiny_model
from tests.prefix.test_packing import drawn

PIECES = [[5, 1, 9], [4, 4], [3]]


@pytest.fixture(params=[True, False], ids=["kernel for CPUs", "autograd's own"])
def kernel(request, monkeypatch):
    """With PyTorch's kernel for CPUs under our gradient, and as on a device that has none."""
    if not request.param:
        monkeypatch.setattr(packing, "_has_flash", lambda kind: False)


def keep(model, prompt):
    """The prompt after its own forward pass."""
    kept = KeptPrompt(len(prompt), model.device)
    model.get_decoder()(input_ids=torch.tensor([prompt]), use_cache=False, **layout_inputs(kept, kept.positions()))
    kept.close()
    return kept


def logits(model, kept, branches):
    """[T, V] logits of a piece."""
    piece = Piece(kept, list(map(len, branches)))
    ids = torch.tensor([[token for branch in branches for token in branch]])
    return model(input_ids=ids, **layout_inputs(piece, piece.positions())).logits[0]


def test_logits_and_gradients_are_those_of_separate_rows(family, prompts, kernel):
    """Every branch token has its logits, and every weight its gradient, whatever the pieces; also in a window."""
    model, prompt = tiny_model(family), prompts[0]
    pieces = drawn(PIECES)
    apart = [model(input_ids=torch.tensor([prompt + b])).logits[0, len(prompt) :] for piece in pieces for b in piece]
    wanted = torch.autograd.grad(sum(part.sin().sum() for part in apart), list(model.parameters()))
    install(model)
    kept, found = keep(model, prompt), []
    for piece in pieces:
        found.append(logits(model, kept, piece))
        found[-1].sin().sum().backward()
    kept.backward()
    torch.testing.assert_close(torch.cat(found), torch.cat(apart), rtol=1e-4, atol=1e-4)
    for parameter, other in zip(model.parameters(), wanted, strict=True):
        assert (parameter.grad - other).norm() <= 1e-4 * other.norm()


def test_without_gradients_nothing_goes_back(family, prompts):
    """Under no_grad, as for the old policy and the reference, the pieces have their logits and that is all."""
    model, prompt, branches = tiny_model(family), prompts[0], drawn(PIECES)[0]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([prompt + b])).logits[0, len(prompt) :] for b in branches]
        install(model)
        kept = keep(model, prompt)
        found = logits(model, kept, branches)
        kept.backward()
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
