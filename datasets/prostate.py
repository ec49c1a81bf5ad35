"""Prostate in T2-weighted MRI of six hospitals (116 volumes, the SAML collection).

Liu, Dou, Heng. Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains. MICCAI 2020.
https://liuquande.github.io/SAML

    site    cases  field, coil               from
    RUNMC   30     3 T, surface              NCI-ISBI 2013
    BMC     30     1.5 T, endorectal         NCI-ISBI 2013
    I2CVB   19     3 T, none                 I2CVB
    UCL     13     1.5 and 3 T, none         PROMISE12
    BIDMC   12     3 T, endorectal           PROMISE12
    HK      12     1.5 T, endorectal         PROMISE12

Whole volumes (Raw_nii); the release's Clipped_nii has lost the slices without prostate, on which methods fail.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, channels_first, is_image, read, read_case, values_of, window
from dgbench.images.mock import FEW, Sketch, write_nifti
from dgbench.task import Case

SITES: dict[str, Iterable[int]] = {  # case numbers as the release has them
    "RUNMC": range(30),
    "BMC": range(30),
    "I2CVB": range(19),
    "UCL": (1, *range(26, 38)),
    "BIDMC": (0, *range(2, 13)),
    "HK": range(38, 50),
}
RELEASED_AS = {"RUNMC": "ISBI", "BMC": "ISBI_1.5", "I2CVB": "HCRUDB"}
SIDE = 384  # of every slice of the release


class Prostate(FileTask):
    """One structure. The NCI-ISBI sites label two zones, 1 and 2; both are prostate."""

    domains = tuple(SITES)
    structures = ("prostate",)
    image_size = SIDE
    steps = 8000  # at batch 8: as the sdg-protocol-audit (2026), which compared seven methods on these six sites
    unit = "mm"
    intensity = "each slice: positive voxels clipped at their 0.2th and 99.8th percentile, then minimum 0, maximum 1"
    citation = "Liu et al., MICCAI 2020 (SAML); Bloch et al. 2015 (NCI-ISBI); Lemaitre et al. 2015 (I2CVB); PROMISE12"
    licence = "none stated for the collection; NCI-ISBI 2013, I2CVB and PROMISE12 have their own terms"
    collections = ("NCI-ISBI 2013", "I2CVB", "PROMISE12")
    download = (
        "download Raw_nii from https://liuquande.github.io/SAML and put its six site folders there as RUNMC (released "
        "as ISBI), BMC (ISBI_1.5), I2CVB (HCRUDB), UCL, BIDMC and HK, each with CaseNN.nii.gz and "
        "CaseNN_segmentation.nii.gz (BMC: CaseNN_Segmentation.nii.gz)"
    )
    steps_to_get = (
        "open https://liuquande.github.io/SAML and follow its link to Raw_nii, which is on Google Drive",
        "put its six site folders into the task's folder as RUNMC (released as ISBI), BMC (ISBI_1.5), I2CVB (HCRUDB), "
        "UCL, BIDMC and HK",
    )

    def case_ids(self, domain: str) -> list[str]:
        """By the numbers that the distribution gives the cases of a site; the first few, where images are drawn."""
        numbers = list(SITES[require(domain, self.domains, "domain")])
        return [f"Case{n:02d}" for n in numbers[: FEW if self.is_mock else None]]

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask]. Raises `DataError` when the site or one of the two is not there."""
        paths = self._paths(domain, case_id)
        missing = [str(p) for p in paths if not p.is_file()]
        if missing:
            raise DataError(f"site {domain} lacks {' and '.join(missing)}", self.download)
        return paths

    def load(self, domain: str, case_id: str) -> Case:
        """The volume and its mask, on the volume's own grid."""
        image, mask = self.files(domain, case_id)
        # All published work pairs the two voxel by voxel, so the mask's own header is not asked where it lies.
        pixels, (labels,) = read_case(image, [mask], same_grid=False)
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), labels[:, None] > 0, pixels.spacing)

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The task's rule, slice by slice: float32 (D, 1, H, W) in [0, 1]."""
        return channels_first(np.stack([unit_slice(s) for s in pixels.values.astype(np.float32)]))

    def verify(self) -> list[str]:
        """Also: the number of files in each site, slices of 384 x 384, labels among 0, 1, 2."""
        problems = super().verify()
        if self.is_mock:
            return problems
        for domain in self.domains:
            try:
                site = self._site(domain)
            except DataError:  # said above
                continue
            known = [p for i in self.case_ids(domain) for p in self._paths(domain, i)]
            if more := sorted({p.name for p in site.iterdir() if is_image(p)} - {p.name for p in known}):
                problems.append(
                    f"site {domain} holds {len(more)} files that are in no list of cases: {', '.join(more[:3])}"
                )
            for path in known:
                problems += _unlike_the_release(path, is_mask=path.stem.lower().endswith("segmentation.nii"))
        return problems

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Small volumes; those of the NCI-ISBI sites have two zones."""
        for k, domain in enumerate(self.domains):
            for case_id in self.case_ids(domain)[:FEW]:
                labels = sketch.label_volume(4, 48, 48)
                image, mask = (folder / domain / name for name in _names(domain, case_id))
                write_nifti(image, sketch.volume(labels, k, low=1), (3.6, 0.5, 0.5))
                if domain in ("RUNMC", "BMC"):
                    labels[:, 24:] *= 2
                write_nifti(mask, labels, (3.6, 0.5, 0.5))

    def _paths(self, domain: str, case_id: str) -> list[Path]:
        names = _names(domain, require(case_id, self.case_ids(domain), f"case of {domain}"))
        return [self._site(domain) / name for name in names]

    def _site(self, domain: str) -> Path:
        site = self.folder / domain
        if not site.is_dir():
            released = self.folder / RELEASED_AS.get(domain, domain)
            hint = f"rename {released} to {domain}" if released.is_dir() else self.download
            raise DataError(f"site {domain} is missing: no folder {site}", hint)
        return site


def _names(domain: str, case_id: str) -> tuple[str, str]:
    """Of an image and its mask."""
    return f"{case_id}.nii.gz", f"{case_id}_{'S' if domain == 'BMC' else 's'}egmentation.nii.gz"


def unit_slice(voxels: np.ndarray) -> np.ndarray:
    """float32 (H, W) -> [0, 1]. A z-score taken afterwards is the one of the clipped slice itself."""
    positive = voxels > 0
    if not positive.any():
        return np.zeros_like(voxels)
    low, high = np.percentile(voxels[positive], (0.2, 99.8))
    clipped = np.where(positive, np.clip(voxels, low, high), voxels)
    return window(clipped, clipped.min(), clipped.max())


def _unlike_the_release(path: Path, is_mask: bool) -> list[str]:
    try:
        values = read(path, mask=is_mask).values
    except DataError:  # said when the case is loaded
        return []
    problems = []
    if values.shape[1:] != (SIDE, SIDE):
        problems.append(f"{path} has slices of {values.shape[1]} x {values.shape[2]}, the release has {SIDE} x {SIDE}")
    if is_mask and (other := sorted(set(values_of(values)) - {1, 2})):
        problems.append(f"{path} holds the labels {other}, the release has 0, 1 and 2 only")
    return problems
