"""CCSDG splits the first channels into content and style by contrast between views, and segments the content."""

import math

import pytest
import torch
from torch import Tensor, nn

from dgbench.method import Batch
from dgbench.methods.ccsdg import CCSDG, CCSDGHparams, ChannelPrompt, Projector, contrast, first_convolution
from dgbench.running import train
from dgbench.task import TaskInfo


def wave(*shape: int, a: float = 0.37, b: float = 0.0) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (a * i + b).sin().float().view(shape)


def start(size: int = 32, **values) -> CCSDG:
    info = TaskInfo("drawn", ("disc",), size, steps=10)
    method, _ = train.build(CCSDG, info, CCSDGHparams(**{"width": 8} | values), seed=0)
    train.configure(method)
    assert isinstance(method, CCSDG)
    return method.train()


def batch(n: int = 4, size: int = 32) -> Batch:
    shape, level = wave(n, 1, size, size, a=0.05), torch.linspace(0.2, 0.8, n).view(-1, 1, 1, 1)
    return Batch((level + 0.2 * shape).expand(-1, 3, -1, -1), (shape > 0.5).float())


def features() -> list[Tensor]:
    return [wave(2, 64, 16, 16, a=0.37 + 0.01 * k, b=k) for k in range(3)]


def drawn_prompt() -> ChannelPrompt:
    prompt = ChannelPrompt(64, 0.1)
    prompt.prompt.data.copy_(wave(2, 64, 1, 1, a=1.7) * 0.3)
    return prompt


def test_content_and_style_add_up_to_the_feature():
    content, style = drawn_prompt()(features()[0])
    torch.testing.assert_close(content + style, features()[0])


def test_a_channel_goes_where_its_prompt_is_larger():
    prompt = ChannelPrompt(2, 0.1)
    prompt.prompt.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
    content, style = prompt(torch.ones(1, 2, 1, 1))
    assert content.flatten().tolist() == pytest.approx([1, 0], abs=1e-4)  # e^10 to 1
    assert style.flatten().tolist() == pytest.approx([0, 1], abs=1e-4)


def test_prompt_projector_and_contrast_equal_their_public_code():
    """ShishuaiHu/CCSDG, ccsdg/models/unet_ccsdg.py, UNetCCSDG.forward_first_layer behind an identity and
    Projector(16) with a linear layer for 8 x 8 cells; the losses of ccsdg/training/train_nets/train_unet_ccsdg.py.
    Features and all parameters are waves."""
    parts = [drawn_prompt()(f) for f in features()]
    content, style = [c for c, _ in parts], [s for _, s in parts]
    assert content[0][1, :3, 4, 5].tolist() == pytest.approx([-0.0431502, -0.3152808, 0.122141], abs=1e-6)
    assert [content[0].norm().item(), style[0].norm().item()] == pytest.approx([83.486961, 84.566902], abs=1e-3)
    projector = Projector(64, 32, 16)
    with torch.no_grad():
        projector.conv.weight.copy_(wave(8, 64, 3, 3, a=0.9) * 0.1)
        projector.conv.bias.copy_(wave(8, a=0.5) * 0.1)
        projector.linear.weight.copy_(wave(16, 512, a=0.77) * 0.1)
        projector.linear.bias.copy_(wave(16, a=0.3))
    projected = projector(content + style)
    assert projected[0][1, :4].tolist() == pytest.approx([-0.063346, -0.057776, 0.260852, 0.412964], abs=1e-5)
    assert contrast(projected[:3], projected[3:]).item() == pytest.approx(1.756631 - 1.283574, abs=1e-5)


def test_the_contrast_is_least_for_equal_contents_and_opposite_styles():
    e = nn.functional.normalize(wave(2, 8), dim=1)
    assert contrast([e, e, e], [e, e, e]) == 0
    assert contrast([e, e, e], [e, -e, e]) < 0 < contrast([e, -e, e], [e, e, e])


