"""Batch norm whose running statistics must not move: in passes that only look, and where it is frozen."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
