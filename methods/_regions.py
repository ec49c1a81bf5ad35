"""Connected regions of masks, eight neighbours to a pixel: the largest one, and masks without specks and holes."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

NEIGHBOURS = np.ones((3, 3))


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's region, 0 outside of the mask, and the regions' areas, that of the outside set to 0."""
    region, _ = ndimage.label(mask, NEIGHBOURS)
    area = np.bincount(region.ravel())
    area[0] = 0
    return region, area


def largest_region(mask: Tensor) -> Tensor:
    """The largest region of a mask (H, W), bool; none of an empty one."""
    region, area = _regions(mask.cpu().numpy())
    return torch.from_numpy((region == area.argmax()) & (region > 0)).to(mask.device)


def box_of_largest_region(mask: Tensor) -> Tensor:
    """(4,), float: x, y of the first and x, y of the last pixel of it; of an empty mask (H, W), the whole image's."""
    region = largest_region(mask)
    y, x = (region if region.any() else torch.ones_like(mask)).nonzero().unbind(1)
    return torch.stack([x.min(), y.min(), x.max(), y.max()]).float()


def without_small_regions(mask: Tensor, smallest: float) -> Tensor:
    """A mask (H, W), bool, whose holes and specks of less than `smallest` pixels are gone; its largest region stays."""
    inside = mask.cpu().numpy()
    region, area = _regions(~inside)
    inside = inside | ((region > 0) & (area[region] < smallest))
    region, area = _regions(inside)
    stays = area >= min(smallest, max(area.max(), 1))
    return torch.from_numpy(stays[region]).to(mask.device)
