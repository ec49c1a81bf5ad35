"""DAPSAM computes what the authors' code computes, loads what they load, and trains what they train."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dgbench.errors import DataError, UsageError
from dgbench.files import sha256
from dgbench.method import Batch, resolve_hparams
from dgbench.methods._low_level import LowLevelAdapter, gate
from dgbench.methods.dapsam import DAPSAM, DAPSAMHparams
from dgbench.networks import checkpoints, sam, weights
from dgbench.task import TaskInfo

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = sam.Backbone(3, 64, 4, (1,), weights="small")
PROBE = 96


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    monkeypatch.setitem(sam.BACKBONES, "small", SMALL)


def dapsam(structures: int = 1, image_size: int = PROBE, **settings) -> DAPSAM:
    torch.manual_seed(0)
    task = TaskInfo("drawn", ("disc", "cup")[:structures], image_size, steps=1000)
    return DAPSAM(task, DAPSAMHparams(**settings))


def batch(n: int = 2, structures: int = 1, size: int = PROBE) -> Batch:
    rng = np.random.default_rng(n)
    y, x = np.mgrid[:size, :size] / size
    disc = np.hypot(y - 0.5, x - rng.uniform(0.4, 0.6, (n, 1, 1))) < 0.25
    gray = (0.3 + 0.3 * disc + 0.1 * rng.random((n, size, size))).astype(np.float32)
    mask = np.stack([disc] * structures, 1).astype(np.float32)
    return Batch(torch.from_numpy(gray)[:, None].expand(-1, 3, -1, -1), torch.from_numpy(mask))


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter of the golden files follows."""
    drawn = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy((drawn + 1 if key.endswith(".weight") and len(shape) == 1 else drawn).astype(np.float32))


class Golden:
    def __init__(self, task: str):
        self.file = np.load(GOLDEN / f"dapsam_{task}.npz")
        config = json.loads(str(self.file["config"]))
        size, self.structures = config["image_size"], config["structures"]
        self.shapes = {
            str(key): tuple(json.loads(str(shape)))
            for key, shape in zip(self.file["state_names"], self.file["state_shapes"], strict=True)
        }
        drawn = np.random.default_rng(config["input_seed"]).standard_normal((config["batch"], 3, size, size))
        self.image = torch.from_numpy(drawn.astype(np.float32))
        y, x = np.mgrid[:size, :size] / size
        distance = (y - 0.5) ** 2 + (x - 0.45) ** 2
        discs = np.stack([distance < 0.05, distance < 0.015][: self.structures]).astype(np.float32)
        self.mask = torch.from_numpy(discs).expand(config["batch"], -1, -1, -1)
        self.method = dapsam(self.structures, size, backbone="small")
        self.method.load_state_dict({key: value(key, shape) for key, shape in self.shapes.items()}, strict=True)
        self.method.freeze()

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.file[name])


@pytest.fixture(scope="module", params=["prostate", "fundus"])
def golden(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.BACKBONES, "small", SMALL)
        return Golden(request.param)


def test_its_state_dict_has_the_authors_names_and_shapes(golden):
    assert {key: tuple(v.shape) for key, v in golden.method.state_dict().items()} == golden.shapes


@pytest.mark.parametrize(("task", "shades"), [("fundus", False), ("prostate", True)])
def test_its_augmentation_is_the_authors_of_that_task(task, shades):
    """Theirs of fundus moves and mirrors; that of prostate also changes gray values."""
    info = TaskInfo(task, ("disc",), 32, steps=4)
    method = DAPSAM(info, resolve_hparams(DAPSAM, task, {"backbone": "vit_tiny", "image_size": "32"}))
    gray = Batch(torch.full((64, 3, 32, 32), 0.5), torch.ones(64, 1, 32, 32))
    image, mask = method.augment(gray, torch.Generator().manual_seed(0))
    inside = image[:, :1][mask > 0.5]
    assert (mask < 0.5).any() and (inside.max() > 0.51).item() is shades


def test_it_trains_as_many_parameters_as_the_authors(golden):
    assert sum(p.numel() for p in golden.method.parameters() if p.requires_grad) == int(golden["trainable"])


