"""Applying a finished run to images of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dgbench import registry
from dgbench.errors import DataError, UsageError
from dgbench.files import make_folder, read_json
from dgbench.images import formats, preparation
from dgbench.images.find_task import get_task
from dgbench.method import Method, resolve_hparams
from dgbench.running import launchers, train
from dgbench.running.records import RunRecord, broken_files, read_run
from dgbench.task import Task, TaskInfo


def load_run(folder: Path, device: str = "cpu") -> tuple[Method, RunRecord]:
    """The trained method of a finished run, ready to predict. Raises `DataError` when its folder does not verify."""
    record = read_run(folder)
    values = record.record
    if values["checkpoint"]:
        raise UsageError(f"{folder} tested a given checkpoint and holds no weights", "give a run that was trained")
    if broken := broken_files(folder, read_json(folder / "RESULT.json") or {}):
        raise DataError(f"{folder}: {', '.join(broken)} missing or changed since the run ended", "make the run again")
    cls = registry.get_method(record.method)
    info = TaskInfo(record.task, tuple(values["structures"]), values["image_size"], values["steps"])
    hparams = resolve_hparams(cls, record.task, values["settings"])
    method, _ = train.build(cls, info, hparams, record.seed, device)
    train.load_learned(method, safetensors.torch.load_file(folder / "weights.safetensors"))
    return method.eval(), record


def predict_files(
    run_folder: Path, paths: Sequence[Path], out: Path, device: str = "auto", task: Task | None = None
) -> Iterator[Path]:
    """Write a run's masks for image files; yields each file written.

    A photograph gives one PNG per structure, 0 or 255; a NIfTI volume one .nii.gz per structure, 0 or 1, on its own
    grid. Intensities follow the rule of `task`, else of the run's task if it is one of ours, else of image folders.
    """
    device = launchers.choose_device(device)
    method, record = load_run(Path(run_folder), device)
    if method.uses_target_masks:
        raise UsageError(
            f"{record.variant} is an oracle: it is prompted from the reference mask, which new images do not have",
            "give a run of another method",
        )
    if task is None and record.task in registry.TASKS.names():
        task = get_task(record.task)
    reader = task if isinstance(task, formats.FileTask) else None
    stems = [formats.stem(p) for p in paths]
    if repeated := sorted({s for s in stems if stems.count(s) > 1}):
        raise UsageError(f"two images are named {repeated[0]}: their masks would overwrite each other", "rename one")
    make_folder(out)
    for path in paths:
        pixels = formats.read(path)
        image = reader.intensities(pixels) if reader else formats.to_unit(pixels)
        mask = predict_image(method, image)
        for k, structure in enumerate(record.record["structures"]):
            yield _write(mask[:, k], pixels, out / f"{formats.stem(path)}_{structure}", path)


def predict_image(method: Method, image: np.ndarray) -> np.ndarray:
    """float32 (D, C, H, W) in [0, 1] -> bool (D, K, H, W) at the image's own resolution."""
    device = train.device_of(method)
    inputs = torch.from_numpy(preparation.to_network(image, method.image_size))
    if method.neighbours:
        inputs = preparation.with_neighbours(inputs, method.neighbours)
    masks: list[Tensor] = []
    for part in inputs.split(method.hparams.batch_size):
        with torch.no_grad():
            probability = method.predict(part.to(device).expand(-1, max(3, part.shape[1]), -1, -1))
        masks.append((preparation.to_image(probability, *image.shape[2:]) >= 0.5).cpu())
    return torch.cat(masks).numpy()


def _write(mask: np.ndarray, pixels: formats.Pixels, path: Path, origin: Path) -> Path:
    try:
        if pixels.affine is not None:
            import nibabel

            path = path.with_name(path.name + ".nii.gz")
            nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8).T, pixels.affine), path)
        else:
            from PIL import Image

            pages = [Image.fromarray(page.astype(np.uint8) * 255) for page in mask]
            path = path.with_name(path.name + (".png" if len(pages) == 1 else ".tif"))
            if len(pages) == 1:
                pages[0].save(path)
            else:
                pages[0].save(path, save_all=True, append_images=pages[1:])
    except OSError as error:
        raise DataError(f"cannot write the mask of {origin}: {error}", "choose another folder with --out") from None
    return path
