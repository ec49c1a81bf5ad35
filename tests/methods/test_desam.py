"""DeSAM's decoder computes what the authors' code computes; what a grid of points gives is chosen as they choose."""

import json
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods._desam import PDMM, choose, prim, random_points, tidy
from dgbench.methods._grid import grid, nms, stability
from dgbench.methods._regions import largest_region, without_small_regions
from dgbench.methods.desam import DeSAM
from dgbench.networks import sam
from dgbench.running import train
from dgbench.running.conformance import check_method
from dgbench.task import TaskInfo
from tests.released_sam import NAME, info, release, trained

SMALL = sam.Backbone(4, 48, 2, (0, 1, 2, 3), patch=16, embedding=64)
RENAMED = (  # from the authors' names, in this order
    ("pimm.", "pdmm."),
    ("conv_blocks_context.", "levels."),
    ("mask_embedding_fusion.", "fuse."),
    ("seg_outputs.", "heads."),
    (".block_init.", ".0."),
    (".conv.weight", ".weight"),
    (".conv3.", ".shortcut."),
    (".se.fc.", ".weigh."),
)


def ours(key: str) -> str:
    for theirs, here in RENAMED:
        key = key.replace(theirs, here)
    parts = key.split(".")
    if "residual_block" in parts:  # pairs of an enlarging convolution and a block, after the first block
        i = parts.index("residual_block")
        parts[i : i + 3] = [str(1 + 2 * int(parts[i + 1]) + int(parts[i + 2]))]
    if "conv_blocks_localization" in parts:
        i = parts.index("conv_blocks_localization")
        parts[i : i + 3] = [{"transp_conv": "up", "res_block": "merge"}[parts[i + 2]], parts[i + 1]]
    return ".".join(parts if parts[0] == "pdmm" else ["mask_decoder", *parts])


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter of the golden file follows."""
    drawn = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy((drawn + 1 if key.endswith(".weight") and len(shape) == 1 else drawn).astype(np.float32))


def drawn(key: str, *shape: int) -> Tensor:
    return 20 * value(key, shape)


def desam(structures: int = 1, image_size: int = 64, **settings: str) -> DeSAM:
    task = info(structures, image_size)
    torch.manual_seed(0)
    return DeSAM(task, resolve_hparams(DeSAM, task.name, settings))  # type: ignore[arg-type]


def batch(slices: int = 2, structures: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(slices, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1)
    mask = torch.zeros(slices, structures, 64, 64)
    mask[:, :, 20:44, 12:36] = 1
    return Batch(image, mask)


def test_the_decoder_computes_what_the_authors_code_computes(monkeypatch):
    monkeypatch.setitem(sam.BACKBONES, "small", SMALL)
    golden = np.load(Path(__file__).parents[1] / "golden" / "desam.npz")
    shapes = {
        str(key): tuple(json.loads(str(shape)))
        for key, shape in zip(golden["state_names"], golden["state_shapes"], strict=True)
    }
    method = desam(image_size=96, backbone="small")
    decoder = {k: v for k, v in method.state_dict().items() if k.startswith(("mask_decoder.", "pdmm."))}
    assert {k: tuple(v.shape) for k, v in decoder.items()} == {ours(k): shape for k, shape in shapes.items()}
    method.load_state_dict({ours(k): value(k, shape) for k, shape in shapes.items()}, strict=False)

    blocks = [drawn(f"block{i}", 2, 48, 6, 6) for i in range(3)]
    position, dense = drawn("position", 1, 64, 6, 6)[0], drawn("dense", 2, 64, 6, 6)
    embedding, iou = prim(
        method.mask_decoder, drawn("embedding", 2, 64, 6, 6), position, dense, drawn("sparse", 2, 2, 64)
    )
    logits = method.pdmm(embedding, method.pdmm.context(blocks))
    torch.testing.assert_close(logits.detach(), torch.from_numpy(golden["logits"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(iou[:, :1].detach(), torch.from_numpy(golden["iou"]), atol=1e-6, rtol=1e-4)

    ((logits * drawn("weigh_logits", 2, 1, 24, 24)).mean() + (iou[:, :1] * drawn("weigh_iou", 2, 1)).sum()).backward()
    norms = {k: p.grad.norm().item() for k, p in method.named_parameters() if p.grad is not None}
    expected = zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True)
    assert norms == {ours(k): pytest.approx(norm, rel=1e-3, abs=1e-8) for k, norm in expected}


def test_at_its_own_size_it_trains_as_many_parameters_as_the_authors():
    with torch.device("meta"):
        method = DeSAM(TaskInfo("prostate", ("prostate",), 384, 1), resolve_hparams(DeSAM, "prostate"))  # type: ignore
    assert method.backbone is sam.BACKBONES["vit_h"] and method.image_size == 1024
    method.freeze()
    assert trained(method) == 13_815_204
    assert sum(p.numel() for p in method.parameters()) == 650_847_472


def test_the_encoder_gives_what_sam_gives_and_the_features_of_the_first_global_blocks(monkeypatch):
    monkeypatch.setitem(sam.BACKBONES, "small", sam.Backbone(4, 48, 2, (1, 3), patch=16, embedding=64))
    method = desam(backbone="small")
    x, seen = batch().image, []
    for i in (1, 3):
        method.image_encoder.blocks[i].register_forward_hook(lambda module, given, out: seen.append(out))
    features = method.encode(x)
    embedding = method.image_encoder(x)
    torch.testing.assert_close(features[:, 96:], embedding)
    torch.testing.assert_close(features[:, :96], torch.cat(seen[:2], 3).permute(0, 3, 1, 2))


def test_the_context_of_one_image_serves_all_its_prompts():
    pdmm = PDMM(8, 32, 3, 2)
    blocks = [torch.randn(1, 8, 4, 4) for _ in range(3)]
    embedding = torch.randn(5, 32, 4, 4)
    together = pdmm(embedding, pdmm.context(blocks))
    assert together.shape == (5, 2, 16, 16)
    for i in range(5):
        torch.testing.assert_close(pdmm(embedding[i : i + 1], pdmm.context(blocks)), together[i : i + 1])


def test_dice_has_squares_in_its_denominator_and_cross_entropy_may_be_left_out():
    logits, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    dice = 1 - 2 * 0.5 / (4 * 0.25 + 1)  # p = 1/2 everywhere, one pixel of four inside
    assert desam().criterion(logits, mask).item() == pytest.approx(dice + np.log(2), abs=1e-4)
    assert desam(cross_entropy="0").criterion(logits, mask).item() == pytest.approx(dice, abs=1e-4)


def test_points_of_a_grid_are_the_centres_of_its_cells():
    points = grid(9, 90)
    assert points.shape == (81, 2) and points[:10].tolist() == [*([5 + 10 * i, 5] for i in range(9)), [5, 15]]


def test_random_points_lie_inside_and_outside_by_even_odds():
    torch.manual_seed(0)
    mask = torch.zeros(4000, 8, 8)
    mask[:, 2:4, 5:8] = 1
    x, y = random_points(mask).T
    inside = mask[0, y, x] > 0
    assert inside.float().mean().item() == pytest.approx(0.5, abs=0.03)
    counts = torch.bincount((8 * y + x)[inside])
    assert counts.nonzero().flatten().tolist() == [21, 22, 23, 29, 30, 31] and counts[counts > 0].min() > 250
    assert random_points(torch.ones(9, 8, 8)).shape == random_points(torch.zeros(9, 8, 8)).shape == (9, 2)


def square(*corners: int, side: int = 32, inside: float = 9.0) -> Tensor:
    """Logits of a square from (x, y) to (x, y), both within."""
    logits = torch.full((side, side), -9.0)
    logits[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1] = inside
    return logits


def pick(*masks: tuple[Tensor, float], smallest: float = 6) -> Tensor:
    logits, iou = torch.stack([m for m, _ in masks]), torch.tensor([q for _, q in masks])
    return choose(logits, iou, 0.5, 0.6, 0.7, smallest) > 0.5


def test_the_mask_of_largest_predicted_iou_is_chosen_and_none_that_promises_little():
    left, right = square(2, 2, 9, 9), square(20, 20, 29, 29)
    assert torch.equal(pick((left, 0.8), (right, 0.9)), right > 0)
    assert torch.equal(pick((left, 0.8), (right, 0.4)), left > 0)
    assert not pick((left, 0.5), (right, 0.4)).any()


def test_a_mask_that_changes_with_the_threshold_is_not_stable():
    blurred = square(0, 0, 9, 9, inside=0.5)
    blurred[:5, :10] = 9
    assert stability(torch.stack((square(2, 2, 9, 9), blurred, square(0, 0, 0, 0, inside=-9))), 1.0).tolist() == [
        1,
        0.5,
        0,
    ]
    assert torch.equal(pick((blurred, 0.9), (square(2, 2, 9, 9), 0.6)), square(2, 2, 9, 9) > 0)
    assert not pick((blurred, 0.9)).any()


def test_of_two_boxes_that_overlap_the_better_one_stays():
    # 10 x 10, and 10 x 8 within it: IoU 0.8. The third shares 10 x 5 with the first: 50 / (100 + 100 - 50) = 1/3.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8], [0, 5, 10, 15]]).float()
    assert nms(boxes, torch.tensor([0.7, 0.9, 0.8]), 0.7).tolist() == [1, 2]
    assert nms(boxes, torch.tensor([0.7, 0.9, 0.8]), 0.3).tolist() == [1, 2]  # 10 x 3 of 150
    assert nms(boxes, torch.tensor([0.9, 0.7, 0.8]), 0.3).tolist() == [0]
    assert nms(boxes[:0], torch.zeros(0), 0.7).tolist() == []


def test_a_mask_without_specks_goes_before_better_ones_that_must_be_tidied_up():
    speckled = square(2, 2, 9, 9)
    speckled[30, 30] = 9
    clean, shifted = square(20, 20, 29, 29), square(2, 2, 9, 29)
    assert torch.equal(pick((speckled, 0.9), (clean, 0.6)), clean > 0)
    assert torch.equal(pick((speckled, 0.9), (shifted, 0.4)), square(2, 2, 9, 9) > 0)
    # But not when its box is that of the better one: then it has been dropped before.
    same_box = square(2, 2, 30, 30)
    assert torch.equal(pick((speckled, 0.9), (same_box, 0.6)), square(2, 2, 9, 9) > 0)


def test_small_holes_are_filled_and_specks_removed_but_the_largest_region_stays():
    logits = square(2, 2, 12, 12)
    logits[5, 5:7] = -9
    logits[20, 20:23] = 3
    probability, changed = tidy(logits, 4)
    assert changed and torch.equal(probability > 0.5, square(2, 2, 12, 12) > 0)
    assert probability[5, 5] == 1 and probability[20, 21] == 0 and probability[3, 3] == torch.tensor(9.0).sigmoid()
    assert tidy(logits, 2)[1] is False
    few = square(3, 3, 4, 4) > 0
    assert torch.equal(without_small_regions(few, 100), few) and not without_small_regions(few & False, 100).any()
    touching = few.clone()
    touching[5, 5] = True  # at a corner
    assert torch.equal(largest_region(touching), touching) and not largest_region(few & False).any()


@pytest.mark.parametrize("mode", ["box", "points"])
def test_the_border_is_zero(mode: str):
    p = desam(border="0.25", mode=mode, least_iou="-9", least_stability="0").eval().predict(batch().image)
    assert p.shape == (2, 1, 64, 64) and p[..., 16:48, 16:48].any()
    p[..., 16:48, 16:48] = 0
    assert not p.any()


def test_without_a_good_mask_the_prediction_is_empty():
    method = desam(mode="points", least_iou="9").eval()
    assert not method.predict(batch().image).any()


def test_masks_are_computed_where_the_predicted_iou_is_large_enough_only(monkeypatch):
    method = desam(2, mode="points", grid="3").eval()
    context, embedding = method.features(batch(1).image)
    iou = method.prompted(embedding, method.points(grid(3, 64)))[1]
    limit = iou.amax(1).sort().values[5:7].mean().item()
    method = desam(2, mode="points", grid="3", least_iou=str(limit), least_stability="0").eval()
    seen: list[int] = []
    plain = method.pdmm.forward
    monkeypatch.setattr(method.pdmm, "forward", lambda e, c: seen.append(len(e)) or plain(e, c))
    method.predict_one(context, embedding)
    assert sum(seen) == 3


@pytest.mark.parametrize("mode", ["box", "points"])
def test_a_prediction_does_not_depend_on_its_batch(mode: str):
    method = desam(2, mode=mode, grid="3", least_iou="-9", least_stability="0").eval()
    image = batch(3, structures=2).image
    with torch.no_grad():
        together = method.predict(image)
        assert together.shape == (3, 2, 64, 64)
        torch.testing.assert_close(method.predict(image[1:2]), together[1:2], atol=1e-5, rtol=0)


def test_the_predicted_iou_is_trained_by_whether_the_point_is_inside():
    method, data = desam(2, mode="points", cross_entropy="0", iou_weight="7"), batch(4, structures=2)
    data.mask[:, 1] = 0
    torch.manual_seed(3)
    loss = method.loss(data)
    torch.manual_seed(3)
    xy = random_points(data.mask[torch.arange(4), torch.randint(2, (4,))])
    context, embedding = method.features(data.image)
    mask_embedding, iou = method.prompted(embedding, method.points(xy.float()))
    logits = method.pdmm(mask_embedding, context)
    inside = data.mask[torch.arange(4), :, xy[:, 1], xy[:, 0]]
    assert 0 < inside[:, 0].sum() < 4 and not inside[:, 1].any()
    rest = method.criterion(torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear"), data.mask)
    torch.testing.assert_close(loss, rest + 7 * (iou - inside).abs().mean())


@pytest.mark.parametrize("mode", ["box", "points"])
def test_the_release_is_frozen_but_the_decoder_and_the_encoder_sees_each_image_once(mode, tmp_path, monkeypatch):
    release(tmp_path, monkeypatch)
    hparams = resolve_hparams(DeSAM, "drawn", {"backbone": NAME, "mode": mode, "batch_size": "2"})
    method = train.build(DeSAM, info(), hparams, seed=0)[0]
    train.configure(method)
    method.train()
    seen: list[int] = []
    plain = method.encode  # type: ignore[operator]
    monkeypatch.setattr(method, "encode", lambda x: seen.append(len(x)) or plain(x))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(4):
        train.step(method, batch(), seed=0, t=t)
    changed = {n.partition(".")[0] for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"mask_decoder", "pdmm"}
    assert {n.partition(".")[0] for n, p in method.named_parameters() if p.requires_grad} == changed
    assert seen == [1, 1]


def test_its_features_are_not_taken_for_the_embeddings_of_other_methods(tmp_path, monkeypatch):
    from dgbench.registry import get_method

    release(tmp_path, monkeypatch)
    folders = set()
    for name in ("sam_decoder", "desam"):
        cls: type[Method] = get_method(name)
        method = train.build(cls, info(), resolve_hparams(cls, "drawn", {"backbone": NAME}), seed=0)[0]
        assert method.eval().predict(batch().image).shape == (2, 1, 64, 64)
        folders.add(method.cache.folder)  # type: ignore[union-attr]
    assert len(folders) == 2


def test_from_scratch_nothing_is_frozen():
    method = desam()
    assert method.load_pretrained() == {} and all(p.requires_grad for p in method.parameters())
    assert method.blocks == (0, 1, 2) and method.low_res_logits(batch().image).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("backbone, side", [("mobile_sam", 4), ("lite_medsam", 16)])
@torch.no_grad()
def test_of_a_tiny_vit_it_reads_every_second_block_of_the_longest_stage(backbone: str, side: int):
    method, seen = desam(backbone=backbone).eval(), []
    for i in (1, 3, 5):
        method.image_encoder.stages[2].blocks[i].register_forward_hook(lambda module, given, out: seen.append(out))
    x = batch(1).image
    features = method.encode(x)
    assert features.shape == (1, 3 * 160 + 256, side, side)
    torch.testing.assert_close(features[:, :480], torch.cat(seen, 3).permute(0, 3, 1, 2))
    torch.testing.assert_close(features[:, 480:], method.image_encoder(x))
    assert method.logits(x).shape == (1, 1, 64, 64)


class OfPoints(DeSAM):
    per_task: ClassVar = {"check": {"mode": "points", "grid": 4, "least_iou": -1.0, "least_stability": 0.0}}


def test_with_points_it_passes_the_checks_too():
    assert check_method(OfPoints) == []