def test_it_computes_what_the_authors_code_computes(golden, monkeypatch):
    method = golden.method
    features = []
    handle = method.image_encoder.neck.register_forward_hook(lambda module, given, out: features.append(out.detach()))
    low_res = method.low_res_logits(golden.image)
    handle.remove()
    torch.testing.assert_close(features[0][:, ::32], golden["image_embedding_slice"], atol=1e-4, rtol=0)
    torch.testing.assert_close(low_res.detach(), golden["low_res_logits"], atol=1e-4, rtol=0)

    # The golden input is what the network sees: it does not pass through the normalisation of `logits`.
    upsampled = interpolate(low_res, golden.image.shape[-2:], mode="bilinear", align_corners=False)
    monkeypatch.setattr(method, "logits", lambda image: upsampled)
    loss = method.loss(Batch(golden.image, golden.mask))
    assert loss.item() == pytest.approx(float(golden["loss"]), abs=1e-5)

    loss.backward()
    norms = {key: p.grad.norm().item() for key, p in method.named_parameters() if p.grad is not None}
    expected = dict(zip(golden.file["grad_names"].tolist(), golden.file["grad_norms"].tolist(), strict=True))
    # The gradient of a key projection's bias is zero but for rounding: softmax does not see a shift of all logits.
    assert norms == {key: pytest.approx(norm, rel=1e-3, abs=1e-9) for key, norm in expected.items()}


@pytest.mark.parametrize(
    "task, structures, total, trained",
    [("prostate", 1, 98_452_609, 11_526_017), ("fundus", 2, 98_945_186, 11_666_338)],
)
def test_on_the_papers_tasks_it_is_as_large_as_the_authors_network(task, structures, total, trained):
    with torch.device("meta"):
        method = DAPSAM(TaskInfo(task, ("disc", "cup")[:structures], 96, 1), resolve_hparams(DAPSAM, task))
    method.freeze()
    assert sum(p.numel() for p in method.parameters()) == total
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize("backbone", ["vit_l", "vit_h"])
def test_the_larger_backbones_are_built_by_the_same_settings(backbone):
    with torch.device("meta"):
        method = dapsam(backbone=backbone, image_size=384)
    blocks = method.image_encoder.blocks
    assert len(blocks) == sam.BACKBONES[backbone].depth
    assert {i for i, block in enumerate(blocks) if block.window_size == 0} == set(sam.BACKBONES[backbone].global_blocks)


def test_the_gate_weighs_a_channel_by_its_mean_and_its_maximum():
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)  # channel 0 is dark, channel 1 is 2 everywhere
    assert gate(x).flatten().tolist() == pytest.approx([0, 2 / (1 + np.exp(-4)), 0, 2 / (1 + np.exp(-4))])


def test_the_low_level_prompt_of_a_stage_is_projected_from_the_means_of_the_patches_at_its_places():
    adapter = LowLevelAdapter(1, [(1, 0), (2, 0)], reduction=1, layout="paper")
    projection = adapter.embedding_generator_1
    projection.load_state_dict({"weight": torch.tensor([[2.0], [-1.0]]), "bias": torch.tensor([0.0, 10.0])})
    f = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 8.0]]).reshape(1, 2, 4, 1)  # means of 4 and 2
    e = adapter.low_level(f, (1, 2), stage=1)
    assert e.tolist() == [[[[8.0, 6.0], [4.0, 8.0]]]]


def test_a_tiny_vit_sees_the_colours_it_was_trained_on_and_a_plain_one_sees_z_scores():
    image = batch(1).image
    with torch.device("meta"):
        tiny, plain = dapsam(backbone="lite_medsam"), dapsam(backbone="small")
    assert (tiny.normalised(image).amin(), tiny.normalised(image).amax()) == (0, 1)
    z = plain.normalised(image)
    assert (z.mean().item(), z.std(unbiased=False).item()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-3))


