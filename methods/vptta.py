"""VPTTA: a prompt on each image's lowest frequencies brings its statistics in the network nearer to the source's.

Chen, Pan, Ye, Lu, Xia. Each Test Image Deserves A Specific Prompt: Continual Test-Time Adaptation for 2D Medical Image
Segmentation. CVPR 2024. https://arxiv.org/abs/2311.18363
Family: test time.

    x' = x with its amplitudes in a centred window of s x s frequencies times q, phases kept      s = share of the side
    norms use m~ = m m_test + (1 - m) m_source, the variance likewise, m = blend / (sqrt(t) / 5 + 1), t images so far
    loss = mean over norms of |m(x') - m~| + |sd(x') - sd~|      one step of Adam (0.05; 0.9, 0.99) on q, then predict

q starts from ones; once 16 images are stored, from the mean of the prompts of the 16 nearest ones, weighed by
softmax(cos / 0.2) of the amplitudes in the window. The newest 40 are stored. All by the public code. The network's
weights stay. Images are taken one by one, the slices of a volume in order.
Differs: s is 3 at least, where the paper's is 1 below 200 px: of the mean alone nothing is left after the network's
z-score. The window is centred on the mean, of which the public one is off. A gray image has one prompt, and stays gray.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.losses import in_float32
from dgbench.methods._batchnorm import Moments, blended, normalised_by
from dgbench.methods._gradients import gradients, step
from dgbench.methods._test_time import AtTestTime, LearningHparams
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class VPTTAHparams(LearningHparams, ERMHparams):
    """The prompt's size, how fast the norms trust the source again, and the memory of earlier prompts."""

    test_learning_rate: Annotated[float, Range(0)] = 0.05
    prompt_share: Annotated[float, Range(above=0, high=1)] = 0.01  # of the image's side
    warm_up: Annotated[float, Range(above=0)] = 5.0  # the root of the images after which `blend` has fallen to half
    prompts_stored: Annotated[int, Range(1)] = 40
    neighbours_asked: Annotated[int, Range(1)] = 16


@in_float32
def spectrum(image: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """(N, C, H, W) -> its lowest frequencies, complex (N, C, size, size), centred, and where their window begins."""
    whole = torch.fft.fftshift(torch.fft.fft2(image), (-2, -1))
    top, left = (side // 2 - size // 2 for side in image.shape[-2:])
    return whole[..., top : top + size, left : left + size], (top, left)


@in_float32
def prompted(image: Tensor, prompt: Tensor) -> Tensor:
    """(N, C, H, W) with its lowest amplitudes times the prompt, (N, C, s, s): ones leave it as it is, to the bit."""
    size = prompt.shape[-1]
    low, (top, left) = spectrum(image, size)
    h, w = image.shape[-2:]
    change = F.pad(low * (prompt - 1), (left, w - left - size, top, h - top - size))
    return image + torch.fft.ifft2(torch.fft.ifftshift(change, (-2, -1))).real


class VPTTAIdea(AtTestTime):
    """Predicts (N, 3, H, W), each image with a prompt of its own."""

    hparams: VPTTAHparams

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        if not self.hparams.blend:  # the norms are the same for all
            return self.own(torch.cat([self.learned(image[n : n + 1])[0] for n in range(len(image))]))
        return torch.cat([self.one(image[n : n + 1]) for n in range(len(image))])

    def one(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, K, H, W) probabilities."""
        x, share = self.learned(image)
        with self.blending(share):
            return self.own(x)

    def learned(self, image: Tensor) -> tuple[Tensor, float]:
        """(1, 3, H, W) with the prompt that it has taught, and the share of its statistics."""
        h, norms, x = self.hparams, self.norms(), one_channel(image)
        seen = self.stream["seen"] = self.stream.get("seen", 0) + 1
        share = h.blend / (seen**0.5 / h.warm_up + 1)
        key = spectrum(x, max(3, int(h.prompt_share * x.shape[-1])))[0].abs()
        prompt = self.stream.setdefault("prompt", nn.Parameter(torch.ones_like(key)))
        with torch.no_grad():
            prompt.copy_(self.recalled(key))
        adam = self.stream.setdefault("optimizer", torch.optim.Adam([prompt], h.test_learning_rate, (0.9, 0.99)))
        distances: list[Tensor] = []

        def rule(index: int, test: Moments) -> Moments:
            aim = blended(norms[index], (test[0].detach(), test[1].detach()), share)
            deviations = (v.clamp(min=1e-8).sqrt() for v in (test[1], aim[1]))
            distances.append((test[0] - aim[0]).abs().mean() + torch.sub(*deviations).abs().mean())
            return aim

        with torch.enable_grad(), normalised_by(norms, rule):
            self.own(prompted(x, prompt).expand_as(image))
            step(adam, [prompt], gradients(torch.stack(distances).mean(), [prompt]))
        stored = [*self.stream.get("stored", []), (key.flatten(), prompt.detach().clone())]
        self.stream["stored"] = stored[-h.prompts_stored :]
        return prompted(x, prompt.detach()).expand_as(image), share

    def recalled(self, key: Tensor) -> Tensor:
        """The prompt to start from, (1, C, s, s), for an image with these amplitudes."""
        stored, count = self.stream.get("stored", []), self.hparams.neighbours_asked
        if len(stored) < count:
            return torch.ones_like(key)
        alike = torch.stack([F.cosine_similarity(key.flatten(), known, 0) for known, _ in stored])
        nearest = alike.topk(count)
        weights = torch.softmax(nearest.values / 0.2, 0)
        return sum(
            (w * stored[int(i)][1] for w, i in zip(weights, nearest.indices, strict=True)), torch.zeros_like(key)
        )


class VPTTA(VPTTAIdea, ERM):
    """The idea over plain training."""

    hparams: VPTTAHparams
    paper = "https://arxiv.org/abs/2311.18363"
