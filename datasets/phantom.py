"""Phantom: four synthetic sites of a T2-like pelvis volume; nothing to download, a whole matrix in minutes.

The structure is the prostate (bright peripheral zone around a mottled transition zone). Its neighbours look like it: the
bladder above, the seminal vesicles behind its base, the bulb below its apex, the rectum behind it, muscles, femoral
heads and a decoy (a blob of the prostate's brightness without its zones, anywhere in the fat). The anatomy is drawn in
millimetres as soft ellipsoids under a smooth random deformation, then seen through a site's scanner:

    image = |G_blur * (contrast(tissue) . bias . coil) + Rician noise|,  each slice to [0, 1] by the intensity rule

    A  surface coil, plain T2 contrast, the reference site
    B  endorectal coil: a balloon in the rectum flattens the gland and blinds the image towards it; small field of view
    C  another sequence (T1-like): fat shines, fluid is black, the prostate is darker than muscle and has no zones
    D  old scanner: large field, thick slices, blur, noise, strong bias, fat as dark as the gland, larger glands
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dgbench.errors import require
from dgbench.task import Case, Task

CASES = 10  # of every domain
KEY = 20240917  # of the random streams: another number is another phantom


@dataclass(frozen=True)
class Site:
    """What differs between domains: geometry in mm, tissue brightness in [0, 1], the scanner's faults."""

    pixels: int
    slices: int
    spacing: tuple[float, float, float]  # (D, H, W)
    gland: tuple[float, float, float]  # mean half axes (left-right, front-back, head-foot)
    tissue: dict[str, float]
    gamma: float  # of the contrast curve
    bias: float  # standard deviation of the log of the smooth bias field
    coil: float  # brightness at an endorectal coil over that far away; 0: none
    noise: float  # standard deviation of each Rician channel
    blur: float  # standard deviation of the in-plane point spread


T2 = {
    "fat": 0.62, "muscle": 0.16, "transition": 0.42, "peripheral": 0.72, "capsule": 0.2, "bladder": 0.97, "wall": 0.28,
    "vesicle": 0.75, "bulb": 0.5, "marrow": 0.5, "cortex": 0.06, "lumen": 0.08, "decoy": 0.52,
}  # fmt: skip
T1 = {
    "fat": 0.95, "muscle": 0.5, "transition": 0.36, "peripheral": 0.32, "capsule": 0.42, "bladder": 0.16, "wall": 0.45,
    "vesicle": 0.3, "bulb": 0.42, "marrow": 0.8, "cortex": 0.08, "lumen": 0.05, "decoy": 0.36,
}  # fmt: skip

SITES = {
    "A": Site(112, 11, (3.5, 0.8, 0.8), (16, 12.5, 14), T2, 1.0, 0.12, 0.0, 0.03, 0.5),
    "B": Site(128, 12, (3.0, 0.6, 0.6), (15, 10.5, 13), T2, 0.9, 0.10, 5.0, 0.04, 0.4),
    "C": Site(120, 11, (3.3, 0.7, 0.7), (14, 11.5, 13), T1, 1.0, 0.12, 0.0, 0.03, 0.5),
    "D": Site(
        104, 10, (4.0, 0.78, 0.78), (17.5, 14, 15), T2 | {"fat": 0.4, "muscle": 0.24, "bladder": 0.8}, 1.5, 0.35, 0.0, 0.07, 1.0
    ),
}


class Phantom(Task):
    domains = tuple(SITES)
    structures = ("prostate",)
    image_size = 96
    steps = 250
    intensity = "each slice is clipped at the 0.2 and 99.8 percentiles of its positive voxels, then min-max to [0, 1]"
    citation = "none: synthetic, made by dgbench"
    licence = "as dgbench: synthetic, no patient's data"
    download = "nothing: the cases are computed"

    def case_ids(self, domain: str) -> list[str]:
        require(domain, self.domains, "domain")
        return [f"case{number:02d}" for number in range(CASES)]

    def load(self, domain: str, case_id: str) -> Case:
        number = self.case_ids(domain).index(require(case_id, self.case_ids(domain), f"case of domain '{domain}'"))
        image, mask = draw(domain, number)
        return Case(case_id, image[:, None], mask[:, None], SITES[domain].spacing)


