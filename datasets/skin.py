"""Skin lesions in dermoscopy (ISIC 2018 task 1 and PH2): two domains.

Codella et al. Skin Lesion Analysis Toward Melanoma Detection 2018. arXiv:1902.03368, https://challenge.isic-archive.com
Mendonca et al. PH2 - A dermoscopic image database for research and benchmarking. EMBC 2013.

    domain  cases  what
    ISIC    3694   of many hospitals and dermatoscopes: 2594 to train, 100 to validate, 1000 to test
    PH2     200    Hospital Pedro Hispano, one dermatoscope at 20 x

ISIC as a source is trained on the challenge's training part and validated on its other two. A lesion may be in several
images of ISIC; the challenge names neither lesions nor patients.
"""

from pathlib import Path

from dgbench.images.fetch import Download
from dgbench.images.mock import Sketch, write_bmp, write_jpg, write_png
from dgbench.images.photo_task import PhotoTask

PARTS = {"Training": 2594, "Validation": 100, "Test": 1000}
CASES = {"ISIC": sum(PARTS.values()), "PH2": 200}
SITE = "https://isic-challenge-data.s3.amazonaws.com/2018/"
SHA256 = {
    "ISIC2018_Task1-2_Training_Input": "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f",
    "ISIC2018_Task1-2_Validation_Input": "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797",
    "ISIC2018_Task1-2_Test_Input": "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d",
    "ISIC2018_Task1_Training_GroundTruth": "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c",
    "ISIC2018_Task1_Validation_GroundTruth": "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285",
    "ISIC2018_Task1_Test_GroundTruth": "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82",
}
PH2 = "PH2Dataset/PH2 Dataset images"


class Skin(PhotoTask):
    """One structure."""

    domains = ("ISIC", "PH2")
    structures = ("lesion",)
    image_size = 256
    steps = 8000  # as prostate
    cases_expected = CASES
    citation = "Codella et al. 2018 (ISIC 2018); Tschandl et al., Sci Data 2018; Mendonca et al., EMBC 2013 (PH2)"
    licence = "ISIC 2018: CC BY-NC 4.0; PH2: research and education, no redistribution"
    collections = ("ISIC 2018", "PH2")
    download = (
        "unpack the six archives of ISIC 2018 task 1 (inputs and ground truths of Training, Validation and Test) from "
        "https://challenge.isic-archive.com/data/#2018 there, and PH2Dataset (a form, see https://www.fc.up.pt/addi)"
    )
    sources_of_data = tuple(Download(f"{SITE}{n}.zip", f"{n}.zip", sha256=s, unpack_to="") for n, s in SHA256.items())
    access = "form"
    steps_to_get = (
        "fill in the form for PH2 at https://www.fc.up.pt/addi/ph2%20database.html",
        "unpack it so that PH2Dataset/PH2 Dataset images/ lies in the task's folder",
    )

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """ISIC's by its parts, which are held apart by the challenge; PH2's as every task's."""
        if source != "ISIC":
            return super().split(source)
        held_out = {i for part in ("Validation", "Test") for i in self._part(part)}
        ids = self.case_ids(source)
        return [i for i in ids if i not in held_out], [i for i in ids if i in held_out]

    def find(self, domain: str) -> dict[str, list[Path]]:
        """ISIC's of its three parts."""
        if domain == "ISIC":
            return {i: pair for part in PARTS for i, pair in self._part(part).items()}
        cases = [name for name in self.names(PH2, "") if name.startswith("IMD")]
        place = self.folder / PH2
        return {
            i: [place / i / f"{i}_Dermoscopic_Image" / f"{i}.bmp", place / i / f"{i}_lesion" / f"{i}_lesion.bmp"]
            for i in cases
        }

    def _part(self, part: str) -> dict[str, list[Path]]:
        masks = self.folder / f"ISIC2018_Task1_{part}_GroundTruth"
        images = self.names(f"ISIC2018_Task1-2_{part}_Input", ".jpg")
        return {i: [path, masks / f"{i}_segmentation.png"] for i, path in images.items()}

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """ISIC in JPEG with its three parts and the release's text files; PH2 in BMP."""
        for k, part in enumerate(PARTS):
            place = folder / f"ISIC2018_Task1-2_{part}_Input"
            for n in range(3 - k):
                labels = sketch.labels(36, 48)
                write_jpg(place / f"ISIC_{k}00000{n}.jpg", sketch.photograph(labels, 0))
                truth = folder / f"ISIC2018_Task1_{part}_GroundTruth"
                write_png(truth / f"ISIC_{k}00000{n}_segmentation.png", labels * 255)
            (place / "LICENSE.txt").write_text("as the release has one\n")
        for i in ("IMD002", "IMD003", "IMD004"):
            labels = sketch.labels(36, 48)
            write_bmp(folder / PH2 / i / f"{i}_Dermoscopic_Image" / f"{i}.bmp", sketch.photograph(labels, 1))
            write_bmp(folder / PH2 / i / f"{i}_lesion" / f"{i}_lesion.bmp", labels * 255)
