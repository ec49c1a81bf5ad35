"""SAM encoders with low-rank factors or adapters compute what public code computes and train what is put in."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.images.preparation import with_neighbours
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods.ma_sam import MASAM, MASAMHparams
from dgbench.methods.sam_adapter import SAMAdapter, SAMAdapterHparams
from dgbench.methods.sam_lora import SAMLoRA, SAMLoRAHparams
from dgbench.networks import sam
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.released_sam import NAME, info, release, trained

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = ("sam_lora", "sam_adapter", "ma_sam")


def build(name: str, structures: int = 1, **settings: str) -> Method:
    cls = get_method(name)
    return train.build(cls, info(structures), resolve_hparams(cls, "drawn", settings), seed=0)[0]


def drawn(method: Method, slices: int = 2, structures: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(slices, 2 * method.neighbours + 1, 64, 64, generator=generator).repeat_interleave(3, 1)
    return Batch(image, (torch.rand(slices, structures, 64, 64, generator=generator) > 0.5).float())


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    return release(tmp_path, monkeypatch)


@pytest.fixture
def plain(released: dict[str, Tensor]) -> torch.nn.Module:
    """SAM's own image encoder, at 64 px."""
    backbone = sam.BACKBONES[NAME]
    encoder, prefix = sam.image_encoder(backbone, 64), "image_encoder."
    state = sam.fit_release(released, backbone, 64, masks=1, mask_head=False)
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return encoder


# --- what the public code computes ----------------------------------------------------------------------------------

# From our names to the public code's: patterns and their replacements, one after the other.
THEIRS = {
    "sam_lora": ((r"qkv\.(weight|bias)", r"qkv.qkv.\1"), (r"lora_", "linear_"), (r"^", "sam.")),
    "sam_adapter": ((r"^image_encoder\.", ""), (r"rel_pos_", "rel_"), (r"space_", "Space_"), (r"mlp_ad", "MLP_Ad"),
                    (r"_adapter", "_Adapter")),
    "ma_sam": ((r"^image_encoder\.", "image_encoder.ImageEncoderViT."), (r"^", "sam."), (r"^.*\.shared_(.)", r"FacT\1"),
               (r"(blocks\.\d+)\.", r"\1.Block."), (r"\.attn\.", ".attn.Attention."),
               (r"qkv\.(weight|bias)", r"qkv.qkv.\1"), (r"qkv\.fact_(.)", r"qkv.\1_FacTs"),
               (r"_adapter\.(down|up)", r"_adapter.linear_\1"), (r"first_adapter\.(\w+)", r"adapter_\1"),
               (r"second_adapter\.(\w+)", r"adapter_\1_2")),
}  # fmt: skip


