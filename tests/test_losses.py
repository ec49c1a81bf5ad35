"""The losses have the values their equations give by hand, and stay finite where logits do not."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from dgbench.losses import dice_bce, dice_loss, in_float32

SURE = 100.0  # a logit whose sigmoid is 1 in float32


def drawn(*rows: str) -> Tensor:
    """(1, 1, H, W): 1 where a row has a #."""
    return torch.tensor([[[[float(c == "#") for c in row] for row in rows]]])


def sure(mask: Tensor) -> Tensor:
    return (2 * mask - 1) * SURE


MASK = drawn("##..", "##..")
RIGHT_HALF_OF_IT = drawn(".#..", ".#..")
NOTHING = drawn("....", "....")


def test_a_perfect_prediction_costs_nothing():
    assert dice_loss(sure(MASK), MASK).item() == 0
    assert dice_bce(sure(MASK), MASK).item() < 1e-40


def test_dice_loss_of_half_the_mask_by_hand():
    # overlap 2, areas 2 and 4: 1 - (2 * 2 + 1) / (2 + 4 + 1)
    assert dice_loss(sure(RIGHT_HALF_OF_IT), MASK).item() == pytest.approx(2 / 7)
    assert dice_loss(sure(RIGHT_HALF_OF_IT), MASK, smooth=0).item() == pytest.approx(1 / 3)


def test_an_undecided_prediction_by_hand():
    # p = 1/2 at 8 pixels: overlap 2, areas 4 and 4
    logits = torch.zeros_like(MASK)
    assert dice_loss(logits, MASK).item() == pytest.approx(1 - 5 / 9)
    assert dice_bce(logits, MASK, dice_weight=0).item() == pytest.approx(math.log(2))
    assert dice_bce(logits, MASK, dice_weight=0.25).item() == pytest.approx(0.75 * math.log(2) + 0.25 * 4 / 9)


def test_an_image_without_the_structure_costs_what_is_predicted_there():
    assert dice_loss(sure(NOTHING), NOTHING).item() == 0
    assert dice_loss(sure(MASK), NOTHING).item() == pytest.approx(1 - 1 / 5)


def test_images_weigh_the_same_or_by_their_area():
    logits = torch.cat([sure(RIGHT_HALF_OF_IT), sure(NOTHING)])
    mask = torch.cat([MASK, drawn("#...", "....")])
    # by image: 2/7 and 1 - 1 / (0 + 1 + 1); at once: overlap 2, areas 2 and 5
    assert dice_loss(logits, mask, reduction="image").item() == pytest.approx((2 / 7 + 1 / 2) / 2)
    assert dice_loss(logits, mask, reduction="batch").item() == pytest.approx(1 - 5 / 8)


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_structures_weigh_the_same(reduction):
    a, b = (sure(RIGHT_HALF_OF_IT), MASK), (sure(MASK), drawn("#...", "...."))
    both = dice_bce(torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1), 0.8, reduction=reduction)
    each = [dice_bce(*pair, 0.8, reduction=reduction).item() for pair in (a, b)]
    assert both.item() == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("task", ["prostate", "fundus"])
def test_it_is_the_loss_of_the_dapsam_authors_code(task):
    golden = np.load(Path(__file__).parent / "golden" / f"dapsam_{task}.npz")
    size = json.loads(str(golden["config"]))["image_size"]
    logits = torch.from_numpy(golden["low_res_logits"])
    logits = interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    y, x = np.mgrid[:size, :size] / size
    masks = np.stack([(y - 0.5) ** 2 + (x - 0.45) ** 2 < r for r in (0.05, 0.015)][: logits.shape[1]])
    mask = torch.from_numpy(masks).float().expand_as(logits)
    theirs = float(golden["loss"]) / logits.shape[1]  # they sum over structures
    assert dice_bce(logits, mask, dice_weight=0.8, reduction="batch").item() == pytest.approx(theirs, abs=1e-6)


def test_no_logit_is_too_large():
    logits = torch.tensor([[[[1e4, -1e4, 1e4, -1e4]]]], requires_grad=True)
    loss = dice_bce(logits, torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 5e3 + 0.5 * (1 - 3 / 5))
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_float32():
    logits, mask = torch.full((1, 1, 400, 400), 9.0), torch.ones(1, 1, 400, 400)  # the area overflows float16
    assert dice_loss(logits.half(), mask).item() == pytest.approx(dice_loss(logits, mask).item(), abs=1e-6)


def test_what_needs_float32_has_it_under_autocast_whatever_its_arguments_are():
    """A bfloat16 has 8 bits: 1 + 1/256 becomes 1, and so does its square; what is no tensor stays what it is."""
    fine = torch.tensor([[1 + 1 / 256]])
    product = in_float32(lambda a, b, scale: a @ b * scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (fine @ fine).item() == 1
        assert product(fine, b=fine, scale=2).item() == 2 * (1 + 1 / 256) ** 2
        coarse = product(torch.tensor([[3.0]]).bfloat16(), b=fine, scale=1)
    assert coarse.dtype == torch.float32 and coarse.item() == 3 * (1 + 1 / 256)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["image", "batch"]))
def test_the_order_of_images_does_not_matter_and_dice_loss_stays_in_its_range(seed, reduction):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 5, (3, 2, 6, 5)).astype(np.float32))
    mask = torch.from_numpy((rng.random((3, 2, 6, 5)) < rng.random()).astype(np.float32))
    loss = dice_loss(logits, mask, reduction=reduction)
    assert 0 <= loss < 1
    torch.testing.assert_close(dice_loss(logits.flip(0), mask.flip(0), reduction=reduction), loss)
