"""A shallow random network redraws each image: new intensities and textures, the same shapes (CSDG's GIN).

Ouyang et al. Causality-inspired Single-source Domain Generalization for Medical Image Segmentation. TMI 2022.
https://arxiv.org/abs/2111.12525
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32


@in_float32
def gin(
    z: Tensor,
    layers: int = 4,
    channels: int = 2,
    kernels: tuple[int, ...] = (1, 3),
    slope: float = 0.01,
    bent: bool = False,
) -> Tensor:
    """(N, C, H, W) -> the same shape and, for each image, the same Frobenius norm.

    slope: of the leaky ReLU between the layers; bent: behind the last one, too.
    """
    n, c, device = len(z), z.shape[1], z.device
    share = torch.rand(n, device=device)[:, None, None, None]
    x, width = z.reshape(1, n * c, *z.shape[2:]), c
    for layer in range(layers):
        k = kernels[int(torch.randint(len(kernels), ()))]
        out = channels if layer < layers - 1 else c
        weight = torch.randn(n * out, width, k, k, device=device)
        x = F.conv2d(x, weight, torch.randn(n * out, device=device), padding=k // 2, groups=n)
        x, width = (F.leaky_relu(x, slope) if bent or layer < layers - 1 else x), out
    mixed = torch.lerp(z, x.view_as(z), share)
    own, new = (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) for v in (z, mixed))
    return mixed * own / (new + 1e-5)
