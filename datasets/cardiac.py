"""Heart in two MRI sequences of the same patients (MS-CMRSeg 2019, 45 patients): bSSFP cine and late enhancement.

Zhuang. Multivariate Mixture Model for Myocardial Segmentation Combining Multi-Source Images. TPAMI 2019.
https://zmiclab.github.io/zxh/0/mscmrseg19
As papers on generalization pass it on: Su, Yao, Yang, Huang, Wang, Li. Rethinking Data Augmentation for Single-source
Domain Generalization in Medical Image Segmentation. AAAI 2023 (SLAug). https://github.com/Kaiseem/SLAug

    domain  cases  trained on   validated on   tested, when the other one is the source
    bSSFP   45     1 to 35      36 to 45       1 to 5
    LGE     45     6 to 45      1 to 5         36 to 45

Train and validation lists are SLAug's. There a method is tested on the other sequence of its own training patients, too
(bSSFP 1 to 35, LGE 6 to 45: the loader's test list is its train list). Here patients that were trained on are not
tested, which leaves the other one's validation patients, and numbers below published ones. It is presumed that a number
is one patient in both sequences. 2-D slices of 192 x 192, cut and resampled by whoever made the package.
"""

from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import read_case
from dgbench.images.mock import Sketch, write_nifti
from dgbench.task import Case

TRAINED_ON = {"bSSFP": range(1, 36), "LGE": range(6, 46)}
DRAWN = (1, 2, 20, 36, 45)
LABELS = {"myocardium": (1,), "left_ventricle": (2,), "right_ventricle": (3,)}
RAW = "patient*_C0.nii.gz"  # of the challenge's own files, which are not cut to slices of one size


class Cardiac(FileTask):
    """Three structures. A case is named by its patient's number."""

    domains = ("bSSFP", "LGE")
    structures = tuple(LABELS)
    image_size = 192
    steps = 8000  # as prostate
    unit = "mm"
    paired = True
    cases_expected = dict.fromkeys(domains, 45)
    intensity = "0.5th to 99.5th percentile of the volume, clipped (SLAug z-scores: by the volume where it is tested)"
    citation = "Zhuang, TPAMI 2019 (MS-CMRSeg 2019); slices and lists of Su et al., AAAI 2023 (SLAug)"
    licence = "the terms of MS-CMRSeg 2019, agreed to at registration"
    collections = ("MS-CMRSeg 2019",)
    access = "account"
    steps_to_get = (
        "register for MS-CMRSeg 2019 at https://zmiclab.github.io/zxh/0/mscmrseg19 and agree to its terms",
        "download the processed data that https://github.com/Kaiseem/SLAug links, on Google Drive "
        "(https://drive.google.com/file/d/1WlXGt3Nffzu1bn6co-qaidHjqWH51smU), and unpack them",
        "put data/cardiac/processed/ or its folders bSSFP/ and LGE/ in the task's folder",
    )
    download = (
        "register for MS-CMRSeg 2019 (https://zmiclab.github.io/zxh/0/mscmrseg19), then unpack the processed data that "
        "https://github.com/Kaiseem/SLAug links so that bSSFP/ and LGE/ lie there (or data/cardiac/processed/ with "
        "them), each with image_N.nii.gz and label_N.nii.gz, N from 1 to 45"
    )

    def case_ids(self, domain: str) -> list[str]:
        """Patients 1 to 45; of drawn images, some of each list."""
        require(domain, self.domains, "domain")
        return [f"patient{n:02d}" for n in (DRAWN if self.is_mock else range(1, 46))]

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """SLAug's lists."""
        ids, trained = self.case_ids(source), TRAINED_ON[require(source, self.domains, "source domain")]
        return [i for i in ids if _number(i) in trained], [i for i in ids if _number(i) not in trained]

    @property
    def layout(self) -> str:
        """There is one."""
        return "processed (SLAug)"

    @property
    def slices(self) -> Path:
        """The folder with bSSFP/ and LGE/. Raises `DataError` that says what else lies there."""
        for below in ("", "processed", "cardiac/processed", "data/cardiac/processed"):
            if (self.folder / below / "bSSFP").is_dir():
                return self.folder / below
        raw = "the challenge's own files, of which slices are still to be made"
        why = f"holds {raw if any(self.folder.rglob(RAW)) else 'no folder bSSFP'}"
        raise DataError(f"{self.folder} {why}", self.download)

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask]. Raises `DataError` when one of the two is not there."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        paths = [self.slices / domain / f"{what}_{_number(case_id)}.nii.gz" for what in ("image", "label")]
        return self.there(paths, f"{domain}/{case_id}")

    def load(self, domain: str, case_id: str) -> Case:
        """The slices and their masks, paired voxel by voxel as in SLAug's loader, whatever the headers say."""
        image, mask = self.files(domain, case_id)
        pixels, (labels,) = read_case(image, [mask], same_grid=False)
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), self.planes(labels, mask, LABELS), pixels.spacing)

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As SLAug passes it on: masks are stored as floats."""
        for n in DRAWN:
            labels = sketch.label_volume(3, 48, 48, structures=3)
            for k, domain in enumerate(self.domains):
                place = folder / "data/cardiac/processed" / domain
                write_nifti(place / f"image_{n}.nii.gz", sketch.volume(labels, k), (10.0, 1.2, 1.2))
                write_nifti(place / f"label_{n}.nii.gz", labels.astype(np.float32), (10.0, 1.2, 1.2))


def _number(case_id: str) -> int:
    return int(case_id.removeprefix("patient"))
