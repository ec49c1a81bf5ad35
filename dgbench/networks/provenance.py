"""Provenance: the public collections that pretrained weights were trained on, known, likely or not known, and who says.

A task says in turn which collections its images are from (`Task.collections`). Where the two lists meet, a score may
rest on images that the weights have seen with their masks: such a row is marked, and can be left out of a ranking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from dgbench.networks.weights import WEIGHTS

Certainty = Literal["known", "likely", "not known"]


class Seen(NamedTuple):
    """A collection that weights were trained on, or may have been. source: who says so, or why it is not known."""

    collection: str
    certainty: Certainty
    source: str


OF_SAM = (Seen("SA-1B", "known", "Kirillov et al., ICCV 2023: 11 million photographs, no medical collection"),)
OF_MEDSAM = (
    *OF_SAM,
    Seen("BUSI", "likely", "the usual public set of breast ultrasound, older than MedSAM; its list was not read"),
    *(
        Seen(name, "not known", "public before MedSAM; the list in its supplement was not looked up")
        for name in (
            *("NCI-ISBI 2013", "I2CVB", "PROMISE12", "RIGA", "MESSIDOR"),
            *("Data Science Bowl 2018", "TCIA Soft-tissue-Sarcoma"),
            *("REFUGE", "ORIGA", "Drishti-GS", "RIM-ONE r3", "DRIVE", "STARE", "CHASE_DB1", "HRF", "ISIC 2018", "PH2"),
            *("Kvasir-SEG", "CVC-ClinicDB", "CVC-ColonDB", "CVC-EndoSceneStill", "ETIS-LaribPolypDB", "PolypGen"),
            *("BTCV", "CHAOS", "MS-CMRSeg 2019", "M&Ms 2020", "BraTS 2018", "SCGM 2016"),
            *("Montgomery County chest X-ray set", "Shenzhen chest X-ray set", "JSRT"),
        )
    ),
    *(Seen(name, "not known", "published in 2023 and 2024, about as MedSAM was") for name in ("BrEaST", "BUS-BRA")),
    Seen("BUS-UC", "not known", "a smaller public set; MedSAM's supplement was not looked up"),
)
CHALLENGE = "the training set of the challenge that LiteMedSAM is the baseline of (CVPR 2024, MedSAM on Laptop)"
OF_LITE_MEDSAM = (
    Seen("BUSI", "likely", f"{CHALLENGE} holds US/Breast-Ultrasound, its files named benign (1) ... as BUSI's"),
    Seen(
        "Data Science Bowl 2018",
        "not known",
        f"{CHALLENGE} holds other microscopy, NeurIPS 2022 CellSeg; whether the two share images is not said",
    ),
    Seen(
        "TCIA Soft-tissue-Sarcoma",
        "not known",
        f"{CHALLENGE} holds other PET, autoPET, and does not name this collection",
    ),
)
PUBLIC = OF_MEDSAM[len(OF_SAM) :]
OF_SAM_MED2D = tuple(
    s._replace(certainty="not known", source="the collections in SA-Med2D-20M are not named one by one in its release")
    for s in PUBLIC
)
OF_UNIVERSEG = tuple(
    s._replace(certainty="not known", source="MegaMedical joins 53 public collections; the paper's list was not read")
    for s in PUBLIC
)
TAUGHT = tuple(s for s in OF_MEDSAM if s.collection not in {own.collection for own in OF_LITE_MEDSAM})
OF_SAM2 = (*OF_SAM, Seen("SA-V", "known", "Ravi et al., 2024: videos of everyday scenes, no medical collection"))
OF_MEDSAM2 = (
    *OF_SAM2,
    *(
        Seen(s.collection, "not known", "public before MedSAM2; the list of its training sets was not looked up")
        for s in OF_MEDSAM
        if s not in OF_SAM
    ),
)
SEEN: dict[str, tuple[Seen, ...]] = {  # by the names of `weights.WEIGHTS`, and of the data of what timm publishes
    "sam_vit_b": OF_SAM,
    "sam_vit_l": OF_SAM,
    "sam_vit_h": OF_SAM,
    "mobile_sam": OF_SAM,
    "medsam_vit_b": OF_MEDSAM,
    "lite_medsam": (*OF_LITE_MEDSAM, *TAUGHT),  # its encoder imitates MedSAM's
    **dict.fromkeys(("sam2_tiny", "sam2_small", "sam2_base_plus", "sam2_large"), OF_SAM2),
    "medsam2": OF_MEDSAM2,
    "sam_med2d_b": (*OF_SAM, *OF_SAM_MED2D),
    "universeg_v1": OF_UNIVERSEG,
    "imagenet": (Seen("ImageNet", "known", "as timm publishes them: photographs, no medical collection"),),
    "lvd142m": (
        Seen("LVD-142M", "known", "Oquab et al., TMLR 2024: curated images of the web, no masks, no medical set named"),
    ),
    "lvd1689m": (
        Seen("LVD-1689M", "known", "Siméoni et al., 2025: curated images of the web, no masks, no medical set named"),
    ),
    "sat493m": (Seen("SAT-493M", "known", "Siméoni et al., 2025: satellite images, without masks"),),
}


def started_from(record: Mapping[str, Any]) -> list[str]:
    """The names in `SEEN` of all that a run started from, by its record: weights are told by their checksum.

    Those whose checksum is not known are told by the name of their file.
    """
    files = record.get("initialisation", "scratch")
    found = set(files.values()) if isinstance(files, Mapping) else set()
    called = set(files) if isinstance(files, Mapping) else set()
    names = [n for n, known in WEIGHTS.items() if known.sha256 in found or (not known.sha256 and known.file in called)]
    hparams = record.get("hparams", {})
    names += ["imagenet"] if hparams.get("initialisation") == "imagenet" else []
    if hparams.get("initialisation") == "published":  # a ViT of DINO; the name may say its data
        encoder = hparams.get("encoder", "")
        first = "lvd142m" if "dinov2" in encoder else "lvd1689m"
        names += [next((name for name in ("lvd142m", "lvd1689m", "sat493m") if encoder.endswith(name)), first)]
    stated = re.split(r"\W+", str(record.get("stated", {}).get("pretraining", "")).casefold())  # of a foreign system
    return names + [name for name in SEEN if name in stated]


def overlap(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Seen]:
    """{(weights, collection): what is known} where the weights of runs and the images of their task meet."""
    found: dict[tuple[str, str], Seen] = {}
    for record in records:
        ours = {_letters(c): c for c in record.get("collections", ())}
        for name in started_from(record):
            found |= {(name, ours[key]): s for s in SEEN[name] if (key := _letters(s.collection)) in ours}
    return found


def _letters(name: str) -> str:
    """ "BUS-BRA" and "bus_bra" are one collection."""
    return "".join(c for c in name.casefold() if c.isalnum())
