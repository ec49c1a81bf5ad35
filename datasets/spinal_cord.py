"""Spinal cord and its grey matter in MRI of four centres (SCGM challenge 2016, 40 labelled subjects, four raters).

Prados et al. Spinal cord grey matter segmentation challenge. NeuroImage 2017. https://doi.org/10.1016/j.neuroimage.2017.03.010
http://niftyweb.cs.ucl.ac.uk/program.php?p=CHALLENGE

    domain      cases  released as  voxels in mm
    ucl         10     site1        0.5, 0.5, 5
    montreal    10     site2        0.5, 0.5, 5
    zurich      10     site3        0.5, 0.5, 2.5
    vanderbilt  10     site4        0.29, 0.29, 5

Healthy subjects, few slices each. Four raters marked grey matter (1) and white matter (2); the reference is what more
than half of them marked: three of four. The cord is both, so that grey matter lies inside it. Subjects 11 to 20 of each
site come without masks and are not used. In the plane a cord is 30 pixels wide: image_size keeps the image's middle.
"""

from pathlib import Path

import numpy as np

from dgbench.errors import require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, channels_first, read_case, window
from dgbench.images.mock import FEW, Sketch, write_nifti
from dgbench.task import Case

SITES = {"ucl": 1, "montreal": 2, "zurich": 3, "vanderbilt": 4}
SPACING = {  # as released; what is read is the header's
    **dict.fromkeys(("ucl", "montreal"), (5.0, 0.5, 0.5)),
    **{"zurich": (2.5, 0.5, 0.5), "vanderbilt": (5.0, 0.29, 0.29)},
}
LABELS = {"cord": (1, 2), "grey_matter": (1,)}
RATERS = (1, 2, 3, 4)


class SpinalCord(FileTask):
    """Two structures, the grey matter inside the cord."""

    domains = tuple(SITES)
    structures = tuple(LABELS)
    image_size = 288
    steps = 8000  # as prostate
    unit = "mm"
    cases_expected = dict.fromkeys(domains, 10)
    intensity = "each slice: 0 to its maximum (as Liu et al., MICCAI 2021, DGNet, divide by it)"
    citation = "Prados et al., NeuroImage 2017 (SCGM challenge); majority of four raters"
    licence = "licence.txt of the release, agreed to at registration"
    collections = ("SCGM 2016",)
    access = "form"
    steps_to_get = (
        "register at http://niftyweb.cs.ucl.ac.uk/program.php?p=CHALLENGE and agree to the licence",
        "download the training data and unpack them so that train/ lies in the task's folder",
    )
    download = (
        "the SCGM challenge's training data (https://doi.org/10.1016/j.neuroimage.2017.03.010), after registration at "
        "http://niftyweb.cs.ucl.ac.uk/program.php?p=CHALLENGE: put train/ there, with "
        "siteK-scNN-image.nii.gz and siteK-scNN-mask-r1.nii.gz to -r4.nii.gz"
    )

    def case_ids(self, domain: str) -> list[str]:
        """By the number of the subject: 01 to 10 have masks."""
        require(domain, self.domains, "domain")
        return [f"sc{n:02d}" for n in range(1, 1 + (FEW if self.is_mock else 10))]

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, the four raters' masks]. Raises `DataError` when one of them is not there."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        stem = self.folder / "train" / f"site{SITES[domain]}-{case_id}"
        paths = [Path(f"{stem}-image.nii.gz"), *(Path(f"{stem}-mask-r{r}.nii.gz") for r in RATERS)]
        return self.there(paths, f"subject {domain}/{case_id}")

    def load(self, domain: str, case_id: str) -> Case:
        """The volume and what the majority marked: a voxel that two raters call cord and two do not is none."""
        image, *masks = self.files(domain, case_id)
        pixels, of_raters = read_case(image, masks)
        votes = np.sum([self.planes(m, p, LABELS) for m, p in zip(of_raters, masks, strict=True)], axis=0)
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), votes * 2 > len(RATERS), pixels.spacing)

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The task's rule, slice by slice: float32 (D, 1, H, W) in [0, 1]."""
        return channels_first(np.stack([window(s, 0, s.max()) for s in pixels.values]))

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released: raters agree on the cord and differ on grey matter; a subject without masks lies in test/."""
        for k, domain in enumerate(self.domains):
            for case_id in self.case_ids(domain)[:FEW]:
                name = f"site{SITES[domain]}-{case_id}"
                plane = sketch.labels(48, 48, structures=2, nested=True)
                labels = np.stack([plane, np.roll(plane, 1, axis=0), np.roll(plane, 1, axis=1)])
                image = sketch.volume(labels, k, low=1)
                write_nifti(folder / f"train/{name}-image.nii.gz", image, SPACING[domain])
                for rater in RATERS:
                    inner = np.roll(labels == 2, rater, axis=2) & (labels > 0)
                    mask = np.where(inner, 1, 2 * (labels > 0)).astype(np.uint8)
                    write_nifti(folder / f"train/{name}-mask-r{rater}.nii.gz", mask, SPACING[domain])
                (folder / f"train/{name}-levels.txt").write_text("C3, C4\n")
            write_nifti(folder / f"test/site{SITES[domain]}-sc11-image.nii.gz", image, SPACING[domain])
