"""Random augmentation of a whole batch on its own device: where things lie, and how bright they are.

Rotation, scale, translation and elastic deformation are composed into one sampling grid, so that image and mask are
resampled once, by the same grid, and only where an image draws one of them. A flip is a reindexing and loses nothing.
Then come the intensities. Each transform is drawn for each image by its own probability. Their order, and half of the
factors drawn below 1, follow nnU-Net (Isensee et al., Nature Methods 2021, supplement).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.method import Batch
from dgbench.networks.unet import one_channel

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """Probabilities `p_*`, per image, and the ranges drawn from; nothing happens by default.

    A range of factors with 1 inside is drawn half below and half above 1, all others evenly. Change a preset with
    `dataclasses.replace(BASE, p_elastic=0)`. Raises `UsageError` for a value that cannot be.
    """

    p_flip_horizontal: float = 0.0
    p_flip_vertical: float = 0.0
    p_rotate: float = 0.0
    rotate: Range = (-15.0, 15.0)  # degrees, counter-clockwise on the screen
    p_scale: float = 0.0
    scale: Range = (0.85, 1.25)  # side of the field of view shown: above 1 the organ gets smaller
    p_translate: float = 0.0  # of each axis
    translate: Range = (-0.05, 0.05)  # in sides of the image
    p_elastic: float = 0.0
    elastic: Range = (0.0, 0.4)  # largest shift of a control point, in spacings; up to 0.48 nothing ever folds
    elastic_spacing: Range = (0.125, 0.25)  # of the control points, in longer sides of the image
    p_noise: float = 0.0
    noise: Range = (0.0, 0.05)  # standard deviation; the same noise in all channels
    p_blur: float = 0.0
    blur: Range = (0.5, 1.0)  # standard deviation in pixels
    p_brightness: float = 0.0
    brightness: Range = (0.75, 1.25)  # x -> x * value
    p_contrast: float = 0.0
    contrast: Range = (0.75, 1.25)  # about the channel's mean, kept within the channel's own range
    p_low_resolution: float = 0.0
    low_resolution: Range = (0.5, 1.0)  # of the sides: picks nearest pixels, then back by bicubic interpolation
    p_gamma_inverted: float = 0.0  # x -> 1 - (1 - x) ** gamma
    p_gamma: float = 0.0  # x -> x ** gamma
    gamma: Range = (0.7, 1.5)  # of both

    def __post_init__(self) -> None:
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if name.startswith("p_"):
                if not 0 <= value <= 1:
                    raise UsageError(f"augmentation {name} is {value}", "a probability lies between 0 and 1")
            elif not (len(value) == 2 and value[0] <= value[1]):
                raise UsageError(f"augmentation {name} is {value}", "a range is (lowest, highest)")
            elif name in {"scale", "elastic_spacing", "blur", "low_resolution", "gamma"} and value[0] <= 0:
                raise UsageError(f"augmentation {name} is {value}", f"{name} must be above 0")
            elif name in {"elastic", "noise", "brightness", "contrast"} and value[0] < 0:
                raise UsageError(f"augmentation {name} is {value}", f"{name} must not be below 0")


BASE = Augmentation(  # of every method, unless it says otherwise
    p_flip_horizontal=0.5,
    p_flip_vertical=0.5,
    p_rotate=0.5,
    p_scale=0.5,
    p_translate=0.5,
    p_elastic=0.3,
    p_noise=0.15,
    p_blur=0.2,
    p_brightness=0.3,
    p_contrast=0.3,
    p_low_resolution=0.25,
    p_gamma_inverted=0.1,
    p_gamma=0.3,
)


@torch.no_grad()
def augment(batch: Batch, rng: torch.Generator, ranges: Augmentation = BASE) -> Batch:
    """The batch, augmented: image stays in [0, 1] (clamped after what can leave it), mask in {0, 1}, black comes in.

    Any number of channels and structures. An image that is an expanded view of one gray channel is computed once and
    stays such a view. The given batch is never written to; it is returned itself where nothing is drawn.

    `rng` is drawn from once, whatever the batch and the ranges. That draw seeds a generator on the CPU for all
    decisions, strengths and deformations, always the same number of them, and one on the batch's device for the noise.
    So one state of `rng` does the same on every device but for the noise's grain. With `rng` on the CPU nothing waits
    for a GPU; with `rng` on the GPU its one draw does.
    """
    seed, noise_seed = torch.randint(2**62, (2,), generator=rng, device=rng.device).tolist()
    drawn = _draw(ranges, len(batch.image), torch.Generator().manual_seed(seed))
    if not torch.stack([drawn.warped, *(fires for fires, _ in drawn.others)]).any():
        return batch
    image = one_channel(batch.image).clone(memory_format=torch.contiguous_format)
    mask = batch.mask.clone(memory_format=torch.contiguous_format)
    _move(image, mask, drawn)
    noise = torch.Generator(image.device).manual_seed(noise_seed)
    _recolour(image, drawn, noise, radius=math.ceil(3 * ranges.blur[1]))
    return Batch(image.expand_as(batch.image), mask)


Strength = tuple[Tensor, Tensor]  # (N,) which images draw a transform, and (N,) how strongly, neutral where they do not


@dataclass(frozen=True)
class _Draw:
    """What is drawn for a batch, all of it on the CPU and always the same number of numbers."""

    mirrored: Strength
    upside_down: Strength
    warped: Tensor  # (N,) by any of angle, scale, shift and bend
    angle: Tensor
    scale: Tensor
    shift: Tensor  # (N, 2)
    bent: Strength
    spacing: Tensor
    control: Tensor  # (N, 2, G, G)
    noisy: Strength
    blurred: Strength
    brighter: Strength
    contrasted: Strength
    coarse: Strength
    inverted: Strength
    curved: Strength

    @property
    def others(self) -> tuple[Strength, ...]:
        """All transforms that do not warp."""
        moved = (self.mirrored, self.upside_down)
        return (
            *moved,
            self.noisy,
            self.blurred,
            self.brighter,
            self.contrasted,
            self.coarse,
            self.inverted,
            self.curved,
        )


def _draw(ranges: Augmentation, count: int, host: torch.Generator) -> _Draw:
    def draw(p: float, span: Range = (0.0, 0.0), neutral: float = 0.0) -> Strength:
        fires, u = torch.rand(2, count, generator=host)
        low, high = span
        value = low + (high - low) * u
        if low < 1 < high:
            value = torch.where(u < 0.5, low + (1 - low) * 2 * u, 1 + (high - 1) * (2 * u - 1))
        return fires < p, torch.where(fires < p, value, neutral)

    mirrored = draw(ranges.p_flip_horizontal)
    upside_down = draw(ranges.p_flip_vertical)
    rotated, angle = draw(ranges.p_rotate, ranges.rotate)
    scaled, scale = draw(ranges.p_scale, ranges.scale, 1.0)
    moved_x, shift_x = draw(ranges.p_translate, ranges.translate)
    moved_y, shift_y = draw(ranges.p_translate, ranges.translate)
    bent = draw(ranges.p_elastic, ranges.elastic)
    spacing = draw(1.0, ranges.elastic_spacing)[1]
    points = math.ceil(1 / ranges.elastic_spacing[0]) + 3
    return _Draw(
        mirrored,
        upside_down,
        rotated | scaled | moved_x | moved_y | bent[0],
        angle,
        scale,
        torch.stack([shift_x, shift_y], 1),
        bent,
        spacing,
        control=torch.rand(count, 2, points, points, generator=host) * 2 - 1,
        noisy=draw(ranges.p_noise, ranges.noise),
        blurred=draw(ranges.p_blur, ranges.blur),
        brighter=draw(ranges.p_brightness, ranges.brightness),
        contrasted=draw(ranges.p_contrast, ranges.contrast),
        coarse=draw(ranges.p_low_resolution, ranges.low_resolution),
        inverted=draw(ranges.p_gamma_inverted, ranges.gamma),
        curved=draw(ranges.p_gamma, ranges.gamma),
    )


def _move(image: Tensor, mask: Tensor, drawn: _Draw) -> None:
    """Warp and flip both, in place."""
    channels, size, device = image.shape[1], image.shape[-2:], image.device
    turn = linear_map(size, drawn.angle, drawn.scale)
    for rows in _parts(drawn.warped, device):
        grid = sampling_grid(size, turn[rows].to(device), drawn.shift[rows].to(device))
        if drawn.bent[0][rows].any():
            bend = (turn, drawn.bent[1], drawn.spacing, drawn.control)
            grid += elastic_shift(size, *(v[rows].to(device) for v in bend))
        both = torch.cat([planes[i] for i in rows.tolist() for planes in (image, mask)]).view(len(rows), -1, *size)
        both = F.grid_sample(both, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
        there = rows.to(device)
        image[there] = both[:, :channels].clamp_(0, 1)
        mask[there] = (both[:, channels:] >= 0.5).to(mask.dtype)
    for planes in (image, mask):
        _change(planes, drawn.mirrored, lambda x, _: x.flip(-1))
        _change(planes, drawn.upside_down, lambda x, _: x.flip(-2))


def _recolour(image: Tensor, drawn: _Draw, noise: torch.Generator, radius: int) -> None:
    """Change the intensities, in place; `radius`: of the blur, in pixels."""
    size = image.shape[-2:]
    _change(image, drawn.noisy, lambda x, deviation: _add_noise(x, deviation, noise))
    _change(image, drawn.blurred, lambda x, sigma: gaussian_blur(x, sigma, radius).clamp_(0, 1))  # white to 1 + 2e-7
    _change(image, drawn.brighter, lambda x, factor: (x * factor).clamp_(0, 1))
    _change(image, drawn.contrasted, _contrast)
    fires, zoom = drawn.coarse
    for i in fires.nonzero().squeeze(1).tolist():  # one by one: each has a size of its own
        small = F.interpolate(image[i : i + 1], [max(1, round(zoom[i].item() * s)) for s in size], mode="nearest-exact")
        image[i] = F.interpolate(small, size, mode="bicubic", align_corners=False)[0].clamp_(0, 1)
    _change(image, drawn.inverted, lambda x, gamma: 1 - (1 - x) ** gamma)
    _change(image, drawn.curved, lambda x, gamma: x**gamma)


def linear_map(size: Sequence[int], angle: Tensor, scale: Tensor) -> Tensor:
    """(N, 2, 2): rotation by `angle` (N,) degrees and scaling by `scale` (N,), of (x, y) in pixels to half sides."""
    cosine, sine = scale * angle.deg2rad().cos(), scale * angle.deg2rad().sin()
    turn = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)
    return turn * 2 / torch.tensor([size[1], size[0]], device=angle.device)[:, None]


def sampling_grid(size: Sequence[int], turn: Tensor, shift: Tensor) -> Tensor:
    """Where each pixel p of the result looks in the input: turn p + shift, about the image's centre.

    (N, 2, H, W): x and y in half sides, as `grid_sample(align_corners=False)` counts. `turn` is that of `linear_map`,
    `shift` (N, 2) along x and y in whole sides.
    """
    x, y = (torch.arange(side, device=turn.device) - (side - 1) / 2 for side in (size[1], size[0]))
    return turn[:, :, :1, None] * x + (turn[:, :, 1:, None] * y[:, None] + 2 * shift[:, :, None, None])


@in_float32
def elastic_shift(size: Sequence[int], turn: Tensor, bend: Tensor, spacing: Tensor, control: Tensor) -> Tensor:
    """How far elastic deformation moves where each pixel looks: turn u(p), (N, 2, H, W), to be added to the grid.

    `u` is a cubic B-spline of randomly moved control points (Rueckert et al., TMI 1999), smooth to its second
    derivative. Nothing folds while they move by less than 0.48 spacings along each axis (Choi & Lee, Graphical Models
    2000).

    bend: (N,) largest shift of a control point, in spacings. spacing: (N,) in longer sides of the image.
    control: (N, 2, G, G) in [-1, 1], with G at least 1 / spacing + 3.
    """
    step, points = spacing * max(size), control.shape[-1]
    moved = torch.einsum("nij,njkl->nikl", turn, control * (bend * step)[:, None, None, None])
    rows, columns = (bspline(side, step, points)[:, None] for side in size)
    return rows @ (moved @ columns.mT)


def bspline(length: int, spacing: Tensor, points: int) -> Tensor:
    """(N, length, points): weights of control points, `spacing` (N,) pixels apart, in the cubic B-spline at each pixel.

    The second control point lies on the first pixel.
    """
    pixel = torch.arange(length, device=spacing.device)[:, None]
    away = (pixel / spacing[:, None, None] - torch.arange(-1, points - 1, device=spacing.device)).abs()
    return ((2 - away).clamp(min=0) ** 3 - 4 * (1 - away).clamp(min=0) ** 3) / 6


def gaussian_blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """(N, C, H, W) with a standard deviation per image, (N, 1, 1, 1) in pixels; the border's pixels are repeated."""
    offset = torch.arange(-radius, radius + 1, device=image.device)
    weight = torch.softmax(-((offset / sigma) ** 2) / 2, dim=-1)  # (N, 1, 1, 2 radius + 1)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    for axis in (-2, -1):
        # A sum of shifted views: on a CPU 8 to 20 times faster than the grouped convolution that does the same.
        total = padded.narrow(axis, 0, image.shape[axis]) * weight[..., :1]
        for i in range(1, 2 * radius + 1):
            total.addcmul_(padded.narrow(axis, i, image.shape[axis]), weight[..., i : i + 1])
        padded = total
    return padded


def _parts(fires: Tensor, device: torch.device) -> list[Tensor]:
    """The rows that fire: all at once, but on a CPU two by two.

    Large temporary arrays are handed back to the system and cost page faults each time.
    """
    rows = fires.nonzero().squeeze(1)
    return list(rows.split(2 if device.type == "cpu" else len(rows))) if len(rows) else []


def _change(planes: Tensor, drawn: Strength, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rewrite those planes (N, C, H, W) that drew the transform, given their strengths as (n, 1, 1, 1)."""
    fires, value = drawn
    for rows in _parts(fires, planes.device):
        there = rows.to(planes.device)
        drawing = planes.index_select(0, there)  # on a CPU ten times faster than planes[rows]
        planes[there] = change(drawing, value[rows].to(planes.device)[:, None, None, None])


def _add_noise(image: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    white = torch.randn((len(image), 1, *image.shape[-2:]), generator=generator, device=image.device)
    return (white.mul_(deviation) + image).clamp_(0, 1)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    mean = image.mean((-2, -1), keepdim=True)
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    return torch.lerp(mean, image, factor).clamp_(low, high)
