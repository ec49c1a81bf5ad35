"""Phantom: four synthetic sites of a T2-like pelvis volume; nothing to download, a whole matrix in minutes.

The structure is the prostate: a mottled transition zone in a brighter peripheral zone. Its neighbours look like it: the
bladder above, the seminal vesicles behind its base, the bulb below its apex, the rectum behind it, muscles, femoral
heads, and a decoy (a node as bright as the gland, but without zones) beside it. The anatomy is drawn in millimetres as
soft ellipsoids under a smooth random deformation, and then seen by a site's scanner:

    image = | blur(tissue ** gamma * bias * coil) + Rician noise |, each slice to [0, 1] by the intensity rule

A: surface coil, plain T2, the reference. B: an endorectal coil's balloon flattens the gland and shines at it; small
field of view. C: another sequence, T1-like: fat shines, fluid is dark, the gland's inner zone is darker than muscle.
D: an old scanner: thick slices, blur, noise, strong bias, a steep contrast curve, partly suppressed fat; larger glands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from dgbench.errors import require
from dgbench.task import Case, Task

CASES = 10  # of every domain
KEY = 20240917  # of the random streams: another number is another phantom


@dataclass(frozen=True)
class Site:
    """What differs between domains: the grid and the organ in mm, tissue brightness, the scanner's faults."""

    pixels: int  # height and width
    slices: int
    spacing: tuple[float, float, float]  # (D, H, W)
    gland: tuple[float, float, float]  # mean half axes: left-right, front-back, foot-head
    tissue: dict[str, float]  # in [0, 1]
    mottle: float  # relative brightness of the transition zone's nodules
    gamma: float  # of the contrast curve
    bias: float  # of the smooth bias field's logarithm, each of its five terms
    coil: float  # what an endorectal coil adds beside itself, relative to the signal far away
    noise: float  # standard deviation of both Rician channels
    blur: float  # standard deviation of the in-plane point spread in mm


T2 = {
    "fat": 0.60, "muscle": 0.17, "transition": 0.40, "peripheral": 0.70, "capsule": 0.28, "bladder": 0.95, "wall": 0.28,
    "vesicle": 0.72, "bulb": 0.46, "marrow": 0.50, "cortex": 0.07, "lumen": 0.08, "node": 0.50,
}  # fmt: skip
T1 = {
    "fat": 0.74, "muscle": 0.57, "transition": 0.35, "peripheral": 0.56, "capsule": 0.25, "bladder": 0.45, "wall": 0.46,
    "vesicle": 0.50, "bulb": 0.44, "marrow": 0.70, "cortex": 0.08, "lumen": 0.06, "node": 0.39,
}  # fmt: skip
PARTLY_SUPPRESSED = T2 | {"fat": 0.51, "marrow": 0.42, "muscle": 0.20, "bladder": 0.85}

SITES = {
    #            slices           mm             half axes       tissue  mottle gamma bias  coil noise blur
    "A": Site(120, 11, (3.5, 0.70, 0.70), (16.0, 13.0, 13.0), T2, 0.45, 1.0, 0.10, 0.0, 0.03, 0.5),
    "B": Site(128, 12, (3.0, 0.55, 0.55), (14.0, 10.0, 11.5), T2, 0.45, 0.9, 0.10, 3.0, 0.04, 0.4),
    "C": Site(112, 11, (3.3, 0.68, 0.68), (13.5, 11.5, 11.5), T1, 0.25, 1.0, 0.10, 0.0, 0.03, 0.5),
    "D": Site(104, 10, (4.0, 0.80, 0.80), (16.5, 13.5, 12.5), PARTLY_SUPPRESSED, 0.35, 1.2, 0.20, 0.0, 0.045, 0.9),
}


class Phantom(Task):
    """Four synthetic sites that draw the same anatomy as four scanners would show it."""

    domains = tuple(SITES)
    structures = ("prostate",)
    image_size = 96
    steps = 250
    intensity = "each slice is clipped at the 0.2 and 99.8 percentiles of its positive voxels, then min-max to [0, 1]"
    citation = "none: synthetic, computed by dgbench"
    licence = "that of dgbench: synthetic, no patient's data"
    download = "nothing to download: every case is computed"

    def case_ids(self, domain: str) -> list[str]:
        """case00, case01, ... of every site."""
        require(domain, self.domains, "domain")
        return [f"case{number:02d}" for number in range(CASES)]

    def load(self, domain: str, case_id: str) -> Case:
        """Draws the case from its number and its site."""
        ids = self.case_ids(domain)
        image, mask = draw(domain, ids.index(require(case_id, ids, f"case of domain '{domain}'")))
        return Case(case_id, image[:, None], mask[:, None], SITES[domain].spacing)


