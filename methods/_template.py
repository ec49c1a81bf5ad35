"""Template: one sentence that says the idea; `dgbench list methods` shows it.

Authors. Title. Venue year. https://link
Family: augmentation.

    x' = x^g      g ~ U(1 - spread, 1 + spread), one per image      (the paper's equation; this one bends the contrast)

Differs: what is not as in the paper, and why.   Measured: nothing yet.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range


@dataclass(frozen=True)
class TemplateHparams(ERMHparams):
    # `dgbench run --set spread=0.3` changes it; the tables then show it as a variant of its own.
    spread: Annotated[float, Range(0, 1)] = 0.5


class Template(ERM):
    hparams: TemplateHparams  # this annotation is how the engine finds the settings
    paper = ""  # a link; the paper's settings for a task go to per_task = {"prostate": {"learning_rate": 1e-4}}

    def loss(self, batch: Batch) -> Tensor:
        # image: (N, 3, H, W) in [0, 1]; mask: (N, K, H, W) in {0, 1}. Draw from torch only: the engine keys its seed to
        # (seed, step). What the method learns besides its weights goes into register_buffer in __init__.
        spread = self.hparams.spread
        power = torch.empty(len(batch.image), 1, 1, 1, device=batch.image.device).uniform_(1 - spread, 1 + spread)
        return super().loss(Batch(batch.image**power, batch.mask))

    # Inherited: the network, and predict(image) -> (N, K, H, W) probabilities, each image by itself. A network of your
    # own is built in __init__(self, task, hparams); several optimizers or inner loops go to configure() and update().
