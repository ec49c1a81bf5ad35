"""What a method is: a network, a loss and a prediction, with its hyperparameters in a frozen dataclass."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dgbench import settings as values
from dgbench.errors import UsageError, require
from dgbench.losses import dice_bce
from dgbench.names import MOCK
from dgbench.settings import Range
from dgbench.task import TaskInfo

Precision = Literal["float32", "bfloat16"]


class Batch(NamedTuple):
    """image: (N, 3, H, W) float32 in [0, 1], gray repeated; mask: (N, K, H, W) float32 in {0, 1}, K structures.

    The image of a method with n `neighbours` is (N, 3 (2n + 1), H, W): a volume's slices in order, its own amid them.
    """

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Hparams:
    """What every method has; a method subclasses it in its own file, see `dgbench.settings` for types and ranges."""

    learning_rate: Annotated[float, Range(above=0)] = 1e-3
    weight_decay: Annotated[float, Range(0)] = 1e-4
    batch_size: Annotated[int, Range(1)] = 8
    steps: Annotated[int | None, Range(1)] = None  # None: the task's budget
    image_size: Annotated[int | None, Range(16, 4096)] = None  # side of the square input in pixels; None: the task's
    precision: Precision = "float32"  # of the network; losses, masks and metrics: float32


class Method(nn.Module):
    """Base class of all methods. Most write `__init__` and `logits`, or `loss` and `predict`; the rest has defaults.

    Whatever `loss`, `update` and `augment` draw at random comes from torch's global generator or from the given one;
    both are set by the engine as a function of (seed, step) alone, so that a killed run continues bit-identically.
    What a method learns or stores between steps must be in its `state_dict`.
    """

    name: ClassVar[str]  # its file's, set by the registry
    hparams: Hparams  # annotate with your own dataclass; the engine reads the annotation
    paper: ClassVar[str] = ""  # a link
    per_task: ClassVar[dict[str, dict[str, Any]]] = {}  # the paper's own settings for a task, by task name

    needs_batch: ClassVar[bool] = False  # a training batch of one makes no sense for it
    uses_target_masks: bool = False  # an oracle: prompted from the reference, never ranked; a variant may set its own
    adapts_in_testing: ClassVar[bool] = False  # it needs several test images at once, or adapts to them
    only_predicts: ClassVar[bool] = False  # put over another method, it is trained as that one is, to the bit
    images_come_again: ClassVar[bool] = True  # unaugmented, in training; False of a combination that changes them
    whole_case: ClassVar[bool] = False  # `predict` is given all slices of a case at once, not `batch_size` of them
    neighbours: int = 0  # how many slices before and after a slice its image also holds; a variant may set its own
    foreground_share: float = 0.0  # of a training batch, its last slices, drawn among those that hold a structure
    pretrained: ClassVar[str] = ""  # the weights it starts from, in words, for a list of methods
    ignores_images: ClassVar[bool] = False  # it says what is to be had without them: plots are framed by it from below
    sets_budget: ClassVar[bool] = False  # under a protocol of equal compute, all may spend what its training does

    optimizers: tuple[torch.optim.Optimizer, ...] = ()

    def __init__(self, task: TaskInfo, hparams: Hparams):
        """Build the network. No file is read here: pretrained weights are read by `load_pretrained`."""
        super().__init__()
        self.task, self.hparams = task, hparams
        self.image_size: int = hparams.image_size or task.image_size
        self.steps: int = hparams.steps or task.steps

    @classmethod
    def find_pretrained(cls, hparams: Any) -> list[Path]:
        """The files that `load_pretrained` reads, fetched where they can be; asked once, before the first run starts.

        Raises `DataError` for one that cannot be had.
        """
        return []

    def load_pretrained(self) -> dict[str, str]:
        """Read and freeze what comes pretrained; returns {file name: sha256}, which goes into the run's record.

        The engine calls it once after `__init__`. Freeze only what was pretrained.
        """
        return {}

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W), before the sigmoid."""
        raise NotImplementedError(f"{type(self).__name__} must write logits(image), or loss(batch) and predict(image)")

    def criterion(self, logits: Tensor, mask: Tensor) -> Tensor:
        """How wrong logits are, (N, K, H, W) both: a scalar. Default: the mean of cross-entropy and Dice loss."""
        return dice_bce(logits, mask)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar loss of one augmented batch."""
        return self.criterion(self.logits(batch.image), batch.mask)

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W) probabilities. Must not depend on the other images of the batch."""
        return self.logits(image).float().sigmoid()

    def predict_prompted(self, image: Tensor, mask: Tensor) -> Tensor:
        """What an oracle predicts, (N, K, H, W): with the reference `mask` (N, K, H, W) at hand to draw prompts from.

        Called in place of `predict` when `uses_target_masks`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} uses target masks: it must write predict_prompted(image, mask)"
        )

    def forget(self) -> None:
        """Drop all that test images have taught; called before the first case of every domain. Default: nothing."""

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The training batch, augmented on its device; draws from `rng`, on the CPU, only. Default: unchanged."""
        return batch

    def configure(self) -> torch.optim.Optimizer | tuple[torch.optim.Optimizer, ...]:
        """The optimizer, or several. Default: AdamW over all parameters that require a gradient."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            trained or [nn.Parameter(torch.zeros(()))],
            lr=self.hparams.learning_rate,
            weight_decay=self.hparams.weight_decay,
        )

    def schedule(self, step: int) -> float:
        """Factor on every optimizer's learning rate at a step. Default: polynomial decay, (1 - t/T)^0.9."""
        return (1 - step / self.steps) ** 0.9

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One training step on an augmented batch; returns what the history shows, "loss" among it.

        Override it to own the whole step: two optimizers, inner loops, two passes. Return scalars detached and on the
        device: `.item()` would wait for a GPU at every step.
        """
        loss = self.loss(batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return {"loss": loss.detach()}


def trained_as(method: type[Method]) -> type[Method]:
    """The class whose training a method has: its own, or, of one that `only_predicts`, that of the method below it."""
    return next(c for c in method.__mro__ if issubclass(c, Method) and not c.only_predicts)


def hparams_class(method: type[Method]) -> type[Hparams]:
    """The dataclass a method annotates as `hparams`, its own or the nearest base's."""
    return typing.get_type_hints(method)["hparams"]


