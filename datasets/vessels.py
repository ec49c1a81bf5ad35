"""Retinal vessels in fundus photographs of four sets, scored inside the field of view.

    domain     cases  pixels       outlined by     field of view   from
    DRIVE      20     565 x 584    first observer  released        Staal et al., TMI 2004
    STARE      20     700 x 605    A. Hoover       none            Hoover et al., TMI 2000
    CHASE_DB1  28     999 x 960    first observer  none            Fraz et al., TBME 2012
    HRF        45     3504 x 2336  one observer    apart           Odstrcilik et al., IET Image Processing 2013

DRIVE is its training set: the masks of its test set are not released any more. CHASE_DB1 has both eyes of 14 children,
and a child is a group. As a benchmark of generalization: Lyu et al. AADG. TMI 2022, whose package RVS brings a field of
view for every photograph. Where the makers' release has none, it is drawn: the largest region that is brighter than 0.1
in some channel, its holes filled. Outside of it neither what is outlined nor what is predicted counts.
"""

import csv
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from scipy.ndimage import binary_fill_holes, label

from dgbench.errors import DataError
from dgbench.images.fetch import Download
from dgbench.images.mock import Sketch, write_jpg, write_packed_ppm, write_png, write_tiff
from dgbench.images.photo_task import PhotoTask, read_gray_masks, white
from dgbench.task import Case

DARK = 0.1  # of the range: the surroundings of a fundus are darker in every channel
PHOTOGRAPHS = {"DRIVE": 20, "STARE": 20, "CHASE_DB1": 28, "HRF": 45}
NUMBER = {"DRIVE": r"\d+(?=_)", "STARE": r"im\d+", "CHASE_DB1": r"\d+[LR]", "HRF": r"\d+_(?:h|dr|g)"}
EYES = ("healthy", "diabetic_retinopathy", "glaucoma")
RELEASED = {  # by domain, the folders of photographs, masks and fields of view
    "DRIVE": (["DRIVE/training/images"], ["DRIVE/training/1st_manual"], ["DRIVE/training/mask"]),
    "STARE": (["STARE/stare-images"], ["STARE/labels-ah"], []),
    "CHASE_DB1": (["CHASEDB1"], ["CHASEDB1"], []),
    "HRF": tuple([f"HRF/{eye}{kind}" for eye in EYES] for kind in ("", "_manualsegm", "_fovmask")),
}
ENDINGS = {"CHASE_DB1": (".jpg", "_1stHO.png", "")}  # it has photographs and the masks of two observers in one folder
PACKAGED = {  # DRIVE's test set is left out, which is not released with masks any more
    "DRIVE": ["RVS/DRIVE/train"],
    "STARE": ["RVS/STARE"],
    "CHASE_DB1": ["RVS/CHASEDB1/train", "RVS/CHASEDB1/test"],
    "HRF": ["RVS/HRF/train", "RVS/HRF/test"],
}
with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as _file:  # where the sets lie
    ARCHIVES = tuple(
        Download(row["url"], Path(urlsplit(row["url"]).path).name, row["sha256"] or None, unpack_to=row["unpack_to"])
        for row in csv.DictReader(_file)
    )


