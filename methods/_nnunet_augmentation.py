"""nnU-Net's augmentation of z-scored images: where a patch lies, how it is turned, and what happens to intensities.

Isensee et al. nnU-Net. Nature Methods 2021, supplement; order, probabilities and ranges are those of nnunetv2 2.8.1 in
2-D. All is drawn from torch's global generator on the CPU.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch
from dgbench.networks.augmentation import linear_map, sampling_grid

Size = tuple[int, int]
LEAST = 1e-7  # a spread that is divided by


def chance(p: float) -> bool:
    """True with probability p."""
    return bool(torch.rand(()) < p)


def uniform(low: float, high: float) -> float:
    """A number between two others."""
    return float(low + (high - low) * torch.rand(()))


def factor(low: float, high: float) -> float:
    """Half of them below 1, half above."""
    return uniform(low, 1) if chance(0.5) else uniform(1, high)


def corner(mask: Tensor, patch: Size, forced: bool) -> tuple[int, int]:
    """Row and column where a patch begins in an image, its mask (K, H, W): anywhere in it; centred, if it is smaller.

    If `forced`, a random pixel of a random structure that is there lies in the middle, or nearer to the upper left
    where the image ends there; at its right and lower ends a patch reaches over it, as nnU-Net's do.
    """
    first = [-((p - side) // 2) if p > side else 0 for side, p in zip(mask.shape[1:], patch, strict=True)]
    spare = [max(0, side - p) for side, p in zip(mask.shape[1:], patch, strict=True)]
    begin = [f + int(torch.randint(s + 1, ())) for f, s in zip(first, spare, strict=True)]
    there = mask.amax((1, 2)).nonzero()[:, 0]
    if forced and len(there):
        inside = mask[there[int(torch.randint(len(there), ()))]].nonzero()
        middle = inside[int(torch.randint(len(inside), ()))].tolist()
        begin = [max(f, m - p // 2) for f, m, p in zip(first, middle, patch, strict=True)]
    return begin[0], begin[1]


def window(planes: Tensor, begin: Size, patch: Size) -> Tensor:
    """(C, H, W) -> (C, *patch) from a corner on, zero outside the image."""
    height, width = planes.shape[1:]
    (row, column), (rows, columns) = begin, patch
    return F.pad(planes, (-column, column + columns - width, -row, row + rows - height))


@in_float32
def turned(planes: Tensor, begin: Size, patch: Size, degrees: float, scale: float) -> Tensor:
    """(C, H, W) -> (C, *patch), rotated about the patch's middle and shown smaller by `scale`; bilinear."""
    size, device = planes.shape[1:], planes.device
    turn = linear_map(size, torch.tensor([-degrees], device=device), torch.tensor([scale], device=device))
    middle = [(b + p / 2) / side - 0.5 for b, p, side in zip(begin, patch, size, strict=True)]
    grid = sampling_grid(patch, turn, torch.tensor([middle[::-1]], device=device)).permute(0, 2, 3, 1)
    return F.grid_sample(planes[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def blur(x: Tensor, deviations: tuple[float, float]) -> Tensor:
    """(H, W), by a Gaussian with these deviations along rows and columns, in pixels, cut off at three of them."""
    for deviation in deviations:  # along the first axis, then turned over
        radius = round(3 * deviation - 0.25)
        weight = torch.softmax(-((torch.arange(-radius, radius + 1, device=x.device) / deviation) ** 2) / 2, 0)
        padded = F.pad(x[None, None], (0, 0, radius, radius), mode="reflect")
        x = F.conv2d(padded, weight[None, None, :, None])[0, 0].T
    return x


def contrast(x: Tensor, by: float) -> Tensor:
    """(H, W), spread about its mean and kept in its range."""
    return torch.lerp(x.mean(), x, by).clamp(x.min(), x.max())


def coarse(x: Tensor, by: float) -> Tensor:
    """(H, W), at a part of its resolution: nearest pixels, enlarged again linearly."""
    small = F.interpolate(x[None, None], [round(side * by) for side in x.shape], mode="nearest-exact")
    return F.interpolate(small, x.shape, mode="bilinear", align_corners=False)[0, 0]


def gamma(x: Tensor, power: float) -> Tensor:
    """(H, W), stretched to [0, 1] and raised to a power, with the mean and deviation that it had."""
    low, spread = x.min(), x.max() - x.min()
    curved = ((x - low) / spread.clamp(min=LEAST)) ** power * spread + low
    return (curved - curved.mean()) * x.std() / curved.std().clamp(min=LEAST) + x.mean()


@in_float32
def recoloured(image: Tensor) -> Tensor:
    """(C, H, W) -> the same, by transforms that are drawn one after the other, most for each channel by itself."""

    def each(p: float, change: Callable[[Tensor], Tensor], of_channels: float = 1.0) -> None:
        nonlocal image
        if chance(p):
            image = torch.stack([change(x) if of_channels == 1 or chance(of_channels) else x for x in image])

    deviation = uniform(0, 0.1)
    each(0.1, lambda x: x + deviation * torch.randn(x.shape).to(x))
    each(0.2, lambda x: blur(x, (uniform(0.5, 1), uniform(0.5, 1))), 0.5)
    each(0.15, lambda x: x * factor(0.75, 1.25))
    each(0.15, lambda x: contrast(x, factor(0.75, 1.25)))
    each(0.25, lambda x: coarse(x, uniform(0.5, 1)), 0.5)
    each(0.1, lambda x: -gamma(-x, factor(0.7, 1.5)))
    each(0.3, lambda x: gamma(x, factor(0.7, 1.5)))
    return image


@torch.no_grad()
def augmented(batch: Batch, patch: Size, forced: int, changed: bool = True) -> Batch:
    """Z-scored images (N, C, H, W) and masks (N, K, H, W) -> their patches (N, C, *patch) and (N, K, *patch).

    The last `forced` show a structure where they have one. changed: not only cut out, but augmented. Without it nothing
    is drawn but where patches lie.
    """
    images, masks, most = [], [], 180.0 if max(patch) <= 1.5 * min(patch) else 15.0
    for i, (image, mask) in enumerate(zip(*batch, strict=True)):
        begin = corner(mask, patch, i >= len(batch.mask) - forced)
        degrees = uniform(-most, most) if changed and chance(0.2) else 0.0
        scale = uniform(0.7, 1.4) if changed and chance(0.2) else 1.0
        if (degrees, scale) == (0, 1):
            image, mask = (window(planes, begin, patch) for planes in (image, mask))
        else:
            image, mask = (turned(planes, begin, patch, degrees, scale) for planes in (image, mask))
            mask = (mask >= 0.5).float()
        if changed:
            image = recoloured(image)
            flips = [axis for axis in (-2, -1) if chance(0.5)]
            image, mask = image.flip(flips), mask.flip(flips)
        images.append(image)
        masks.append(mask)
    return Batch(torch.stack(images), torch.stack(masks))
