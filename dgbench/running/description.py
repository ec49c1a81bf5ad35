"""What is written about a run, run.json: who it is, its settings, code, images, versions and hardware."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dgbench
from dgbench import fingerprint, metrics
from dgbench.files import read_json
from dgbench.images.find_task import is_path
from dgbench.method import Hparams, Method
from dgbench.protocol import get_protocol
from dgbench.registry import NEEDS
from dgbench.running.plan import Run
from dgbench.running.records import SCHEMA
from dgbench.settings import plain
from dgbench.task import Task

ORIGIN = "checkpoint-origin.json"  # in the folder of a run whose training a finished run had made, while it is tested
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "timm", "segment-anything", "nibabel", "pillow")


def describe(
    run: Run, task: Task, cls: type[Method], hparams: Hparams, device: str, prepared: dict[str, Path]
) -> dict[str, Any]:
    """All that a reader needs to judge the run or to make it again; `prepared`: {domain: where it lies prepared}.

    What only the built and trained method knows (steps, initialisation, costs) is added when the run ends.
    """
    return {
        "schema": SCHEMA,
        "task": run.task,
        "protocol": run.protocol,
        "method": run.method,
        "variant": run.variant,
        "source": run.source,
        "seed": run.seed,
        "hparams": plain(hparams),
        "settings": dict(run.settings),
        "checkpoint": run.checkpoint and Path(run.checkpoint).name,
        **of_task(task, run.source),
        **_of_part(task, run),
        **(read_json(Path(run.folder) / ORIGIN) or {}),
        "steps": task.steps,
        "paper": cls.paper,
        "needs": needs(cls),
        "fingerprint": run.fingerprint,
        "code": {"method": fingerprint.of_code(cls), **code(task)},
        "data": {domain: place.name.rpartition("-")[2] for domain, place in prepared.items()},
        "metrics_version": metrics.VERSION,
        "environment": environment(device),
        "started": now(),
        **({"intensity_range": task.intensity_range} if is_path(run.task_location) else {}),
    }


def of_task(task: Task, source: str) -> dict[str, Any]:
    """What a reader of tables must know of the images."""
    return {
        "domains": list(task.domains),
        "sources": list(task.source_domains),
        "targets": list(task.targets(source)),
        "structures": list(task.structures),
        "image_size": task.image_size,
        "unit": task.unit,
        "citation": task.citation,
        "collections": list(task.collections),
        **({"paired": True, "excluded": task.excluded(source)} if task.paired else {}),
        **({"layout": task.layout} if task.layout else {}),
        **({"scored_in": task.scored_in} if task.scored_in else {}),
        **({"further_metrics": list(task.further_metrics)} if task.further_metrics else {}),
    }


def _of_part(task: Task, run: Run) -> dict[str, Any]:
    """What a run inside a domain was trained on, and which of how many folds it is tested on; nothing of all others."""
    if not run.held_out:
        return {}
    count = len(task.folds(run.source, get_protocol(run.protocol).folds))
    targets = {source: list(task.targets(source)) for source in task.source_domains}
    told = {"fold": run.held_out, "folds": count, "trained_on": run.split(task)[0], "targets_of": targets}
    return {"targets": [run.source], **told}


def code(task: Task) -> dict[str, Any]:
    """Which version of dgbench, and of the task's code, measured."""
    return {"dgbench": dgbench.__version__, "task": task.code_fingerprint(), **_git()}


def needs(method: type[Method] | Method) -> dict[str, bool]:
    """What a method, or a variant of it that is built, needs to be compared fairly: see `registry.NEEDS`."""
    return {name: getattr(method, name) for name in NEEDS}


def environment(device: str) -> dict[str, Any]:
    """Versions, and the hardware that computes on `device`."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def _processor() -> str:
    """Its name, which rented ones of several kinds share, and the vector instructions that decide how torch rounds."""
    return f"{_model()} ({torch.backends.cpu.get_cpu_capability()})"


def _model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any]:
    """Commit of the checkout dgbench runs from, and whether files differ from it; nothing for an installed package."""
    root = Path(dgbench.__file__).parent.parent
    if not (root / ".git").exists():
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
        return {"commit": commit.stdout.strip(), "dirty": bool(state.stdout.strip())}
    return {}
