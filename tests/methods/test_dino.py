"""DINO's encoders read as timm has them, frozen or tuned; Rein's corrections by a second computation, term by term."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dgbench.errors import DataError, UsageError
from dgbench.files import sha256
from dgbench.method import Batch, resolve_hparams
from dgbench.methods._rein import Reins
from dgbench.methods.dino import Dino
from dgbench.methods.rein import Rein
from dgbench.methods.sam_rein import SAMRein
from dgbench.networks import sam
from dgbench.networks.dino import DinoEncoder, names
from dgbench.networks.unet import IMAGENET
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.released_sam import NAME, info, release

TINY = "vit_tiny_patch16_dinov3_qkvb"  # class token, 4 registers, rotary positions


def whole(name: str = TINY, **size: int) -> Any:
    """timm's network as it publishes it, but drawn at random; layer scales that let something through."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = timm.create_model(name, num_classes=0, **size)
        for key, p in network.named_parameters():
            if "gamma" in key:
                torch.nn.init.uniform_(p, 0.5, 1)
    return network.eval()


@pytest.fixture(scope="module")
def published() -> Any:
    return whole()


@pytest.fixture
def file(tmp_path: Path, published: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    save_file(published.state_dict(), path := tmp_path / "dino.safetensors")
    return path


def build(name: str, file: Path | str, side: int = 32, **settings: str) -> tuple[Dino, dict[str, str]]:
    cls = get_method(name)
    given = {"initialisation": str(file), "image_size": str(side), **settings}
    method, files = train.build(cls, info(image_size=side), resolve_hparams(cls, "check", given), seed=0)
    assert isinstance(method, Dino)
    return method, files


def drawn(side: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, side, side, generator=generator).expand(-1, 3, -1, -1)
    return Batch(image, (torch.rand(2, 1, side, side, generator=generator) > 0.5).float())


@torch.no_grad()
@pytest.mark.parametrize("name", [TINY, "vit_small_patch14_reg4_dinov2"])
def test_the_head_reads_the_patch_tokens_of_every_third_block_after_the_last_norm(name: str, published: Any):
    """Caught as they leave timm's blocks; class and register tokens, five in both, are cut off."""
    network = published if name == TINY else whole(name, img_size=56)
    side = network.patch_embed.img_size[0]
    encoder = DinoEncoder(name, side).eval()
    encoder.load(network.state_dict(), "file")
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    caught: dict[int, Tensor] = {}
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, __, x, i=i: caught.__setitem__(i, x))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    network((image - mean) / deviation)
    grid = side // encoder.patch
    levels = [network.norm(caught[i])[:, 5:].mT.unflatten(2, (grid, grid)) for i in (2, 5, 8, 11)]
    torch.testing.assert_close(encoder(image), torch.cat(levels, 1), atol=1e-5, rtol=1e-5)


def test_positions_of_another_grid_are_interpolated_and_the_class_tokens_is_kept():
    name = "vit_small_patch14_dinov2"
    encoder = DinoEncoder(name, 28)
    own, state = torch.full((1, 1, 384), 7.0), dict(encoder.vit.state_dict())
    state["pos_embed"] = torch.cat((own, torch.arange(37.0).repeat(37)[None, :, None].expand(1, -1, 384)), 1)
    encoder.load(state, "file")
    loaded = encoder.vit.pos_embed.detach()
    assert torch.equal(loaded[:, :1], own)
    torch.testing.assert_close(loaded[0, 1:, 0], torch.tensor([8.75, 27.25] * 2), atol=1, rtol=0)  # halves of 0 ... 36


def test_images_are_resized_to_the_nearest_multiple_of_the_patch_and_logits_back():
    assert [DinoEncoder(TINY, side).side for side in (16, 23, 25, 41)] == [16, 16, 32, 48]
    method, _ = build("dino", "scratch", side=41)
    assert method.logits(drawn(41).image).shape == (2, 1, 41, 41)


