"""A prompt computed once for branches that are too many for one row.

Branches see nothing of their prompt but its keys and values. So the prompt runs once, by itself, and each layer's keys
and values are kept; its branches follow in pieces, each with a backward pass of its own that adds to the gradients of
what was kept; at the end those go back through the prompt, once. Numbers and gradients are those of one row that holds
everything, the memory is that of the prompt and one piece.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medgrpo.prefix.attention import Kernel
from medgrpo.prefix.packing import Packing, Part, attend_parts, branches_of


class KeptPrompt:
    """The layout of a prompt by itself, which keeps its keys and values for the branches.

    Args:
        tokens: its length, at least 1.
        device: where it is.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.tokens, self.device = tokens, device
        self._alone = Packing((tokens,), ((),), device)
        self._states: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self) -> Tensor:
        """[1, T] position of each token."""
        return self._alone.positions()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """See `Layout`."""
        self._states[layer] = key, value
        return self._alone.attend(layer, query, key, value, kernel)

    def close(self) -> None:
        """After the prompt's forward pass: from here on gradients stop at its keys and values, and are gathered there.

        A layer that is recomputed in the backward pass (gradient checkpointing) attends again, but to no other end.
        """
        self._leaves = {
            layer: (key.detach().requires_grad_(key.requires_grad), value.detach().requires_grad_(value.requires_grad))
            for layer, (key, value) in self._states.items()
        }
        self._kept, self._states = self._states, {}

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """[1, key heads, T, D] keys and values of a layer, for the branches."""
        return self._leaves[layer]

    def backward(self) -> None:
        """Take the gradients that the branches left back through the prompt; without any, nothing."""
        pairs = [
            (state, leaf.grad)
            for layer, states in self._kept.items()
            for state, leaf in zip(states, self._leaves[layer], strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            states, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(states, gradients)


class Piece:
    """The layout of some branches of a kept prompt, side by side in a row without it.

    Args:
        prompt: the prompt, closed.
        branches: tokens of each branch.
    """

    def __init__(self, prompt: KeptPrompt, branches: Sequence[int]) -> None:
        self._prompt, self._branches = prompt, branches
        self._parts: dict[int | None, Part] = {}

    def positions(self) -> Tensor:
        """[1, T] position of each token: branches go on where their prompt ends."""
        start = self._prompt.tokens
        parts = [torch.arange(start, start + length) for length in self._branches]
        return torch.cat(parts)[None].to(self._prompt.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """See `Layout`."""
        kept_key, kept_value = self._prompt.of(layer)
        seen = torch.cat([kept_key, key], dim=2), torch.cat([kept_value, value], dim=2)
        if kernel.window not in self._parts:
            part = branches_of(self._prompt.tokens, self._branches, kernel.window, query.device)
            self._parts[kernel.window] = part
        return attend_parts([self._parts[kernel.window]], query, *seen, kernel)
