"""Four abdominal organs in CT and in MRI (BTCV, 30 volumes; CHAOS T2-SPIR, 20 volumes): two modalities, two domains.

Landman et al. MICCAI Multi-Atlas Labeling Beyond the Cranial Vault (BTCV), 2015. https://doi.org/10.7303/syn3193805
Kavur et al. CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation. Medical Image Analysis 2021.
https://zenodo.org/records/3431873. As a task of generalization: Ouyang et al. Causality-Inspired Single-Source Domain
Generalization for Medical Image Segmentation. TMI 2022 (CSDG).

    domain  cases  trained on, validated on   labels in the files
    ct      30     21, 9                      6 liver, 2 right kidney, 3 left kidney, 1 spleen; 9 others are dropped
    mr      20     14, 6                      gray 55-70 liver, 110-135 right, 175-200 left kidney, 240-255 spleen

Two layouts: both sets as they are released, or the 2-D slices of 192 pixels that SLAug (AAAI 2023) passes on, cut to
those with an organ. Released CT and MR are turned by their headers so that the patient's right is on the left and the
front is up. CHAOS pairs a slice with its mask by the order of FILE NAMES, which is not that of positions.
"""

from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.dicom import series_files
from dgbench.images.fetch import Download
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, channels_first, read, read_case, window
from dgbench.images.mock import FEW, Sketch, write_nifti
from dgbench.task import Case

LABELS = {"liver": (1,), "right_kidney": (2,), "left_kidney": (3,), "spleen": (4,)}
OF_BTCV = {"liver": (6,), "right_kidney": (2,), "left_kidney": (3,), "spleen": (1,)}
OTHERS = (4, 5, *range(7, 14))  # gallbladder, oesophagus, stomach, vessels, pancreas, adrenal glands
RANGES = {"liver": (55, 70), "right_kidney": (110, 135), "left_kidney": (175, 200), "spleen": (240, 255)}
GRAY = {name: range(low, high + 1) for name, (low, high) in RANGES.items()}  # of CHAOS, as nnU-Net's converter has it
COUNTS = {"ct": 30, "mr": 20}
SETS = {"ct": "SABSCT", "mr": "CHAOST2"}  # folders of the processed layout
PROCESSED = ("", "abdominal", "data/abdominal")
RELEASED = {
    "ct": ("RawData/Training", "Abdomen/RawData/Training", "Training"),
    "mr": ("Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR", "MR"),
}
SOFT_TISSUE = (-125, 275)  # Hounsfield units
HIGHEST = 99.5  # percentile of an MR volume that becomes 1


