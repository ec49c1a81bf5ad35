"""SAM prompted with the box of the reference mask: an oracle, which says how far prompts alone can carry.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643
Family: foundation model.

    mask = Decoder(Encoder(x), box of the reference)       one box a structure; no box, no mask

SAM's token for a clear prompt answers. Nobody who has images only can run it: its rows are never ranked with others,
and with the boxes it also knows which slices hold the structure. Nothing of a pretrained SAM is trained. `jitter` moves
each side of the box outwards by up to that part of the image's side, drawn anew for each mask (Ma et al., MedSAM, 2024:
up to 20 of 1024 pixels).
"""

import torch
from torch import Tensor

from dgbench.methods._prompts import PromptedHparams, PromptedSAM, boxes


class SAMBox(PromptedSAM):
    """SAM prompted by the box of each structure's reference mask: an oracle."""

    hparams: PromptedHparams
    paper = "https://arxiv.org/abs/2304.02643"
    tokens = slice(0, 1)

    def prompt(self, mask: Tensor, draw: Tensor) -> Tensor:
        """The box around each mask (M, 1, H, W), its sides moved outwards by `jitter`."""
        outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=mask.device)
        box = boxes(mask) + outwards * draw * self.hparams.jitter * self.image_size
        return self.prompt_encoder(points=None, boxes=box.clamp(0, self.image_size - 1), masks=None)[0]
