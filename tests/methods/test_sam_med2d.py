"""SAM-Med2D's encoder is the public code's; its weights are loaded strictly and asked without training."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.errors import DataError
from dgbench.method import Batch, resolve_hparams
from dgbench.methods.sam_med2d import Adapter, SAMMed2D, SAMMed2DHparams
from dgbench.networks import sam, weights
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.methods.test_sam_encoders import value
from tests.released_sam import NAME, info, release

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sam_med2d.npz")
SMALL = sam.Backbone(3, 32, 2, (1, 2), embedding=32, window=4, weights="sam_med2d_b")
SIDE = 64


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The release in miniature: 256 px, with the adapters' keys, wrapped as "model" beside its whole optimizer."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts = {
            "image_encoder": sam.image_encoder(SMALL, 256),
            "prompt_encoder": sam.prompt_encoder(SMALL, 256),
            "mask_decoder": sam.mask_decoder(SMALL, sam.RELEASE_MASKS),
        }
        for block in parts["image_encoder"].blocks:
            block.Adapter = Adapter(32, 0.25)
    state = {f"{name}.{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    path = tmp_path / weights.WEIGHTS["sam_med2d_b"].file
    torch.save({"model": state, "optimizer": optimizer}, path)
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sam.BACKBONES, "sam_med2d_b", SMALL)
    yield path


def build(structures: int = 1, backbone: str = "sam_med2d_b", **settings: str) -> tuple[SAMMed2D, dict[str, str]]:
    hparams = resolve_hparams(SAMMed2D, "drawn", {"backbone": backbone, **settings})
    method, files = train.build(SAMMed2D, info(structures, SIDE), hparams, seed=0)
    assert isinstance(method, SAMMed2D)
    return method, files


def batch(structures: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, structures, SIDE, SIDE)
    mask[0, :, 10:30, 20:50] = 1
    return Batch(torch.rand(2, 3, SIDE, SIDE, generator=generator), mask)


def golden() -> tuple[SAMMed2D, Tensor]:
    config = json.loads(str(GOLDEN["config"]))
    size, shape = config["image_size"], (config[part] for part in ("depth", "width", "heads"))
    small = sam.Backbone(*shape, global_blocks=tuple(config["global_blocks"]), window=config["window"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam.BACKBONES, "small", small)
        method = SAMMed2D(TaskInfo("drawn", ("disc",), size, steps=1), SAMMed2DHparams(backbone="small"))
    encoder = method.image_encoder
    encoder.load_state_dict({k: value(k, tuple(v.shape)) for k, v in encoder.state_dict().items()})
    image = np.random.default_rng(2026).standard_normal((2, 3, size, size)).astype(np.float32)
    return method.eval(), torch.from_numpy(image)


def test_the_encoder_has_the_public_codes_names_and_shapes():
    shapes = {n: json.loads(s) for n, s in zip(GOLDEN["state_names"].tolist(), GOLDEN["state_shapes"], strict=True)}
    assert {n: list(v.shape) for n, v in golden()[0].image_encoder.state_dict().items()} == shapes


def test_the_encoder_computes_what_the_public_code_computes():
    method, image = golden()
    embedding = method.encode(image)
    expected = torch.from_numpy(GOLDEN["embedding_slice"])
    torch.testing.assert_close(embedding.detach()[:, ::32], expected, atol=1e-5, rtol=0)
    weight = np.random.default_rng(7).standard_normal(embedding.shape).astype(np.float32)
    loss = (embedding * torch.from_numpy(weight)).mean()
    assert loss.item() == pytest.approx(float(GOLDEN["loss"]), abs=1e-7)
    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in method.image_encoder.named_parameters() if p.grad is not None}
    theirs = zip(GOLDEN["grad_names"].tolist(), GOLDEN["grad_norms"].tolist(), strict=True)
    assert norms == {n: pytest.approx(norm, rel=1e-3, abs=1e-8) for n, norm in theirs}


def test_at_vit_b_the_adapters_have_as_many_parameters_as_the_public_codes():
    with torch.device("meta"):
        method = SAMMed2D(TaskInfo("x", ("disc",), 256, 1), SAMMed2DHparams(backbone="sam_med2d_b", image_size=256))
    assert sum(p.numel() for n, p in method.named_parameters() if ".Adapter." in n) == 180_504_576


def test_a_closed_bottleneck_adds_the_norm_of_its_input_also_on_a_grid_of_odd_sides():
    adapter, h = Adapter(8, 0.25), torch.randn(2, 5, 7, 8)
    torch.nn.init.zeros_(adapter.spatial[2].weight)
    torch.testing.assert_close(adapter(h), adapter.norm(h))


@pytest.mark.parametrize("prompt", ["image", "box", "point"])
def test_as_released_nothing_is_trained_and_the_record_names_the_file(prompt, released):
    method, files = build(prompt=prompt)
    assert files == {"sam-med2d_b.pth": weights.checksum(released)}
    assert method.steps == 1 and not any(p.requires_grad for p in method.parameters())
    assert method.cache is not None and method.uses_target_masks == (prompt != "image")
    before = {n: p.clone() for n, p in method.state_dict().items()}
    train.configure(method)
    train.step(method.train(), batch(), seed=0, t=0)
    assert all(torch.equal(p, before[n]) for n, p in method.state_dict().items())


@pytest.mark.parametrize("backbone", ["sam_med2d_b", NAME])
def test_without_prompts_adapters_and_decoder_are_trained_on_its_own_weights_and_on_sams(
    backbone, released, tmp_path, monkeypatch
):
    if backbone == NAME:
        release(tmp_path, monkeypatch)
    method, _ = build(backbone=backbone)
    free = {n for n, p in method.named_parameters() if p.requires_grad}
    assert free == {n for n, _ in method.named_parameters() if ".Adapter." in n or n.startswith("mask_decoder.")}
    assert not method.uses_target_masks and method.cache is None


def test_the_adapters_come_from_the_release_and_none_may_be_missing(released):
    state = torch.load(released, weights_only=False)["model"]
    method, _ = build(prompt="box")
    assert all(torch.equal(v, state[n]) for n, v in method.state_dict().items() if ".Adapter." in n)
    del state["image_encoder.blocks.1.Adapter.norm.weight"]
    torch.save({"model": state}, released)
    with pytest.raises(DataError, match=r"1 missing \(image_encoder.blocks.1.Adapter.norm.weight\)"):
        build()


def test_its_weights_do_not_pass_for_another_ways_sam(released):
    cls = get_method("sam_lora")
    with pytest.raises(DataError, match=r"unexpected.*Adapter"):
        train.build(cls, info(), resolve_hparams(cls, "drawn", {"backbone": "sam_med2d_b"}), seed=0)


def answers(best: int) -> tuple[Tensor, Tensor]:
    """Token t answers t everywhere; the one of that number is rated best, and token 0 better still."""
    logits = torch.arange(4.0)[None, :, None, None].expand(1, -1, 16, 16)
    iou = torch.zeros(1, 4)
    iou[0, 0], iou[0, best] = 1.0, 0.5
    return logits, iou


@pytest.mark.parametrize("best", [1, 2, 3])
@pytest.mark.parametrize("prompt", ["image", "box", "point"])
def test_the_best_rated_of_three_answers_is_taken_and_never_token_0(prompt, best, released):
    method, _ = build(structures=2, prompt=prompt)
    given = batch(2)
    rated = answers(best)
    method.decode = lambda e, *_: tuple(x.expand(len(e), *x.shape[1:]) for x in rated)  # type: ignore[method-assign]
    method.eval()
    p = method.predict_prompted(*given) if method.uses_target_masks else method.predict(given.image)
    expected = torch.full((2,), float(best)).sigmoid()
    assert torch.equal(p[0, :, 0, 0], expected)
    assert torch.equal(p[1, :, 0, 0], expected if prompt == "image" else torch.zeros(2)), "an empty mask has no prompt"


def test_a_box_or_point_tells_where_and_the_whole_image_does_not(released):
    given, moved = batch(), batch()
    moved.mask[0] = moved.mask[0].roll((20, -10), (1, 2))
    for prompt in ("box", "point"):
        method, _ = build(prompt=prompt)
        one, two = (method.eval().predict_prompted(given.image, b.mask)[0] for b in (given, moved))
        assert not torch.allclose(one, two)
    method, plain = build(prompt="image")[0].eval(), build(prompt="none")[0].eval()
    assert not torch.allclose(method.predict(given.image), plain.predict(given.image)), "a box is a prompt"


def test_prompts_are_the_box_or_the_central_pixel_moved_by_their_draw_and_the_whole_image(released):
    """The mask's columns are 30 to 50, its rows 10 to 20; a 16th of 64 pixels is 4."""
    mask, draw = torch.zeros(1, SIDE, SIDE), torch.tensor([[0.0, 1.0, 0.25, 0.75]])
    mask[0, 10:21, 30:51] = 1
    method, _ = build(prompt="box", jitter="0.0625")
    ask = method.prompt_encoder
    box = ask(points=None, boxes=torch.tensor([[30.0, 10 - 4, 50 + 1, 20 + 3]]), masks=None)[0]
    torch.testing.assert_close(method.prompt(mask, draw), box)
    method, _ = build(prompt="point", jitter="0.0625")
    inside = torch.tensor([[[40.0 - 4, 15 + 4]]]), torch.ones(1, 1, dtype=torch.int)
    torch.testing.assert_close(method.prompt(mask, draw), ask(points=inside, boxes=None, masks=None)[0])
    method, asked = build(prompt="image")[0], []
    decode = method.decode
    method.decode = lambda e, dense, sparse: (asked.append(sparse), decode(e, dense, sparse))[1]  # type: ignore
    method.predict(batch().image)
    whole = ask(points=None, boxes=torch.tensor([[0.0, 0, SIDE - 1, SIDE - 1]] * 2), masks=None)[0]
    torch.testing.assert_close(asked[0], whole)


def test_the_gate_is_as_wide_as_it_is_told(tmp_path, monkeypatch):
    release(tmp_path, monkeypatch)
    gate = build(backbone=NAME, gate="0.5")[0].image_encoder.blocks[0].Adapter.channel
    assert gate[0].out_features == 16, "half of 32"


def test_a_trained_one_learns_to_answer_boxes_of_the_source(released, tmp_path, monkeypatch):
    release(tmp_path, monkeypatch)
    method, _ = build(backbone=NAME, prompt="box", augmentation="none", learning_rate="3e-3")
    train.configure(method)
    losses = [float(train.step(method.train(), batch(), seed=0, t=t)["loss"]) for t in range(8)]
    assert losses[-1] < losses[0] and method.steps == 10