def draw(domain: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 (D, H, W) in [0, 1] and mask bool (D, H, W): a function of its arguments alone."""
    site = SITES[domain]
    rng = np.random.default_rng([KEY, list(SITES).index(domain), number])
    signal, mask, rectum = anatomy(site, rng)
    return to_unit(scan(site, signal, rectum, rng)), mask


def anatomy(site: Site, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Tissue brightness (D, H, W) in [0, 1], prostate mask, and (y, x) of the rectum's centre in mm.

    Axes in mm from the image's centre: z to the head, y to the back, x to the patient's left.
    """
    shape = (site.slices, site.pixels, site.pixels)
    grid = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, site.spacing, strict=True)]
    z, y, x = _deformed(grid, rng)

    uniform: Callable[..., float] = rng.uniform
    a, b, c = (float(half * uniform(0.85, 1.15)) for half in site.gland)
    tissue = {name: value * uniform(0.92, 1.08) for name, value in site.tissue.items()}
    coarse, fine = _texture(site, shape, 2.6, rng), _texture(site, shape, 1.2, rng)
    balloon = site.coil > 0

    def ellipsoid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float, turn: float = 0.0) -> np.ndarray:
        """Signed distance in mm, about: negative inside."""
        u, v = x - cx, y - cy
        if turn:
            u, v = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u
        return (np.sqrt((u / rx) ** 2 + (v / ry) ** 2 + ((z - cz) / rz) ** 2) - 1) * min(rx, ry)

    signal = tissue["fat"] * (1 + 0.10 * coarse + 0.06 * fine)

    def paint(distance: np.ndarray, value: np.ndarray | float) -> None:
        """Over what is there, with partial volume across 1 mm of edge."""
        nonlocal signal
        signal += np.clip(0.5 - distance, 0, 1) * (value - signal)

    muscle = tissue["muscle"] * (1 + 0.25 * fine)
    side = a + uniform(7, 11)
    for sign in (-1, 1):
        head = ellipsoid(sign * (side + 23), uniform(-6, 0), uniform(4, 10), 17, 17, 22)
        paint(head, tissue["cortex"])
        paint(head + 2, tissue["marrow"] * (1 + 0.12 * coarse))
        paint(ellipsoid(sign * (side + 2.5), uniform(-2, 4), 4, uniform(3.5, 5), uniform(19, 24), 40, sign * uniform(0.1, 0.3)), muscle)
        levator = ellipsoid(sign * (a + 2.5), b * 0.5, -c * 0.8, 1.7, b * 1.1, c * 1.3, sign * 0.25)
        paint(levator, muscle)
    pubis = ellipsoid(uniform(-2, 2), -b - uniform(15, 19), -6, 13, 7, 16)
    paint(pubis, tissue["cortex"])
    paint(pubis + 1.5, tissue["marrow"] * (1 + 0.1 * coarse))

    bladder = ellipsoid(uniform(-3, 3), -b * uniform(0.3, 0.6), c + uniform(8, 11), a * uniform(1.1, 1.5), b * uniform(1.0, 1.4), 13)
    paint(bladder, tissue["wall"])
    paint(bladder + 1.8, tissue["bladder"])
    for sign in (-1, 1):
        vesicle = ellipsoid(sign * a * 0.5, b * 0.75, c * 0.95, a * 0.55, b * 0.3, c * 0.35, sign * uniform(-0.5, -0.2))
        paint(vesicle, tissue["vesicle"] * (1 + 0.3 * fine))
    paint(ellipsoid(0, b * 0.1, -c - uniform(5, 8), 7, 6, 6), tissue["bulb"] * (1 + 0.1 * fine))

    reach = uniform(0.55, 0.75)
    angle = uniform(-0.9, 0.9) + (np.pi if uniform(0, 1) < 0.5 else 0.0)
    dx, dy = (a + 9) / reach * np.cos(angle) * 0.75, (b + 9) / reach * np.sin(angle) * 0.75
    decoy = ellipsoid(dx, dy, uniform(-0.6, 0.8) * c, uniform(6, 9), uniform(5, 8), uniform(6, 10), uniform(-1, 1))
    paint(decoy, tissue["decoy"] * (1 + 0.15 * coarse))

    radius = uniform(12, 14) if balloon else uniform(8, 11)
    back = b + radius - (1.0 if balloon else 0.0) + uniform(0, 2)
    rectum = ellipsoid(uniform(-2, 2), back, 0, radius * uniform(1.0, 1.2), radius * (0.9 if balloon else 0.8), 60)
    paint(rectum, tissue["wall"])
    stool = 0.0 if balloon else uniform(0, 0.5)
    paint(rectum + (1.2 if balloon else 2.5), tissue["lumen"] + stool * np.clip(0.5 + coarse, 0, 1))

    # The gland: a dent at the back where the rectum lies, a transition zone in front, a urethra, a levelled base.
    dent = uniform(1.0, 2.5) * np.exp(-((x / (0.4 * a)) ** 2)) * (y > 0)
    gland = ellipsoid(0, 0, 0, a, b, c) + dent
    paint(gland - 0.6, tissue["capsule"])
    paint(gland + 0.8, tissue["peripheral"] * (1 + 0.15 * fine))
    grown = uniform(0.6, 0.8)
    transition = ellipsoid(0, -b * 0.22, c * 0.1, a * grown, b * grown, c * 0.8)
    paint(transition - 0.5, tissue["capsule"])
    paint(transition + 0.4, tissue["transition"] * (1 + 0.45 * coarse + 0.1 * fine))
    if uniform(0, 1) < 0.4:
        spot = ellipsoid(uniform(-0.6, 0.6) * a, b * 0.6, uniform(-0.4, 0.4) * c, uniform(2, 4), uniform(2, 3), 5)
        paint(spot, tissue["muscle"] * 0.6 + tissue["transition"] * 0.4)
    return np.clip(signal, 0, 1), gland < 0, (float(back), 0.0)