class Abdomen(FileTask):
    """Four structures. A case is named by its number in its set."""

    domains = ("ct", "mr")
    structures = tuple(LABELS)
    image_size = 192
    steps = 8000  # as prostate
    unit = "mm"
    cases_expected = COUNTS
    intensity = "CT: -125 to 275 HU; MR: minimum to 99.5th percentile; SLAug's slices: minimum to maximum (all: CSDG)"
    citation = "Landman et al. 2015 (BTCV); Kavur et al., MedIA 2021 (CHAOS); split of Ouyang et al., TMI 2022 (CSDG)"
    licence = "BTCV: the terms of Synapse, agreed to there; CHAOS: see its record on Zenodo"
    collections = ("BTCV", "CHAOS")
    access = "account"  # for CT; MR is open
    steps_to_get = (
        "CT: get an account at https://www.synapse.org, ask for access to syn3193805 and download Abdomen/RawData.zip",
        "unpack it so that RawData/Training/img and RawData/Training/label lie in the task's folder",
        "or, instead of both, the slices that https://github.com/Kaiseem/SLAug links: SABSCT/ and CHAOST2/",
    )
    sources_of_data = (
        Download(
            "https://zenodo.org/records/3431873/files/CHAOS_Train_Sets.zip",
            "CHAOS_Train_Sets.zip",
            "535f7d3417a0e0f0d9133fb3d962423d2a9cf3f103e4f09a3d8a1daf87d5d2fc",
            unpack_to="",
        ),
    )
    download = (
        "BTCV's RawData/Training/{img,label} (https://www.synapse.org, syn3193805, with an account) and CHAOS's "
        "Train_Sets/MR (https://zenodo.org/records/3431873, CHAOS_Train_Sets.zip), or SLAug's processed SABSCT/ and "
        "CHAOST2/ (https://github.com/Kaiseem/SLAug), must lie there"
    )

    @property
    def layout(self) -> str:
        """SLAug's slices where they lie; else the two releases."""
        return "processed (SLAug)" if self._processed("ct") or self._processed("mr") else "BTCV and CHAOS as released"

    def case_ids(self, domain: str) -> list[str]:
        """Numbers of the set's own. No list of them is published: those that lie there, which `verify` counts."""
        if place := self._processed(require(domain, self.domains, "domain")):
            names = {p.name[6:-7] for what in ("image", "label") for p in place.glob(f"{what}_*.nii.gz")}
        elif domain == "ct":
            place = self._released(domain)
            names = {p.name[-11:-7] for what in ("img", "label") for p in place.glob(f"{what}/{what}*.nii.gz")}
        else:
            names = {p.name for p in self._released(domain).iterdir()}
        return sorted(f"{int(name):04d}" for name in names if name.isdigit())

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """CSDG's: in the order of numbers, the last 70 % train. Its 20 % of source test and 10 % validate together."""
        ids = self.case_ids(source)
        held_out = len(ids) - round(0.7 * len(ids))
        return ids[held_out:], ids[:held_out]

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask]; of released MR all slices, then all masks, each in the order of positions."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        if place := self._processed(domain):
            names = [f"{what}_{int(case_id)}.nii.gz" for what in ("image", "label")]
            return self.there([place / name for name in names], f"{domain}/{case_id}")
        place = self._released(domain)
        if domain == "ct":
            names = [f"img/img{case_id}.nii.gz", f"label/label{case_id}.nii.gz"]
            return self.there([place / name for name in names], f"{domain}/{case_id}")
        place = place / str(int(case_id)) / "T2SPIR"
        slices = series_files(place / "DICOM_anon")
        masks = sorted((place / "Ground").glob("*.png"))
        if len(slices) != len(masks):
            raise DataError(f"{place} holds {len(slices)} slices and {len(masks)} masks", self.download)
        by_name = dict(zip(sorted(slices), masks, strict=True))
        return [*slices, *(by_name[p] for p in slices)]

    def load(self, domain: str, case_id: str) -> Case:
        """The volume and its four organs."""
        paths = self.files(domain, case_id)
        if self._processed(domain):
            pixels, (labels,) = read_case(paths[0], [paths[1]], same_grid=False)
            image, planes = by_own_range(pixels), self.planes(labels, paths[1], LABELS)
        elif domain == "ct":
            pixels, (labels,) = read_case(paths[0], [paths[1]])
            image = channels_first(window(pixels.values, *SOFT_TISSUE))
            planes = self.planes(labels, paths[1], OF_BTCV, OTHERS)
        else:
            pixels, half = read(paths[0].parent), len(paths) // 2
            drawn = [read(p, mask=True).values for p in paths[half:]]
            planes = np.concatenate([self.planes(m, p, GRAY) for m, p in zip(drawn, paths[half:], strict=True)])
            image = by_own_range(pixels, HIGHEST)
            if planes.shape[2:] != image.shape[2:]:
                raise DataError(f"masks {paths[half].parent} differ in size from {paths[0].parent}", self.download)
        assert pixels.spacing is not None  # NIfTI files have one, and so has a series in order of positions
        axes = () if self._processed(domain) else _mirrored(pixels)
        return Case(case_id, _flip(image, axes), _flip(planes, axes), pixels.spacing)

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As SLAug passes it on: CT from 0 to 255, labels as floats."""
        for k, (domain, name) in enumerate(SETS.items()):
            for n in range(1, FEW + 1):
                labels = sketch.label_volume(3, 40, 40, structures=4)
                image = sketch.volume(labels, k, 0, 255 if domain == "ct" else 900).astype(np.float32)
                place = folder / "data/abdominal" / name / "processed"
                write_nifti(place / f"image_{n}.nii.gz", image, (7.7, 1.7, 1.7))
                write_nifti(place / f"label_{n}.nii.gz", labels.astype(np.float32), (7.7, 1.7, 1.7))

    def _processed(self, domain: str) -> Path | None:
        places = (self.folder / below / SETS[domain] / "processed" for below in PROCESSED)
        return next((p for p in places if p.is_dir()), None)

    def _released(self, domain: str) -> Path:
        for place in (self.folder / below for below in RELEASED[domain]):
            if place.is_dir():
                return place
        raise DataError(f"{self.folder} holds no {domain}: no folder {RELEASED[domain][0]}", self.download)


def by_own_range(pixels: Pixels, highest: float = 100) -> np.ndarray:
    """float32 (D, 1, H, W): the volume's minimum becomes 0, its percentile `highest` 1."""
    return channels_first(window(pixels.values, pixels.values.min(), float(np.percentile(pixels.values, highest))))


def _mirrored(pixels: Pixels) -> tuple[int, ...]:
    """Axes of (D, C, H, W) to turn: rows that run to the front, columns that run to the patient's right."""
    assert pixels.affine is not None
    return tuple(axis for axis, along in ((2, pixels.affine[1, 1]), (3, pixels.affine[0, 0])) if along > 0)


def _flip(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.flip(array, axes))
