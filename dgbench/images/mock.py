"""Drawn images in the layout of a release: a plan, a plug-in or a cluster's script is tried before the data are here.

`Task.mock` writes a handful of small files with these. They have a release's names, types and encodings, and nothing of
its pictures: a score on them says that a command works, and no more. So such a task has another name, `mock-prostate`,
under which its results lie and stand in tables.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from dgbench.files import cache_folder, make_folder, sha256
from dgbench.names import MOCK
from dgbench.task import Task

FEW = 4  # cases of each domain, of tasks whose lists of cases are part of dgbench
MARK = "MOCK"  # a file in a folder of drawn images: counts and checksums of the release are not asked for there
SEED = 1
STEPS, SIDE = 20, 64  # of training, and of the square that networks see: a whole matrix takes about a minute


def drawn(kind: type[Task]) -> Task:
    """The task on drawn images, which are written into the cache if they are not there, and with a small budget.

    A task that computes its images is its own mock. Raises `UsageError` for a task without a `mock`.
    """
    task = kind()
    if kind.files is not Task.files:
        code = hashlib.sha256((task.code_fingerprint() + sha256(Path(__file__))).encode()).hexdigest()
        folder = cache_folder() / "mock" / f"{task.name}-{code[:12]}"
        if not (folder / MARK).is_file():
            _draw(task, folder)
        task = kind(folder)
    task.name, task.steps, task.image_size = MOCK + task.name, STEPS, min(SIDE, task.image_size)
    return task


def _draw(task: Task, folder: Path) -> None:
    """The folder appears whole: another process may be drawing the same."""
    building = Path(tempfile.mkdtemp(prefix=".new-", dir=make_folder(folder.parent)))
    try:
        task.mock(building, Sketch())
        (building / MARK).write_text("Drawn by dgbench in the layout of a release. No patient's images.\n")
        with suppress(OSError):
            os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class Sketch:
    """Draws labels and images that fit them; the same seed and the same calls give the same bytes."""

    def __init__(self, seed: int = SEED):
        self.rng = np.random.default_rng(seed)

    def labels(self, height: int, width: int, structures: int = 1, nested: bool = False) -> np.ndarray:
        """uint8 (height, width), 0 background, 1 to `structures`: ellipses side by side, or, nested, k inside k - 1."""
        y, x = np.mgrid[:height, :width]
        drawn = np.zeros((height, width), np.uint8)
        share = 1 if nested else structures  # of the width, for each ellipse beside another one
        for k in range(structures):
            if k == 0 or not nested:
                centre = (0.5 + self.rng.uniform(-0.08, 0.08)) * height
                middle = (k % share + 0.5 + self.rng.uniform(-0.05, 0.05)) * width / share
                half = self.rng.uniform(0.22, 0.32) * height, self.rng.uniform(0.24, 0.34) * width / share
            shrunk = 1 - k / (structures + 1) if nested else 1.0
            inside = ((y + 0.5 - centre) / half[0]) ** 2 + ((x + 0.5 - middle) / half[1]) ** 2 <= shrunk**2
            drawn[inside] = k + 1
        return drawn

    def label_volume(self, depth: int, height: int, width: int, structures: int = 1) -> np.ndarray:
        """uint8 (depth, height, width): `labels` in every slice, but, from three slices on, none in first and last."""
        plane = self.labels(height, width, structures)
        volume = np.zeros((depth, height, width), np.uint8)
        ends = 1 if depth > 2 else 0
        for z in range(ends, depth - ends):
            # Slices are moved by a pixel or two: no two of them are the same.
            volume[z] = np.roll(plane, tuple(self.rng.integers(-1, 2, 2)), axis=(0, 1))
        return volume

    def gray(self, labels: np.ndarray, domain: int) -> np.ndarray:
        """uint8, of the labels' shape: structures are brighter; `domain` moves ground, contrast and noise."""
        return np.rint(255 * self._seen(labels, domain)).astype(np.uint8)

    def photograph(self, labels: np.ndarray, domain: int) -> np.ndarray:
        """uint8 (H, W, 3) of labels (H, W), as `gray`, in the domain's tint."""
        tint = np.random.default_rng([SEED, domain]).uniform(0.6, 1.0, 3)
        return np.rint(255 * self._seen(labels, domain)[..., None] * tint).astype(np.uint8)

    def volume(self, labels: np.ndarray, domain: int, low: float = 0, high: float = 1000) -> np.ndarray:
        """int16, of the labels' shape, whatever it is, from about `low` to `high`: as `gray`."""
        return np.rint(low + (high - low) * self._seen(labels, domain)).astype(np.int16)

    def _seen(self, labels: np.ndarray, domain: int) -> np.ndarray:
        """float64 in [0, 1]. What a domain does to brightness is the same at every call; noise is drawn."""
        look = np.random.default_rng([SEED, domain])
        ground, contrast, noise = look.uniform(0.15, 0.45), look.uniform(0.2, 0.45), look.uniform(0.02, 0.06)
        most = max(int(labels.max()), 1)
        bright = ground + contrast * labels / most
        return (bright + noise * self.rng.standard_normal(labels.shape)).clip(0, 1)


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_png(path: Path, array: np.ndarray) -> None:
    """uint8 or uint16 (H, W), or uint8 (H, W, 3 or 4)."""
    _write(path, array)


def write_tiff(path: Path, array: np.ndarray) -> None:
    """As `write_png`."""
    _write(path, array)


def write_bmp(path: Path, array: np.ndarray) -> None:
    """uint8 (H, W) or (H, W, 3)."""
    _write(path, array)


def write_jpg(path: Path, array: np.ndarray) -> None:
    """uint8 (H, W) or (H, W, 3); a mask comes back with soft borders, as masks of releases in JPEG do."""
    _write(path, array)


def write_packed_ppm(path: Path, array: np.ndarray) -> None:
    """uint8 (H, W) or (H, W, 3), compressed: `.ppm.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"P{5 if array.ndim == 2 else 6}\n{array.shape[1]} {array.shape[0]}\n255\n".encode()
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def write_nifti(path: Path, array_zyx: np.ndarray, spacing_zyx: tuple[float, ...]) -> None:
    """(D, H, W), or (T, D, H, W) with a frame's duration first in `spacing_zyx`: the file has the axes turned round."""
    import nibabel  # slow to import

    path.parent.mkdir(parents=True, exist_ok=True)
    turned = nibabel.Nifti1Image(array_zyx.T, np.diag([*spacing_zyx[:-4:-1], 1.0]))
    turned.header.set_zooms(spacing_zyx[::-1])
    nibabel.save(turned, path)