def test_the_loss_is_summed_over_structures_and_its_dice_taken_over_the_batch():
    method, (image, mask) = dapsam(2), batch(2, structures=2)
    with torch.no_grad():
        p = method.predict(image).double()
        loss = method.loss(Batch(image, mask)).item()
    by_hand = 0.0
    for k in range(2):
        q, m = p[:, k], mask[:, k]
        bce = -(m * q.log() + (1 - m) * (1 - q).log()).mean()
        by_hand += float(0.2 * bce + 0.8 * (1 - (2 * (q * m).sum() + 1) / (q.sum() + m.sum() + 1)))
    assert loss == pytest.approx(by_hand, abs=1e-5)


def test_the_learning_rate_warms_up_and_ends_at_a_quarter():
    task = TaskInfo("prostate", ("prostate",), 96, 1)
    hparams = resolve_hparams(DAPSAM, "prostate", {"backbone": "vit_tiny", "image_size": "96"})
    rate = DAPSAM(task, hparams).schedule
    assert [rate(t) for t in (0, 1, 2, 125, 250, 251)] == pytest.approx([1 / 250, 1 / 250, 2 / 250, 0.5, 1, 1])
    assert rate(251 + 25_000) == pytest.approx(0.5**0.9)  # half of the horizon of 50,000 steps
    assert rate(39_999) == pytest.approx(0.24, abs=0.005)
    assert dapsam(warmup=0).schedule(0) == 1
    assert dapsam(warmup=0, horizon=0.5).schedule(900) == 0  # past the horizon


def test_contrast_and_brightness_of_the_scanner_do_not_matter():
    method, image = dapsam(), batch().image
    with torch.no_grad():
        torch.testing.assert_close(method.predict(0.4 * image + 0.3), method.predict(image), atol=1e-4, rtol=0)


def test_an_even_image_is_no_division_by_zero():
    assert dapsam().predict(torch.full((1, 3, PROBE, PROBE), 0.5)).isfinite().all()


