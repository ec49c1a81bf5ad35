"""CCSDG: a prompt learns which channels of the first convolution show content rather than style; only those are used.

Hu, Liao, Xia. Devil is in Channels: Contrastive Single Domain Generalization for Medical Image Segmentation. MICCAI
2023. https://arxiv.org/abs/2306.05254
Family: representation.

    f = first convolution of x        w = softmax(P / 0.1) over two rows, content and style       c = f w_0, s = f w_1
    views: x, FDA (low amplitudes of another image), GLA (a new contrast)       i, j: over pairs of different views
    prompt step:  P and projector p on   sum |p(c_i) - p(c_j)| - sum |p(s_i) - p(s_j)|       (each a mean over p's 1024)
    then a segmentation step on each of FDA, GLA and x, of the network with c in the place of f

p is a convolution to 8 channels, batch norm, ReLU, maximum over cells, one linear layer and division by its length.
Its size follows from the image: cells of 4 x 4 pixels, which for the paper's 512 pixels are its 128 x 128. The prompt's
temperature, its optimizer (SGD, 0.01, momentum 0.99) and FDA's window, 0.05 to 0.15, are the paper's, too. Three
segmentation steps make a step cost three times what ERM's does.
Differs: the segmentation loss is ERM's (paper: cross-entropy alone), as is its optimizer, and the prompt's learning
rate decays alike. Only the prompt step trains P; in the public code P is in both optimizers. GLA is SLAug's, drawn for
each image; in the public code, whose images reach to 255, its shift of about 0.5 is next to none. P starts from
N(0, 1), so about half of the first channels are mute: the paper's network has 64 (`encoder=resnet34`), a narrow U-Net
few.
"""

from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch
from dgbench.methods._curves import new_contrast
from dgbench.methods._spectrum import mix_amplitudes
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import normalise, one_channel
from dgbench.settings import Range
from dgbench.task import TaskInfo

CELL = 4  # pixels of the image along each side of what the projector sees as one


@dataclass(frozen=True)
class CCSDGHparams(ERMHparams):
    """The prompt's temperature and optimizer, and the projector's size."""

    temperature: Annotated[float, Range(above=0)] = 0.1
    prompt_learning_rate: Annotated[float, Range(above=0)] = 0.01
    prompt_momentum: Annotated[float, Range(above=0, high=1)] = 0.99
    projection: Annotated[int, Range(1)] = 1024  # length of what the projector gives


class ChannelPrompt(nn.Module):
    """(N, C, H, W) -> its content and its style, both of that shape; they add up to it."""

    def __init__(self, channels: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.prompt = nn.Parameter(torch.randn(2, channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        content, style = torch.softmax(self.prompt / self.temperature, 0)
        return x * content, x * style


class Projector(nn.Module):
    """Features (N, C, h, w) of square images of `side` pixels -> (N, length) each, of length 1."""

    def __init__(self, channels: int, side: int, length: int):
        super().__init__()
        self.cells = max(1, side // CELL)
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * self.cells**2, length)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        cells = [F.adaptive_max_pool2d(self.norm(self.conv(f)), self.cells).relu().flatten(1) for f in features]
        return list(F.normalize(self.linear(torch.cat(cells)).float(), dim=1).split([len(f) for f in features]))


def contrast(content: list[Tensor], style: list[Tensor]) -> Tensor:
    """Views should agree in content and differ in style: the prompt step's loss, of their projections (N, length)."""
    differences = [sum(F.l1_loss(a, b) for a, b in permutations(views, 2)) for views in (content, style)]
    return torch.as_tensor(differences[0] - differences[1])


def first_convolution(net: nn.Module) -> nn.Conv2d:
    """The convolution whose channels are parted: the network's first."""
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d))


def _keep_content(prompt: ChannelPrompt, module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
    return prompt(x)[0]


class CCSDG(ERM):
    """ERM's network on those channels of its first feature map (N, C, h, w) that a learned prompt calls content."""

    hparams: CCSDGHparams
    paper = "https://arxiv.org/abs/2306.05254"
    needs_batch = True  # FDA's other image; alone, it is the image itself

    def __init__(self, task: TaskInfo, hparams: CCSDGHparams):
        super().__init__(task, hparams)
        first = first_convolution(self.net)
        self.prompt = ChannelPrompt(first.out_channels, hparams.temperature)
        self.projector = Projector(first.out_channels, self.image_size, hparams.projection)
        first.register_forward_hook(partial(_keep_content, self.prompt))

    def configure(self) -> tuple[torch.optim.Optimizer, ...]:
        """Two optimizers: the network's, then that of prompt and projector."""
        h = self.hparams
        theirs = [*self.prompt.parameters(), *self.projector.parameters()]
        return (
            self.followed(torch.optim.AdamW(self.net.parameters(), lr=h.learning_rate, weight_decay=h.weight_decay)),
            torch.optim.SGD(theirs, lr=h.prompt_learning_rate, momentum=h.prompt_momentum, nesterov=True),
        )

    def views(self, image: Tensor) -> list[Tensor]:
        """FDA's, GLA's and the image itself; the first two need not lie in [0, 1], which the z-score does not see."""
        gray = one_channel(image)
        window = round(0.05 + 0.1 * torch.rand(()).item(), 2)
        fda = mix_amplitudes(gray, gray.flip(0), gray.new_ones(len(gray)), window)
        return [fda.expand_as(image), new_contrast(gray).expand_as(image), image]

    def prompt_loss(self, views: list[Tensor]) -> Tensor:
        """Contents of the views shall be alike and styles apart: a scalar. views: three times (N, 3, H, W)."""
        content: list[Tensor] = []
        style: list[Tensor] = []
        for image in views:
            with torch.no_grad():  # `forward` is the convolution without the prompt
                f = first_convolution(self.net).forward(normalise(image, self.hparams.normalise))
            if f.device.type == "cpu":  # measured: the projector is twice as fast
                f = f.contiguous(memory_format=torch.channels_last)
            for kind, part in zip((content, style), self.prompt(f), strict=True):
                kind.append(part)
        projected = self.projector(content + style)
        return contrast(projected[: len(views)], projected[len(views) :])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the prompt, then one of the network on each of the three views."""
        segmentation, prompting = self.optimizers
        views = self.views(batch.image)
        prompt_loss = self.prompt_loss(views)
        prompting.zero_grad(set_to_none=True)
        prompt_loss.backward()
        prompting.step()
        losses = []
        for image in views:
            loss = self.loss(Batch(image, batch.mask))
            segmentation.zero_grad(set_to_none=True)
            loss.backward()
            segmentation.step()
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean(), "loss_prompt": prompt_loss.detach()}
