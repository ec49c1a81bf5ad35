"""Export: a task's images for nnU-Net v2, in its raw layout, and the labels by which its predictions come back.

OUT/nnUNet_raw/DatasetNNN_<task>_<source>/imagesTr, labelsTr     the source's training cases
                                         imagesTs/<domain>      each target, and the source's validation cases
                                         dataset.json
OUT/predictions/<source>-seed0/dgbench.toml                      what `dgbench score` must know of the predictions

No mask of a target is written. Images are as the task gives them, in [0, 1] at their own resolution: photographs whose
8 bits that keeps as PNG, all others as NIfTI with the task's spacing, each channel a file of its own. Where structures
overlap, each set of them that occurs together is a label and each structure a region, the union of its labels.

Isensee et al. nnU-Net. Nature Methods 2021. The layout: documentation/dataset_format.md and region_based_training.md in
https://github.com/MIC-DKFZ/nnUNet.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgbench.errors import UsageError, require
from dgbench.files import make_folder, write_atomic, write_json
from dgbench.task import Case, Task

FIRST = 500  # of the numbers of data sets; below are others' (nnU-Net's own are 1 to 100)
BUDGET = "1000 epochs of 250 batches"  # of nnU-Net's default trainer


@dataclass(frozen=True)
class Exported:
    """What was written. commands: lines for a shell that train, predict and score, in order."""

    folder: Path
    predictions: Path
    commands: tuple[str, ...]


class Labels:
    """The values of an index mask, one for each set of structures that occurs together; 0 is the background.

    by_structure: the values that belong to each structure.
    """

    def __init__(self, structures: Sequence[str], masks: Iterable[np.ndarray]):
        """masks: bool (D, K, H, W) each."""
        sets: set[int] = set()
        for mask in masks:
            sets |= set(np.unique(_sets(mask)).tolist())
        occurring = [s for s in sets if s]
        # One that is never seen has a value all the same.
        alone = (1 << k for k in range(len(structures)) if not any(s >> k & 1 for s in occurring))
        self.sets = sorted({*occurring, *alone})
        self.structures = tuple(structures)
        self.by_structure = {
            name: tuple(v for v, s in enumerate(self.sets, 1) if s >> k & 1) for k, name in enumerate(structures)
        }

    def index_mask(self, mask: np.ndarray) -> np.ndarray:
        """bool (D, K, H, W) -> uint8 (D, H, W). Raises `UsageError` for a set of structures that has no value."""
        found = _sets(mask)
        known = np.array([0, *self.sets])
        values = np.searchsorted(known, found).clip(0, len(known) - 1)
        if not (known[values] == found).all():
            raise UsageError("a mask holds structures together that no training mask does", "write planes instead")
        return values.astype(np.uint8)

    def described(self) -> dict[str, Any]:
        """`labels` of dataset.json, and `regions_class_order` where structures overlap.

        nnU-Net paints the regions one over the other in this order: the larger first, and then what lies in it.
        """
        if all(len(values) == 1 for values in self.by_structure.values()) and len(self.sets) == len(self.structures):
            return {"labels": {"background": 0, **{n: v[0] for n, v in self.by_structure.items()}}}
        regions = dict(self.by_structure)
        for value, of in enumerate(self.sets, 1):  # what no structure's painting leaves behind
            if of.bit_count() > 1 and (value,) not in regions.values():
                regions[" and ".join(n for k, n in enumerate(self.structures) if of >> k & 1)] = (value,)
        ordered = sorted(regions.items(), key=lambda region: -len(region[1]))
        return {
            "labels": {"background": 0, **{name: list(values) for name, values in ordered}},
            "regions_class_order": [min(v, key=lambda n: (self.sets[n - 1].bit_count(), n)) for _, v in ordered],
        }


def export(task: Task, source: str, out: Path, number: int | None = None) -> Exported:
    """Write the data set of one source. number: of the data set, three digits; by default 500 and the source's place.

    Raises `UsageError` for an unknown source or when the folder is there, `DataError` for a case that cannot be read.
    """
    require(source, task.source_domains, f"source of task {task.name}")
    number = FIRST + list(task.source_domains).index(source) if number is None else number
    name = f"Dataset{number:03d}_{_word(task.name)}_{_word(source)}"
    out = Path(out).resolve()
    folder, predictions = out / "nnUNet_raw" / name, out / "predictions" / f"{_word(source)}-seed0"
    if folder.exists():
        raise UsageError(f"{folder} is there already", "delete it first, or give another folder with --out")
    training, validation = task.split(source)
    tested = {source: validation} | {d: task.tested(source, d) for d in task.targets(source)}
    every = [*((source, i) for i in training), *((d, i) for d, ids in tested.items() for i in ids)]
    photographs = task.unit == "px" and all(_is_photograph(task.load(*place)) for place in every)
    ending = ".png" if photographs else ".nii.gz"
    labels = Labels(task.structures, (task.load(source, i).mask for i in training))
    images, masks = (make_folder(folder / part) for part in ("imagesTr", "labelsTr"))
    channels, depth = max(task.load(*place).image.shape[1] for place in every), 0  # a network has so many for all
    for case in (task.load(source, i) for i in training):
        depth = max(depth, len(case.image))
        _write_image(case, images, ending, channels)
        _write(masks / f"{case.id}{ending}", labels.index_mask(case.mask), case.spacing)
    for domain, ids in tested.items():
        into = make_folder(folder / "imagesTs" / domain)
        for case_id in ids:
            _write_image(task.load(domain, case_id), into, ending, channels)
    described = {
        "channel_names": {str(c): "image" if channels == 1 else "RGB"[c] for c in range(channels)},
        **labels.described(), "numTraining": len(training), "file_ending": ending, "name": name,
        "reference": task.citation, "licence": task.licence,
    }  # fmt: skip
    write_json(folder / "dataset.json", described)
    write_atomic(make_folder(predictions) / "dgbench.toml", statement(labels))
    configuration = "3d_fullres" if depth > 1 else "2d"
    return Exported(folder, predictions, tuple(_commands(task, source, folder, predictions, configuration)))


def statement(labels: Labels) -> str:
    """dgbench.toml beside the predictions: which of their values belong to which structure."""
    pairs = ", ".join(f"{json.dumps(n, ensure_ascii=False)} = {list(v)}" for n, v in labels.by_structure.items())
    return f'method = "nnunet"\nlabels = {{ {pairs} }}\n'


def _commands(task: Task, source: str, folder: Path, predictions: Path, configuration: str) -> Iterator[str]:
    number = folder.name.removeprefix("Dataset").partition("_")[0]
    root = folder.parent.parent
    places = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    yield " ".join(["export", *(f"{place}={shlex.quote(str(root / place))}" for place in places)])
    yield f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration} --verify_dataset_integrity"
    yield f"nnUNetv2_train {number} {configuration} all"
    for images in sorted((folder / "imagesTs").iterdir()):
        which = ["-d", number, "-c", configuration, "-f", "all"]
        yield shlex.join(["nnUNetv2_predict", *which, "-i", str(images), "-o", str(predictions / images.name)])
    stated = ["--stated", f"budget={BUDGET}", "--stated", "pretraining=none"]
    data = str(task.data.resolve()) if task.data else ""  # of the user's own images it is what the task is found by
    where = ["--task", task.location, *(["--data", data] if data and data != task.location else [])]
    yield shlex.join(["dgbench", "score", str(predictions), *where, "--source", source, "--seed", "0", *stated])


def _sets(mask: np.ndarray) -> np.ndarray:
    """bool (D, K, H, W) -> int64 (D, H, W): the sum of 2^k over the structures of each voxel."""
    found = np.zeros((mask.shape[0], *mask.shape[2:]), np.int64)
    for k in range(mask.shape[1]):
        found |= mask[:, k].astype(np.int64) << k
    return found


def _is_photograph(case: Case) -> bool:
    """One slice whose numbers are those of 8 bits."""
    levels = case.image * 255
    return len(case.image) == 1 and bool(np.abs(levels - np.rint(levels)).max() < 0.01)


def _write_image(case: Case, folder: Path, ending: str, channels: int) -> None:
    """A gray image has its value in each of the channels."""
    image = np.repeat(case.image, channels // case.image.shape[1], axis=1)
    if ending == ".png":
        pixels = np.rint(np.moveaxis(image, 1, -1) * 255).astype(np.uint8)
        return _write(folder / f"{case.id}_0000.png", pixels[..., 0] if pixels.shape[-1] == 1 else pixels, case.spacing)
    for c in range(channels):
        _write(folder / f"{case.id}_{c:04d}{ending}", image[:, c], case.spacing)


def _write(path: Path, values: np.ndarray, spacing: Sequence[float]) -> None:
    """values: (D, H, W), or of a photograph also (1, H, W, 3)."""
    if path.suffix == ".png":
        from PIL import Image

        return Image.fromarray(values[0]).save(path)
    import nibabel

    image = nibabel.Nifti1Image(values.T, np.diag([*spacing[::-1], 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "task"
