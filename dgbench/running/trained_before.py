"""A training that a finished run has made already: what only predicts otherwise begins where that run has ended.

Of a method that `only_predicts`, put over another one, the training is that of the other one. Where a finished run of
it lies in the same results, with the same fingerprint of code, settings and images, the same versions and hardware, its
weights are written into the new run's folder as the checkpoint of the last step, and the run goes on from there. It
gives what training anew would give, to the bit; where anything differs, it is trained anew.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch

from dgbench import registry
from dgbench.errors import UsageError
from dgbench.files import read_json, sha256, write_json
from dgbench.method import Method, hparams_class, trained_as
from dgbench.running.description import ORIGIN
from dgbench.running.plan import Run, plan
from dgbench.running.selection import Selected
from dgbench.running.train import Progress, write_checkpoint
from dgbench.settings import fields


def borrow(run: Run, how: dict[str, Any]) -> None:
    """Write the last step's checkpoint into the run's folder, if a finished run has made that training.

    how: the environment, as `description.environment` tells it, by which the run would be trained here.
    Whatever checkpoints lie there are removed: the folder holds no record that says whose they are.
    """
    folder = Path(run.folder)
    for path in folder.glob("checkpoint-*"):
        path.unlink()
    if (base := find(run, how)) is None:
        return
    record = read_json(base / "run.json") or {}
    weights, chosen = base / "weights.safetensors", record.get("selected", {})
    history = [json.loads(line) for line in (base / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    costs = record["costs"]
    looks = costs.get("validation_seconds", 0.0)
    selected = Selected(chosen.get("step", 0), chosen.get("validation_dice", 0.0), looks)
    progress = Progress(record["steps"], costs["train_seconds"], history=history, selected=selected)
    tensors = {f"method/{name}": tensor for name, tensor in safetensors.torch.load_file(weights).items()}
    write_json(folder / ORIGIN, {"trained_by": f"{record['variant']}/{base.name}", "weights": sha256(weights)})
    write_checkpoint(folder, progress, tensors, {})


def find(run: Run, how: dict[str, Any]) -> Path | None:
    """The folder of the finished run whose training is this one's, made as this one would be made here; or None."""
    cls, ours = run.load_method()
    below = trained_as(cls)
    if run.checkpoint is not None or below is cls or (name := named(below)) is None:
        return None
    settings = fields(hparams_class(below))
    planned = plan(
        run.load_task(),
        [name],
        sources=[run.source],
        seeds=[run.seed],
        protocol=run.protocol,
        settings={key: text for key, text in run.settings if key in settings},
        results=Path(run.folder).parents[3],
    )
    for other in planned:
        theirs = other.load_method()[1]
        same = all(getattr(theirs, key) == getattr(ours, key) for key in settings)
        if same and other.held_out == run.held_out and other.status == "done" and _made_so(other, how):
            return Path(other.folder)
    return None


def named(cls: type[Method]) -> str | None:
    """The name by which the registry knows a class; None where it knows it by none."""
    name: str = vars(cls).get("name", cls.__module__.rpartition(".")[2])
    with suppress(UsageError):
        if [c.__qualname__ for c in registry.get_method(name).__mro__] == [c.__qualname__ for c in cls.__mro__]:
            return name
    return None


def _made_so(other: Run, how: dict[str, Any]) -> bool:
    """Did the same versions, hardware and number of threads make that run, so that it is rounded in the same way?"""
    folder = Path(other.folder)
    made = (read_json(folder / "run.json") or {}).get("environment", {})
    return (folder / "weights.safetensors").is_file() and all(made.get(key) == value for key, value in how.items())