def their_name(name: str, key: str) -> str:
    for pattern, replacement in THEIRS[name]:
        key = re.sub(pattern, replacement, key)
    return key


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter of the golden files follows."""
    number = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy((number + 1 if key.endswith(".weight") and len(shape) == 1 else number).astype(np.float32))


class Golden:
    def __init__(self, name: str):
        self.name, self.file = name, np.load(GOLDEN / f"{name}.npz")
        config = json.loads(str(self.file["config"]))
        size, slices = config["image_size"], config.get("slices", 1)
        sizes = (config[part] for part in ("depth", "width", "heads"))
        backbone = sam.Backbone(*sizes, global_blocks=tuple(config["global_blocks"]), window=config["window"])
        task = TaskInfo("drawn", ("disc", "cup"), size, steps=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sam.BACKBONES, "small", backbone)
            if name == "sam_lora":
                self.method: Method = SAMLoRA(task, SAMLoRAHparams(backbone="small", rank=config["rank"]))
            elif name == "ma_sam":
                widths = {"rank": config["rank"], "adapter_width": config["adapter_width"]}
                self.method = MASAM(task, MASAMHparams(backbone="small", neighbours=slices // 2, **widths))
            else:
                self.method = SAMAdapter(task, SAMAdapterHparams(backbone="small"))
        drawn = np.random.default_rng(2026).standard_normal((2, 3 * slices, size, size)).astype(np.float32)
        self.image = torch.from_numpy(drawn)
        keys = [k for k in self.method.state_dict() if name != "sam_adapter" or k.startswith("image_encoder.")]
        self.theirs = {k: their_name(name, k) for k in keys}
        state = self.method.state_dict()
        self.method.load_state_dict({k: value(self.theirs[k], tuple(state[k].shape)) for k in keys}, strict=False)
        self.method.eval()

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.file[name])


@pytest.fixture(scope="module", params=ALL)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_the_network_has_the_public_codes_parameters(golden: Golden):
    shapes = {
        n: tuple(json.loads(s)) for n, s in zip(golden.file["state_names"], golden.file["state_shapes"], strict=True)
    }
    state = golden.method.state_dict()
    assert {theirs: tuple(state[ours].shape) for ours, theirs in golden.theirs.items()} == shapes


def test_it_computes_what_the_public_code_computes(golden: Golden, monkeypatch):
    # The golden input is what the encoder sees: it is not normalised.
    monkeypatch.setattr(sam, "normalise_for", lambda backbone, image: image)
    method = golden.method
    embedding = method.embed(golden.image)
    torch.testing.assert_close(embedding.detach()[:, ::32], golden["embedding_slice"], atol=1e-5, rtol=0)
    out = embedding
    if golden.name != "sam_adapter":
        out = method.low_res_logits(golden.image)
        step = out.shape[-1] // golden["logits"].shape[-1]
        torch.testing.assert_close(out.detach()[..., ::step, ::step], golden["logits"], atol=1e-5, rtol=0)
    weight = np.random.default_rng(7).standard_normal(out.shape).astype(np.float32)
    loss = (out * torch.from_numpy(weight)).mean()
    assert loss.item() == pytest.approx(float(golden["loss"]), abs=1e-7)

    loss.backward()
    norms = {golden.theirs[n]: p.grad.norm().item() for n, p in method.named_parameters() if p.grad is not None}
    expected = dict(zip(golden.file["grad_names"].tolist(), golden.file["grad_norms"].tolist(), strict=True))
    norms = {n: v for n, v in norms.items() if n in expected}  # the public code froze its encoder, nobody did here
    # The gradient of a key projection's bias is zero but for rounding: softmax does not see a shift of all logits.
    assert norms == {n: pytest.approx(norm, rel=1e-3, abs=1e-8) for n, norm in expected.items()}


@pytest.mark.parametrize(
    ("name", "structures", "size", "total", "count"),
    [
        ("sam_lora", 8, 512, 92_192_469, 4_913_621),
        ("sam_lora", 1, 384, 90_857_966, 3_931_374),
        ("ma_sam", 8, 512, 116_884_597, 29_605_749),
        ("ma_sam", 1, 384, 115_593_270, 28_666_678),
    ],
)
def test_at_vit_b_it_has_and_trains_as_many_parameters_as_the_public_code(name, structures, size, total, count):
    method = at_vit_b(name, structures, size)
    assert sum(p.numel() for p in method.parameters()) == total
    assert trained(method) == count


def test_at_vit_b_the_adapters_have_as_many_parameters_as_the_public_codes():
    assert trained(at_vit_b("sam_adapter", 1, 384)) == 7_100_928 + 4_058_340  # and the decoder


def at_vit_b(name: str, structures: int, size: int) -> Method:
    cls, task = get_method(name), TaskInfo("prostate", tuple("abcdefgh"[:structures]), size, steps=1)
    with torch.device("meta"):
        method = cls(task, resolve_hparams(cls, "prostate", {"image_size": str(size)}))
    method.freeze()  # type: ignore[operator]
    return method


# --- where it starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [("sam_lora", {}), ("sam_adapter", {"zero_init": "true"})])
def test_it_starts_from_sams_own_encoder(name, settings, plain):
    method = build(name, backbone=NAME, **settings)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(method.encode(x), plain(x), atol=1e-6, rtol=0)


def test_ma_sams_factors_start_as_the_identity_and_its_adapters_do_not(plain):
    method, x = build("ma_sam", backbone=NAME, neighbours="0"), torch.randn(2, 3, 64, 64)
    assert (method.encode(x) - plain(x)).abs().max() > 1e-3
    for block in method.image_encoder.blocks:
        for adapter in (block.first_adapter, block.second_adapter):
            torch.nn.init.zeros_(adapter.up.weight)
    torch.testing.assert_close(method.encode(x), plain(x), atol=1e-6, rtol=0)


def test_the_adapter_beside_the_mlp_counts_by_its_scale(plain):
    method, x = build("sam_adapter", backbone=NAME, mlp_scale="0"), torch.randn(2, 3, 64, 64)
    for block in method.image_encoder.blocks:
        torch.nn.init.zeros_(block.space_adapter.D_fc2.weight)
        torch.nn.init.zeros_(block.space_adapter.D_fc2.bias)
    torch.testing.assert_close(method.encode(x), plain(x), atol=1e-6, rtol=0)


def test_medical_sam_adapter_disturbs_the_encoder_from_the_first_step_on(plain):
    x = torch.randn(2, 3, 64, 64)
    assert (build("sam_adapter", backbone=NAME).encode(x) - plain(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_on_a_backbone_from_scratch_nothing_is_frozen(name):
    assert all(p.requires_grad for p in build(name).parameters())


# --- what it trains -------------------------------------------------------------------------------------------------


def is_added(name: str) -> bool:
    return any(part in name for part in ("_adapter.", "lora_", "fact_", "shared_"))


def learns(name: str, key: str) -> bool:
    """What is put into a pretrained SAM, "no prompt" where it is trained, and what the decoder needs for a mask."""
    part = key.partition(".")[0]
    if part == "image_encoder":
        return is_added(key)
    if part == "prompt_encoder":
        return name != "sam_adapter" and key == "prompt_encoder.no_mask_embed.weight"
    unused = ("iou_prediction_head", *(f"mlps.{k}." for k in (1, 2, 3) if name == "sam_adapter"))
    return not any(word in key for word in unused)


@pytest.mark.parametrize("name", ALL)
def test_two_steps_change_what_is_put_in_and_the_decoder_and_nothing_else(name, released):
    method = build(name, backbone=NAME, weight_decay="0")
    assert method.cache is None, "an encoder that is trained has no embedding to keep"
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    buffers = {n: b.clone() for n, b in method.named_buffers()}
    train.configure(method)
    for t in range(2):  # the first leaves what stands before a zero as it is
        train.step(method.train(), drawn(method), seed=0, t=t)
    changed = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if learns(name, n)}
    assert all(torch.equal(b, buffers[n]) for n, b in method.named_buffers())
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    encoder = {n for n in before if n.startswith("image_encoder.") and not is_added(n)}
    assert frozen == encoder | {n for n in before if name == "sam_adapter" and n.startswith("prompt_encoder.")}


@pytest.mark.parametrize("name", ALL)
def test_what_sam_has_comes_from_the_release_and_samed_draws_its_mask_head(name, released):
    state = build(name, backbone=NAME).state_dict()
    fitted = sam.fit_release(released, sam.BACKBONES[NAME], 64, sam.RELEASE_MASKS, name == "sam_adapter")
    assert all(torch.equal(state[n], v) for n, v in fitted.items())
    fresh = {n for n in state if n not in fitted and not is_added(n)}
    finer = {n for n in fresh if n.startswith("mask_decoder.output_upscaling.")}
    assert bool(finer) == (name == "ma_sam")
    assert all(n.startswith(sam.MASK_HEAD) for n in fresh - finer)
    assert bool(fresh - finer) == (name != "sam_adapter")


def test_an_input_level_idea_goes_over_it():
    cls = get_method("sam_lora+randconv")
    method, _ = train.build(cls, info(), resolve_hparams(cls, "drawn"), seed=0)
    train.configure(method)
    assert 0 < train.step(method.train(), drawn(method), seed=0, t=0)["loss"] < 100


# --- SAMed's background ---------------------------------------------------------------------------------------------


def test_with_one_structure_its_probability_is_the_softmax_over_background_and_structure():
    method = build("sam_lora").eval()
    image = drawn(method).image
    masks, _ = method.decode(method.embed(image), method.no_prompt())
    assert masks.shape == (2, 2, 32, 32)
    softmax = F.interpolate(masks, (64, 64), mode="bilinear", align_corners=False).softmax(1)[:, 1:]
    torch.testing.assert_close(method.predict(image), softmax, atol=1e-6, rtol=0)


def test_with_one_structure_its_cross_entropy_is_that_of_two_classes():
    method, masks = build("sam_lora", dice_weight="0"), torch.randn(2, 2, 8, 8)
    inside = torch.rand(2, 8, 8) > 0.5
    loss = method.criterion(masks[:, 1:] - masks[:, :1], inside[:, None].float())
    assert loss.item() == pytest.approx(F.cross_entropy(masks, inside.long()).item(), abs=1e-6)


def test_structures_may_lie_inside_one_another():
    """The cup lies in the disc: both may be likelier than the background, which one softmax over all forbids."""
    method = build("sam_lora", structures=2).eval()
    tokens = torch.tensor([[0.0, 3.0, 2.0]])[..., None, None].expand(1, 3, 32, 32)
    method.decode = lambda *embedding: (tokens, torch.zeros(1, 3))
    p = method.predict(torch.rand(1, 3, 64, 64))[0, :, 0, 0]
    assert p.tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))])


def test_the_dice_is_taken_over_the_batch_and_weighs_four_times_the_cross_entropy():
    logits = torch.zeros(2, 1, 4, 4)  # every probability is 1/2
    mask = torch.zeros(2, 1, 4, 4)
    mask[0] = 1
    dice = 1 - (2 * 8 + 1) / (16 + 16 + 1)  # 8 of 16 inside, smoothed by 1
    assert build("sam_lora").criterion(logits, mask).item() == pytest.approx(0.2 * np.log(2) + 0.8 * dice)


@pytest.mark.parametrize(("name", "rate", "end"), [("sam_lora", 5e-3, 0.2**0.9), ("ma_sam", 8e-4, 0.25**7)])
def test_on_the_papers_task_the_rates_are_the_papers(name, rate, end):
    cls, given = get_method(name), {"backbone": "vit_tiny", "image_size": "64", "steps": "100000"}
    hparams = resolve_hparams(cls, "prostate", given)
    assert (hparams.learning_rate, hparams.weight_decay) == (rate, 0.1)
    method = cls(TaskInfo("prostate", ("prostate",), 64, 1), hparams)
    assert [method.schedule(t) for t in (0, 1, 2, 125, 250, 251)] == pytest.approx(
        [1 / 250, 1 / 250, 2 / 250, 0.5, 1, 1]
    )
    assert method.schedule(100_251) == pytest.approx(end)


# --- MA-SAM's slices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [1, 2])
def test_a_prediction_depends_on_every_slice_of_its_stack_and_on_their_order(neighbours):
    method = build("ma_sam", neighbours=str(neighbours)).eval()
    stack = drawn(method, slices=1).image.unflatten(1, (-1, 3))
    with torch.no_grad():
        before = method.logits(stack.flatten(1, 2))
        assert before.shape == (1, 1, 64, 64)
        for i in range(2 * neighbours + 1):
            other = stack.clone()
            other[:, i] = other[:, i].flip(-1)
            assert (method.logits(other.flatten(1, 2)) - before).abs().max() > 1e-4, f"slice {i} is not seen"
        assert (method.logits(stack.flip(1).flatten(1, 2)) - before).abs().max() > 1e-4


def test_a_photograph_is_predicted_as_each_slice_of_a_volume_that_repeats_it():
    method, photograph = build("ma_sam").eval(), torch.rand(1, 3, 64, 64)
    alone = with_neighbours(photograph, method.neighbours)
    volume = with_neighbours(photograph.expand(4, -1, -1, -1), method.neighbours)
    assert alone.shape == (1, 15, 64, 64)
    with torch.no_grad():
        expected = method.predict(alone).expand(4, -1, -1, -1)
        torch.testing.assert_close(method.predict(volume), expected, atol=1e-5, rtol=0)


def test_without_neighbours_it_is_a_2d_method():
    method = build("ma_sam", neighbours="0")
    train.configure(method)
    train.step(method.train(), drawn(method), seed=0, t=0)
    assert method.eval().predict(torch.rand(2, 3, 64, 64)).shape == (2, 1, 64, 64)
    with pytest.raises(UsageError, match="neighbours cannot be '-1'"):
        build("ma_sam", neighbours="-1")


def test_the_factors_are_dropped_at_random_in_training_only():
    method = build("ma_sam", neighbours="0", dropout="0.5", augmentation="none")
    torch.nn.init.normal_(method.image_encoder.shared_v.weight)
    image = drawn(method).image
    with torch.no_grad():
        one, two = (method.train().logits(image) for _ in "ab")
        assert not torch.equal(one, two)
        assert torch.equal(*(method.eval().logits(image) for _ in "ab"))


def test_the_factors_of_all_blocks_are_listed_once(released):
    state = build("ma_sam", backbone=NAME).state_dict()
    assert [n for n in state if "shared" in n] == [f"image_encoder.shared_{factor}.weight" for factor in "uv"]
    assert state["image_encoder.blocks.0.attn.qkv.fact_q.weight"].shape == (32, 32)


@pytest.mark.parametrize(("backbone", "side"), [("vit_tiny", 64), (NAME, 64)])
def test_ma_sams_decoder_answers_at_the_images_resolution(backbone, side, released):
    method = build("ma_sam", backbone=backbone)
    assert method.low_res_logits(drawn(method).image).shape == (2, 1, side, side)
