"""What is put into the blocks of a plain ViT goes into SAM 2's Hiera: it starts as SAM 2's, and trains what it says."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgbench.method import Batch, resolve_hparams
from dgbench.methods._sam import SAMMethod
from dgbench.networks import sam, sam2
from dgbench.registry import get_method
from dgbench.running import train
from tests.released_sam import HIERA, NAME, info, release, trained

SIDE = 96  # pixels: grids of 24, 12, 6 and 3, for windows of 8, 4, 14 and 7


@pytest.fixture(autouse=True)
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    return release(tmp_path, monkeypatch, HIERA)


def build(name: str, **settings: str) -> SAMMethod:
    cls = get_method(name)
    hparams = resolve_hparams(cls, "drawn", {"backbone": NAME, "weight_decay": "0", **settings})
    method = train.build(cls, info(image_size=SIDE), hparams, seed=0)[0]
    assert isinstance(method, SAMMethod)
    return method


def drawn(slices: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(slices, 1, SIDE, SIDE, generator=generator).expand(-1, 3, -1, -1)
    return Batch(image, (torch.rand(slices, 1, SIDE, SIDE, generator=generator) > 0.5).float())


def own_embedding(released: dict[str, Tensor]) -> Tensor:
    """SAM 2's, by its release."""
    encoder, prefix = sam.image_encoder(HIERA, SIDE), "image_encoder."
    state = sam.fit_release(released, HIERA, SIDE, sam.RELEASE_MASKS, mask_head=True)
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
    with torch.no_grad():
        return encoder(sam.normalise_for(HIERA, drawn().image))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sam_decoder", {}), ("sam_lora", {}), ("sam_adapter", {"zero_init": "true"}), ("sam_rein", {})],
)
def test_the_encoder_starts_as_sam_2s_own(name: str, settings: dict[str, str], released):
    method = build(name, **settings)
    with torch.no_grad():
        if name == "sam_rein":  # its scale starts at a thousandth
            for reins in method.image_encoder.reins:
                reins.scale.zero_()
        out = method.encode(sam.normalise_for(HIERA, drawn().image))
    assert out.shape == (2, 4 * 32, SIDE // 16, SIDE // 16)
    torch.testing.assert_close(out, own_embedding(released), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sam_lora", "sam_adapter", "sam_rein"])
def test_every_block_has_its_part_in_the_masks(name: str):
    """A gradient reaches what was put into each of the eight, of four widths."""
    method = build(name, augmentation="none").train()
    with torch.no_grad():  # B of LoRA starts at zero and hides A
        for key, p in method.named_parameters():
            if "lora_b" in key:
                p.normal_(std=0.02)
    method.loss(drawn()).backward()
    added = {n: p for n, p in method.image_encoder.named_parameters() if p.requires_grad}
    assert len(added) >= 8 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in added.values())
    if name == "sam_rein":  # a stage's tokens lie in one parameter, by blocks
        assert all(t.grad.abs().sum((1, 2)).all() for reins in method.image_encoder.reins for t in (reins.a, reins.b))


def test_low_rank_changes_are_as_wide_as_what_they_change():
    method = build("sam_lora", rank="2")
    for block in method.image_encoder.trunk.blocks:
        qkv = block.attn.qkv
        assert (qkv.in_features, 3 * block.dim_out) == (block.dim, qkv.out_features)
        assert qkv.lora_a_q.weight.shape == (2, block.dim) and qkv.lora_b_v.weight.shape == (block.dim_out, 2)
    count = sum(2 * 2 * (b.dim + b.dim_out) for b in method.image_encoder.trunk.blocks)
    assert trained(method.image_encoder) == count  # type: ignore[arg-type]


def test_only_the_decoder_changes_and_the_finer_features_are_kept_with_the_embedding():
    method = build("sam_decoder")
    train.configure(method)
    method.train()
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(2):
        train.step(method, drawn(), seed=0, t=t)
    changed = {n.partition(".")[0] for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"mask_decoder"}
    assert len(list(Path(os.environ["DGBENCH_CACHE"]).glob("embeddings/*/*.npz"))) == 2
    kept = method.eval().predict(drawn().image)
    method.cache = None
    assert (method.predict(drawn().image) - kept).abs().max() < 1e-3


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in ("false", "true"):
        method = build("sam_full", checkpointing=on, augmentation="none").train()
        method.loss(drawn()).backward()
        gradients.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "image_encoder.trunk.blocks.0.proj.bias" not in gradients[0]
    assert {"image_encoder.trunk.blocks.1.proj.bias", "image_encoder.fine.0.weight"} <= set(gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_a_loss_reads_nothing_back_so_that_none_waits_for_a_gpu():
    """On the meta device, which has shapes and no numbers, whatever reads one fails."""
    with torch.device("meta"):
        method = get_method("sam_full")(
            info(image_size=SIDE), resolve_hparams(get_method("sam_full"), "drawn", {"backbone": NAME})
        )
    image, mask = (x.to("meta") for x in drawn())
    assert method.loss(Batch(image, mask)).device.type == "meta"


def answers(inside: int, around: int) -> Tensor:
    """(1, 4, 10, 10): the first has `inside` logits of 1, up to `around` 0.01, then -1; the others are 2, 3 and 4."""
    first = torch.full((100,), -1.0)
    first[:around], first[:inside] = 0.01, 1
    return torch.stack([first, *(torch.full((100,), k) for k in (2.0, 3, 4))]).view(1, 4, 10, 10)


def test_an_unstable_mask_is_exchanged_for_the_best_rated_other():
    iou = torch.tensor([[0.9, 0.2, 0.8, 0.3]])
    logits, rated = sam2.settled(answers(97, 100), iou)
    assert torch.equal(logits[0, 0], torch.full((10, 10), 3.0)) and rated[0].tolist() == pytest.approx(
        [0.8, 0.2, 0.8, 0.3]
    )
    for stable in (answers(98, 100), answers(100, 100), answers(0, 0)):
        logits, rated = sam2.settled(stable, iou)
        assert torch.equal(logits, stable) and torch.equal(rated, iou)


def test_a_box_gets_the_settled_answer_in_testing_only(monkeypatch: pytest.MonkeyPatch):
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 30:60, 20:70] = 1
    method = build("sam_box").eval()
    marked: list[int] = []
    monkeypatch.setattr(sam2, "settled", lambda logits, iou: marked.append(logits.shape[1]) or (logits, iou))
    for mode in (False, True):
        method.train(mode).answers(drawn(1).image, mask, torch.tensor([True]))  # type: ignore[operator]
    assert marked == [4]