def test_frozen_only_the_head_changes_and_the_encoder_sees_each_image_once(file: Path, monkeypatch):
    method, files = build("dino", file, augmentation="none")
    assert files == {"dino.safetensors": sha256(file)}
    assert torch.equal(method.encoder.vit.norm.weight, whole().norm.weight)
    train.configure(method)
    method.train()
    seen: list[int] = []
    method.encoder.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(2):
        train.step(method, drawn(), seed=0, t=t)
    assert {n.partition(".")[0] for n, v in method.state_dict().items() if not torch.equal(v, before[n])} == {"head"}
    assert seen == [1, 1]  # two images, one by one, in the first of two steps
    assert len(list(Path(os.environ["DGBENCH_CACHE"]).glob("embeddings/*/*.npz"))) == 2


def test_training_images_are_augmented_unless_features_are_to_be_kept():
    for augmentation, changed in (("base", True), ("none", False)):
        method, _ = build("dino", "scratch", augmentation=augmentation)
        seen = method.augment(drawn(), torch.Generator().manual_seed(0))
        assert torch.equal(seen.image, drawn().image) != changed


def test_tuned_the_encoder_changes_too_at_a_tenth_of_the_rate(file: Path):
    method, _ = build("dino", file, tune="true", learning_rate="0.01")
    assert all(p.requires_grad for p in method.parameters()) and method.cache is None
    rates = {g["lr"]: len(g["params"]) for g in method.configure().param_groups}
    assert rates == {0.001: len(list(method.encoder.parameters())), 0.01: len(list(method.head.parameters()))}


def test_from_scratch_nothing_is_frozen_and_all_has_one_rate():
    for name in ("dino", "rein"):
        method, files = build(name, "scratch", learning_rate="0.01")
        assert files == {} and method.cache is None and all(p.requires_grad for p in method.parameters())
        assert {g["lr"] for g in method.configure().param_groups} == {0.01}


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_file_of_another_network_is_refused_in_one_sentence(change: str, published: Any):
    state = dict(published.state_dict())
    if change == "missing":
        del state["blocks.3.norm1.weight"]
    else:
        state |= {"more" if change == "unexpected" else "norm.weight": torch.zeros(5)}
    with pytest.raises(DataError, match=f"file.pth does not fit {TINY}") as told:
        DinoEncoder(TINY, 32).load(state, "file.pth")
    assert "\n" not in told.value.cause and len(told.value.cause) < 400


