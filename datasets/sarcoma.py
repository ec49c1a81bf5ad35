"""Soft-tissue sarcoma in CT, MRI and PET (38 patients of the IBSI validation set): three modalities, three domains.

Vallieres et al. A radiomics model from joint FDG-PET and MRI texture features for the prediction of lung metastases in
soft-tissue sarcomas of the extremities. Physics in Medicine and Biology 2015; doi:10.7937/K9/TCIA.2015.7GO2GSKS.
Passed on by the Image Biomarker Standardisation Initiative: https://github.com/theibsi/data_sets, ibsi_validation.

    domain  cases  voxels in mm       what
    ct      8      0.98, 0.98, 3.27   Hounsfield units
    mr_t1   10     0.98, 0.98, 3.27   T1-weighted, bias field corrected, subcutaneous fat near 1000
    pet     20     3.9 to 5.5, 3.27   FDG, standardised uptake values

Each volume is cut 5 cm around the tumour, so its middle is a good guess: see `constant`. The set has every modality of
51 patients; here a patient is in one domain only, so that no patient is in both source and target.
"""

from pathlib import Path

import numpy as np

from dgbench.images.fetch import Download
from dgbench.images.formats import Pixels, channels_first, to_unit, window
from dgbench.images.listed_task import ListedTask
from dgbench.images.mock import FEW, Sketch, write_nifti

COMMIT = "6da96021bc91faf4c0cb7fd7fa56a4225d2064a8"
NAMES = {"ct": "CT", "mr_t1": "MR_T1", "pet": "PET"}  # by domain, in the names of the files
AIR = -500  # Hounsfield units: only CT has values below it
SOFT_TISSUE = (-160, 240)


class Sarcoma(ListedTask):
    """One structure, the gross tumour volume."""

    domains = tuple(NAMES)
    structures = ("gtv",)
    image_size = 128
    steps = 200  # as a folder of images: what a laptop can do
    unit = "mm"
    intensity = (
        "CT: -160 to 240 HU, others: 0.5th to 99.5th percentile of the volume, clipped (Ma et al., Nature "
        "Communications 2024)"
    )
    citation = "Vallieres et al., Phys Med Biol 2015 (TCIA Soft-tissue-Sarcoma); Clark et al. 2013; IBSI"
    licence = "CC BY 3.0"
    collections = ("TCIA Soft-tissue-Sarcoma",)
    download = (
        "git clone https://github.com/theibsi/data_sets there and check out "
        f"{COMMIT}: ibsi_validation/nifti/ is used; or a copy sorted as <domain>/images/ID.nii.gz and "
        "<domain>/masks/ID.nii.gz"
    )
    sources_of_data = (
        Download(
            f"https://codeload.github.com/theibsi/data_sets/zip/{COMMIT}", "ibsi.zip",
            unpack_to="ibsi_validation/nifti", inside=f"data_sets-{COMMIT}/ibsi_validation/nifti",
        ),
    )  # fmt: skip
    listed = Path(__file__).with_suffix(".csv")

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask] as released, or of a sorted copy."""
        self.row(domain, case_id)
        released = self.folder / "ibsi_validation" / "nifti"
        if released.is_dir():
            return [released / case_id / f"{NAMES[domain]}_{part}.nii.gz" for part in ("image", "mask")]
        return [self.folder / domain / part / f"{case_id}.nii.gz" for part in ("images", "masks")]

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released: an image and a mask for each patient, in the patient's folder."""
        for k, (domain, name) in enumerate(NAMES.items()):
            low, high = {"ct": (-1000, 400), "pet": (0, 12)}.get(domain, (0, 1200))
            for case_id in self.case_ids(domain)[:FEW]:
                place, labels = folder / "ibsi_validation" / "nifti" / case_id, sketch.label_volume(4, 24, 20)
                write_nifti(place / f"{name}_image.nii.gz", sketch.volume(labels, k, low, high), (3.27, 0.98, 0.98))
                write_nifti(place / f"{name}_mask.nii.gz", labels, (3.27, 0.98, 0.98))

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The task's rule, by the volume: float32 (D, 1, H, W) in [0, 1]."""
        if pixels.values.min() < AIR:
            return channels_first(window(pixels.values, *SOFT_TISSUE))
        return to_unit(pixels)
