"""How much predictions of one image differ. Each structure is a yes or no of its own at each pixel: two outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32


@in_float32
def log_outcomes(logits: Tensor) -> Tensor:
    """(N, K, H, W) -> (2, N, K, H, W): log-probabilities of inside and outside."""
    return F.logsigmoid(torch.stack([logits, -logits]))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, at least 0: summed over the two outcomes, the mean over pixels, structures and images."""
    return (log_p.exp() * (log_p - log_q)).sum(0).mean()


def mixture(views: Sequence[Tensor]) -> Tensor:
    """The mean prediction of several, log-probabilities all."""
    return torch.logsumexp(torch.stack(list(views)), 0) - math.log(len(views))


def disagreement(logits: Sequence[Tensor]) -> Tensor:
    """Mean of KL(p_i || mean of p) over the views: the Jensen-Shannon divergence, 0 for equal views, at most log(n)."""
    views = [log_outcomes(z) for z in logits]
    mean = mixture(views)
    return torch.stack([kl(p, mean) for p in views]).mean()
