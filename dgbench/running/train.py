"""Training: one loop for every method. Its state is weights, optimizer and step, so it can be killed anywhere."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dgbench.errors import RunError, of_system
from dgbench.files import sha256, write_atomic
from dgbench.images.preparation import PreparedDomain
from dgbench.method import Batch, Hparams, Method
from dgbench.running.selection import BestOnSource, Selected
from dgbench.seeding import batch_indices, generator, key
from dgbench.task import TaskInfo

GPU_SHARE = 0.25  # of a GPU's free memory that a domain's slices may take, for the rest is the network's
HISTORY_LINES = 200  # a learning curve has about this many points, whatever the number of steps


class Interrupted(Exception):
    """Training was asked to stop; its checkpoint is written."""


@dataclass
class TrainingSlices:
    """The slices a method learns from: all that the training loop ever sees of the data."""

    domain: PreparedDomain
    indices: Any  # int64 (n,)
    foreground_share: float = 0.0  # of a batch, see `Method`

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device, neighbours: int = 0) -> Batch:
        """The batch of a step, on a device; see `PreparedDomain.batch`."""
        return self.domain.batch(self.indices[self.positions(seed, step, batch_size)], device, neighbours)

    def positions(self, seed: int, step: int, batch_size: int) -> Any:
        """Which of the slices make up the batch of a step, (batch_size,).

        The last ones, as many as the share of foreground asks for, come from shuffled passes of their own over the
        slices that hold a structure, if any does.
        """
        chosen = batch_indices(seed, step, batch_size, len(self.indices))
        forced = batch_size - round(batch_size * (1 - self.foreground_share))
        if forced and len(self.holding):
            chosen[-forced:] = self.holding[batch_indices(key(seed, "foreground"), step, forced, len(self.holding))]
        return chosen

    @functools.cached_property
    def holding(self) -> Any:
        """Which of the slices hold a structure."""
        holding = self.domain.slice_indices(list(self.domain.cases), foreground=True)
        return np.flatnonzero(np.isin(self.indices, holding))


def keep_on_gpu(slices: TrainingSlices, device: torch.device) -> None:
    """Have the batches taken from the GPU's own memory, if the domain fits into `GPU_SHARE` of what is free there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        slices.domain.keep_on(device, int(GPU_SHARE * free))


def build(
    cls: type[Method],
    info: TaskInfo,
    hparams: Hparams,
    seed: int,
    device: torch.device | str = "cpu",
    pretrained: bool = True,
) -> tuple[Method, dict[str, str]]:
    """A method as it stands before its first step, on its device, and {weights file: sha256} of what is pretrained."""
    torch.manual_seed(key(seed, "init"))
    method = cls(info, hparams)
    files = method.load_pretrained() if pretrained else {}
    return method.to(device), files


def device_of(method: Method) -> torch.device:
    """Where a method lives; the CPU for one without parameters and buffers."""
    return next(itertools.chain(method.parameters(), method.buffers()), torch.empty(0)).device


def autocast(method: Method) -> contextlib.AbstractContextManager[object]:
    """What `update` and `predict` compute in: nothing in float32; in bfloat16 torch's autocast.

    Weights, gradients and optimizers stay float32. Rounded weights are not remembered: an optimizer may step in the
    midst of an `update`, and what comes after must see the new ones.
    """
    if method.hparams.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device_of(method).type, torch.bfloat16, cache_enabled=False)


def configure(method: Method) -> None:
    """Let the method make its optimizers, and note each one's learning rate before any schedule."""
    made = method.configure()
    method.optimizers = made if isinstance(made, tuple) else (made,)
    for optimizer in method.optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]


