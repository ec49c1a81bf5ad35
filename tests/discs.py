"""A task that fits in a test: discs on noise, three domains of photographs in a folder, drawn and written as PNG."""

from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = {"bright": (0.2, 0.8), "dim": (0.3, 0.6), "inverted": (0.7, 0.3)}  # gray of ground and disc
SIZE = 48


def draw(rng: np.random.Generator, ground: float, disc: float) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask), uint8 (48, 48): one disc of 7 to 11 pixels radius, mask 0 or 1."""
    y, x = np.mgrid[:SIZE, :SIZE]
    row, column, radius = rng.uniform(16, 32), rng.uniform(16, 32), rng.uniform(7, 11)
    mask = (y - row) ** 2 + (x - column) ** 2 < radius**2
    image = np.where(mask, disc, ground) + rng.normal(0, 0.05, mask.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8), mask.astype(np.uint8)


def write_discs(folder: Path, cases: int = 5, steps: int = 12) -> Path:
    for number, (domain, (ground, disc)) in enumerate(DOMAINS.items()):
        for kind in ("images", "masks"):
            (folder / domain / kind).mkdir(parents=True)
        for case in range(cases):
            image, mask = draw(np.random.default_rng([number, case]), ground, disc)
            Image.fromarray(image).save(folder / domain / "images" / f"case{case}.png")
            Image.fromarray(mask).save(folder / domain / "masks" / f"case{case}.png")
    (folder / "task.toml").write_text(f'name = "discs"\nstructures = ["disc"]\nimage_size = {SIZE}\nsteps = {steps}\n')
    return folder
