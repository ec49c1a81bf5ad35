"""SAM 2 computes what the sam2 package computes, and takes its releases key by key; see tests/golden/README.md."""

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.errors import DataError, UsageError
from dgbench.networks import checkpoints, sam, sam2

FILE = np.load(Path(__file__).parents[1] / "golden" / "sam2.npz")
CONFIG = json.loads(str(FILE["config"]))
SIDE = CONFIG["image_size"]
STAGES, GLOBAL = tuple(CONFIG["stages"]), tuple(CONFIG["global_blocks"])
SMALL = sam.Backbone(sum(STAGES), CONFIG["width"], CONFIG["heads"], GLOBAL, stages=STAGES)


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter follows."""
    number = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy((number + 1 if key.endswith(".weight") and len(shape) == 1 else number).astype(np.float32))


@functools.cache
def released() -> dict[str, Tensor]:
    """A state dict with the keys and shapes of the package's model, by formula."""
    pairs = zip(FILE["state_names"].tolist(), FILE["state_shapes"].tolist(), strict=True)
    return {key: value(key, tuple(json.loads(shape))) for key, shape in pairs}


class Parts(torch.nn.Module):
    def __init__(self, backbone: sam.Backbone, side: int):
        super().__init__()
        self.image_encoder = sam.image_encoder(backbone, side)
        self.prompt_encoder = sam.prompt_encoder(backbone, side)
        self.mask_decoder = sam.mask_decoder(backbone, sam.RELEASE_MASKS)


@pytest.fixture(scope="module")
def small() -> Parts:
    """Loaded strictly."""
    parts = Parts(SMALL, SIDE).eval()
    state = sam.fit_release(released(), SMALL, SIDE, sam.RELEASE_MASKS, mask_head=True)
    checkpoints.load_into(parts, state, "release.pt")
    return parts


@pytest.fixture(scope="module")
def embedding(small: Parts) -> Tensor:
    """Of the golden input, which is not normalised."""
    image = np.random.default_rng(2026).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    return small.image_encoder(torch.from_numpy(image))


def answer(parts: Parts, embedding: Tensor, points: Any = None, boxes: Any = None) -> tuple[Tensor, Tensor]:
    sparse, dense = parts.prompt_encoder(points=points, boxes=boxes, masks=None)
    position = parts.prompt_encoder.pe_layer(embedding.shape[-2:])
    return sam.decode(parts.mask_decoder, embedding, position, dense, None if points is boxes else sparse)


def close(ours: Tensor, golden: str) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(FILE[golden]), atol=1e-5, rtol=1e-5)


def test_the_embedding_and_the_finer_features_are_the_packages(embedding: Tensor):
    image, finest, finer = embedding.split((256, 512, 256), 1)
    close(image[:, ::32], "embedding_slice")
    close(torch.nn.functional.pixel_shuffle(finest, 4)[:, ::8, ::4, ::4], "fine_slice")
    close(torch.nn.functional.pixel_shuffle(finer, 2)[:, ::16, ::2, ::2], "finer_slice")


def test_masks_and_predicted_iou_are_the_packages_without_a_prompt_by_a_point_and_by_a_box(small: Parts, embedding):
    logits, iou = answer(small, embedding)
    close(logits, "logits")
    close(iou, "iou")
    point = torch.tensor(CONFIG["point"])[:, None], torch.ones(2, 1, dtype=torch.int)
    for name, prompt in (("point", {"points": point}), ("box", {"boxes": torch.tensor(CONFIG["box"])})):
        logits, iou = answer(small, embedding.detach(), **prompt)
        close(logits[..., ::2, ::2], f"{name}_logits")
        close(iou, f"{name}_iou")


def test_gradients_are_the_packages(small: Parts):
    """But of what is not there: memory, and the score of the object."""
    small.zero_grad()
    image = np.random.default_rng(2026).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    logits, iou = answer(small, small.image_encoder(torch.from_numpy(image)))
    weight = np.random.default_rng(7).standard_normal(logits.shape).astype(np.float32)
    loss = (logits * torch.from_numpy(weight)).mean() + iou.sum()
    assert loss.item() == pytest.approx(float(FILE["loss"]), abs=1e-5)
    loss.backward()
    norms = dict(zip(FILE["grad_names"].tolist(), FILE["grad_norms"].tolist(), strict=True))
    ours = dict(small.named_parameters())
    renamed = {theirs: next(iter(sam2.from_release({theirs: torch.zeros(1)})), "") for theirs in norms}
    levels = len(STAGES) - 1  # a key of the pyramid does not say of how many
    for theirs in renamed:
        if theirs.startswith("image_encoder.neck.convs."):
            _, _, _, i, _, rest = theirs.split(".")
            renamed[theirs] = f"image_encoder.lateral.{levels - int(i)}.{rest}"
    assert {name for name, p in ours.items() if p.grad is not None} == set(renamed.values())
    for theirs, norm in norms.items():
        gradient = ours[renamed[theirs]].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-6), theirs


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_release_is_loaded_strictly(change: str):
    state = dict(released())
    if change == "missing":
        del state["sam_mask_decoder.obj_score_token.weight"]
    else:
        state |= {"other" if change == "unexpected" else "no_mem_embed": torch.zeros(1, 1, 3)}
    fitted = sam.fit_release(state, SMALL, SIDE, sam.RELEASE_MASKS, mask_head=True)
    with pytest.raises(DataError, match=r"release\.pt does not fit Parts: 1 "):
        checkpoints.load_into(Parts(SMALL, SIDE), fitted, "release.pt")


def test_position_embeddings_are_interpolated_as_timm_does_it(small: Parts):
    trunk = small.image_encoder.trunk
    for side in (32, 96):
        x = torch.zeros(1, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(small.image_encoder.patches(x), trunk._pos_embed(trunk.patch_embed(x)))


SIZES = {  # parameters of image encoder, prompt encoder and mask decoder, as the sam2 package has them
    "sam2_tiny": (27_244_064, 6_220, 4_190_437),
    "sam2_small": (34_341_920, 6_220, 4_190_437),
    "sam2_base_plus": (69_131_744, 6_220, 4_190_437),
    "sam2_large": (212_728_208, 6_220, 4_190_437),
    "medsam2": (27_244_064, 6_220, 4_190_437),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_backbones_are_as_large_as_the_releases(name: str):
    with torch.device("meta"):
        parts = Parts(sam.BACKBONES[name], sam.RELEASE_IMAGE_SIZE)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts.children()) == SIZES[name]


def test_an_image_that_the_coarsest_level_does_not_fill_is_refused_with_the_nearest_size():
    with pytest.raises(UsageError, match=r"no multiple of the coarsest stride 32(?s:.*)image_size=96"):
        sam.image_encoder(SMALL, 90)
    with pytest.raises(UsageError, match=r"image_size=32"):
        sam.image_encoder(SMALL, 16)