def step(method: Method, batch: Batch, seed: int, t: int) -> dict[str, Tensor]:
    """One training step on an unaugmented batch. All randomness is a function of (seed, t).

    What it shows stays on the device: reading a number would wait for a GPU to finish.
    """
    torch.manual_seed(key(seed, "step", t))
    factor = method.schedule(t)
    for optimizer in method.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    batch = method.augment(batch, generator(seed, "augment", t))
    with autocast(method):
        shown = method.update(batch)
    return {name: torch.as_tensor(value).detach().clone() for name, value in shown.items()}


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds besides the state of method and optimizers.

    best: the weights that `selected` is about, as from `learned_state`; empty while nothing is selected.
    """

    step: int = 0
    seconds: float = 0.0
    pending: list[dict[str, float]] = field(default_factory=list)  # of the history line that is being filled
    history: list[dict[str, float]] = field(default_factory=list)
    selected: Selected = field(default_factory=Selected)
    best: dict[str, Tensor] = field(default_factory=dict)

    def note(self, shown: list[dict[str, float]], since: float) -> float:
        """Add what steps have shown, and the seconds since a time of the clock; returns its time now."""
        now = time.monotonic()
        self.pending += shown
        self.seconds += now - since
        return now

    def close_line(self) -> dict[str, float]:
        """Put the means of what is pending into the history; returns its new line."""
        means = {n: sum(p[n] for p in self.pending) / len(self.pending) for n in self.pending[0]}
        looked = {} if self.selected.shown is None else {"validation_dice": self.selected.shown}
        self.history.append({"step": self.step, **means, **looked, "seconds": round(self.seconds, 3)})
        self.pending, self.selected.shown = [], None
        return self.history[-1]


@dataclass(frozen=True)
class Watch:
    """Who listens to a run and may stop it, and the seconds between two checkpoints.

    report(phase, done, total, detail): "train" and steps, or "test" and cases. should_stop(): asked after each of them.
    """

    report: Callable[[str, int, int, str], None] = lambda phase, done, total, detail: None
    should_stop: Callable[[], bool] = lambda: False
    save_every: float = 60.0


def fit(
    method: Method,
    slices: TrainingSlices,
    seed: int,
    folder: Path,
    watch: Watch = Watch(),
    selection: BestOnSource | None = None,
) -> Progress:
    """Train to the last step, from the newest checkpoint in `folder` that is whole; then take the selected weights.

    A checkpoint is written every `watch.save_every` seconds and when `watch.should_stop()` turns true (then
    `Interrupted` is raised). Raises `RunError` when the loss is not finite or memory runs out; the last checkpoint
    stays. What steps show is read where it is needed only: for a line of the history, for a checkpoint, for an error.
    """
    device = device_of(method)
    keep_on_gpu(slices, device)
    configure(method)
    method.train()
    progress = load_checkpoint(method, folder)
    curve = folder / "history.jsonl"
    write_atomic(curve, "".join(json.dumps(line) + "\n" for line in progress.history))
    batch_size, every = method.hparams.batch_size, max(1, method.steps // HISTORY_LINES)
    unread = Unread(slices, seed, batch_size)
    saved = clock = time.monotonic()
    first = progress.step
    while progress.step < method.steps:
        t = progress.step
        with _clear_memory_errors(method), unread.blamed():
            batch = slices.batch(seed, t, batch_size, device, method.neighbours)
            unread.steps.append((t, step(method, batch, seed, t)))
        progress.step += 1
        if t == first:  # now it is known what memory it takes
            watch.report("train", progress.step, method.steps, "")
        looks = selection is not None and selection.due(progress.step, method.steps)
        if looks or progress.step % every == 0 or progress.step == method.steps:
            clock = progress.note(unread.read(), clock)
            if selection is not None and looks:
                if selection.look(method, progress.selected, progress.step):
                    progress.best = learned_state(method, pretrained=True)
                clock = time.monotonic()  # a look is no time of training
            line = progress.close_line()
            with open(curve, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            watch.report("train", progress.step, method.steps, f"loss {line.get('loss', math.nan):.4f}")
        stop = watch.should_stop()
        if (stop or time.monotonic() - saved > watch.save_every) and progress.step < method.steps:
            clock = progress.note(unread.read(), clock)
            if not all(bool(p.isfinite().all()) for p in method.parameters()):
                raise unread.not_finite("a weight is not finite after", t)
            save_checkpoint(method, progress, folder)
            saved = time.monotonic()
        if stop:
            raise Interrupted(f"stopped at step {progress.step}")
    if progress.best:
        load_learned(method, progress.best)
    return progress


@dataclass
class Unread:
    """What steps have shown and nobody has looked at yet: (step, values on the device), in order."""

    slices: TrainingSlices
    seed: int
    batch_size: int
    steps: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def read(self) -> list[dict[str, float]]:
        """The values as numbers, a row for each step. Raises `RunError` for the first step with one not finite."""
        rows = []
        for t, shown in self.steps:
            rows.append({name: float(value) for name, value in shown.items()})
            if not all(map(math.isfinite, rows[-1].values())):
                raise self.not_finite(f"the loss is {rows[-1].get('loss')} at", t)
        self.steps = []
        return rows

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Where a step fails inside because one before it was not finite, that one is told."""
        try:
            yield
        except Exception:
            self.read()
            raise

    def not_finite(self, what: str, t: int) -> RunError:
        """`what` happened at step `t`, and with which cases."""
        slices = self.slices
        positions = slices.positions(self.seed, t, self.batch_size)
        cases = sorted({slices.domain.case_of(i) for i in slices.indices[positions]})
        return RunError(
            f"{what} step {t} (batch from cases {', '.join(cases)})",
            "lower learning_rate with --set, or look at these cases; the last checkpoint is kept",
        )


