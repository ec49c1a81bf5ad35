"""Image embeddings of a frozen encoder, computed once and kept on disk: the second step with an image costs a read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from dgbench.files import cache_folder, make_folder
from dgbench.networks.unet import one_channel


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

    def _one(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        content = one_channel(image[None]).detach().cpu().contiguous().numpy()
        path = self.folder / f"{hashlib.blake2b(content.data, digest_size=20).hexdigest()}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged: computed below
            return torch.from_numpy(np.load(path, allow_pickle=False)).to(image.device).float()
        with torch.no_grad():
            result = compute(image[None])[0].half()
        # No fsync: the loss of an entry costs its computation. The rename keeps readers from half a file.
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            np.save(file, result.cpu().numpy(), allow_pickle=False)
        os.replace(temporary, path)
        return result.float()