def test_a_prediction_does_not_depend_on_its_batch():
    method, image = dapsam(2), batch(3).image
    with torch.no_grad():
        together = method.predict(image)
        assert together.shape == (3, 2, PROBE, PROBE)
        torch.testing.assert_close(method.predict(image[1:2]), together[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("image_size", [64, 136])
def test_any_multiple_of_the_patch_is_an_image_size(image_size):
    image = batch(1, size=image_size).image
    assert dapsam(image_size=image_size).predict(image).shape == (1, 1, image_size, image_size)


def test_another_image_size_is_told_with_the_nearest_that_fits():
    with pytest.raises(UsageError, match=r"image_size 100 is no multiple of the patch size 8(?s:.*)image_size=96"):
        dapsam(image_size=100)


def test_every_option_changes_the_prediction():
    image, seen = batch(1).image, []
    options = [{}, {"memory_similarity": "cosine"}, {"adapters": "l"}, {"adapters": "channel"}, {"layout": "paper"}]
    for option in options:
        method = dapsam(backbone="small", image_size=PROBE, **option)
        method.load_state_dict({key: value(key, tuple(v.shape)) for key, v in method.state_dict().items()})
        with torch.no_grad():
            seen.append(method.low_res_logits(image))
    for i, first in enumerate(seen):
        assert all((first - second).abs().max() > 1e-5 for second in seen[i + 1 :])


def test_the_dice_of_each_image_is_another_loss_than_the_dice_of_the_batch():
    image, mask = batch(2)
    mask = mask * torch.tensor([1.0, 0.0])[:, None, None, None]
    of_batch, of_image = (dapsam(dice_reduction=r).loss(Batch(image, mask)).item() for r in ("batch", "image"))
    assert of_batch != pytest.approx(of_image, abs=1e-3)


@pytest.mark.parametrize("option", [{"load_mask_head": True}, {"position_encoding": "sam"}])
def test_a_backbone_from_scratch_has_nothing_to_load(option):
    with pytest.raises(UsageError, match=r"vit_tiny.*from scratch"):
        dapsam(**option)


def test_an_unknown_backbone_is_an_error_with_the_nearest():
    with pytest.raises(UsageError, match=r"backbone 'vit_bb'(?s:.*)did you mean 'vit_b'"):
        dapsam(backbone="vit_bb")


def test_a_backbone_from_scratch_is_trained_whole():
    method = dapsam()
    assert method.load_pretrained() == {}
    assert all(p.requires_grad for p in method.parameters())


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """A checkpoint with the keys and sizes of a SAM release, but a small image encoder."""
    from segment_anything.build_sam import _build_sam  # not before dgbench.networks.sam: it imports torchvision

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    model = _build_sam(SMALL.width, SMALL.depth, SMALL.heads, list(SMALL.global_blocks))
    for key, parameter in model.named_parameters():
        if "pos" in key:
            torch.nn.init.normal_(parameter, std=0.1)  # the package starts them at zero
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def released(release, monkeypatch) -> dict[str, Tensor]:
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(release.parent))
    known = weights.Weights(release.name, "https://host/small.pth", sha256(release), release.stat().st_size, "")
    monkeypatch.setitem(weights.WEIGHTS, "small", known)
    return checkpoints.load_state(release)


def test_the_release_is_loaded_and_all_of_the_encoder_but_the_adapters_is_frozen(release, released):
    method = dapsam(backbone="small")
    start = {key: v.clone() for key, v in method.state_dict().items()}
    assert method.load_pretrained() == {"small.pth": sha256(release)}
    state = method.state_dict()
    same = {key for key in released if key in state and torch.equal(released[key], state[key])}
    adapted = {"image_encoder.pos_embed"} | {f"image_encoder.blocks.1.attn.rel_pos_{axis}" for axis in "hw"}
    fresh = {key for key in state if key not in same | adapted}
    assert all(torch.equal(state[key], start[key]) for key in fresh)
    assert {key.split(".")[0] for key in fresh} == {"image_encoder", "prompt_generator", "mask_decoder"}
    assert all("adapter" in key for key in fresh if key.startswith("image_encoder"))
    assert all(key.startswith(sam.MASK_HEAD) for key in fresh if key.startswith("mask_decoder"))
    frozen = {key for key, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {key for key in state if key.startswith("image_encoder") and "adapter" not in key}


def test_positions_and_mask_head_come_from_the_release_when_asked_for(released):
    method = dapsam(2, backbone="small", position_encoding="sam", load_mask_head=True)
    method.load_pretrained()
    state, frequencies = method.state_dict(), "pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(state[f"prompt_generator.{frequencies}"], released[f"prompt_encoder.{frequencies}"])
    assert torch.equal(state["mask_decoder.mask_tokens.weight"], released["mask_decoder.mask_tokens.weight"][:2])


def test_a_release_that_lacks_a_key_is_refused_with_its_name(release, released, tmp_path, monkeypatch):
    del released["image_encoder.blocks.2.norm1.weight"]
    torch.save(released, tmp_path / "small.pth")
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    known = weights.Weights("small.pth", "https://host/small.pth", sha256(tmp_path / "small.pth"), 1, "")
    monkeypatch.setitem(weights.WEIGHTS, "small", known)
    with pytest.raises(DataError, match=r"small\.pth does not fit.*1 missing \(.*blocks\.2\.norm1\.weight"):
        dapsam(backbone="small").load_pretrained()


def test_without_the_release_the_error_says_what_to_download_into_which_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    with torch.device("meta"):
        method = dapsam(backbone="vit_b", image_size=384)
    with pytest.raises(DataError) as error:
        method.load_pretrained()
    known = weights.WEIGHTS["sam_vit_b"]
    assert all(word in str(error.value) for word in (known.file, known.url, known.sha256, str(tmp_path)))


def test_a_few_steps_reduce_the_loss_and_leave_what_is_frozen_as_it_is(released):
    method = dapsam(backbone="small", warmup=0, learning_rate=1e-3)
    method.load_pretrained()
    method.optimizers = (method.configure(),)
    before = {key: p.clone() for key, p in method.named_parameters()}
    losses = [method.update(batch(2))["loss"].item() for _ in range(6)]
    assert losses[-1] < losses[0]
    unchanged = {key for key, p in method.named_parameters() if torch.equal(p, before[key])}
    idle = {key for key in before if key.startswith("mask_decoder.iou_prediction_head")}  # it has no loss
    assert unchanged == {key for key, p in method.named_parameters() if not p.requires_grad} | idle
