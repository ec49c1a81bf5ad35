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

Whole volumes (Raw_nii); the release's Clipped_nii has lost the slices without prostate, on which methods fail. Two
packages that papers pass on are read, too: MaxStyle's (MICCAI 2022) and DeSAM's (MICCAI 2024), which was made of it.
Both are resampled and have lost those slices: their images are others, and never share a table with the release's.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, channels_first, is_image, read, read_case, window
from dgbench.images.mock import FEW, Sketch, write_nifti
from dgbench.task import Case

SITES: dict[str, Iterable[int]] = {  # case numbers as the release has them, in the order of the packages' A to F
    "RUNMC": range(30),
    "BMC": range(30),
    "I2CVB": range(19),
    "UCL": (1, *range(26, 38)),
    "BIDMC": (0, *range(2, 13)),
    "HK": range(38, 50),
}
COUNTS = {site: len(tuple(numbers)) for site, numbers in SITES.items()}
RELEASED_AS = {"RUNMC": ("ISBI",), "BMC": ("ISBI_1.5",), "I2CVB": ("HCRUDB",)}  # where the folder has another name
FIRST = dict(zip(SITES, (0, 30, 60, 79, 92, 104), strict=True))  # number of a site's first case in DeSAM's package
FOLDER = dict(zip(SITES, ("A-ISBI", "B-ISBI_1.5", "C-I2CVB", "D-UCL", "E-BIDMC", "F-HK"), strict=True))  # MaxStyle's
RELEASE = "SAML"
PACKAGES = {  # by layout, folders of which one is there
    "MaxStyle (resampled, no slice without prostate)": ("reorganized/A-ISBI", "A-ISBI"),
    "DeSAM (resampled, no slice without prostate)": ("imagesTr", "raw_data/imagesTr"),
}
LABELS = {"prostate": (1, 2)}
SIDE = 384  # of every slice of the release


