"""CoSAM: what is called an error, what a correction is prompted with, and when the loop ends."""

import pytest
import torch
from torch import Tensor

from dgbench.method import Batch, resolve_hparams
from dgbench.methods._regions import box_of_largest_region
from dgbench.methods.cosam import CoSAM
from dgbench.running import train
from tests.released_sam import NAME, info, release


def cosam(structures: int = 1, image_size: int = 64, **settings: str) -> CoSAM:
    task = info(structures, image_size)
    torch.manual_seed(0)
    return CoSAM(task, resolve_hparams(CoSAM, task.name, settings)).eval()  # type: ignore[arg-type, return-value]


def batch(slices: int = 2, structures: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(slices, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1)
    mask = torch.zeros(slices, structures, 64, 64)
    mask[:, :, 20:44, 12:36] = 1
    return Batch(image, mask)


def coarse(method: CoSAM, image: Tensor) -> Tensor:
    return method.decode(method.embed(image), method.no_prompt())[0][:, : len(method.task.structures)]


@pytest.fixture
def sees(monkeypatch):
    """Makes a method see an error where its masks (N K, H, W) differ from the given one."""

    def install(method: CoSAM, truth: Tensor) -> None:
        monkeypatch.setattr(method, "error", lambda _, mask: 6 * (mask - truth).abs() - 3)

    return install


def test_without_rounds_the_prediction_is_the_coarse_mask():
    method, image = cosam(2, rounds="0"), batch(structures=2).image
    assert torch.equal(method.low_res_logits(image), coarse(method, image))


def test_a_mask_without_an_error_is_left_as_it_is(sees):
    method, image = cosam(rounds="4"), batch().image
    given = coarse(method, image)
    sees(method, (given > 0).float().flatten(0, 1))
    assert torch.equal(method.low_res_logits(image), given)


def test_a_round_that_does_not_see_fewer_errors_is_undone(sees, monkeypatch):
    method, image = cosam(rounds="4"), batch().image
    given = coarse(method, image)
    truth = (given > 0).float().flatten(0, 1)
    truth[0, :4, :4] = 1 - truth[0, :4, :4]  # 16 errors in the first image, none in the second
    sees(method, truth)
    shapes = {"worse": 3 - 6 * truth, "perfect": 6 * truth - 3}
    for name, answer in shapes.items():
        monkeypatch.setattr(method, "corrected", lambda *_, answer=answer: answer)
        out = method.low_res_logits(image).flatten(0, 1)
        assert torch.equal(out[0], answer[0] if name == "perfect" else given[0, 0])
        assert torch.equal(out[1], given[1, 0])


def test_every_round_corrects_what_the_one_before_has_left(sees, monkeypatch):
    method, image = cosam(rounds="3"), batch(1).image
    given = coarse(method, image)
    truth = (given > 0).float().flatten(0, 1)
    truth[0, 0, :9] = 1 - truth[0, 0, :9]
    sees(method, truth)

    def one_pixel(embedding: Tensor, logits: Tensor, error: Tensor) -> Tensor:
        first = int((error[0, 0] > 0).nonzero()[0])
        logits = logits.clone()
        logits[0, 0, first] *= -1
        return logits

    monkeypatch.setattr(method, "corrected", one_pixel)
    changed = (method.low_res_logits(image) > 0) != (given > 0)
    assert changed.nonzero()[:, 3].tolist() == [0, 1, 2]


def test_a_correction_is_prompted_with_the_mask_whose_errors_are_flipped(monkeypatch):
    """Points of largest error, labelled as corrected; a box around the largest region; in pixels of the image."""
    method = cosam(points="2")
    side = 32  # of the logits; the image's is 64
    logits = torch.full((1, side, side), -4.0)
    logits[0, 8:12, 10:20] = 4
    logits[0, 30, 30] = 4
    error = torch.full_like(logits, -5)
    error[0, 8, 9], error[0, 9, 10], error[0, 2, 2] = 3.0, 2.0, -1.0
    prompts: dict = {}
    plain = method.prompt_encoder.forward
    monkeypatch.setattr(method.prompt_encoder, "forward", lambda **given: prompts.update(given) or plain(**given))
    embedding = method.embed(batch(1).image)
    assert method.corrected(embedding, logits, error).shape == logits.shape
    expected = logits.clone()
    expected[0, 8, 9], expected[0, 9, 10] = 4, -4
    assert torch.equal(prompts["masks"], expected[:, None])
    xy, labels = prompts["points"]
    assert xy.tolist() == [[[18.5, 16.5], [20.5, 18.5]]] and labels.tolist() == [[1, 0]]
    assert prompts["boxes"].tolist() == [[18.5, 16.5, 38.5, 22.5]]


def test_the_box_of_an_empty_mask_is_the_whole_image():
    assert box_of_largest_region(torch.zeros(5, 7, dtype=torch.bool)).tolist() == [0, 0, 6, 4]


def test_the_error_decoder_learns_where_the_coarse_mask_and_the_reference_differ():
    """Its target is the XOR of both at the size of the logits, errors weighed by the log of how rare they are."""
    method, data = cosam(2, alpha="0"), batch(2, structures=2)
    given = coarse(method, data.image).flatten(0, 1)
    reference = data.mask[:, :, ::2, ::2].flatten(0, 1)  # its edges lie on even pixels
    wrong = (given > 0) != (reference > 0)
    embedding = method.embed(data.image).repeat_interleave(2, 0)
    error = method.error(embedding, (given > 0).float())
    weight = (wrong.numel() / wrong.sum()).log()
    p = error.sigmoid()
    by_hand = -(weight * wrong * p.log() + ~wrong * (1 - p).log()).mean()
    torch.testing.assert_close(method.losses(data)["error"], by_hand, atol=1e-5, rtol=1e-5)


def test_in_training_the_error_decoder_is_shown_flipped_pixels_and_in_testing_none(monkeypatch):
    method, data = cosam(alpha="0.2"), batch()
    given = (coarse(method, data.image).flatten(0, 1) > 0).float()
    shown: list[Tensor] = []
    plain = method.error
    monkeypatch.setattr(method, "error", lambda embedding, mask: shown.append(mask) or plain(embedding, mask))
    method.losses(data)
    method.low_res_logits(data.image)
    assert (shown[0] != given).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(shown[1], given)


def test_the_guided_mask_is_prompted_with_the_reference(monkeypatch):
    method, data = cosam(points="5"), batch()
    reference = data.mask[:, 0, ::2, ::2] > 0
    asked: list[tuple[Tensor, Tensor]] = []
    plain = method.prompted
    monkeypatch.setattr(
        method, "prompted", lambda e, logits, place: asked.append((logits, place)) or plain(e, logits, place)
    )
    method.losses(data)
    logits, place = asked[1]
    assert torch.equal(logits > 0, reference)
    assert reference.flatten(1).gather(1, place).tolist() == [[True] * 5 + [False] * 5] * 2
    assert len(set(place[0].tolist())) == 10


def test_the_loss_weighs_its_parts():
    method, data = cosam(refined_weight="2", guided_weight="3", error_weight="5"), batch()
    torch.manual_seed(1)
    parts = method.losses(data)
    torch.manual_seed(1)
    expected = parts["coarse"] + 2 * parts["refined"] + 3 * parts["guided"] + 5 * parts["error"]
    torch.testing.assert_close(method.loss(data), expected)


def test_no_gradient_flows_back_through_a_prompt():
    """What M is taught by the refined mask does not reach the coarse one; nor the error decoder."""
    method, data = cosam(), batch()
    method.losses(data)["refined"].backward()
    assert all(p.grad is None for p in method.error_decoder.parameters())
    assert method.mask_decoder.mask_tokens.weight.grad[0].any()


def test_a_structure_has_its_own_mask_token_and_error_map():
    method = cosam(3)
    maps = torch.arange(6 * 4.0).view(6, 4, 1, 1)
    assert method.own(maps).flatten().tolist() == [0, 5, 10, 12, 17, 22]  # tokens 0, 1, 2 of rows 0-2, and of rows 3-5


def test_a_prediction_does_not_depend_on_its_batch():
    method, image = cosam(2), batch(3, structures=2).image
    with torch.no_grad():
        together = method.predict(image)
        assert together.shape == (3, 2, 64, 64)
        torch.testing.assert_close(method.predict(image[1:2]), together[1:2], atol=1e-5, rtol=0)


def test_the_release_is_frozen_but_the_decoders_and_the_encoder_sees_each_image_once(tmp_path, monkeypatch):
    release(tmp_path, monkeypatch)
    hparams = resolve_hparams(CoSAM, "drawn", {"backbone": NAME, "batch_size": "2"})
    method = train.build(CoSAM, info(), hparams, seed=0)[0]
    train.configure(method)
    method.train()
    seen: list[int] = []
    plain = method.encode  # type: ignore[operator]
    monkeypatch.setattr(method, "encode", lambda x: seen.append(len(x)) or plain(x))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    for t in range(3):
        train.step(method, batch(), seed=0, t=t)
    changed = {n.partition(".")[0] for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"mask_decoder", "error_decoder"}
    assert {n.partition(".")[0] for n, p in method.named_parameters() if p.requires_grad} == changed
    method.eval().predict(batch().image)
    assert seen == [1, 1]


@pytest.mark.parametrize("backbone, image_size", [("mobile_sam", 64), ("lite_medsam", 64), ("vit_tiny", 40)])
def test_every_backbone_serves(backbone: str, image_size: int):
    method = cosam(image_size=image_size, backbone=backbone, rounds="1", points="3")
    image = torch.rand(1, 3, image_size, image_size)
    assert method.predict(image).shape == (1, 1, image_size, image_size)


class Worse(CoSAM):
    """One whose every correction is noise: the loop must not let it through when the errors grow."""

    def corrected(self, embedding: Tensor, logits: Tensor, error: Tensor) -> Tensor:
        return torch.randn_like(logits)


def test_the_errors_seen_never_grow_with_the_rounds():
    image = batch(4).image
    counts = []
    for rounds in (0, 1, 5):
        method = Worse(info(), resolve_hparams(CoSAM, "drawn", {"rounds": str(rounds)})).eval()  # type: ignore[arg-type]
        method.load_state_dict(cosam().state_dict())
        torch.manual_seed(0)
        mask = (method.low_res_logits(image).flatten(0, 1) > 0).float()
        counts.append((method.error(method.embed(image), mask) > 0).sum((1, 2)))
    assert (counts[1] <= counts[0]).all() and (counts[2] <= counts[1]).all()
