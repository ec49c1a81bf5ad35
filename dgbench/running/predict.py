"""Applying a finished run to images of one's own."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from dgbench import registry
from dgbench.errors import DataError, UsageError, require
from dgbench.files import make_folder, read_json
from dgbench.fingerprint import of_code
from dgbench.images import formats, preparation
from dgbench.images.file_task import FileTask
from dgbench.images.find_task import get_task, is_named
from dgbench.images.folder_task import FolderTask
from dgbench.images.mask_files import write_mask
from dgbench.images.own_task import OwnTask
from dgbench.images.table_task import TableTask
from dgbench.method import Batch, Hparams, Method, hparams_class
from dgbench.running import train
from dgbench.running.device import choose_device
from dgbench.running.plan import safe
from dgbench.running.records import RunRecord, broken_files, read_run
from dgbench.running.test import predict_slices, slices_at_once
from dgbench.seeding import key
from dgbench.settings import fields, read, spelled
from dgbench.task import Task, TaskInfo


def load_run(folder: Path, device: str = "cpu") -> tuple[Method, RunRecord]:
    """The trained method of a finished run, ready to predict. Raises `DataError` when its folder does not verify."""
    record = read_run(folder)
    values = record.record
    if record.external:
        raise UsageError(f"{folder} holds masks of a system outside dgbench and no weights", "give a run made here")
    if values["checkpoint"]:
        raise UsageError(f"{folder} tested a given checkpoint and holds no weights", "give a run that was trained")
    if broken := broken_files(folder, read_json(folder / "RESULT.json") or {}):
        raise DataError(f"{folder}: {', '.join(broken)} missing or changed since the run ended", "make the run again")
    cls = registry.get_method(record.method)
    info = TaskInfo(record.task, tuple(values["structures"]), values["image_size"], values["steps"])
    method, _ = train.build(cls, info, _hparams(cls, values["hparams"]), record.seed, device)
    train.load_learned(method, safetensors.torch.load_file(folder / "weights.safetensors"))
    return method.eval(), record


def _hparams(cls: type[Method], recorded: dict[str, Any]) -> Hparams:
    """The settings a run was made with, whatever the defaults are today."""
    known = fields(hparams_class(cls))
    if gone := sorted(set(recorded) - set(known)):
        raise DataError(f"{cls.name} has no setting {', '.join(gone)} any more, which the run had", "make it again")
    remedy = f"{cls.name} allows other values than it did when the run was made: make it again"
    return hparams_class(cls)(**{n: read(n, spelled(v), known[n], remedy) for n, v in recorded.items()})


def predict_files(
    run_folder: Path,
    paths: Sequence[Path],
    out: Path,
    device: str = "auto",
    task: Task | None = None,
    domain: str | None = None,
) -> Iterator[Path]:
    """Write a run's masks for image files, or folders of DICOM series; yields each file written.

    One mask per structure, on the image's own grid, in the formats that `images.mask_files` says. Intensities follow
    the rule of `task`, by default the one that the run was trained and tested with; where that differs by domain, the
    rule of `domain`, by default of the run's source. Raises `DataError` at the end, which names every image that cannot
    be read; the others have their masks then.
    """
    method, record = load_run(Path(run_folder), choose_device(device))
    if method.uses_target_masks:
        raise UsageError(
            f"{record.variant} is an oracle: it is prompted from the reference mask, which new images do not have",
            "give a run of another method",
        )
    intensities, reading = _reading(record, task, domain)
    _notice_changes(record, method=of_code(type(method)), task=reading)
    masks = Counter(f"{formats.stem(p)}_{safe(s)}" for p in paths for s in record.record["structures"])
    if repeated := [name for name, count in masks.items() if count > 1]:
        raise UsageError(f"two masks would be named {repeated[0]}: one would overwrite the other", "rename an image")
    if any(
        p.name == "masks" and (p.parent / "images").is_dir() for p in (Path(out).resolve(), Path(out).resolve().parent)
    ):
        raise UsageError(
            f"{out} holds the reference masks of a domain: they could be overwritten", "give another --out"
        )
    make_folder(out)
    broken: list[DataError] = []
    for path in paths:
        try:
            pixels = formats.read(path)
        except DataError as error:
            broken.append(error)
            continue
        torch.manual_seed(key(record.seed, "predict", formats.stem(path)))
        mask = predict_image(method, intensities(pixels))
        for k, structure in enumerate(record.record["structures"]):
            yield write_mask(mask[:, k], pixels, out / f"{formats.stem(path)}_{safe(structure)}", path)
    if broken:
        told = "; ".join(error.cause for error in broken)
        raise DataError(f"{len(broken)} of {len(paths)} images have no mask: {told}", broken[0].remedy)


def _reading(
    record: RunRecord, task: Task | None, domain: str | None
) -> tuple[Callable[[formats.Pixels], np.ndarray], str]:
    """How a run's images became [0, 1]: by its task's code, or, for users' own images, as the record says.

    With the fingerprint of that code as it is today.
    """
    if task is None and is_named(record.task):
        task = get_task(record.task)
    if isinstance(task, OwnTask):
        return _by_range(task.intensity_range, record, domain), task.code_fingerprint()
    if isinstance(task, FileTask):
        return task.intensities, task.code_fingerprint()
    if task is not None or "intensity_range" not in record.record:
        why = "its code has no rule for files" if task else "no such task is here, nor does the run say it"
        raise UsageError(
            f"how images of task '{record.task}' are read is not known: {why}",
            "give the task's file with --plugin, a FileTask; for a folder of images make the run again",
        )
    kinds = [of_code(cls, beyond=["dgbench.task"]) for cls in (FolderTask, TableTask)]
    recorded = record.record.get("code", {}).get("task")
    today = recorded if recorded in kinds else kinds[0]  # a record does not say which of the two it was
    return _by_range(record.record["intensity_range"], record, domain), today


def _by_range(limits: Any, record: RunRecord, domain: str | None) -> Callable[[formats.Pixels], np.ndarray]:
    """limits: the numbers that become 0 and 1, or, by domain, such numbers."""
    if isinstance(limits, Mapping):
        if domain is None:
            told = f"the intensity rule differs by domain: that of the source, {record.source}, is used"
            print(f"{told}; --domain names another", file=sys.stderr)
        limits = limits[require(domain or record.source, list(limits), "domain")]
    return functools.partial(formats.by_range, limits=limits)


def _notice_changes(record: RunRecord, **today: str) -> None:
    """Say that code is not what it was: masks may then not be those that the run's own test would have given."""
    told = record.record.get("code", {})
    for what in (name for name, fingerprint in today.items() if told.get(name, fingerprint) != fingerprint):
        name = record.method if what == "method" else f"task '{record.task}'"
        print(f"the code of {name} changed since this run was made: its masks may be others now", file=sys.stderr)


def predict_image(method: Method, image: np.ndarray) -> np.ndarray:
    """float32 (D, C, H, W) in [0, 1] -> bool (D, K, H, W) at the image's own resolution, as a run's test does."""
    device = train.device_of(method)
    inputs = torch.from_numpy(preparation.restored(preparation.stored(image, method.image_size)))
    if method.neighbours:
        inputs = preparation.with_neighbours(inputs, method.neighbours)
    parts = (part.to(device) for part in inputs.split(slices_at_once(method, len(inputs))))
    batches = (Batch(part.expand(-1, max(3, part.shape[1]), -1, -1), torch.empty(0)) for part in parts)
    masks = predict_slices(method, batches, image.shape[2:])
    assert masks is not None, "an image has at least one slice"
    return masks
