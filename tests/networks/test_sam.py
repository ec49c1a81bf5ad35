"""SAM's parts are SAM's, at any image size: what is fused, resized or batched here computes the same."""

import os
import subprocess
import sys

import pytest
import torch

from dgbench.errors import UsageError
from dgbench.networks import sam

NARROW = {  # the depths and the global blocks of the releases, at a width that is cheap
    name: sam.Backbone(b.depth, 32, 2, b.global_blocks)
    for name, b in sam.BACKBONES.items()
    if b.weights and b.depth and not b.stages
}


def encoder_pair(image_size: int, backbone: sam.Backbone):
    """Ours, and the package's own with the same weights; relative positions are drawn, they start at zero."""
    torch.manual_seed(0)
    ours = sam.image_encoder(backbone, image_size)
    for key, parameter in ours.named_parameters():
        if "rel_pos" in key:
            torch.nn.init.normal_(parameter)
    theirs = sam.image_encoder(backbone, image_size)
    for block in theirs.blocks:
        block.__class__ = sam.package.Block
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("image_size", [14 * 16, 10 * 16, 20 * 16])  # fills a window, is smaller, needs filling
def test_fused_attention_computes_what_the_package_computes(image_size):
    ours, theirs = encoder_pair(image_size, sam.Backbone(2, 64, 2, (1,)))
    images = [torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    outputs = []
    for encoder, image in zip((ours, theirs), images, strict=True):
        outputs.append(encoder(image.requires_grad_()))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images[0].grad, images[1].grad, atol=1e-5, rtol=1e-5)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_windows_on_a_gpu_use_the_fused_kernel_with_one_key_for_all_tokens_beyond_the_border(monkeypatch):
    """Asked of a CPU, where the kernel computes the same."""
    ours, theirs = encoder_pair(20 * 16, sam.Backbone(1, 64, 2, ()))
    fused = []
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(sam, "_fused", lambda *qkv, plain=sam._fused: fused.append(qkv[1].shape[2]) or plain(*qkv))
    image = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        out = ours(image)
        assert fused == [14 * 14, 14 * 6 + 1, 6 * 14 + 1, 6 * 6 + 1]
        torch.testing.assert_close(out, theirs(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, encoder", [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)])
def test_the_release_backbones_are_as_large_as_sam(name, encoder):
    backbone = sam.BACKBONES[name]
    with torch.device("meta"):
        parts = (
            sam.image_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            sam.prompt_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            sam.mask_decoder(backbone, sam.RELEASE_MASKS),
        )
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [encoder, 6_220, 4_058_340]


def test_a_release_state_dict_has_our_keys_and_shapes():
    backbone = sam.BACKBONES["vit_b"]
    with torch.device("meta"):
        release = sam_release(backbone)
        parts = {
            "image_encoder": sam.image_encoder(backbone, 1024),
            "prompt_encoder": sam.prompt_encoder(backbone, 1024),
            "mask_decoder": sam.mask_decoder(backbone, 4),
        }
    ours = {f"{name}.{key}": v.shape for name, part in parts.items() for key, v in part.state_dict().items()}
    assert ours == {key: v.shape for key, v in release.items()}


def sam_release(backbone: sam.Backbone) -> dict[str, torch.Tensor]:
    from segment_anything.build_sam import _build_sam  # not before dgbench.networks.sam: it imports torchvision

    return _build_sam(backbone.width, backbone.depth, backbone.heads, list(backbone.global_blocks)).state_dict()


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", NARROW)
def test_relative_positions_are_resized_in_the_blocks_that_attend_globally_and_in_no_other(name):
    """The digits 2, 5, 8 and 11 in a key tell the global blocks of ViT-B only."""
    backbone, image_size = NARROW[name], 96
    state = sam_release(backbone)
    fitted = sam.fit_release(state, backbone, image_size, masks=1, mask_head=True)
    resized = {int(key.split(".")[2]) for key, v in fitted.items() if "rel_pos" in key and v.shape != state[key].shape}
    assert resized == set(backbone.global_blocks)
    assert fitted["image_encoder.pos_embed"].shape == (1, 6, 6, 32)
    encoder = sam.image_encoder(backbone, image_size)
    encoder.load_state_dict(part(fitted, "image_encoder."), strict=True)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, 256, 6, 6)


def test_resized_positions_are_read_at_the_middle_of_each_patch():
    """A ramp over 64 patches, read by 32: patch i lies between the old 2i and 2i + 1."""
    backbone = NARROW["vit_b"]
    state = sam_release(backbone)
    state["image_encoder.pos_embed"] = torch.arange(64.0).reshape(1, 64, 1, 1).expand(1, 64, 64, 32)
    key = "image_encoder.blocks.2.attn.rel_pos_h"
    state[key] = torch.arange(127.0)[:, None].expand(127, 16)
    fitted = sam.fit_release(state, backbone, 512, masks=1, mask_head=False)
    rows = fitted["image_encoder.pos_embed"]
    torch.testing.assert_close(rows[0, :, 0, 0], 2 * torch.arange(32.0) + 0.5)
    torch.testing.assert_close(rows, rows[:, :, :1, :1].expand_as(rows))
    torch.testing.assert_close(fitted[key][:, 0], (torch.arange(63) + 0.5) * 127 / 63 - 0.5)
    assert fitted[key][31, 0] == 63  # a patch is as far from itself as before


def test_at_sams_own_size_nothing_is_changed():
    state = sam_release(NARROW["vit_b"])
    fitted = sam.fit_release(state, NARROW["vit_b"], sam.RELEASE_IMAGE_SIZE, sam.RELEASE_MASKS, mask_head=True)
    assert fitted.keys() == state.keys()
    assert all(torch.equal(fitted[key], state[key]) for key in state)


@pytest.mark.parametrize("masks", [1, 2, 6])
def test_each_mask_starts_from_one_of_sams_four(masks):
    backbone = NARROW["vit_b"]
    state = sam_release(backbone)
    fitted = sam.fit_release(state, backbone, 1024, masks, mask_head=True)
    decoder = sam.mask_decoder(backbone, masks)
    decoder.load_state_dict(part(fitted, "mask_decoder."), strict=True)
    for k in range(masks):
        assert torch.equal(decoder.mask_tokens.weight[k], state["mask_decoder.mask_tokens.weight"][k % 4])
        network = state[f"mask_decoder.output_hypernetworks_mlps.{k % 4}.layers.2.weight"]
        assert torch.equal(decoder.output_hypernetworks_mlps[k].layers[2].weight, network)
        row = state["mask_decoder.iou_prediction_head.layers.2.weight"][k % 4]
        assert torch.equal(decoder.iou_prediction_head.layers[2].weight[k], row)


def test_without_the_mask_head_only_the_mask_head_is_left_out():
    state = sam_release(NARROW["vit_b"])
    fitted = sam.fit_release(state, NARROW["vit_b"], 1024, masks=2, mask_head=False)
    assert state.keys() - fitted.keys() == {key for key in state if key.startswith(sam.MASK_HEAD)}


@pytest.mark.parametrize("points", [0, 3])
def test_a_batch_is_decoded_as_its_images_one_by_one(points):
    torch.manual_seed(0)
    backbone = sam.Backbone(1, 32, 2, (0,), embedding=64)
    decoder, position = sam.mask_decoder(backbone, 2), sam.position_encoding(backbone)((5, 5))
    embedding, dense, sparse = torch.randn(3, 64, 5, 5), torch.randn(3, 64, 5, 5), torch.randn(3, points, 64)
    masks, iou = sam.decode(decoder, embedding, position, dense, sparse if points else None)
    assert masks.shape == (3, 2, 20, 20) and iou.shape == (3, 2)
    for i in range(3):
        alone = decoder.predict_masks(embedding[i : i + 1], position[None], sparse[i : i + 1], dense[i : i + 1])
        torch.testing.assert_close(masks[i : i + 1], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(iou[i : i + 1], alone[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_size, near", [(90, 88), (3, 8)])
def test_an_image_that_patches_do_not_fill_is_refused_with_the_nearest_size(image_size, near):
    with pytest.raises(UsageError, match=rf"no multiple of the patch size 8(?s:.*)image_size={near}"):
        sam.image_encoder(sam.BACKBONES["vit_tiny"], image_size)


# Packages that behave like torchvision: with its compiled operators, without them, and broken in another way.
WHOLE = "from torchvision import half"
WITHOUT_OPERATORS = """
import torch
from torchvision import half
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda *arguments: None)
"""
BROKEN = "raise RuntimeError('another fault')"
IMPORT_EACH = """
import os, sys, torch
for folder in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    sys.path.insert(0, folder)
    try:
        import torchvision  # fails half way where the operators are missing
    except RuntimeError:
        pass
    try:
        import dgbench.networks.torchvision_ops as ops, torchvision
        print(ops.LIBRARY is not None, torchvision.half.__name__)
    except RuntimeError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
"""


def test_operators_of_torchvision_are_declared_only_where_it_cannot_be_imported_without_them(tmp_path, root):
    for name, content in {"whole": WHOLE, "without": WITHOUT_OPERATORS, "broken": BROKEN}.items():
        (tmp_path / name / "torchvision").mkdir(parents=True)
        (tmp_path / name / "torchvision" / "__init__.py").write_text(content)
        (tmp_path / name / "torchvision" / "half.py").write_text("")
    folders = [str(tmp_path / name) for name in ("whole", "without", "broken")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *folders],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines() == ["False torchvision.half", "True torchvision.half", "another fault"], done.stderr