def resolve_hparams(
    method: type[Method], task_name: str, settings: dict[str, str] | None = None, fixed: Mapping[str, Any] | None = None
) -> Hparams:
    """Defaults, then the method's own values for this task, then what a protocol fixes, then the user's
    `--set key=value`.

    On drawn images they are those of `dgbench check`, which are small. Raises `UsageError` for a key the method does
    not have, and for a value of another type or out of its range.
    """
    if task_name.startswith(MOCK):
        task_name, fixed = "check", {}
    cls = hparams_class(method)
    known = values.fields(cls)
    hparams = cls(**own_settings(method, task_name) | dict(fixed or {}))
    remedy = f"`dgbench explain {getattr(method, 'name', 'METHOD')}` shows every setting and what it may be"
    changed = {}
    for key, text in (settings or {}).items():
        require(key, sorted(known), f"hyperparameter of {method.__name__}")
        changed[key] = values.read(key, text, known[key], remedy)
    hparams = dataclasses.replace(hparams, **changed)
    for key, field in known.items():
        values.check(key, getattr(hparams, key), field, remedy)
    if method.needs_batch and hparams.batch_size < 2:
        cause = f"batch_size cannot be 1: {method.__name__} needs several images in a batch"
        raise UsageError(cause, "give at least 2")
    return hparams


def own_settings(method: type[Method], task_name: str) -> dict[str, Any]:
    """`per_task` of the method and of its bases, the nearest winning, as far as its hyperparameters know the keys."""
    known = {f.name for f in dataclasses.fields(hparams_class(method))}
    merged: dict[str, Any] = {}
    for cls in reversed(method.__mro__):
        merged |= vars(cls).get("per_task", {}).get(task_name, {})
    return {k: v for k, v in merged.items() if k in known}


def changed_hparams(
    method: type[Method], task_name: str, hparams: Hparams, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What distinguishes `hparams` from the method's defaults for this task: the variant's name in a path."""
    default = resolve_hparams(method, task_name, fixed=fixed)
    pairs = ((f.name, getattr(hparams, f.name)) for f in dataclasses.fields(hparams))
    return {name: value for name, value in pairs if value != getattr(default, name)}