def scan(site: Site, signal: np.ndarray, rectum: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The scanner: contrast curve, bias field, coil, blur, Rician noise. (D, H, W), positive."""
    depth, height, width = signal.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    w = rng.normal(size=5).astype(np.float32)
    bias = w[0] * x + w[1] * y + w[2] * x * y + w[3] * (x * x - 0.33) + w[4] * (y * y - 0.33)
    image = signal ** (site.gamma * rng.uniform(0.9, 1.1)) * np.exp(site.bias * bias)
    if site.coil:
        half = (height - 1) / 2 * site.spacing[1]
        squared = (y * half - rectum[0]) ** 2 + (x * half - rectum[1]) ** 2
        image *= 1 + site.coil * rng.uniform(0.8, 1.2) / (1 + squared / 14**2) ** 1.5
    pixel = site.blur / site.spacing[1]
    image = gaussian_filter(image, (0, pixel, pixel), truncate=3)
    real, imaginary = rng.standard_normal((2, depth, height, width), dtype=np.float32) * (site.noise * rng.uniform(0.8, 1.2))
    return np.hypot(image + real, imaginary)


def to_unit(image: np.ndarray) -> np.ndarray:
    """The intensity rule, slice by slice: (D, H, W) -> float32 (D, H, W) in [0, 1]."""
    unit = np.empty(image.shape, np.float32)
    for one, out in zip(image, unit, strict=True):
        low, high = np.percentile(one[one > 0], (0.2, 99.8))
        out[:] = (np.clip(one, low, high) - low) / (high - low)
    return np.clip(unit, 0, 1)


def _deformed(grid: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The (D, H, W) coordinates of a shifted, turned, tilted and smoothly bent patient."""
    shift = rng.uniform(-1, 1, 3) * (3.0, 4.0, 4.0)
    z, y, x = np.meshgrid(*(axis - s for axis, s in zip(grid, shift, strict=True)), indexing="ij", sparse=True)
    roll, pitch, yaw = rng.uniform(-1, 1, 3) * (0.10, 0.20, 0.12)
    x, y = x + roll * y, y - roll * x
    y, z = y + pitch * z, z - 0.3 * pitch * y
    x = x + yaw * z
    bent = []
    for coordinate, size in ((z, 1.0), (y, 2.2), (x, 2.2)):
        wave = rng.uniform(2 * np.pi / 90, 2 * np.pi / 40, (3, 3))
        phase = rng.uniform(0, 2 * np.pi, (3, 3))
        sines = [np.sin(np.outer(wave[:, i], grid[i]) + phase[:, i : i + 1]).astype(np.float32) for i in range(3)]
        bent.append((coordinate + size * np.einsum("kz,ky,kx->zyx", *sines)).astype(np.float32))
    return bent


def _texture(site: Site, shape: tuple[int, int, int], size: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of standard deviation 1 and grain `size` in mm, (D, H, W)."""
    sigma = [0.5 * size / s for s in site.spacing]
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=3, mode="wrap")
    return noise / noise.std()
