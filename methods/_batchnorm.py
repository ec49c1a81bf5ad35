"""Batch norm whose running statistics must not move, in passes that only look and where frozen, or are replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgbench.losses import in_float32

Moments = tuple[Tensor, Tensor]  # mean and variance of each channel, (C,) both


@contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm in training uses its batch's statistics, as always, and does not remember them."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def keep_frozen(module: nn.Module) -> None:
    """Put every batch norm that is frozen into eval mode, where it uses its running statistics and keeps them."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not norm.weight.requires_grad:
            norm.eval()


def pooled(first: Moments, second: Moments, share: float) -> Moments:
    """Mean and variance of two sets of values together; `share`: that of the second among all."""
    mean, variance = (torch.lerp(a, b, share) for a, b in zip(first, second, strict=True))
    return mean, variance + share * (1 - share) * (first[0] - second[0]).square()


def source_moments(norm: Any) -> Moments:
    """What a batch norm has seen in training."""
    return norm.running_mean, norm.running_var


def blended(norm: nn.Module, test: Moments, share: float) -> Moments:
    """From the source's mean and variance (`share` 0) to those of the test images (1), each in a straight line."""
    mean, variance = (torch.lerp(a, b, share) for a, b in zip(source_moments(norm), test, strict=True))
    return mean, variance


@in_float32
def restyle(x: Tensor, norm: Any, rule: Callable[[Moments], Moments | None]) -> Tensor:
    """(N, C, H, W) shifted and scaled so that the norm, by its running statistics, gives what `rule`'s would give."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    moments = rule((mean, variance))
    if moments is None:
        return x
    mean, variance = moments
    scale = ((norm.running_var + norm.eps) / (variance + norm.eps)).sqrt()
    shift = norm.running_mean - mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


@contextmanager
def normalised_by(norms: Sequence[nn.Module], rule: Callable[[int, Moments], Moments | None]) -> Iterator[None]:
    """Inside, batch norms in eval mode normalise by `rule(index, moments of their input)`; gradients flow through.

    Where the rule gives None a norm is left alone.
    """

    def before(index: int, norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return restyle(inputs[0], norm, partial(rule, index)).to(inputs[0].dtype)

    hooks = [norm.register_forward_pre_hook(partial(before, index)) for index, norm in enumerate(norms)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
