"""Gradients taken by hand: of a loss by some parameters, a step along them, and a look at where they lead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def gradients(loss: Tensor, learned: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss, 0 for what it does not hang on; nothing else gets one."""
    found = torch.autograd.grad(loss, learned, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learned, found, strict=True)]


def step(optimizer: torch.optim.Optimizer, learned: Sequence[nn.Parameter], along: Sequence[Tensor]) -> None:
    """One step of an optimizer with these gradients."""
    for parameter, gradient in zip(learned, along, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def moved(learned: list[nn.Parameter], by: list[Tensor]) -> Iterator[None]:
    """Inside, the parameters are so much larger."""
    before = [p.detach().clone() for p in learned]
    with torch.no_grad():
        for p, e in zip(learned, by, strict=True):
            p.add_(e)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(learned, before, strict=True):
                p.copy_(value)
