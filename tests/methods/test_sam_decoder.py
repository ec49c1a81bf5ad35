"""SAM trained without prompts: what is frozen, what is cached, what checkpointing spares."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.networks import sam
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.released_sam import NAME, info, release, trained


def build(name: str, structures: int = 1, **settings: str) -> Method:
    cls = get_method(name)
    hparams = resolve_hparams(cls, "drawn", {"batch_size": "2", **settings})
    return train.build(cls, info(structures), hparams, seed=0)[0]


def drawn(structures: int = 1, slices: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(slices, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1)
    return Batch(image, (torch.rand(slices, structures, 64, 64, generator=generator) > 0.5).float())


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    return release(tmp_path, monkeypatch)


@pytest.mark.parametrize("name, count", [("sam_decoder", 4_058_340), ("sam_full", 93_735_472)])
def test_at_vit_b_it_trains_as_many_parameters_as_sam_has(name: str, count: int):
    cls = get_method(name)
    task = TaskInfo("prostate", ("prostate",), 384, steps=1)
    with torch.device("meta"):
        method = cls(task, resolve_hparams(cls, "prostate"))
    assert isinstance(method.backbone, sam.Backbone) and method.backbone is sam.BACKBONES["vit_b"]
    method.freeze()  # type: ignore[operator]
    # Positions are as many as patches: 24 x 24 of them and of their offsets here, 64 x 64 in the release.
    fewer = 768 * (64**2 - 24**2) + 4 * 2 * 64 * (127 - 47) if name == "sam_full" else 0
    assert trained(method) == count - fewer


def test_only_the_decoder_changes_and_the_encoder_sees_each_image_once(released, monkeypatch):
    method = build("sam_decoder", backbone=NAME)
    train.configure(method)
    method.train()
    seen: list[int] = []
    plain = method.encode
    monkeypatch.setattr(method, "encode", lambda x: seen.append(len(x)) or plain(x))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(3):
        train.step(method, drawn(), seed=0, t=t)
    changed = {n.partition(".")[0] for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"mask_decoder"}
    assert seen == [1, 1]  # two images, one by one, in the first of three steps
    build("sam_decoder", backbone=NAME).eval().predict(drawn().image)
    assert len(list(Path(os.environ["DGBENCH_CACHE"], "embeddings").glob("*/*.npz"))) == 2


def test_a_kept_embedding_is_the_computed_one_to_the_bit_and_a_damaged_file_is_computed_again(released):
    image = drawn().image
    method = build("sam_decoder", backbone=NAME).eval()
    fresh = method.predict(image)
    assert torch.equal(method.predict(image), fresh)
    files = sorted(Path(os.environ["DGBENCH_CACHE"], "embeddings").glob("*/*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])  # as a lost page
    assert torch.equal(method.predict(image), fresh)
    assert np.load(files[0])["embedding"].shape == (32, 4, 4)
    assert np.array_equal(np.load(files[1])["embedding"], np.load(io.BytesIO(whole))["embedding"])


def test_rounding_to_sixteen_bits_moves_a_probability_by_less_than_a_thousandth(released):
    method = build("sam_decoder", backbone=NAME).eval()
    rounded = method.predict(drawn().image)
    method.cache = None
    assert 0 < (method.predict(drawn().image) - rounded).abs().max() < 1e-3


def test_what_the_encoder_was_is_part_of_the_caches_name(released):
    names = {build("sam_decoder", backbone=NAME, image_size=size).cache.folder for size in ("64", "128")}  # type: ignore
    assert len(names) == 2


def test_augmented_images_are_not_kept(released):
    method = build("sam_decoder", backbone=NAME, augmentation="base")
    train.configure(method)
    method.train()
    train.step(method, drawn(), seed=0, t=0)
    assert not list(Path(os.environ["DGBENCH_CACHE"]).glob("embeddings/*/*.npz"))


def test_tested_images_are_embedded_once_for_all_runs_whether_training_augments_or_not(released, monkeypatch):
    image = drawn().image
    first = build("sam_decoder", backbone=NAME, augmentation="base").eval()
    kept = first.embed(image)  # type: ignore[operator]
    other = build("sam_decoder", structures=2, backbone=NAME).eval()
    monkeypatch.setattr(other, "encode", None)  # not called
    assert torch.equal(other.embed(image), kept)  # type: ignore[operator]


def test_two_processes_may_fill_one_cache(tmp_path, monkeypatch, root):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path))
    code = (
        "import torch; from dgbench.networks.embeddings import EmbeddingCache\n"
        "images = torch.arange(40.).view(40, 1, 1, 1)\n"
        "print(EmbeddingCache('one')(images, lambda x: x * 2).sum().item())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    assert [p.communicate()[0].strip() for p in both] == ["1560.0"] * 2
    assert len(list((tmp_path / "embeddings" / "one").iterdir())) == 40
    kept = EmbeddingCache("one")(torch.arange(40.0).view(40, 1, 1, 1), lambda x: x * 0)
    assert kept.sum() == 1560


def test_from_scratch_nothing_is_frozen_and_nothing_kept():
    for name in ("sam_decoder", "sam_full"):
        method = build(name)
        assert all(p.requires_grad for p in method.parameters()) and method.cache is None  # type: ignore[attr-defined]


def test_structure_k_is_read_from_mask_token_k_where_sam_left_it(released):
    method = build("sam_decoder", structures=2, backbone=NAME)
    tokens = released["mask_decoder.mask_tokens.weight"]
    assert torch.equal(method.mask_decoder.mask_tokens.weight, tokens)  # type: ignore
    more = build("sam_decoder", structures=6, backbone=NAME)
    assert torch.equal(more.mask_decoder.mask_tokens.weight, tokens[torch.arange(6) % 4])  # type: ignore
    assert more.eval().predict(drawn(6).image).shape == (2, 6, 64, 64)


def test_checkpointing_changes_no_gradient(released):
    gradients = []
    for on in ("false", "true"):
        method = build("sam_full", backbone=NAME, checkpointing=on).train()
        method.loss(drawn()).backward()
        gradients.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("image_encoder.blocks.0" in n for n in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_checkpointing_forgets_what_happens_inside_the_blocks(released):
    """Counted in bytes that autograd keeps for the backward pass."""
    kept = []
    for on in ("false", "true"):
        method = build("sam_full", backbone=NAME, checkpointing=on).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            method.encode(drawn().image)  # type: ignore[operator]
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2  # what is left: parameters, the ends of the blocks, the neck


@pytest.mark.parametrize("name", ["mobile_sam", "lite_medsam"])
def test_a_tiny_vit_is_not_checkpointed_and_says_so(name: str):
    with pytest.raises(UsageError, match="is not checkpointed"):
        build("sam_full", backbone=name, checkpointing="true")


@pytest.mark.parametrize(
    "colours, low, high", [("sam", -0.485 / 0.229, 0.515 / 0.229), ("unit", 0, 1), ("zscore", -1, 1)]
)
def test_a_backbone_gets_its_own_colours(colours: sam.Colours, low: float, high: float):
    """Half of the pixels black, half white; for "unit" at a quarter of the range."""
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 1
    given = 0.25 + image / 4 if colours == "unit" else image
    out = sam.normalise_for(sam.Backbone(1, colours=colours), given)
    torch.testing.assert_close(
        out[0, 0, 0, [0, 3]], torch.tensor([low, high], dtype=torch.float32), atol=1e-4, rtol=1e-4
    )
    even = sam.normalise_for(sam.Backbone(1, colours=colours), torch.full((1, 3, 4, 4), 0.5))
    assert even.isfinite().all()
