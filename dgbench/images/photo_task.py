"""Tasks of photographs and radiographs: which files lie there, and what the gray values of their masks mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, read, to_unit
from dgbench.task import Case

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
HALF = 128  # a mask of 0 and 255 that went through JPEG is parted here
FAR = 64  # a gray this far from 0 and from 255 is doubtful
MANY = 0.05  # as many doubtful pixels for each of the structure are more than a blurred border
LOSSY = "masks saved as JPEG are parted at 128; if these show more than one structure, save them as PNG without blur"


class PhotoTask(FileTask):
    """A case is one image file with its mask files. A subclass says where they lie and, in `planes`, what they mean.

    The names come from the folder where the release has no list; then all must be there: `cases_expected`.
    """

    unit = "px"
    intensity = "8-bit RGB divided by 255; gray is repeated in three channels"
    cases_expected: Mapping[str, int] = {}
    gray = False  # radiographs have one channel

    def __init__(self, data: Path | None = None):
        super().__init__(data)
        self._found: dict[str, dict[str, list[Path]]] = {}

    @abstractmethod
    def find(self, domain: str) -> dict[str, list[Path]]:
        """{case id: [image, its mask files]} of a domain. Raises `DataError` when a folder is not there."""

    def case_ids(self, domain: str) -> list[str]:
        """Sorted. Raises `DataError` for a copy that is not whole: results of a part would pass as those of all."""
        require(domain, self.domains, "domain")
        if domain not in self._found:
            found = self.find(domain)
            expected = self.cases_expected.get(domain, len(found))
            if len(found) != expected and not self.is_mock:
                raise DataError(
                    f"domain '{domain}' of task '{self.name}' has {len(found)} cases in {self.folder}, the release has "
                    f"{expected}",
                    self.download,
                )
            self._found[domain] = found
        return sorted(self._found[domain])

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, its mask files]."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        return self._found[domain][case_id]

    def load(self, domain: str, case_id: str) -> Case:
        """The image and its structures, at the image's own resolution."""
        image, *masks = self.files(domain, case_id)
        pixels, values = read_gray_masks(image, masks)
        planes, odd = self.structure_planes(domain, values, masks)
        return Case(case_id, self.intensities(pixels), planes[None], (1.0, 1.0, 1.0), odd)

    def structure_planes(
        self, domain: str, values: Sequence[np.ndarray], paths: Sequence[Path]
    ) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """(bool (K, H, W), what is odd) of the gray masks of a case; here one structure, the union of white regions."""
        parted = [white(v, p) for v, p in zip(values, paths, strict=True)]
        return np.any([mask for mask, _ in parted], axis=0)[None], [told for _, odd in parted for told in odd]

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """float32 (1, 3, H, W) in [0, 1]; (1, 1, H, W) of radiographs."""
        unit = to_unit(pixels)
        if self.gray:
            return unit.mean(axis=1, keepdims=True, dtype=np.float32)
        return np.repeat(unit, 3, axis=1) if unit.shape[1] == 1 else unit

    def names(self, folder: str, *endings: str) -> dict[str, Path]:
        """{name without ending: file} in a folder of the data. Raises `DataError` that says what to unpack."""
        place = self.folder / folder
        if not place.is_dir():
            raise DataError(f"task '{self.name}' lacks the folder {place}", self.download)
        found = [p for p in sorted(place.iterdir()) if p.name.endswith(endings) and not p.name.startswith(".")]
        return {p.name.removesuffix(next(e for e in endings if p.name.endswith(e))): p for p in found}


def read_gray_masks(image: Path, masks: Sequence[Path]) -> tuple[Pixels, list[np.ndarray]]:
    """An image and its masks as gray values, (H, W) each: colours by their luminance, a palette by its colours.

    Raises `DataError` that tells of every broken file, or of masks of another size than the image.
    """
    found, causes = [], []
    for path in (image, *masks):
        try:
            found.append(read(path))
        except DataError as error:
            causes.append(error.cause)
            remedy = error.remedy
    if causes:
        raise DataError("; ".join(causes), remedy)
    first, *rest = found
    grays = []
    for path, mask in zip(masks, rest, strict=True):
        values = mask.values
        if values.ndim == 4:
            values = np.rint(values @ np.array(LUMINANCE)).astype(np.uint8)
        if values.shape != first.values.shape[:3] or len(values) != 1:
            sizes = [" x ".join(map(str, v.shape[1:3])) for v in (values, first.values)]
            raise DataError(
                f"image and mask differ in size: {path} is {sizes[0]}, {image} is {sizes[1]} (height x width)",
                "save the mask on the grid of its image",
            )
        grays.append(values[0])
    return first, grays


def white(values: np.ndarray, path: Path) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """(the structure, what is odd) of a mask of 0 and 1, or of black and white: (H, W) -> bool (H, W)."""
    if values.max() <= 1:
        return values == 1, []
    mask = values >= HALF
    doubtful = int(np.count_nonzero((values >= FAR) & (values < 256 - FAR)))
    if doubtful <= MANY * np.count_nonzero(mask):
        return mask, []
    return mask, [(f"{doubtful} of the {values.size} pixels of {path} are neither near 0 nor near 255", LOSSY)]
