"""Optic disc and optic cup in fundus photographs (the four sets of DoFE): every domain may be the source.

Wang et al. DoFE: Domain-Oriented Feature Embedding for Generalizable Fundus Image Segmentation on Unseen Datasets. TMI
2020. https://github.com/emma-sjwang/Dofe

    domain      train  test  released as  from
    Drishti-GS  50     51    Domain1      Aravind, India (Sivaswamy et al. 2014)
    RIM-ONE     99     60    Domain2      RIM-ONE r3, Spain (Fumero et al. 2011)
    REFUGE      320    80    Domain3      the challenge's training set, Zeiss Visucam (Orlando et al. 2020)
    REFUGE-val  320    80    Domain4      the challenge's validation set, Canon CR-2

Photographs of 800 x 800 pixels around the disc. A source is trained on its train list and validated on its test list;
of a target all photographs are tested, where some papers test on its test list alone. DoFE's code crops Domain4 to
[144:656] where it is tested: not done here. Which photographs are of one patient is not published.
"""

import csv
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.mock import FEW, Sketch, write_png
from dgbench.images.photo_task import PhotoTask
from dgbench.task import Case

CASES = {"Drishti-GS": 101, "RIM-ONE": 159, "REFUGE": 400, "REFUGE-val": 400}
RELEASED_AS = {"Drishti-GS": "Domain1", "RIM-ONE": "Domain2", "REFUGE": "Domain3", "REFUGE-val": "Domain4"}
CUP, DISC = 50, 200  # the gray values that DoFE's loader parts cup, rim and background at
STEREO = 1.5  # the photograph of one eye is as wide as it is high; a stereo pair is twice as wide


class FundusDofe(PhotoTask):
    """Two structures, the cup inside the disc. In a mask background is white, the rim gray, the cup black."""

    domains = tuple(RELEASED_AS)
    structures = ("disc", "cup")
    image_size = 512
    steps = 8000  # as prostate
    cases_expected = CASES
    citation = "Wang et al., TMI 2020 (DoFE); Sivaswamy et al. 2014; Fumero et al. 2011; Orlando et al., MedIA 2020"
    licence = "Drishti-GS, RIM-ONE r3, REFUGE: research, no redistribution"
    collections = ("Drishti-GS", "RIM-ONE r3", "REFUGE")
    download = (
        "follow https://github.com/emma-sjwang/Dofe to its file on Google Drive (1p33nsWQaiZMAgsruDoJLyatoq5XAH-TH), "
        "unpack it so that Domain1/ to Domain4/ lie there, each with {train,test}/ROIs/{image,mask}/NAME.png"
    )
    steps_to_get = (
        "download https://drive.google.com/file/d/1p33nsWQaiZMAgsruDoJLyatoq5XAH-TH in a browser",
        "unpack it so that Domain1 to Domain4 lie in the task's folder",
    )

    @cached_property
    def lists(self) -> dict[tuple[str, str], list[str]]:
        """{(domain, part): names}, DoFE's lists as RAM-DSIR publishes them; of drawn images their first few."""
        few = FEW if self.is_mock else None
        with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
            return {(row["domain"], row["part"]): row["cases"].split()[:few] for row in csv.DictReader(file)}

    def find(self, domain: str) -> dict[str, list[Path]]:
        """Of both lists."""
        return {n: self._pair(domain, part, n) for part in ("train", "test") for n in self.lists[domain, part]}

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """DoFE's own: its train list and its test list."""
        require(source, self.domains, "source domain")
        return sorted(self.lists[source, "train"]), sorted(self.lists[source, "test"])

    def load(self, domain: str, case_id: str) -> Case:
        """Also: refused is a stereo pair, which shows the disc twice and its mask but once."""
        case = super().load(domain, case_id)
        height, width = case.image.shape[2:]
        if width > STEREO * height:
            raise DataError(
                f"{self.files(domain, case_id)[0]} is {height} x {width} (height x width): a stereo pair",
                "cut it in two and keep the half that its mask was drawn on, or download the package again",
            )
        return case

    def structure_planes(
        self, domain: str, values: Sequence[np.ndarray], paths: Sequence[Path]
    ) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Disc and cup by the gray values. Raises `DataError` for a mask whose corners are no background."""
        gray = values[0]
        if (gray[[0, 0, -1, -1], [0, -1, 0, -1]] <= DISC).any():
            raise DataError(
                f"the corners of mask {paths[0]} are not white: it is none of DoFE's",
                "here the background is white and the cup black; `--task fundus` reads masks with a black background",
            )
        return np.stack([gray <= DISC, gray <= CUP]), []

    def _pair(self, domain: str, part: str, name: str) -> list[Path]:
        place = self.folder / RELEASED_AS[domain] / part / "ROIs"
        return [place / kind / f"{name}.png" for kind in ("image", "mask")]

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Of each list the first few names."""
        for (domain, part), names in type(self)().lists.items():
            for name in names[:FEW]:
                place = folder / RELEASED_AS[domain] / part / "ROIs"
                labels = sketch.labels(48, 48, structures=2, nested=True)
                write_png(place / "image" / f"{name}.png", sketch.photograph(labels, self.domains.index(domain)))
                write_png(place / "mask" / f"{name}.png", np.array([255, 128, 0], np.uint8)[labels])
