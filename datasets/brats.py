"""Brain tumour in MRI, four sequences of the same patients as four domains (BraTS 2018, 285 patients).

Bakas et al. Identifying the best machine learning algorithms for brain tumor segmentation, progression assessment, and
overall survival prediction in the BRATS challenge. arXiv 1811.02629. https://www.med.upenn.edu/sbia/brats2018
As a task of generalization: Zhou, Qi, Yang, Ni, Shi. Generalizable Cross-modality Medical Image Segmentation via Style
Augmentation and Dual Normalization. CVPR 2022.

    domain              cases  trained on, validated or tested
    flair t1 t1ce t2    285    228, 57: the lists of Zhou et al.

All sequences of a patient lie on one grid and share one mask. A method is trained on 228 patients in one sequence and
tested on the other 57 in the three others: no patient is on both sides. The 57 are the validation cases, too, in the
source's sequence, so that a selection by them has seen the tested patients, though never in the tested sequence.
"""

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, channels_first, read_case, window
from dgbench.images.mock import FEW, Sketch, write_nifti
from dgbench.task import Case

LABELS = {"tumour": (1, 2, 4)}  # core, oedema, enhancing; releases from 2023 on call the last one 3
PLACES = {  # by the folder that is there, where the patients' own folders lie
    "MICCAI_BraTS_2018_Data_Training": ("MICCAI_BraTS_2018_Data_Training/HGG", "MICCAI_BraTS_2018_Data_Training/LGG"),
    "HGG": ("HGG", "LGG"),
    "": ("",),
}


class Brats(FileTask):
    """One structure, the whole tumour: every label but 0."""

    domains = ("flair", "t1", "t1ce", "t2")
    structures = tuple(LABELS)
    image_size = 256
    steps = 8000  # as prostate
    unit = "mm"
    paired = True
    cases_expected = dict.fromkeys(domains, 285)
    intensity = "the volume's minimum to its maximum (Zhou et al., CVPR 2022)"
    citation = "Bakas et al., arXiv 1811.02629 (BraTS 2018); lists of Zhou et al., CVPR 2022 (Dual-Norm)"
    licence = "the terms of BraTS 2018, agreed to at registration"
    collections = ("BraTS 2018",)
    access = "account"
    steps_to_get = (
        "register at https://www.med.upenn.edu/sbia/brats2018/registration.html and ask for the training data of 2018",
        "download MICCAI_BraTS_2018_Data_Training.zip and unpack it in the task's folder",
    )
    download = (
        "BraTS 2018's training data, for registered users of https://www.med.upenn.edu/sbia/brats2018: put the "
        "patients' folders there, or HGG/ and LGG/ with them, each CASE/CASE_{flair,t1,t1ce,t2,seg}.nii or .nii.gz"
    )
    listed = Path(__file__).with_suffix(".csv")

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """{"train" or "test": ids}; of drawn images the first few."""
        return self._listed(FEW // 2 if self.is_mock else None)

    def _listed(self, first: int | None) -> dict[str, list[str]]:
        with open(self.listed, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {part: sorted(r["case"] for r in rows if r["list"] == part)[:first] for part in ("train", "test")}

    def case_ids(self, domain: str) -> list[str]:
        """Of both lists: a patient's name, the same in every domain."""
        require(domain, self.domains, "domain")
        return sorted(self._lists["train"] + self._lists["test"])

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """The lists of Zhou et al.: the same for every sequence."""
        require(source, self.domains, "source domain")
        return self._lists["train"], self._lists["test"]

    @property
    def layout(self) -> str:
        """Whether the patients' folders lie by grade, as released, or side by side."""
        return "by grade, HGG and LGG" if len(self._places()) > 1 else "patients side by side"

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask of all sequences]. Raises `DataError` when one of the two is not there."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        found = []
        for what in (domain, "seg"):
            names = [f"{case_id}/{case_id}_{what}.nii{end}" for end in (".gz", "")]
            paths = [self.folder / place / name for place in self._places() for name in names]
            if not (there := [p for p in paths if p.is_file()]):
                raise DataError(f"patient {case_id} lacks {case_id}_{what}.nii.gz in {self.folder}", self.download)
            found.append(there[0])
        return found

    def load(self, domain: str, case_id: str) -> Case:
        """The sequence's volume and the patient's mask."""
        image, mask = self.files(domain, case_id)
        pixels, (labels,) = read_case(image, [mask])
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), self.planes(labels, mask, LABELS), pixels.spacing)

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The task's rule: float32 (D, 1, H, W) in [0, 1]."""
        return channels_first(window(pixels.values, pixels.values.min(), pixels.values.max()))

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released, by grade: four sequences and one mask of each patient, with the labels 1, 2 and 4."""
        for n, case_id in enumerate(i for ids in self._listed(FEW // 2).values() for i in ids):
            place = folder / PLACES["HGG"][n % 2] / case_id
            labels = sketch.label_volume(4, 32, 32, structures=3)
            for k, domain in enumerate(self.domains):
                write_nifti(place / f"{case_id}_{domain}.nii.gz", sketch.volume(labels, k), (1.0, 1.0, 1.0))
            write_nifti(place / f"{case_id}_seg.nii.gz", np.where(labels == 3, 4, labels), (1.0, 1.0, 1.0))

    def _places(self) -> tuple[str, ...]:
        return next(places for there, places in PLACES.items() if (self.folder / there).is_dir())
