"""AutoSAM: a convolutional network looks at the image and writes the prompt of a SAM that is frozen as a whole.

Shaharabany, Dahan, Giryes, Wolf. AutoSAM: Adapting SAM to Medical Images by Overloading the Prompt Encoder. 2023.
https://arxiv.org/abs/2306.06370
Family: foundation model.

    d_k    = tanh(CNN(z))_k            one map of C channels on the embedding's grid for each structure
    mask k = Decoder(Encoder(x), d_k)  d_k stands where the embedded mask prompt does; token 0, for a clear prompt
    loss   = (BCE + Dice loss) / 2     theirs: BCE + Tversky(0.5, 0.5), which is BCE + Dice loss

Only the network that prompts is trained, through the decoder; there are no points or boxes.
Differs: any encoder of timm (or `smp:NAME`) for HarDNet-85, under this benchmark's U-Net decoder down from the level
of the embedding's stride; it sees the same image as SAM, as a z-score, where theirs sees it at half the size. Theirs
segments one structure; here each has a prompt and a pass of the decoder of its own. The probability is the sigmoid of
SAM's logits, theirs are stretched to [0, 1] over the image, by which every image shows something. AdamW 5e-4 with
polynomial decay; theirs is Adam 3e-4, batches of 3, accumulated over 4, images at 1024 px, the network from ImageNet:
`initialisation=imagenet`. Nothing is frozen on a backbone that is trained from scratch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from dgbench.files import sha256
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.networks import sam
from dgbench.networks.checkpoints import load_state, weights_file
from dgbench.networks.unet import Decoder, FeatureUNet, normalise, published_weights
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class AutoSAMHparams(SAMHparams):
    """The network that prompts."""

    encoder: str = "resnet34"  # the name of a network in timm, or smp:NAME in segmentation_models_pytorch
    initialisation: str = "scratch"  # of the encoder; or "imagenet", as it is published, or a .safetensors or .pth file
    width: Annotated[int, Range(1)] = 64  # channels of its decoder at the embedding's grid, doubled at each halving


class Prompter(nn.Module):
    """(N, 3, S, S) in [0, 1] -> prompts (N, K, C, S / stride, S / stride) in (-1, 1)."""

    def __init__(self, h: AutoSAMHparams, shape: tuple[int, int], image_size: int, stride: int):
        super().__init__()
        self.shape, self.grid = shape, (image_size // stride, image_size // stride)
        self.net = FeatureUNet(h.encoder, 1, h.width, image_size=image_size)
        reduction = self.net.encoder.feature_info.reduction()
        self.first = min(sum(r < stride for r in reduction), len(reduction) - 2)  # a decoder joins two levels at least
        channels = self.net.channels[self.first :]
        widths = [h.width * 2**i for i in range(len(channels) - 1)]
        self.net.decoder = Decoder(channels, widths, shape[0] * shape[1])

    def forward(self, image: Tensor) -> Tensor:
        features = self.net.encode(normalise(image, "zscore"))[self.first :]
        return self.net.decode(features, self.grid).tanh().unflatten(1, self.shape)


class AutoSAM(SAMMethod):
    """SAM as released, prompted by a network that is trained for it."""

    hparams: AutoSAMHparams
    paper = "https://arxiv.org/abs/2306.06370"
    pretrained = "SAM by --set backbone, ImageNet by --set initialisation"
    added = ("prompter.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {"check": {"encoder": "test_convnext", "width": 16}}

    def __init__(self, task: TaskInfo, hparams: AutoSAMHparams):
        super().__init__(task, hparams)
        shape = len(task.structures), self.backbone.embedding
        self.prompter = Prompter(hparams, shape, self.image_size, self.backbone.patch)

    @property
    def mask_tokens(self) -> int:
        """SAM's four."""
        return sam.RELEASE_MASKS  # each structure is a prompt of its own

    @classmethod
    def find_pretrained(cls, hparams: AutoSAMHparams) -> list[Path]:
        """SAM's release, and the file that the encoder starts from."""
        h, found = hparams, super().find_pretrained(hparams)
        if h.initialisation == "scratch":
            return found
        own = published_weights(h.encoder) if h.initialisation == "imagenet" else weights_file(h.initialisation)
        return [*found, own]

    def load_pretrained(self) -> dict[str, str]:
        """SAM is frozen, the encoder trained further."""
        files = super().load_pretrained()
        if self.hparams.initialisation != "scratch":
            path = self.find_pretrained(self.hparams)[-1]
            self.prompter.net.load_encoder(load_state(path), path)
            files[path.name] = sha256(path)
        return files

    def low_res_logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, 4 S / patch, 4 S / patch)."""
        dense = self.prompter(image)
        embedding = self.embed(image).repeat_interleave(dense.shape[1], 0)
        return self.decode(embedding, dense.flatten(0, 1))[0][:, 0].unflatten(0, dense.shape[:2])
