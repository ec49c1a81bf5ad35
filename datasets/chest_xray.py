"""Lungs in chest radiographs of three countries: Montgomery (USA), Shenzhen (China), JSRT (Japan).

Jaeger et al. Two public chest X-ray datasets for computer-aided screening of pulmonary diseases. QIMS 2014; Candemir et
al., Jaeger et al., TMI 2014; Stirenko et al. 2018 (Shenzhen's masks); Shiraishi et al., AJR 2000 (JSRT). As a benchmark
of generalization: Dong et al. Medical Image Segmentation with InTEnt. CVPRW 2024.

    domain      cases  pixels              masks
    Montgomery  138    4020 x 4892, or so  one file for each lung
    Shenzhen    566    up to 3000 x 3000   of a third party; the other 96 of 662 radiographs have none
    JSRT        247    256 x 256           miniJSRT's segmentation02: 255 lung, 85 heart, 170 other tissue, 0 air

miniJSRT says that its lungs were not outlined under medical supervision. A radiograph is a patient.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgbench.errors import DataError
from dgbench.images.fetch import Download
from dgbench.images.formats import values_of
from dgbench.images.mock import Sketch, write_bmp, write_png
from dgbench.images.photo_task import PhotoTask

RADIOGRAPHS = {"Montgomery": 138, "Shenzhen": 566, "JSRT": 247}
JSRT = "segmentation02/segmentation"
LUNG, KNOWN = 255, {85, 170, 255}  # of JSRT's masks


class ChestXray(PhotoTask):
    """One structure, both lungs."""

    domains = tuple(RADIOGRAPHS)
    structures = ("lungs",)
    image_size = 256
    steps = 8000  # as prostate
    gray = True
    cases_expected = RADIOGRAPHS
    intensity = "8-bit gray divided by 255; of more bits the file's 0.5th to 99.5th percentile"
    citation = (
        "Jaeger et al., QIMS 2014; Candemir, Jaeger et al., TMI 2014; Stirenko et al. 2018; Shiraishi et al. 2000"
    )
    licence = "Montgomery, Shenzhen: as the NLM's pages say; Shenzhen's masks: CC BY-NC-SA 4.0; JSRT: as its page says"
    collections = ("Montgomery County chest X-ray set", "Shenzhen chest X-ray set", "JSRT")
    download = (
        "unpack NLM-MontgomeryCXRSet.zip and segmentation02.zip there (`dgbench data fetch`), and put the radiographs "
        "of Shenzhen from https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets into "
        "ChinaSet_AllFiles/CXR_png/ and its masks from https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask into "
        "ChinaSet_AllFiles/mask/, as NAME_mask.png"
    )
    sources_of_data = (
        Download(
            "http://openi.nlm.nih.gov/imgs/collections/NLM-MontgomeryCXRSet.zip",
            "NLM-MontgomeryCXRSet.zip",
            sha256="54601e952315d8f67383e9202a6e145997ade429f54f7e0af44b4e158714f424",
            unpack_to="",
        ),
        Download(
            "http://imgcom.jsrt.or.jp/imgcom/wp-content/uploads/2019/07/segmentation02.zip",
            "segmentation02.zip",
            sha256="f1432af4fcbd69342cf1bf2ca3d0d43b9535cdc6b160b86191b5b67de2fdbf3c",
            unpack_to="",
        ),
    )
    access = "account"
    steps_to_get = (
        "download Shenzhen-Hospital-CXR-Set from "
        "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets and put its radiographs into "
        "ChinaSet_AllFiles/CXR_png/ of the task's folder",
        "log in at https://www.kaggle.com, download https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask and put "
        "the masks into ChinaSet_AllFiles/mask/",
    )

    def find(self, domain: str) -> dict[str, list[Path]]:
        """Of Shenzhen only what has a mask; of JSRT both parts."""
        if domain == "Montgomery":
            masks = [self.folder / "MontgomerySet" / "ManualMask" / side for side in ("leftMask", "rightMask")]
            images = self.names("MontgomerySet/CXR_png", ".png")
            return {i: [path, *(place / path.name for place in masks)] for i, path in images.items()}
        if domain == "Shenzhen":
            radiographs = self.folder / "ChinaSet_AllFiles" / "CXR_png"
            outlined = self.names("ChinaSet_AllFiles/mask", "_mask.png")
            return {i: [radiographs / f"{i}.png", path] for i, path in outlined.items()}
        return {
            i: [path, self.folder / JSRT / f"label_{part}" / f"{i}_label.png"]
            for part in ("train", "test")
            for i, path in self.names(f"{JSRT}/org_{part}", ".bmp").items()
        }

    def structure_planes(
        self, domain: str, values: Sequence[np.ndarray], paths: Sequence[Path]
    ) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Of JSRT the value of the lungs: white and gray there are both structures."""
        if domain != "JSRT":
            return super().structure_planes(domain, values, paths)
        if other := sorted(set(values_of(values[0])) - KNOWN):
            raise DataError(
                f"mask {paths[0]} holds the values {other[:5]}", "segmentation02 has 0, 85, 170, 255: download it again"
            )
        return (values[0] == LUNG)[None], []

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Lungs in two files, in one, and as a value beside heart and body; a radiograph of Shenzhen has no mask."""
        for n in range(3):
            lungs = sketch.labels(48, 40, structures=2)
            name = f"MCUCXR_{n + 1:04d}_{n % 2}.png"
            write_png(folder / "MontgomerySet" / "CXR_png" / name, sketch.gray(lungs, 0))
            for k, side in enumerate(("leftMask", "rightMask"), 1):
                write_png(folder / "MontgomerySet" / "ManualMask" / side / name, (lungs == k) * np.uint8(255))
            lungs, name = sketch.labels(40, 48, structures=2), f"CHNCXR_{n + 1:04d}_0"
            write_png(folder / "ChinaSet_AllFiles" / "CXR_png" / f"{name}.png", sketch.photograph(lungs, 1))
            if n:
                write_png(folder / "ChinaSet_AllFiles" / "mask" / f"{name}_mask.png", (lungs > 0) * np.uint8(255))
            labels, part = sketch.labels(32, 32, structures=3), "test" if n == 2 else "train"
            gray = np.array([170, 255, 255, 85], np.uint8)[labels]
            gray[:2] = 0
            write_bmp(folder / JSRT / f"org_{part}" / f"case{n + 1:03d}.bmp", sketch.gray(labels, 2))
            write_png(folder / JSRT / f"label_{part}" / f"case{n + 1:03d}_label.png", gray)
