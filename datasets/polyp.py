"""Polyps in colonoscopy (five public sets), one set, one domain.

Fan et al. PraNet: Parallel Reverse Attention Network for Polyp Segmentation. MICCAI 2020. https://github.com/DengPingFan/PraNet

    domain        frames  pixels       of
    Kvasir        1000    332 to 1920  Vestre Viken, Norway (Jha et al., MMM 2020)
    CVC-ClinicDB  612     384 x 288    Hospital Clinic, Barcelona, 29 sequences (Bernal et al., CMIG 2015)
    CVC-ColonDB   380     574 x 500    Barcelona (Bernal et al., Pattern Recognition 2012)
    ETIS          196     1225 x 966   Lariboisiere, Paris (Silva et al., IJCARS 2014)
    CVC-300       60      574 x 500    the test frames of CVC-EndoSceneStill (Vazquez et al., JHE 2017)

A sequence of ClinicDB is a group: its frames are nearly alike. Of the others no list of sequences is public.
CVC-EndoSceneStill was made of ClinicDB and of ColonDB's first 300 frames, so CVC-300 is a target only, and none of
CVC-ColonDB.
"""

from bisect import bisect_right
from pathlib import Path

from dgbench.errors import DataError
from dgbench.images.mock import Sketch, write_png
from dgbench.images.photo_task import PhotoTask

FRAMES = {"Kvasir": 1000, "CVC-ClinicDB": 612, "CVC-ColonDB": 380, "ETIS": 196, "CVC-300": 60}
SEQUENCES = (  # the first frame of each of ClinicDB's, and the first number that is none
    *(1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448, 467, 479),
    *(504, 529, 547, 572, 592, 613),
)
PACKAGED = {"ETIS": "ETIS-LaribPolypDB"}  # where the package's name is another
SINGLE = {  # folder, its images, its masks, of the sets as their makers release them
    "Kvasir": ("Kvasir-SEG", "images", "masks"),
    "CVC-ClinicDB": ("CVC-ClinicDB", "Original", "Ground Truth"),
    "CVC-ColonDB": ("CVC-ColonDB", "images", "masks"),
    "ETIS": ("ETIS-LaribPolypDB", "images", "masks"),
    "CVC-300": ("CVC-300", "images", "masks"),
}
ENDINGS = (".png", ".jpg", ".tif")


class Polyp(PhotoTask):
    """One structure. Kvasir-SEG's own masks are JPEG files, so masks are parted at 128."""

    domains = tuple(FRAMES)
    sources = domains[:-1]
    structures = ("polyp",)
    image_size = 352  # as PraNet
    steps = 8000  # as prostate
    cases_expected = FRAMES
    citation = "Fan et al., MICCAI 2020 (package); Jha et al. 2020; Bernal et al. 2015, 2012; Silva et al. 2014"
    licence = "research and education; CVC sets: not commercially; Kvasir-SEG: cite it"
    collections = ("Kvasir-SEG", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "CVC-EndoSceneStill")
    download = (
        "get PraNet's package from https://github.com/DengPingFan/PraNet and put TrainDataset/ and TestDataset/ there, "
        "or the single sets as Kvasir-SEG/, CVC-ClinicDB/ (Original, Ground Truth), CVC-ColonDB/, ETIS-LaribPolypDB/ "
        "and CVC-300/, each with images/ and masks/"
    )
    steps_to_get = (
        "open https://github.com/DengPingFan/PraNet, section Usage, and download its training and testing data",
        "unpack both and put TrainDataset and TestDataset into the task's folder",
    )

    @property
    def layout(self) -> str:
        """ "package" as PraNet passes the sets on, or "single sets" as their makers release them."""
        return "package" if (self.folder / "TestDataset").is_dir() else "single sets"

    def targets(self, source: str) -> tuple[str, ...]:
        """All others, but CVC-300 for CVC-ColonDB, of which it is a part."""
        return tuple(d for d in super().targets(source) if (source, d) != ("CVC-ColonDB", "CVC-300"))

    def group(self, domain: str, case_id: str) -> str:
        """Of ClinicDB the sequence; of the others the frame. Raises `DataError` for a frame of no sequence."""
        if domain != "CVC-ClinicDB":
            return case_id
        if not case_id.isdecimal() or not 0 < (number := bisect_right(SEQUENCES, int(case_id))) < len(SEQUENCES):
            raise DataError(f"frame '{case_id}' of CVC-ClinicDB is none of 1 to 612", self.download)
        return f"sequence{number:02d}"

    def find(self, domain: str) -> dict[str, list[Path]]:
        """By the images; of the package those to train on and those to test on together."""
        if self.layout == "single sets":
            folder, images, masks = SINGLE[domain]
            return self._pairs(f"{folder}/{images}", f"{folder}/{masks}")
        name = PACKAGED.get(domain, domain)
        found = self._pairs(f"TestDataset/{name}/images", f"TestDataset/{name}/masks")
        if domain not in ("Kvasir", "CVC-ClinicDB"):
            return found
        images, masks = ("image", "mask") if (self.folder / "TrainDataset" / "image").is_dir() else ("images", "masks")
        trained = self._pairs(f"TrainDataset/{images}", f"TrainDataset/{masks}")
        # Kvasir's names begin with a c, ClinicDB's are numbers.
        return found | {i: p for i, p in trained.items() if i.startswith("c") == (domain == "Kvasir")}

    def _pairs(self, images: str, masks: str) -> dict[str, list[Path]]:
        """{name: [image, mask]}; the two may end differently. A mask that is not there is told when it is read."""
        found, beside = self.names(images, *ENDINGS), self.names(masks, *ENDINGS)
        return {n: [path, beside.get(n, self.folder / masks / path.name)] for n, path in found.items()}

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """The package: frames of three of ClinicDB's sequences, the others' by number; Kvasir's by name."""
        numbers = {"Kvasir": (), "CVC-ClinicDB": (1, 2, 51, 52, 601), "CVC-300": (149, 150)}
        for k, domain in enumerate(FRAMES):
            names = [f"cju{n}" for n in range(4)] if domain == "Kvasir" else numbers.get(domain, (1, 2, 3))
            for i, name in enumerate(names):
                trained = domain in ("Kvasir", "CVC-ClinicDB") and i
                place = folder / ("TrainDataset" if trained else f"TestDataset/{PACKAGED.get(domain, domain)}")
                labels = sketch.labels(36, 48)
                write_png(place / ("image" if trained else "images") / f"{name}.png", sketch.photograph(labels, k))
                write_png(place / ("mask" if trained else "masks") / f"{name}.png", labels * 255)
