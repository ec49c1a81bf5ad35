"""SAMed's recipe, which MA-SAM follows: a mask of the background, cross-entropy plus Dice, and a warm-up."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dgbench.losses import dice_bce
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.settings import Range


@dataclass(frozen=True)
class SAMedHparams(SAMHparams):
    """The schedule and the loss of SAMed's code."""

    dice_weight: Annotated[float, Range(0, 1)] = 0.8  # of the Dice loss; the rest is the cross-entropy's
    warmup: Annotated[int, Range(0)] = 25  # steps of linear warm-up
    horizon: Annotated[float, Range(above=0)] = 1.25  # the rate would reach zero after horizon * steps
    decay: Annotated[float, Range(0)] = 0.9  # power of the polynomial decay


class SAMedMethod(SAMMethod):
    """SAM with one mask of the background and one of each structure, whose tokens start at random.

    The logit of structure k is mask k minus the background's: for one structure the authors' softmax over both, for
    several a softmax of each against the background, as structures may lie inside one another.
    """

    hparams: SAMedHparams
    trained = ("prompt_encoder.*", "mask_decoder.*")
    load_mask_head = False

    @property
    def mask_tokens(self) -> int:
        """The background's, then one of each structure."""
        return 1 + len(self.task.structures)

    def low_res_logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, 4 S / patch, 4 S / patch), against the background."""
        masks = self.decode(self.embed(image), self.no_prompt())[0]
        return masks[:, 1:] - masks[:, :1]

    def criterion(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy and Dice loss over the whole batch, weighed; (N, K, H, W) both."""
        return dice_bce(logits, mask, dice_weight=self.hparams.dice_weight, reduction="batch")

    def schedule(self, step: int) -> float:
        """Linear warm-up, then polynomial decay; both one step late, as the authors set the rate after each step."""
        h, last = self.hparams, max(step - 1, 0)
        if last < h.warmup:
            return max(step, 1) / h.warmup
        return max(0.0, 1 - (last - h.warmup) / (h.horizon * self.steps)) ** h.decay
