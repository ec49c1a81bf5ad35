"""AutoSAM: what is trained writes the prompt, and SAM answers each structure's prompt for itself."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgbench.files import sha256
from dgbench.method import Batch, resolve_hparams
from dgbench.methods.autosam import AutoSAM
from dgbench.networks.unet import feature_network
from dgbench.running import train
from tests.released_sam import NAME, info, release

SIDE = 64


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    return release(tmp_path, monkeypatch)


def build(structures: int = 1, backbone: str = NAME, **settings: str) -> tuple[AutoSAM, dict[str, str]]:
    given = {"encoder": "test_convnext", "width": "16", "backbone": backbone, **settings}
    hparams = resolve_hparams(AutoSAM, "drawn", given)
    method, files = train.build(AutoSAM, info(structures, SIDE), hparams, seed=0)
    assert isinstance(method, AutoSAM)
    return method, files


def image(n: int = 2) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_what_the_network_writes_stands_where_no_mask_stood(released):
    method, _ = build()
    method.eval()
    with torch.no_grad():
        dense = method.prompter(image())
        assert dense.shape == (2, 1, 32, 4, 4) and dense.abs().max() < 1
        expected = method.decode(method.embed(image()), dense[:, 0])[0][:, :1]
        torch.testing.assert_close(method.low_res_logits(image()), expected)
        nothing = method.decode(method.embed(image()), method.no_prompt())[0][:, :1]
        assert not torch.allclose(expected, nothing)


def test_a_structure_is_answered_by_its_own_prompt_alone(released):
    method, _ = build(structures=3)
    method.eval()
    with torch.no_grad():
        before = method.logits(image())
        head = method.prompter.net.decoder.head
        for p in (head.weight, head.bias):
            p.copy_(p.unflatten(0, (3, -1))[[2, 0, 1]].flatten(0, 1))
        torch.testing.assert_close(method.logits(image()), before[:, [2, 0, 1]], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, 0], before[:, 1])


def test_the_network_that_prompts_sees_z_scores_and_is_as_wide_as_it_is_told(released):
    prompter = build(width="8")[0].prompter.eval()
    assert prompter.net.decoder.head.in_channels == 8
    with torch.no_grad():
        torch.testing.assert_close(prompter(0.5 * image() + 0.3), prompter(image()), atol=1e-4, rtol=0)


def test_sam_is_frozen_as_a_whole_and_its_embeddings_are_kept(released):
    method, files = build()
    assert list(files) == ["narrow.pth"] and method.cache is not None
    assert all(p.requires_grad == n.startswith("prompter.") for n, p in method.named_parameters())
    before = {n: p.clone() for n, p in method.named_parameters()}
    train.configure(method)
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[:, :, 10:30, 20:50] = 1
    train.step(method.train(), Batch(image(), mask), seed=0, t=0)
    changed = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.startswith("prompter.")}, "the gradient comes through the frozen decoder"


@pytest.mark.parametrize("backbone, first", [(NAME, 2), ("vit_tiny", 1)])
def test_it_decodes_from_the_level_of_the_embeddings_stride(backbone, first, released):
    prompter = build(backbone=backbone)[0].prompter  # strides 4, 8, 16, 32; patches of 16, and of 8
    assert prompter.first == first and prompter.grid == ((4, 4) if backbone == NAME else (8, 8))


def test_the_encoder_starts_from_a_file_that_the_record_names_beside_sams(released, tmp_path):
    whole = {n: torch.full_like(v, 0.5) for n, v in _whole().items()}
    torch.save(whole, tmp_path / "encoder.pth")
    method, files = build(initialisation=str(tmp_path / "encoder.pth"))
    assert files == {"narrow.pth": files["narrow.pth"], "encoder.pth": sha256(tmp_path / "encoder.pth")}
    assert all((v == 0.5).all() for v in method.prompter.net.encoder.state_dict().values())
    assert AutoSAM.find_pretrained(method.hparams) == [tmp_path / "narrow.pth", tmp_path / "encoder.pth"]


def _whole() -> dict[str, Tensor]:
    import timm

    feature_network("test_convnext")  # which makes timm importable
    return timm.create_model("test_convnext").state_dict()