class Vessels(PhotoTask):
    """One structure."""

    domains = tuple(PHOTOGRAPHS)
    structures = ("vessels",)
    image_size = 512
    steps = 8000  # as prostate
    cases_expected = PHOTOGRAPHS
    scored_in = "the field of view"
    further_metrics = ("cldice",)  # vessels are thin: are they connected?
    citation = (
        "Staal et al. 2004 (DRIVE); Hoover et al. 2000 (STARE); Fraz et al. 2012 (CHASE_DB1); Odstrcilik et al. 2013"
    )
    licence = "DRIVE: research, no redistribution; STARE: none stated; CHASE_DB1, HRF: CC BY 4.0"
    collections = tuple(PHOTOGRAPHS)
    download = (
        "`dgbench data fetch`, or see https://github.com/CRazorback/AADG for RVS/ and put it there, or the sets "
        "as DRIVE/training/, STARE/{stare-images,labels-ah}/, CHASEDB1/, HRF/{healthy,healthy_manualsegm,...}/"
    )
    sources_of_data = ARCHIVES

    @property
    def layout(self) -> str:
        """ "RVS" as AADG passes the sets on, or "releases" as their makers do."""
        return "RVS" if (self.folder / "RVS").is_dir() else "releases"

    def group(self, domain: str, case_id: str) -> str:
        """Of CHASE_DB1 the child, of whom both eyes are there; of the others the photograph."""
        return case_id[:-1] if domain == "CHASE_DB1" else case_id

    def find(self, domain: str) -> dict[str, list[Path]]:
        """Paired by number. Raises `DataError` that names photographs without a mask or a field of view."""
        if self.layout == "RVS":
            folders = [[f"{place}/{kind}" for place in PACKAGED[domain]] for kind in ("image", "mask", "roi")]
            endings = ("", "", "")
        else:
            folders = list(RELEASED[domain])
            folders[2] = [f for f in folders[2] if domain == "DRIVE" or (self.folder / f).is_dir()]
            endings = ENDINGS.get(domain, ("", "", ""))
        photographs, masks, fields = (self._by_number(domain, *where) for where in zip(folders, endings, strict=True))
        for kind, found in (("mask", masks), ("field of view", fields if folders[2] else photographs)):
            if lacking := sorted(set(photographs) - set(found)):
                raise DataError(f"{domain}: no {kind} for the photograph {', '.join(lacking[:5])}", self.download)
        return {n: [p, masks[n], *([fields[n]] if fields else [])] for n, p in photographs.items()}

    def _by_number(self, domain: str, folders: list[str], ending: str) -> dict[str, Path]:
        """{number: file} of the files in some folders that have a number in their name."""
        numbers: dict[str, Path] = {}
        for path in (p for folder in folders for p in self.names(folder, ending).values()):
            if (number := re.search(NUMBER[domain], path.name)) is None:
                continue
            if number[0] in numbers:
                raise DataError(f"{path} and {numbers[number[0]]} have one number", "keep one of the two")
            numbers[number[0]] = path
        return numbers

    def load(self, domain: str, case_id: str) -> Case:
        """The photograph and its vessels inside the field of view."""
        image, mask, *fields = self.files(domain, case_id)
        pixels, (values, *drawn) = read_gray_masks(image, [mask, *fields])
        vessels, odd = white(values, mask)
        unit = self.intensities(pixels)
        field = white(drawn[0], fields[0])[0] if drawn else field_of_view(unit[0])
        return Case(case_id, unit, (vessels & field)[None, None], (1.0, 1.0, 1.0), odd, field[None])

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """The makers' layouts: GIF masks, packed PPM, two observers in one folder, endings of two cases."""
        names = ("21", "22", "23"), ("im0001", "im0002"), ("01L", "01R", "02L"), ("01_h", "02_dr", "03_g")
        for k, numbers in enumerate(names):
            for i, number in enumerate(numbers):
                labels = sketch.labels(48, 56)
                vessels = (labels > 0) & (np.arange(56) % 8 < 2)  # stripes on a disc, on black
                photograph = sketch.photograph(vessels, k) * (labels > 0)[..., None]
                mask, field = vessels * np.uint8(255), labels * 255
                if k == 0:
                    write_tiff(folder / f"DRIVE/training/images/{number}_training.tif", photograph)
                    write_png(folder / f"DRIVE/training/1st_manual/{number}_manual1.gif", mask)
                    write_png(folder / f"DRIVE/training/mask/{number}_training_mask.gif", field)
                elif k == 1:
                    write_packed_ppm(folder / f"STARE/stare-images/{number}.ppm.gz", photograph)
                    write_packed_ppm(folder / f"STARE/labels-ah/{number}.ah.ppm.gz", mask)
                elif k == 2:
                    write_jpg(folder / f"CHASEDB1/Image_{number}.jpg", photograph)
                    write_png(folder / f"CHASEDB1/Image_{number}_1stHO.png", mask)
                    write_png(folder / f"CHASEDB1/Image_{number}_2ndHO.png", field)
                else:
                    write_jpg(folder / f"HRF/{EYES[i]}/{number}.{'JPG' if i == 1 else 'jpg'}", photograph)
                    write_tiff(folder / f"HRF/{EYES[i]}_manualsegm/{number}.tif", mask)


def field_of_view(image: np.ndarray) -> np.ndarray:
    """(3, H, W) in [0, 1] -> bool (H, W): the largest region that is not dark in every channel, its holes filled."""
    regions, count = label(image.max(axis=0) > DARK)
    if not count:
        return np.ones(image.shape[1:], bool)
    return binary_fill_holes(regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))
