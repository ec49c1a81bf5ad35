"""SAM-Med2D: a channel gate and a spatial bottleneck beside each MLP of SAM's encoder; trained, or as released.

Cheng et al. SAM-Med2D. 2023. https://arxiv.org/abs/2308.16184
Code: https://github.com/OpenGVLab/SAM-Med2D
Family: foundation model.

    x <- x + Attention(x)
    x <- x + MLP(h) + A(h)                                h = LayerNorm(x)
    A(h) = LayerNorm(h + relu(U relu(D(g h))))            g = sigmoid(W_2 relu(W_1 mean of h)), one for each channel
                                                          D: 3x3 convolution of stride 2, U: 4x4 transposed one

    prompt=none        mask k = Decoder(Encoder(x), "no prompt"), mask token k; adapters and decoder are trained
    prompt=image       the same with the whole image as a box
    prompt=box, point  the decoder is asked by the box or central pixel of reference k: an oracle, never ranked

On `backbone=sam_med2d_b`, the authors' weights (256 px), nothing is trained unless prompt=none; a whole image does not
say which structure is meant, and all get the same answer. Of the three answers to a prompt that is taken which
SAM-Med2D itself rates best, as in its test: token 0 it never trained. On another pretrained SAM the adapters are new,
and encoder and prompt encoder stay frozen.
Differs: trained by no clicks (theirs: a box or point, then eight points where the answer was wrong, of which one step
trains the encoder, the others the decoder), by all methods' loss and schedule; theirs is 20 focal + Dice + IoU, Adam
1e-4. Images smaller than 256 px are enlarged, theirs are padded. In a TinyViT, which is not theirs, A stands beside
each block's MLP, behind its convolution. Nothing is frozen on a backbone that is trained from scratch.
The key names of the weights are those of the public code; the released file itself was not at hand.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dgbench.method import Batch
from dgbench.methods import _blocks
from dgbench.methods._prompts import PromptedHparams, PromptedSAM, boxes, centres
from dgbench.networks import sam
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

RELEASED = "sam_med2d_b"


@dataclass(frozen=True)
class SAMMed2DHparams(PromptedHparams):
    """How it is asked, and the width of the channel gate."""

    prompt: Literal["none", "image", "box", "point"] = "none"  # box and point are the target's reference: an oracle
    gate: Annotated[float, Range(above=0)] = 0.25  # hidden width of the channel gate, in widths of the tokens


class Adapter(nn.Module):
    """Tokens (N, H, W, C) -> what is added to them, (N, H, W, C). Named as in the released weights."""

    def __init__(self, width: int, gate: float):
        super().__init__()
        hidden = max(1, int(gate * width))
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        for layer in (*self.channel, *self.spatial):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, h: Tensor) -> Tensor:
        """A grid of odd sides comes out of the bottleneck larger by one, which is cut off."""
        gated = (self.channel(h.mean((1, 2)))[:, None, None] * h).permute(0, 3, 1, 2)
        spatial = self.spatial(gated)[..., : h.shape[1], : h.shape[2]]
        return self.norm(h + spatial.permute(0, 2, 3, 1))


class SAMMed2D(PromptedSAM):
    """SAM with SAM-Med2D's adapters in every block of its encoder."""

    hparams: SAMMed2DHparams
    paper = "https://arxiv.org/abs/2308.16184"
    pretrained = "SAM or SAM-Med2D by --set backbone"
    uses_target_masks = False
    trained: tuple[str, ...] = ("mask_decoder.*",)
    added: tuple[str, ...] = ("image_encoder.*.Adapter.*",)
    tokens = slice(1, 4)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        task: {"image_size": 256, "learning_rate": 1e-4, "weight_decay": 0.0} for task in ("prostate", "fundus")
    }

    def __init__(self, task: TaskInfo, hparams: SAMMed2DHparams):
        super().__init__(task, hparams)
        self.uses_target_masks = hparams.prompt in ("box", "point")
        for block in _blocks.blocks(self.image_encoder):
            block.Adapter = Adapter(_blocks.width(block), hparams.gate)
        if self.backbone.weights == RELEASED:  # whose adapters are no additions: none may be missing
            self.added = ()
            self.trained = (*type(self).trained, *type(self).added) if hparams.prompt == "none" else ()

    @property
    def mask_tokens(self) -> int:
        """SAM's four, or as many as there are structures, if none is a prompt of its own."""
        several = sam.RELEASE_MASKS if self.hparams.prompt in ("box", "point") else len(self.task.structures)
        return max(sam.RELEASE_MASKS, several)

    def encode(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> (N, C, S / patch, S / patch)."""
        return _blocks.embedding(self.image_encoder, x, self.through)

    def through(self, block: Any, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) through one block and its adapter."""
        x = _blocks.mix(block, _blocks.skip(block, x) + block.attend(x))
        h = _blocks.normed(block, x)
        return x + _blocks.mlp(block, h) + block.Adapter(h)

    def prompt(self, mask: Tensor, draw: Tensor) -> Tensor:
        """The box around each mask (M, H, W), its sides moved outwards by `jitter`, or its central pixel, moved."""
        far, last = self.hparams.jitter * self.image_size, self.image_size - 1
        if self.hparams.prompt == "box":
            outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=mask.device)
            box = (boxes(mask) + outwards * draw * far).clamp(0, last)
            return self.prompt_encoder(points=None, boxes=box, masks=None)[0]
        point = (centres(mask) + (2 * draw[:, :2] - 1) * far).clamp(0, last)[:, None]
        inside = torch.ones(len(mask), 1, dtype=torch.int, device=mask.device)
        return self.prompt_encoder(points=(point, inside), boxes=None, masks=None)[0]

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, S, S), without a prompt or prompted with the whole image."""
        structures, sparse = len(self.task.structures), None
        if self.hparams.prompt == "image":
            box = torch.tensor([[0.0, 0.0, self.image_size - 1, self.image_size - 1]], device=image.device)
            sparse = self.prompt_encoder(points=None, boxes=box.expand(len(image), -1), masks=None)[0]
        logits, iou = self.decode(self.embed(image), self.no_prompt(), sparse)
        if sparse is not None and self.backbone.weights == RELEASED:
            best = iou[:, self.tokens].argmax(1)
            answer = logits[:, self.tokens][torch.arange(len(best)), best][:, None].expand(-1, structures, -1, -1)
        else:
            answer = logits[:, :structures]
        return resize(answer, image.shape[-2:])

    def loss(self, batch: Batch) -> Tensor:
        """An oracle's, or the criterion of what it predicts."""
        return super().loss(batch) if self.uses_target_masks else self.criterion(self.logits(batch.image), batch.mask)