def draw(domain: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 (D, H, W) in [0, 1] and mask bool (D, H, W): a function of its arguments alone."""
    site = SITES[domain]
    rng = np.random.default_rng([KEY, list(SITES).index(domain), number])
    tissue, mask, rectum = anatomy(site, rng)
    return to_unit(scan(site, tissue, rectum, rng)), mask


def anatomy(site: Site, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Brightness (D, H, W) in [0, 1], prostate mask (D, H, W), and mm from the gland's centre back to the rectum."""
    x, y, z = _patient(site, rng)  # mm from the gland's centre to the left, the back, the head
    uniform = rng.uniform
    a, b, c = (half * uniform(0.88, 1.12) for half in site.gland)
    bright = {name: value * uniform(0.92, 1.08) for name, value in site.tissue.items()}
    coarse, fine = _texture(site, 1.5, rng), _texture(site, 0.7, rng)
    image = bright["fat"] * (1 + 0.10 * coarse + 0.05 * fine)

    def ellipsoid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float, turn: float = 0.0) -> np.ndarray:
        """About the distance from its surface in mm, negative inside; turned by `turn` radians in the slice."""
        cosine, sine = math.cos(turn), math.sin(turn)
        u, v = (cosine / rx) * (x - cx) + (sine / rx) * (y - cy), (cosine / ry) * (y - cy) - (sine / ry) * (x - cx)
        return (np.sqrt(u * u + v * v + ((z - cz) / rz) ** 2) - 1) * min(rx, ry)

    def paint(distance: np.ndarray, brightness: np.ndarray | float) -> None:
        """Over what is there, with a partial volume across 1 mm of edge."""
        nonlocal image
        image += np.clip(0.5 - distance, 0, 1) * (brightness - image)

    muscle = bright["muscle"] * (1 + 0.10 * coarse + 0.06 * fine)
    marrow = bright["marrow"] * (1 + 0.10 * coarse)
    wall = a + uniform(7, 10)  # of the pelvis, at the sides
    paint(ellipsoid(0, -b - uniform(24, 28), 0, 30, 5, 80), muscle)  # rectus abdominis
    for side in (-1, 1):
        paint(ellipsoid(side * (wall + 14), b + uniform(20, 24), 0, 20, 11, 80, side * 0.6), muscle)  # gluteus
        head = ellipsoid(side * (wall + 18), uniform(-6, 0), uniform(2, 8), 15, 15, 24)  # of the femur
        paint(head, bright["cortex"])
        paint(head + 1.8, marrow)
        obturator = ellipsoid(
            side * (wall + 3), uniform(-4, 2), 4, uniform(3.5, 5), uniform(16, 21), 45, side * uniform(0.1, 0.3)
        )
        paint(obturator, muscle)
        paint(ellipsoid(side * (a + 2.5), b * 0.6, -c, 1.8, b * 1.2, c * 1.5, side * 0.3), muscle)  # levator ani
    pubis = ellipsoid(uniform(-2, 2), -b - uniform(13, 16), -6, 13, 6, 15)
    paint(pubis, bright["cortex"])
    paint(pubis + 1.5, marrow)

    bladder = ellipsoid(
        uniform(-3, 3), -b * uniform(0.2, 0.5), c + uniform(8, 11), a * uniform(1.0, 1.4), b * uniform(1.0, 1.4), 13
    )
    paint(bladder, bright["wall"])
    paint(bladder + 1.8, bright["bladder"])
    for side in (-1, 1):
        vesicle = ellipsoid(side * a * 0.5, b * 0.75, c, a * 0.55, b * 0.32, c * 0.4, side * uniform(-0.5, -0.1))
        paint(vesicle, bright["vesicle"] * (1 + 0.25 * fine))
    paint(ellipsoid(0, b * 0.1, -c - uniform(4, 7), a * 0.5, b * 0.5, 6), bright["bulb"] * (1 + 0.10 * fine))
    towards = uniform(-0.9, 0.9) + math.pi * rng.integers(2)
    aside, behind = (a + uniform(7, 12)) * math.cos(towards), (b + uniform(7, 12)) * math.sin(towards)
    node = ellipsoid(aside, behind, uniform(-0.6, 0.8) * c, uniform(5, 8), uniform(5, 8), uniform(6, 10))
    paint(node, bright["node"] * (1 + 0.12 * coarse))

    balloon = site.coil > 0
    radius = uniform(11, 13) if balloon else uniform(8, 11)
    rectum_y = b + radius * (0.9 if balloon else 0.8) + uniform(0.5, 2)
    rectum = ellipsoid(uniform(-2, 2), rectum_y, 0, radius * uniform(1.0, 1.2), radius * (0.95 if balloon else 0.8), 70)
    paint(rectum, bright["wall"])
    stool = 0.0 if balloon else uniform(0, 0.4)
    paint(rectum + (1.2 if balloon else 2.5), bright["lumen"] + stool * np.clip(0.5 + coarse, 0, 1))

    dent = uniform(1.0, 2.5) * np.exp(-((x / (0.45 * a)) ** 2)) * (y > 0)  # where the rectum lies
    gland = ellipsoid(0, 0, 0, a, b, c) + dent
    paint(gland - 0.4, bright["capsule"])
    paint(gland + 0.8, bright["peripheral"] * (1 + 0.4 * site.mottle * fine))
    share = uniform(0.60, 0.78)
    transition = ellipsoid(0, -b * 0.22, c * 0.1, a * share, b * share, c * 0.8)
    paint(transition - 0.4, bright["capsule"])
    paint(transition + 0.4, bright["transition"] * (1 + site.mottle * coarse))
    if uniform(0, 1) < 0.4:
        lesion = ellipsoid(uniform(-0.6, 0.6) * a, b * 0.6, uniform(-0.4, 0.4) * c, uniform(2, 4), uniform(2, 3), 5)
        paint(lesion, bright["capsule"])
    return np.clip(image, 0, 1), gland < 0, rectum_y


