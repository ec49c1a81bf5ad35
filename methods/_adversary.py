"""Searching for the change of an image that moves its prediction most, one step uphill (virtual adversarial training).

Miyato, Maeda, Koyama, Ishii. Virtual Adversarial Training. TPAMI 2019. https://arxiv.org/abs/1704.03976
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.methods._consistency import kl, log_outcomes


@in_float32
def divergence(reference: Tensor, logits: Tensor, contours: float = 0.0) -> Tensor:
    """KL of the reference's prediction against the logits' one, plus `contours` times how much their edges differ.

    Edges are Sobel derivatives of the probabilities; they differ by the mean square, half of it along each axis.
    """
    total = kl(log_outcomes(reference), log_outcomes(logits))
    if contours:
        difference = (reference.sigmoid() - logits.sigmoid()).flatten(0, 1)[:, None]
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=logits.device)
        edges = F.conv2d(difference, torch.stack([sobel, sobel.T])[:, None], padding=1)
        total = total + contours * edges.square().mean()
    return total


def unit(x: Tensor) -> Tensor:
    """Each image's values, (N, C, H, W), scaled to a Euclidean norm of 1; zeros stay."""
    return x / (torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) + 1e-20)
