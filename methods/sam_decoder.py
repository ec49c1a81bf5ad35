"""SAM's mask decoder trained on the embeddings of its frozen image encoder: the cheapest way to train a SAM.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643. Only the decoder is trained in, among
others, Ma et al. Segment Anything in Medical Images, 2024 (its first version). https://arxiv.org/abs/2304.12306
Family: foundation model.

    mask = Decoder(Encoder(x), "no prompt")          loss = (BCE + Dice loss) / 2, averaged over structures

The decoder is the stock one: structure k is read from mask token k, and starts where SAM left it. The encoder sees each
training image once: its embedding is kept on disk and serves all later steps, seeds and sources. Hence no augmentation
by default; with `augmentation=base` every step goes through the encoder. Nothing is frozen on a backbone that is
trained from scratch: there this is plain training of a small SAM, with the encoder in every step.
"""

from dataclasses import dataclass
from typing import Literal

from dgbench.methods._sam import SAMHparams, SAMMethod


@dataclass(frozen=True)
class SAMDecoderHparams(SAMHparams):
    """No augmentation by default, so that the encoder's embeddings are kept."""

    augmentation: Literal["base", "none"] = "none"


class SAMDecoder(SAMMethod):
    """SAM with its decoder trained and its encoder as it is."""

    hparams: SAMDecoderHparams
    paper = "https://arxiv.org/abs/2304.02643"
    trained = ("mask_decoder.*",)