def scan(site: Site, tissue: np.ndarray, rectum: float, rng: np.random.Generator) -> np.ndarray:
    """What the site's scanner makes of the tissue: (D, H, W) -> float32 (D, H, W), positive."""
    half = (site.pixels - 1) / 2 * site.spacing[1]
    x = np.linspace(-1, 1, site.pixels, dtype=np.float32)
    y = x[:, None]
    terms = rng.standard_normal(5, dtype=np.float32) * site.bias
    bias = terms[0] * x + terms[1] * y + terms[2] * x * y + terms[3] * (x * x - 1 / 3) + terms[4] * (y * y - 1 / 3)
    squared = (half * x) ** 2 + (half * y - rectum) ** 2
    coil = 1 + site.coil * rng.uniform(0.8, 1.2) / (1 + squared / 14**2) ** 1.5
    image = tissue ** (site.gamma * rng.uniform(0.9, 1.1)) * (np.exp(bias) * coil)
    image = gaussian_filter(image, (0, site.blur / site.spacing[1], site.blur / site.spacing[2]), truncate=3)
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * (site.noise * rng.uniform(0.8, 1.2))
    return np.hypot(image + real, imaginary)


def to_unit(image: np.ndarray) -> np.ndarray:
    """The intensity rule, slice by slice: (D, H, W), not constant -> float32 (D, H, W) in [0, 1]."""
    low, high = np.stack([np.percentile(one[one > 0], (0.2, 99.8)) for one in image]).T.astype(np.float32)[
        ..., None, None
    ]
    return (np.clip(image, low, high) - low) / (high - low)


def _patient(site: Site, rng: np.random.Generator) -> list[np.ndarray]:
    """Coordinates x, y, z in mm, float32, each (D, H, W), of a patient who lies shifted, turned and smoothly bent."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * s
        for n, s in zip((site.slices, site.pixels, site.pixels), site.spacing, strict=True)
    ]
    shift = rng.uniform(-1, 1, 3) * (2, 10, 10)
    z, y, x = (axis - s for axis, s in zip(axes, shift, strict=True))
    z, y = z[:, None, None], y[:, None]
    roll, pitch, yaw = rng.uniform(-1, 1, 3) * (0.10, 0.20, 0.10)
    turned = (x + roll * y + yaw * z, y - roll * x + pitch * z, z - 0.3 * pitch * y)
    bent = []
    for coordinate, size in zip(turned, (2.2, 2.2, 1.0), strict=True):
        wave, phase = rng.uniform(2 * math.pi / 90, 2 * math.pi / 40, (3, 3)), rng.uniform(0, 2 * math.pi, (3, 3))
        sines = [np.sin(np.outer(wave[:, i], axis) + phase[:, i, None]) for i, axis in enumerate(axes)]
        bent.append((coordinate + size * np.einsum("kz,ky,kx->zyx", *sines)).astype(np.float32))
    return bent


def _texture(site: Site, grain: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1, smoothed by `grain` mm, float32 (D, H, W)."""
    white = rng.standard_normal((site.slices, site.pixels, site.pixels), dtype=np.float32)
    smooth = gaussian_filter(white, [grain / s for s in site.spacing], truncate=3, mode="wrap")
    return smooth / smooth.std()
