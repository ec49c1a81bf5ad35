"""Image embeddings of a frozen encoder, computed once and kept on disk: the second step with an image costs a read."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dgbench.files import cache_folder, make_folder
from dgbench.networks.unet import one_channel

if TYPE_CHECKING:
    from dgbench.method import Method


class EmbeddingCache:
    """What a function computes from an image, in files named by the image's content.

    name: tells apart what differs in the result: the checksum of the weights, the size, the normalisation.

    Results are rounded to float16 before they are first used, so that a kept one is the computed one to the bit; an
    entry of 256 x 64 x 64 takes 2 MB. Each image is computed by itself, so that no entry depends on a batch. The folder
    is `embeddings` in the cache folder; it may be deleted at any time.
    """

    def __init__(self, name: str):
        self.folder = cache_folder() / "embeddings" / name

    def __call__(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, ...) -> (N, ...) float32, without a gradient. `compute` gets what is not known yet, image by image."""
        make_folder(self.folder)
        return torch.stack([self._one(i, compute) for i in image])

    @staticmethod
    def serves(method: Method, image: Tensor, plain: bool) -> bool:
        """Will the frozen encoder of a method see this image again, and as it is? plain: it is not augmented.

        Not under an idea that changes images in training or adapts to them in testing, nor for their gradient.
        """
        again = plain and method.images_come_again if method.training else not method.adapts_in_testing
        return again and not image.requires_grad

    def _one(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        content = one_channel(image[None]).detach().cpu().contiguous().numpy()
        path = self.folder / f"{hashlib.blake2b(content.data, digest_size=20).hexdigest()}.npz"
        with suppress(Exception):  # not there, or damaged: computed below
            kept = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            return torch.from_numpy(kept["embedding"]).to(image.device).float()
        with torch.no_grad():
            result = compute(image[None])[0].half()
        # No fsync: the loss of an entry costs its computation. The rename keeps readers from half a file, and the
        # checksum that is in a .npz from one whose middle never reached the disk.
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, embedding=result.cpu().numpy())
        os.replace(temporary, path)
        return result.float()
