"""Polyps in colonoscopy of six hospitals (PolypGen, 1,537 single frames): one hospital, one domain.

Ali et al. A multi-centre polyp detection and segmentation dataset for generalisability assessment. Scientific Data
2023. https://doi.org/10.1038/s41597-023-01981-y; Synapse syn26376615.

    centre  C1   C2   C3   C4   C5   C6
    frames  256  301  457  227  208  88

The sequences of the release, positive and negative, are not used. Some 126 frames show no polyp: they have a mask,
which is empty. Sizes differ, up to 1920 x 1080. The release says of no frame which patient it is from.
"""

from pathlib import Path

from dgbench.images.mock import Sketch, write_jpg
from dgbench.images.photo_task import PhotoTask

FRAMES = {"C1": 256, "C2": 301, "C3": 457, "C4": 227, "C5": 208, "C6": 88}


class PolypGen(PhotoTask):
    """One structure. Masks are JPEG files, so they are parted at 128."""

    domains = tuple(FRAMES)
    structures = ("polyp",)
    image_size = 352
    steps = 8000  # as prostate
    empty_masks = True
    cases_expected = FRAMES
    citation = "Ali et al., Scientific Data 2023 (PolypGen)"
    licence = "CC BY 4.0"
    collections = ("PolypGen",)
    download = (
        "log in at https://www.synapse.org and download PolypGen2021_MultiCenterData_v3 (syn26376615): put its folders "
        "data_C1 to data_C6 there, each with images_CN/NAME.jpg and masks_CN/NAME_mask.jpg"
    )
    access = "account"
    steps_to_get = (
        "make an account at https://www.synapse.org and log in",
        "download PolypGen2021_MultiCenterData_v3 of project syn26376615",
        "unpack it and put its folders data_C1 to data_C6 into the task's folder",
    )

    def find(self, domain: str) -> dict[str, list[Path]]:
        """By the images. One image of C3 has a stray character behind its number, which its mask has not."""
        images = self.names(f"data_{domain}/images_{domain}", ".jpg")
        masks = self.folder / f"data_{domain}" / f"masks_{domain}"
        return {(i := name.rstrip("_]")): [path, masks / f"{i}_mask.jpg"] for name, path in images.items()}

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Four frames a centre, one of them without a polyp, one of C3 with the stray character."""
        for number, domain in enumerate(FRAMES):
            for n in range(4):
                labels = sketch.labels(48, 64) * (n != 3)
                name = "C3_EndoCV2021_00489" if domain == "C3" and n == 0 else f"{domain}_{n:05d}"
                stray = "_" if name.endswith("00489") else ""
                place = folder / f"data_{domain}"
                write_jpg(place / f"images_{domain}" / f"{name}{stray}.jpg", sketch.photograph(labels, number))
                write_jpg(place / f"masks_{domain}" / f"{name}_mask.jpg", labels * 255)
