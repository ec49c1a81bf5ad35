"""Heart in cine MRI of four vendors (M&Ms challenge 2020, 320 labelled subjects, two frames of each).

Campello et al. Multi-Centre, Multi-Vendor and Multi-Disease Cardiac Segmentation: The M&Ms Challenge. TMI 2021.
https://www.ub.edu/mnms

    vendor  subjects  cases  make     centres
    A       95        190    Siemens  1
    B       125       250    Philips  2, 3
    C       50        100    GE       4
    D       50        100    Canon    5

A case is one volume, the end of diastole or of systole; both of a subject are one group: they stay on one side of a
split, and intervals draw subjects. 25 more subjects of vendor C have no outline in the first release and are not used:
those whose frames the table gives as 0 and 0, or who lie in Training/Unlabeled, whatever a later table says of them.
"""

import csv
from functools import cached_property
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import read_case
from dgbench.images.mock import Sketch, write_nifti
from dgbench.task import Case

LABELS = {"left_ventricle": (1,), "myocardium": (2,), "right_ventricle": (3,)}
COUNTS = {"A": 190, "B": 250, "C": 100, "D": 100}
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
PLACES = ("Training/Labeled", "Validation", "Testing", "Training")
UNLABELLED = "Training/Unlabeled"
FRAMES = ("ED", "ES")


class Mnms(FileTask):
    """Three structures. A case is named by its subject and frame, `A0S9V1-ED`."""

    domains = ("A", "B", "C", "D")
    structures = tuple(LABELS)
    image_size = 256
    steps = 8000  # as prostate
    unit = "mm"
    cases_expected = COUNTS
    intensity = "0.5th to 99.5th percentile of the frame, clipped (Ma et al., Nature Communications 2024)"
    citation = "Campello et al., TMI 2021 (M&Ms)"
    licence = "the terms of M&Ms, agreed to at registration: free to use, not to be passed on"
    collections = ("M&Ms 2020",)
    access = "account"
    steps_to_get = (
        "register at https://www.ub.edu/mnms and agree to the terms",
        "download OpenDataset and unpack it so that OpenDataset/ lies in the task's folder",
    )
    download = (
        "register at https://www.ub.edu/mnms and put OpenDataset/ there, with the table "
        f"{TABLE} and Training/Labeled/, Validation/ and Testing/, each with CODE/CODE_sa.nii.gz and CODE_sa_gt.nii.gz"
    )

    @cached_property
    def opened(self) -> Path:
        """OpenDataset, or the task's folder when it is that."""
        below = self.folder / "OpenDataset"
        return below if below.is_dir() else self.folder

    @cached_property
    def table(self) -> Path:
        """The release's table. Raises `DataError` unless there is one."""
        found = sorted(self.opened.glob("*M&Ms_Dataset_[Ii]nformation*.csv"))
        if len(found) != 1:
            what = " and ".join(p.name for p in found) or "no table of subjects"
            raise DataError(f"{self.opened} holds {what}", f"keep one of them; {self.download}")
        return found[0]

    @cached_property
    def subjects(self) -> dict[str, dict[str, dict[str, int]]]:
        """{vendor: {subject: {"ED": frame, "ES": frame}}}, frames counted from 0; only of those with outlines."""
        found: dict[str, dict[str, dict[str, int]]] = {vendor: {} for vendor in self.domains}
        try:
            with open(self.table, newline="", encoding="utf-8-sig") as file:
                rows = [(r["External code"], r["Vendor"], *_frames(r)) for r in csv.DictReader(file)]
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
            raise DataError(f"the table {self.table} cannot be read: {error}", self.download) from None
        for code, vendor, ed, es in rows:
            if (ed or es) and not (self.opened / UNLABELLED / code).is_dir() and vendor in found:
                found[vendor][code] = {"ED": ed, "ES": es}
        return found

    def case_ids(self, domain: str) -> list[str]:
        """Both frames of every subject with outlines, of the release's table."""
        require(domain, self.domains, "domain")
        return [f"{code}-{frame}" for code in sorted(self.subjects[domain]) for frame in FRAMES]

    def group(self, domain: str, case_id: str) -> str:
        """The subject."""
        return case_id.rpartition("-")[0]

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[image, mask, table]: of 4-D files one frame is read, which the table names."""
        require(case_id, self.case_ids(domain), f"case of {domain}")
        code = self.group(domain, case_id)
        folders = [self.opened / p / code for p in PLACES if (self.opened / p / code).is_dir()]
        if not folders:
            raise DataError(f"subject {code} of vendor {domain} is in none of {', '.join(PLACES[:3])}", self.download)
        paths = [folders[0] / f"{code}_sa.nii.gz", folders[0] / f"{code}_sa_gt.nii.gz"]
        return [*self.there(paths, f"subject {code} of vendor {domain}"), self.table]

    def load(self, domain: str, case_id: str) -> Case:
        """One frame and its mask. Raises `DataError`, too, where the mask holds nothing at the table's frame."""
        image, mask, table = self.files(domain, case_id)
        code, _, which = case_id.rpartition("-")
        frame = self.subjects[domain][code][which]
        pixels, (labels,) = read_case(image, [mask], same_grid=False, frame=frame)
        if not labels.any():
            cause = f"mask {mask} is empty at frame {frame}, which {table.name} gives as {which} of {code}"
            raise DataError(cause, "a subject without outlines belongs in Training/Unlabeled; else download both again")
        assert pixels.spacing is not None  # every NIfTI file has one
        return Case(case_id, self.intensities(pixels), self.planes(labels, mask, LABELS), pixels.spacing)

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """As released: cines of four frames, outlined in two; one subject of vendor C without, with an empty mask."""
        rows = [",External code,VendorName,Vendor,Centre,ED,ES"]
        for k, vendor in enumerate(self.domains):
            for n, place in enumerate((*PLACES[:3], *([UNLABELLED] if vendor == "C" else []))):
                code, ed, es = f"{vendor}{n}S{k}V9", n, n + 1 if place != UNLABELLED else n
                labels = np.stack([sketch.label_volume(3, 32, 36, structures=3) for _ in range(5)])
                outlined = np.isin(np.arange(5), (ed, es) if place != UNLABELLED else ())
                path = folder / "OpenDataset" / place / code / f"{code}_sa"
                write_nifti(Path(f"{path}.nii.gz"), sketch.volume(labels, k), (40.0, 10.0, 1.2, 1.2))
                mask = labels * outlined[:, None, None, None].astype(np.uint8)
                write_nifti(Path(f"{path}_gt.nii.gz"), mask, (40.0, 10.0, 1.2, 1.2))
                rows.append(f"{len(rows) - 1},{code},Make {k},{vendor},{k + 1},{ed},{es}")
        (folder / "OpenDataset" / TABLE).write_text("\n".join(rows) + "\n", encoding="utf-8")


def _frames(row: dict[str, str]) -> tuple[int, int]:
    """End of diastole and of systole; a table that went through a spreadsheet has 0.0 or nothing for 0."""
    ed, es = (int(float(row[frame] or 0)) for frame in FRAMES)
    return ed, es