def test_without_a_network_it_says_what_to_download(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hparams = resolve_hparams(Dino, "drawn")
    with pytest.raises(DataError, match=r"weights of 'vit_small_patch14_dinov2.lvd142m' cannot be fetched") as told:
        Dino.find_pretrained(hparams)
    assert "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/" in told.value.remedy


def test_other_networks_are_refused_with_the_names_of_dinos():
    assert {"vit_base_patch14_dinov2", "vit_base_patch16_dinov3", TINY} <= set(names())
    for name in ("convnext_tiny.dinov3_lvd1689m", "vit_base_patch16_dinov4"):
        with pytest.raises(UsageError, match="DINO encoder") as told:
            build("dino", "published", encoder=name)
        assert "vit_base_patch16_dinov3" in told.value.remedy


# --- Rein ------------------------------------------------------------------------------------------------------------


def by_hand(reins: Reins, f: Tensor, layer: int) -> Tensor:
    """The equations for one token after the other: (n, C) -> (n, C)."""
    t, c = reins.a[layer] @ reins.b[layer], f.shape[1]
    rows = []
    for x in f:
        weights = torch.exp(torch.stack([(x * k).sum() for k in t]) / c**0.5)
        absorbed, *others = weights / weights.sum()
        d = sum(w * (reins.from_tokens.weight.T * k[:, None]).sum(0) for w, k in zip(others, t[1:], strict=True))
        d = d + (1 - absorbed) * reins.from_tokens.bias
        rows.append(x + reins.scale * (reins.to_correction.weight @ (d + x) + reins.to_correction.bias))
    return torch.stack(rows)


@torch.no_grad()
def test_a_correction_is_the_papers_also_for_tokens_on_a_grid():
    torch.manual_seed(0)
    reins = Reins(3, width=6, tokens=4, rank=2, patch=14)
    for p in (reins.a, reins.b, reins.scale):
        torch.nn.init.normal_(p)
    f = torch.randn(2, 3, 5, 6)
    for layer in range(3):
        expected = torch.stack([by_hand(reins, image.flatten(0, 1), layer).view(3, 5, 6) for image in f])
        torch.testing.assert_close(reins(f, layer), expected)


@torch.no_grad()
def test_a_patch_that_attends_to_the_first_token_alone_is_corrected_as_if_there_were_no_tokens():
    reins = Reins(1, width=2, tokens=3, rank=2, patch=14)
    reins.b[0] = torch.eye(2)
    reins.a[0] = torch.tensor([[1000.0, 0], [-1000, 0], [0, 1000]])
    f = torch.tensor([[1.0, 0]])  # softmax (1, 0, 0)
    torch.testing.assert_close(reins(f, 0), f + 0.001 * reins.to_correction(f))


def test_tokens_start_small_and_the_scale_at_a_thousandth():
    reins = Reins(24, width=1024, tokens=100, rank=16, patch=16)
    bound = (6 / (3 * 16 * 16 + 128)) ** 0.5  # 128 = sqrt(1024 * 16)
    for drawn_tokens in (reins.a, reins.b):
        assert 0.99 * bound < drawn_tokens.abs().max() <= bound
    assert reins.scale.item() == pytest.approx(0.001)


@torch.no_grad()
def test_class_and_register_tokens_leave_each_block_as_they_were(file: Path):
    method, _ = build("rein", file)
    plain, _ = build("dino", file)
    left: list[Tensor] = []
    for encoder in (method.encoder, plain.encoder):
        encoder.vit.blocks[0].register_forward_hook(lambda _, __, x: left.append(x))
        encoder(drawn().image)
    corrected, own = left
    assert torch.equal(corrected[:, :5], own[:, :5])
    assert isinstance(method, Rein)
    torch.testing.assert_close(corrected[:, 5:], torch.stack([by_hand(method.reins, x, 0) for x in own[:, 5:]]))
    assert 0 < (corrected - own).abs().max() < 0.01  # nearly DINO's own at the start


def test_rein_trains_tokens_maps_scale_and_head_and_spares_tokens_scale_and_norms_the_decay(file: Path):
    method, _ = build("rein", file)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n.partition(".")[0] for n in trained} == {"head", "reins"} and method.cache is None
    names_of = {p: n for n, p in method.named_parameters()}
    groups = {g["weight_decay"]: {names_of[p] for p in g["params"]} for g in method.configure().param_groups}
    assert groups[0.05] | groups[0.0] == trained
    norms = {f"head.stages.{i}.{j}.{k}" for i in range(3) for j in (1, 4) for k in ("weight", "bias")}
    assert groups[0.0] == norms | {"reins.a", "reins.b", "reins.scale"}


def test_behind_no_block_of_a_step_is_rein_idle(file: Path):
    method, _ = build("rein", file)
    train.configure(method)
    before = method.reins.a.detach().clone()  # type: ignore[union-attr]
    train.step(method.train(), drawn(), seed=0, t=0)
    assert all(not torch.equal(a, b) for a, b in zip(method.reins.a, before, strict=True))  # type: ignore[union-attr]


def test_on_sam_the_encoder_without_corrections_is_sams_own(tmp_path, monkeypatch):
    release(tmp_path, monkeypatch)
    hparams = resolve_hparams(SAMRein, "check", {"backbone": NAME})
    method, _ = train.build(SAMRein, info(), hparams, seed=0)
    assert isinstance(method, SAMRein)
    image = sam.normalise_for(sam.BACKBONES[NAME], drawn(64).image)
    with torch.no_grad():
        near = method.encode(image)
        method.image_encoder.reins[0].scale.zero_()
        own = method.encode(image)
        plain = sam.image_encoder(sam.BACKBONES[NAME], 64)
        plain.load_state_dict({k: v for k, v in method.image_encoder.state_dict().items() if "reins" not in k})
        assert torch.equal(own, plain(image)) and 0 < (near - own).abs().max() < 0.05
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n.partition(".")[0] for n in trained if ".reins." not in n} == {"mask_decoder"}
    assert any(".reins." in n for n in trained)


def test_at_vit_b_reins_are_one_and_a_half_million_parameters():
    with torch.device("meta"):
        method = SAMRein(TaskInfo("prostate", ("prostate",), 384, steps=1), resolve_hparams(SAMRein, "prostate"))
    count = sum(p.numel() for n, p in method.named_parameters() if ".reins." in n)
    assert count == 12 * (100 + 768) * 16 + 2 * (768 * 768 + 768) + 1