@pytest.mark.parametrize("size", [30, 32, 64, 96])
def test_the_projector_has_the_size_of_the_image(size):
    projector = Projector(8, size, 16)
    assert projector.linear.in_features == 8 * (size // 4) ** 2
    for stride in (1, 2, 4):  # of the network's first convolution
        (z,) = projector([wave(2, 8, size // stride, size // stride)])
        torch.testing.assert_close(z.norm(dim=1), torch.ones(2))


def test_for_the_papers_image_it_has_the_papers_size():
    with torch.device("meta"):
        assert Projector(64, 512, 1024).linear.in_features == 131072


@pytest.mark.parametrize("encoder", ["unet", "resnet18", "efficientnet_lite0"])
def test_the_network_sees_the_content_only(encoder):
    method = start(encoder=encoder).eval()
    image, first = batch(2).image, first_convolution(method.net)
    seen = []
    first.register_forward_hook(lambda module, inputs, x: seen.append(x))
    before = method.predict(image)
    raw = first.forward(nn.functional.instance_norm(image, eps=1e-8))
    torch.testing.assert_close(seen[0], method.prompt(raw)[0], atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        method.prompt.prompt[1] += 100  # all is style
    assert not torch.equal(method.predict(image), before)
    assert not seen[-1].any()


def test_the_prompt_is_trained_by_its_own_step_only_and_by_no_other():
    method = start()
    segmentation, prompting = ({p for g in o.param_groups for p in g["params"]} for o in method.optimizers)
    assert not segmentation & prompting
    assert segmentation | prompting == set(method.parameters())
    assert segmentation == set(method.net.parameters())
    views = method.views(batch().image)
    method.prompt_loss(views).backward()
    assert method.prompt.prompt.grad.any() and all(p.grad is None for p in method.net.parameters())


def test_a_step_shows_three_views_and_takes_three_segmentation_steps():
    method = start()
    shown = train.step(method, batch(), seed=0, t=0)
    assert set(shown) == {"loss", "loss_prompt"}
    segmentation, prompting = method.optimizers
    assert {int(s["step"]) for s in segmentation.state.values()} == {3}
    assert len(prompting.state) == len([*method.prompt.parameters(), *method.projector.parameters()])


def test_the_views_have_new_looks_and_a_gray_image_stays_gray():
    image = batch().image
    torch.manual_seed(0)
    fda, gla, own = start().views(image)
    assert own is image
    for view in (fda, gla):
        assert view.shape == image.shape and view.stride(1) == 0 and (view - image).abs().mean() > 0.01
    phase = [torch.fft.fft2(v[0, 0]).angle() for v in (fda, image)]
    assert (torch.cos(phase[0] - phase[1]) > 0.99).float().mean() > 0.9


def test_the_view_of_fda_has_the_low_amplitudes_of_another_image_and_its_own_high_ones():
    image = batch().image
    torch.manual_seed(0)
    fda, own, other = (torch.fft.fft2(x[:, 0]) for x in (start().views(image)[0], image, image.flip(0)))
    frequency = (torch.fft.fftfreq(32) * 32).abs().round()
    reach = torch.maximum(frequency[:, None], frequency)
    torch.testing.assert_close(fda.abs()[:, reach <= 1], other.abs()[:, reach <= 1], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(fda[:, reach > 5], own[:, reach > 5], atol=1e-2, rtol=1e-3)


def test_repeated_prompt_steps_lower_their_loss():
    method = start()
    torch.manual_seed(0)
    views = method.views(batch().image)
    losses = []
    for _ in range(30):
        loss = method.prompt_loss(views)
        method.optimizers[1].zero_grad()
        loss.backward()
        method.optimizers[1].step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_batch_of_one_trains_without_nan():
    method = start()
    for t in range(3):
        assert all(math.isfinite(v) for v in train.step(method, batch(1), seed=0, t=t).values())
    assert all(p.isfinite().all() for p in method.parameters())