class Prostate(FileTask):
    """One structure. The NCI-ISBI sites label two zones, 1 and 2; both are prostate."""

    domains = tuple(SITES)
    structures = ("prostate",)
    image_size = SIDE
    steps = 8000  # at batch 8: as the sdg-protocol-audit (2026), which compared seven methods on these six sites
    unit = "mm"
    cases_expected = COUNTS
    intensity = "each slice: positive voxels clipped at their 0.2th and 99.8th percentile, then minimum 0, maximum 1"
    citation = "Liu et al., MICCAI 2020 (SAML); Bloch et al. 2015 (NCI-ISBI); Lemaitre et al. 2015 (I2CVB); PROMISE12"
    licence = "none stated for the collection; NCI-ISBI 2013, I2CVB and PROMISE12 have their own terms"
    collections = ("NCI-ISBI 2013", "I2CVB", "PROMISE12")
    download = (
        "download Raw_nii from https://liuquande.github.io/SAML and put its six site folders there: RUNMC (or ISBI), "
        "BMC (or ISBI_1.5), I2CVB (or HCRUDB), UCL, BIDMC and HK, each with CaseNN.nii.gz and its mask "
        "CaseNN_segmentation.nii.gz (BMC: CaseNN_Segmentation.nii.gz); MaxStyle's reorganized/ or DeSAM's imagesTr/ "
        "and labelsTr/ are read, too"
    )
    steps_to_get = (
        "open https://liuquande.github.io/SAML and follow its link to Raw_nii, which is on Google Drive",
        "unpack its six site folders in the task's folder: RUNMC (or ISBI), BMC (or ISBI_1.5), I2CVB (or HCRUDB), UCL, "
        "BIDMC and HK",
    )

    @property
    def layout(self) -> str:
        """The release's, unless one of the packages lies there and no site's own folder."""
        try:
            if any((self.folder / name).is_dir() for site in SITES for name in (site, *RELEASED_AS.get(site, ()))):
                return RELEASE
            return next((p for p in PACKAGES if any((self.folder / b).is_dir() for b in PACKAGES[p])), RELEASE)
        except DataError:  # nothing is there yet
            return RELEASE

    def case_ids(self, domain: str) -> list[str]:
        """By the numbers that the release, or the package, gives the cases of a site; of drawn images the first few."""
        numbers = list(SITES[require(domain, self.domains, "domain")])[: FEW if self.is_mock else None]
        if self.layout.startswith("MaxStyle"):
            return sorted(f"patient_{k}" for k in range(len(numbers)))
        if self.layout.startswith("DeSAM"):
            return [f"Prostate_{FIRST[domain] + k:03d}" for k in range(len(numbers))]
        return [f"Case{n:02d}" for n in numbers]

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask]. Raises `DataError` when the site or one of the two is not there."""
        return self.there(self._paths(domain, case_id), f"site {domain}")

    def load(self, domain: str, case_id: str) -> Case:
        """The volume and its mask, on the volume's own grid."""
        image, mask = self.files(domain, case_id)
        # All published work pairs the two voxel by voxel, so the mask's own header is not asked where it lies.
        pixels, (labels,) = read_case(image, [mask], same_grid=False)
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), self.planes(labels, mask, LABELS), pixels.spacing)

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The task's rule, slice by slice: float32 (D, 1, H, W) in [0, 1]."""
        return channels_first(np.stack([unit_slice(s) for s in pixels.values.astype(np.float32)]))

    def verify(self) -> list[str]:
        """Also, of the release: the number of files in each site, and slices of 384 x 384."""
        problems = super().verify()
        for domain in () if self.is_mock or self.layout != RELEASE else self.domains:
            try:
                known = [p for i in self.case_ids(domain) for p in self._paths(domain, i)]
            except DataError:  # said above
                continue
            if more := sorted({p.name for p in known[0].parent.iterdir() if is_image(p)} - {p.name for p in known}):
                problems.append(
                    f"site {domain} holds {len(more)} files that are in no list of cases: {', '.join(more[:3])}"
                )
            for path in known:
                with suppress(DataError):  # said above
                    height, width = read(path).values.shape[1:]
                    if (height, width) != (SIDE, SIDE):
                        problems.append(f"{path} has slices of {height} x {width}, the release has {SIDE} x {SIDE}")
        return problems

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released: small volumes; those of the NCI-ISBI sites have two zones."""
        for k, (domain, numbers) in enumerate(SITES.items()):
            for n in list(numbers)[:FEW]:
                labels = sketch.label_volume(4, 48, 48)
                image, mask = (folder / domain / name for name in _names(domain, f"Case{n:02d}"))
                write_nifti(image, sketch.volume(labels, k, low=1), (3.6, 0.5, 0.5))
                if domain in ("RUNMC", "BMC"):
                    labels[:, 24:] *= 2
                write_nifti(mask, labels, (3.6, 0.5, 0.5))

    def _paths(self, domain: str, case_id: str) -> list[Path]:
        layout, root = self.layout, self.folder
        require(case_id, self.case_ids(domain), f"case of {domain}")
        if layout != RELEASE:
            first = next(root / below for below in PACKAGES[layout] if (root / below).is_dir())
            if layout.startswith("MaxStyle"):
                place = first.parent / FOLDER[domain] / case_id
                return [place / "t2_img_clipped.nii.gz", place / "label_clipped.nii.gz"]
            plain = first / f"{case_id}.nii.gz"
            image = plain if plain.is_file() else first / f"{case_id}_0000.nii.gz"
            return [image, first.parent / "labelsTr" / f"{case_id}.nii.gz"]
        sites = [root / name for name in (domain, *RELEASED_AS.get(domain, ())) if (root / name).is_dir()]
        if not sites:
            raise DataError(f"site {domain} is missing: no folder {root / domain}", self.download)
        return [sites[0] / name for name in _names(domain, case_id)]


def _names(domain: str, case_id: str) -> tuple[str, str]:
    """Of an image and its mask, as released."""
    return f"{case_id}.nii.gz", f"{case_id}_{'S' if domain == 'BMC' else 's'}egmentation.nii.gz"


def unit_slice(voxels: np.ndarray) -> np.ndarray:
    """float32 (H, W) -> [0, 1]. A z-score taken afterwards is the one of the clipped slice itself."""
    positive = voxels > 0
    if not positive.any():
        return np.zeros_like(voxels)
    low, high = np.percentile(voxels[positive], (0.2, 99.8))
    clipped = np.where(positive, np.clip(voxels, low, high), voxels)
    return window(clipped, clipped.min(), clipped.max())
