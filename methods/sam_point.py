"""SAM prompted with one point inside the reference mask: an oracle, and the least that a person could give.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643
Family: foundation model.

    mask = Decoder(Encoder(x), point of the reference)     one point a structure; no point, no mask

The point is the pixel of the mask nearest to its centroid; `jitter` moves it along x and y by up to that part of the
image's side, drawn anew for each mask, and then it may lie outside. A point is ambiguous: SAM answers with three masks,
of which the one is taken that SAM itself rates best (predicted IoU); the reference has no say in that. Its rows are
never ranked with others. Nothing of a pretrained SAM is trained.
"""

import torch
from torch import Tensor

from dgbench.methods._prompts import PromptedHparams, PromptedSAM, centres


class SAMPoint(PromptedSAM):
    """SAM prompted by a point inside each structure's reference mask: an oracle."""

    hparams: PromptedHparams
    paper = "https://arxiv.org/abs/2304.02643"
    tokens = slice(1, 4)

    def prompt(self, mask: Tensor, draw: Tensor) -> Tensor:
        """The pixel of each mask nearest to its centroid, moved by `jitter`."""
        moved = (2 * draw[:, :2] - 1) * self.hparams.jitter * self.image_size
        point = (centres(mask) + moved).clamp(0, self.image_size - 1)[:, None]
        foreground = torch.ones(len(mask), 1, dtype=torch.int, device=mask.device)
        return self.prompt_encoder(points=(point, foreground), boxes=None, masks=None)[0]