@contextlib.contextmanager
def _clear_memory_errors(method: Method) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(of_system(error), RunError):
            raise RunError(
                f"out of memory at batch_size {method.hparams.batch_size}, image_size {method.image_size}",
                "lower one of them with --set, or choose a smaller network",
            ) from error
        raise


def learned_state(method: Method, pretrained: bool) -> dict[str, Tensor]:
    """What training may have changed: all buffers and trained parameters; frozen ones too if nothing was pretrained."""
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad} if pretrained else set()
    state = method.state_dict()
    return {n: t.detach().cpu().contiguous().clone() for n, t in sorted(state.items()) if n not in frozen}


def load_learned(method: Method, state: dict[str, Tensor]) -> None:
    """Undo `learned_state`. Raises `RunError` when the tensors are not this method's."""
    own = method.state_dict()
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    missing = sorted(set(own) - set(state) - frozen)
    unexpected = sorted(set(state) - set(own))
    if missing or unexpected:
        raise RunError(
            f"weights do not fit the method: missing {missing[:3]}, unexpected {unexpected[:3]}",
            "they were made by another version of it; run again with --rerun all",
        )
    method.load_state_dict(state, strict=False)


def save_checkpoint(method: Method, progress: Progress, folder: Path) -> Path:
    """Write checkpoint-<step>.safetensors with its checksum beside it, and keep the one before."""
    tensors = {f"method/{n}": t for n, t in learned_state(method, pretrained=True).items()}
    tensors |= {f"best/{n}": t for n, t in progress.best.items()}
    scalars: dict[str, Any] = {}
    for i, optimizer in enumerate(method.optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                where = f"optimizer/{i}/{parameter}/{name}"
                if isinstance(value, Tensor):
                    tensors[where] = value.detach().cpu().contiguous().clone()
                elif value is not None:
                    scalars[where] = value
    path = write_checkpoint(folder, progress, tensors, scalars)
    for old in sorted(folder.glob("checkpoint-*.safetensors"))[:-2]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def write_checkpoint(folder: Path, progress: Progress, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> Path:
    """Write what `load_checkpoint` reads, its checksum last; tensors: under "method/", "best/" and "optimizer/"."""
    told = {**vars(progress), "selected": vars(progress.selected)}
    del told["best"]  # tensors
    content = safetensors.torch.save(tensors, {"progress": json.dumps(told), "scalars": json.dumps(scalars)})
    path = folder / f"checkpoint-{progress.step:08d}.safetensors"
    write_atomic(path, content)
    write_atomic(path.with_suffix(".sha256"), sha256(path))
    return path


def load_checkpoint(method: Method, folder: Path) -> Progress:
    """Put the newest whole checkpoint into the method and its optimizers; a damaged one is passed over, and said."""
    for path in sorted(folder.glob("checkpoint-*.safetensors"), reverse=True):
        checksum = path.with_suffix(".sha256")
        if not checksum.is_file() or checksum.read_bytes() != sha256(path).encode():
            print(f"checkpoint {path} is damaged: the one before is used", file=sys.stderr)
            continue
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        load_learned(method, {n.removeprefix("method/"): t for n, t in tensors.items() if n.startswith("method/")})
        values = {**tensors, **json.loads(metadata["scalars"])}
        for i, optimizer in enumerate(method.optimizers):
            states: dict[int, dict[str, Any]] = {}
            for where, value in values.items():
                kind, _, rest = where.partition("/")
                if kind == "optimizer" and rest.startswith(f"{i}/"):
                    _, parameter, name = rest.split("/", 2)
                    states.setdefault(int(parameter), {})[name] = value
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        told = json.loads(metadata["progress"])
        best = {n.removeprefix("best/"): t for n, t in tensors.items() if n.startswith("best/")}
        return Progress(**told | {"selected": Selected(**told["selected"]), "best": best})
    return Progress()
