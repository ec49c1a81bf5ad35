"""SAR: TENT on those pixels only that are certain enough, with a step that is still right where the loss is sharp.

Niu, Wu, Zhang, Wen, Chen, Zhao, Tan. Towards Stable Test-Time Adaptation in Dynamic Wild World. ICLR 2023.
https://arxiv.org/abs/2302.12400
Family: test time.

    loss(w) = mean of H(p) over pixels with H < E0        E0 = margin ln 2
    e = rho g / |g|, g = gradient of loss at w            step of SGD with the gradient at w + e of the mean over those
    pixels whose H is below E0 there as well              m <- 0.9 m + 0.1 loss(w + e); m < reset_below: begin anew

Margin 0.4, rho 0.05, momentum 0.9 and a learning rate of 0.00025 are the public code's. The paper resets below 0.2 for
1000 classes; 0.02 is the same share of the largest entropy, ln 2 for ln 1000. The last stage's norms stay: here the
last two that a pass meets, the decoder's last stage. Before and after the step: as in `tent.py`.
Differs: what is certain or not is a pixel of a structure, where the paper's samples are images. After a reset m begins
anew, as in the paper; the public code keeps it, and so resets at every batch that follows.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from dgbench.methods._batchnorm import normalised_by
from dgbench.methods._gradients import gradients, moved, step
from dgbench.methods._test_time import AtTestTime, LearningHparams, entropy
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range


@dataclass(frozen=True)
class SARHparams(LearningHparams, ERMHparams):
    """Which pixels count, how far the sharpness is looked for, and when all begins anew."""

    test_learning_rate: Annotated[float, Range(0)] = 0.00025
    margin: Annotated[float, Range(above=0)] = 0.4  # a pixel's largest entropy, as a share of ln 2
    rho: Annotated[float, Range(0)] = 0.05
    reset_below: Annotated[float, Range(0)] = 0.02  # in nats
    norms_kept: Annotated[int, Range(0)] = 2  # the last of a pass


class SARIdea(AtTestTime):
    """Predicts (N, 3, H, W) by batch norms that have become more certain where they were certain already."""

    hparams: SARHparams

    def in_order(self, image: Tensor) -> list[Any]:
        """The batch norms as a pass meets them, without the last few."""
        norms, met = self.norms(), list[int]()
        with normalised_by(norms, lambda index, _: met.append(index)):
            self.own(image)
        return [norms[index] for index in met[: max(1, len(met) - self.hparams.norms_kept)]]

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        h = self.hparams
        norms = self.stream.setdefault("norms", self.in_order(image[:1]))
        with self.blending(h.blend), self.learning(norms) as learned:
            before = self.own(image)
            loss = self.learn(image, before, learned)
            if loss is not None:
                self.stream["loss"] = torch.lerp(self.stream.get("loss", loss), loss, 0.1)
                if self.stream["loss"] < h.reset_below:  # the step is undone: the next case begins with the source
                    self.forget()
                    return before
            if h.adaptation == "online":
                return before
            with torch.no_grad():
                return self.own(image)

    def learn(self, image: Tensor, before: Tensor, learned: list[nn.Parameter]) -> Tensor | None:
        """One step, given the prediction before it; returns the loss, None where no pixel is certain."""
        h = self.hparams
        sgd = self.stream.setdefault("optimizer", torch.optim.SGD(learned, lr=h.test_learning_rate, momentum=0.9))
        most, uncertain = h.margin * math.log(2), entropy(before)
        certain = uncertain < most
        if not certain.any():
            return None
        g = gradients(uncertain[certain].mean(), learned)
        length = torch.stack([x.norm() for x in g]).norm() + 1e-12
        with moved(learned, [h.rho * x / length for x in g]):
            there = entropy(self.own(image))
            still = certain & (there < most)
            if not still.any():
                return None
            loss = there[still].mean()
            along = gradients(loss, learned)
        step(sgd, learned, along)
        return loss.detach()


class SAR(SARIdea, ERM):
    """The idea over plain training."""

    hparams: SARHparams
    paper = "https://arxiv.org/abs/2302.12400"
