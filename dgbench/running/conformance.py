"""Conformance: what every method must do, tried on drawn images; a failure is a sentence that says what to change."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.images.preparation import side_by_side
from dgbench.method import Batch, Hparams, Method, Precision, hparams_class, resolve_hparams, trained_as
from dgbench.registry import FAMILIES, said
from dgbench.running import train
from dgbench.running.device import one_thread
from dgbench.settings import TYPES, read, spelled
from dgbench.settings import fields as known_fields
from dgbench.task import TaskInfo

TASK = "check"  # a method whose defaults are large gives small settings for this name in its `per_task`
STEPS = 20
SLICES = 4
DRAWS = 16  # of white images: CT cut off at a window's edge, paper behind a stained cell


class Finding(NamedTuple):
    """What one check found. `advice` is empty when `ok`."""

    name: str
    ok: bool
    advice: str


def check_method(cls: type[Method]) -> list[str]:
    """What must be changed before a method can be compared with others, one sentence each; empty when all is well."""
    return [finding.advice for finding in run_checks(cls) if not finding.ok]


def run_checks(cls: type[Method]) -> Iterator[Finding]:
    """Try a method on a drawn task, one finding after the other. An error of its own code is a finding, too.

    Torch's random state is given back, and files are written to a temporary folder only.
    """
    subject = _Subject(cls)
    for check in CHECKS:
        crashed = ""
        advice: list[str] = []
        with one_thread(), torch.random.fork_rng(devices=[]):
            try:
                advice = list(check(subject))
            except Exception as error:
                crashed = _where_it_broke(error, cls)
        name = str(check.__doc__)
        if crashed:
            yield Finding(name, False, crashed)
        yield from (Finding(name, False, sentence) for sentence in advice)
        if not (crashed or advice):
            yield Finding(name, True, "")
        if crashed or (advice and check is settings):
            return  # the checks after it would only fail for the same reason


class _Subject:
    """A method with small settings and drawn images: in each one disc, by some contrast brighter than some ground."""

    def __init__(self, cls: type[Method], side: int = 64):
        self.cls, self.side = cls, side
        self._untrained: dict[int, Method] = {}

    def info(self, structures: int = 1) -> TaskInfo:
        return TaskInfo(TASK, ("disc", "cup")[:structures], image_size=self.side, steps=STEPS)

    @cached_property
    def hparams(self) -> Hparams:
        return dataclasses.replace(resolve_hparams(self.cls, TASK), steps=None, batch_size=SLICES)

    @cached_property
    def neighbours(self) -> int:
        return self.untrained().neighbours

    def untrained(self, structures: int = 1) -> Method:
        """Built once for each number of structures, for what only looks at it."""
        if structures not in self._untrained:
            self._untrained[structures] = self.build(structures)
        return self._untrained[structures]

    def build(self, structures: int = 1, precision: Precision = "float32") -> Method:
        hparams = dataclasses.replace(self.hparams, precision=precision)
        method, _ = train.build(self.cls, self.info(structures), hparams, seed=0)
        return method

    def start(self, precision: Precision = "float32") -> Method:
        """Ready for its first step."""
        method = self.build(precision=precision)
        train.configure(method)
        return method.train()

    def batch(self, structures: int = 1, slices: int = SLICES) -> Batch:
        side = self.hparams.image_size or self.info().image_size
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:side, :side] / side
        image, mask = np.empty((slices, 1, side, side)), np.empty((slices, structures, side, side))
        for i in range(slices):
            centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.15, 0.3)
            distance = np.hypot(y - centre[0], x - centre[1])
            mask[i] = [distance < radius / (k + 1) for k in range(structures)]
            ground, contrast = rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.4)
            image[i] = ground + contrast * (distance < radius) + 0.05 * rng.standard_normal((side, side))
        gray = torch.from_numpy(image.clip(0, 1)).float()
        slices_seen = 2 * self.neighbours + 1
        noise = 0.05 * torch.randn(slices, slices_seen, side, side, generator=torch.Generator().manual_seed(0))
        shown = gray.expand(-1, 3, -1, -1) if slices_seen == 1 else side_by_side((gray + noise).clamp(0, 1)[:, :, None])
        return Batch(shown, torch.from_numpy(mask).float())

    @cached_property
    def trained(self) -> _Training:
        """The method after all steps, on one batch again and again."""
        method, batch = self.start(), self.batch()
        training = _Training(method, batch, {n: t.clone() for n, t in method.state_dict().items()})
        for t in range(STEPS):
            shown = train.step(method, batch, seed=0, t=t)
            if "loss" not in shown:
                raise UsageError("update must return {'loss': ...} among what the history shows", "add it")
            training.losses.append(float(shown["loss"]))
            if t + 1 in (STEPS // 4, STEPS // 2):
                training.states.append(train.learned_state(method, pretrained=True))
        return training


@dataclasses.dataclass
class _Training:
    method: Method
    batch: Batch
    before: dict[str, Tensor]
    losses: list[float] = dataclasses.field(default_factory=list)
    states: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)  # after a quarter and a half of the steps


def settings(subject: _Subject) -> Iterator[str]:
    """has settings that the engine can read"""
    cls = subject.cls
    if not (sys.modules[cls.__module__].__doc__ or "").strip():
        yield "begin the file with a docstring: the idea in one sentence, which lists show, then citation and equation"
    kind = hparams_class(cls)
    module = vars(sys.modules[cls.__module__])
    written = [c for c in module.values() if _is_hparams(c) and c.__module__ == cls.__module__]
    if kind not in written and written:
        yield f"annotate the class with its settings: `hparams: {written[0].__name__}`"
    if not _is_hparams(kind):
        yield f"{kind.__name__} must be a subclass of Hparams"
        return
    parameters: Any = vars(kind).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        yield f"{kind.__name__} must be decorated with @dataclass(frozen=True)"
        return
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    without = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    if without:
        yield f"every field of {kind.__name__} needs a default: {', '.join(without)}"
        return
    for base in (c for c in cls.__mro__ if c.__module__ == cls.__module__):
        for task, values in vars(base).get("per_task", {}).items():
            unknown = sorted(set(values) - {f.name for f in fields})
            if unknown:
                yield f"per_task['{task}'] sets what {kind.__name__} does not have: {', '.join(unknown)}"
    for name, field in known_fields(kind).items():
        value = getattr(kind(), name)
        try:
            given = read(name, spelled(value), field, "")
        except UsageError as error:
            yield f"the default of {error.cause}; or {TYPES}"
        except ValueError as error:
            yield f"`--set {name}=...` cannot give its default: {error}; {TYPES}"
        else:
            if given != value:
                yield f"`--set {name}={spelled(value)}` gives {given!r} and not its default, {value!r}; {TYPES}"
    for task in dict.fromkeys(task for base in cls.__mro__ for task in vars(base).get("per_task", ())):
        try:
            resolve_hparams(cls, task)
        except UsageError as error:
            yield f"per_task['{task}']: {error.cause}"


def header(subject: _Subject) -> Iterator[str]:
    """says in its header what lists of methods show"""
    cls = subject.cls
    text, paper = sys.modules[cls.__module__].__doc__ or "", vars(cls).get("paper", "")
    found = said(text, paper)
    # A file that is a user's own may leave both out.
    ours = cls.__module__.startswith("dgbench.methods.") and "+" not in getattr(cls, "name", "")
    if found["family"] not in FAMILIES and (found["family"] or ours):
        wrong = f", not '{found['family']}'" if found["family"] else ""
        yield f"write 'Family: NAME.' under the citation in the file's header, NAME one of {', '.join(FAMILIES)}{wrong}"
    if ours and paper and not found["year"]:
        yield f"cite the paper in the header, with its year before the link {paper}: lists of methods show the year"


def builds(subject: _Subject) -> Iterator[str]:
    """builds for one structure and for two"""
    before = _global_state()
    for structures in (1, 2):
        method = subject.untrained(structures)
        if not isinstance(getattr(method, "task", None), TaskInfo):
            yield "__init__ must call super().__init__(task, hparams) first"
    for name in sorted(k for k, v in _global_state().items() if v != before[k]):
        yield f"building the method changes {name} for the whole process: leave it as it was"


def probabilities(subject: _Subject) -> Iterator[str]:
    """predicts probabilities, for a single image too"""
    for structures, slices in ((1, 1), (1, SLICES), (2, 2)):
        image, mask = subject.batch(structures, slices)
        out = _predict(subject.untrained(structures), image, mask)
        expected = (slices, structures, *image.shape[2:])
        if not isinstance(out, Tensor) or tuple(out.shape) != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            yield (
                f"predict must turn {tuple(image.shape)} into {expected}, (images, structures, height, width); "
                f"it gives {got}"
            )
        elif not out.isfinite().all():
            yield "predict gives NaN or infinite values: look for a division by zero or a logarithm of zero"
        elif out.min() < 0 or out.max() > 1:
            yield "predict must give probabilities in [0, 1]; did you forget a sigmoid?"


def augments(subject: _Subject) -> Iterator[str]:
    """augments, drawing from the given generator only"""
    method, batch = subject.start(), subject.batch(2)
    white = Batch(torch.ones_like(batch.image), batch.mask)
    results = [method.augment(batch, torch.Generator().manual_seed(0)) for _ in range(2)]
    image, mask = results[0]
    if image.shape != batch.image.shape or mask.shape != batch.mask.shape:
        yield "augment must keep the shapes of image and mask"
    elif image.dtype != torch.float32 or mask.dtype != torch.float32:
        yield "augment must keep image and mask float32"
    elif not _in_range(image):
        yield "augment must keep the image in [0, 1]: clamp it"
    elif not ((mask == 0) | (mask == 1)).all():
        yield "augment must keep the mask in {0, 1}: resample it to the nearest neighbour"
    elif not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
        yield "augment must draw from its generator only (generator=rng in every call that draws)"
    elif not all(_in_range(method.augment(white, torch.Generator().manual_seed(n)).image) for n in range(DRAWS)):
        yield "augment must keep a white image in [0, 1] too: clamp what rounds to 1.0000002, 1 - x has no root there"


def trains(subject: _Subject) -> Iterator[str]:
    """trains, on a single slice too, with a finite loss"""
    before = _global_state()
    training = subject.trained
    if not all(map(math.isfinite, training.losses)):
        yield f"the loss becomes NaN or infinite within {STEPS} steps: lower the default of learning_rate?"
    gradients = {n: p.grad for n, p in training.method.named_parameters() if p.grad is not None}
    unsound = [n for n, g in gradients.items() if not g.isfinite().all()]
    if unsound:
        yield f"the gradient of {unsound[0]} is not finite: look for the square root or logarithm of zero"
    if not all(torch.equal(a, b) for a, b in zip(training.batch, subject.batch(), strict=True)):
        yield "update and augment must not write into the batch they are given: use out-of-place operations"
    if not subject.cls.needs_batch:
        shown = train.step(subject.start(), subject.batch(slices=1), seed=0, t=0)
        if not math.isfinite(shown["loss"]):
            yield "the loss of a batch of one slice is not finite; if the method needs more, set needs_batch = True"
    for name in sorted(k for k, v in _global_state().items() if v != before[k]):
        yield f"training changes {name} for the whole process: leave it as it was"


def learns(subject: _Subject) -> Iterator[str]:
    """learns within 20 steps what can be seen"""
    training = subject.trained
    parameters = dict(training.method.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        return  # nothing is trained by gradient
    changed = {n for n, p in parameters.items() if not torch.equal(p, training.before[n])}
    if not any(parameters[n].requires_grad for n in changed):
        yield "update changed no parameter: are all of them given to the optimizer, and is its step() called?"
        return
    frozen = sorted(n for n in changed if not parameters[n].requires_grad)
    if frozen:
        yield f"update changed {frozen[0]}, which is frozen: give the optimizer only what requires a gradient"
    first, last = (sum(part) / len(part) for part in (training.losses[:4], training.losses[-4:]))
    if not last < first:
        yield (
            f"{STEPS} steps on one batch must reduce the loss; it went from {first:.4g} to {last:.4g}: "
            "is its sign right, and does learning_rate suit the network?"
        )
    image, mask = subject.batch()
    first, last = (_distance(_predict(method, image, mask), mask) for method in (subject.start(), training.method))
    if not last < first:
        yield (
            f"{STEPS} steps must bring the prediction closer to the mask; its cross-entropy went from {first:.4g} to "
            f"{last:.4g}: is the loss computed from what predict gives?"
        )


def independent(subject: _Subject) -> Iterator[str]:
    """predicts each image by itself, or forgets what the others taught"""
    method, (image, mask) = subject.trained.method, subject.batch()
    state = {n: t.clone() for n, t in method.state_dict().items()}
    adapts = subject.cls.adapts_in_testing
    method.forget()
    together = _predict(method, image, mask)
    if not all(torch.equal(t, state[n]) for n, t in method.state_dict().items()):
        yield "predict must not change the method's state" + (
            ": keep what test images teach outside of parameters and buffers, and drop it in forget()"
            if adapts
            else "; if it adapts to test images, set adapts_in_testing = True"
        )
        return
    method.forget()
    if not torch.allclose(_predict(method, image, mask), together, atol=1e-5):
        yield "predict must give the same answer twice" + (
            " after forget(), which must drop all that test images have taught"
            if adapts
            else ": is dropout still on, or is something drawn at random?"
        )
    elif not adapts and not torch.allclose(_predict(method, image[1:2], mask[1:2]), together[1:2], atol=1e-4):
        yield (
            "predict must not depend on the other images of its batch: normalize each image by itself; "
            "if the method needs several, set adapts_in_testing = True"
        )


def repeatable(subject: _Subject) -> Iterator[str]:
    """repeats itself with one seed, also when killed and resumed"""
    quarter, half = subject.trained.states
    method, batch = subject.start(), subject.batch()
    for t in range(STEPS // 4):
        train.step(method, batch, seed=0, t=t)
    differs = _first_difference(train.learned_state(method, pretrained=True), quarter)
    if differs:
        yield (
            f"two runs with one seed differ in {differs}: draw from torch's generators only, never from numpy's, "
            "Python's or the clock"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        train.save_checkpoint(method, train.Progress(STEPS // 4), Path(folder))
        resumed = subject.start()
        train.load_checkpoint(resumed, Path(folder))
    if not torch.equal(_predict(method, *batch), _predict(resumed, *batch)):
        yield "saved and loaded it predicts otherwise: register what it learns as a parameter or buffer in __init__"
        return
    resumed.train()
    for t in range(STEPS // 4, STEPS // 2):
        train.step(resumed, batch, seed=0, t=t)
    differs = _first_difference(train.learned_state(resumed, pretrained=True), half)
    if differs:
        yield (
            f"stopped and resumed it differs in {differs}: what changes between steps must be in a buffer, "
            "and what is drawn must not depend on earlier steps"
        )


def trained_as_below(subject: _Subject) -> Iterator[str]:
    """is trained as it says"""
    below = _Subject(trained_as(subject.cls))
    if below.cls is subject.cls:
        return
    names = set(known_fields(hparams_class(below.cls)))
    below.hparams = hparams_class(below.cls)(**{n: getattr(subject.hparams, n) for n in names})
    method, batch = below.start(), subject.batch()
    for t in range(STEPS // 4):
        train.step(method, batch, seed=0, t=t)
    if differs := _first_difference(train.learned_state(method, pretrained=True), subject.trained.states[0]):
        yield (
            f"it says that it only predicts, and its training differs from that of {below.cls.__name__} in {differs}: "
            "leave training alone, or set only_predicts = False"
        )


def rounded(subject: _Subject) -> Iterator[str]:
    """computes in bfloat16, too"""
    remedy = "compute what is sensitive in float32: decorate it with dgbench.losses.in_float32, or write x.float()"
    try:
        subject = _Subject(subject.cls, side=32)  # half the size: a processor may compute bfloat16 slowly
        (single,), _ = _tried(subject, "float32", steps=1)
    except Exception:
        subject = _Subject(subject.cls)
        (single,), _ = _tried(subject, "float32", steps=1)
    try:
        losses, out = _tried(subject, "bfloat16", steps=2)
    except RuntimeError as error:
        yield f"with precision=bfloat16: {_where_it_broke(error, subject.cls)}; {remedy}"
        return
    if not (all(map(math.isfinite, losses)) and out.isfinite().all()):
        yield f"with precision=bfloat16 loss or prediction become NaN or infinite; {remedy}"
    elif abs(losses[0] - single) > 0.02 + 0.1 * abs(single):
        yield f"with precision=bfloat16 the first loss is {losses[0]:.4g} instead of {single:.4g}; {remedy}"


CHECKS: tuple[Callable[[_Subject], Iterator[str]], ...] = (
    settings,
    header,
    builds,
    probabilities,
    augments,
    trains,
    learns,
    independent,
    repeatable,
    trained_as_below,
    rounded,
)


def _tried(subject: _Subject, precision: Precision, steps: int) -> tuple[list[float], Tensor]:
    """The losses of some steps on a slice, or on two where one makes no sense, and what is predicted after them."""
    method, batch = subject.start(precision), subject.batch(slices=2 if subject.cls.needs_batch else 1)
    losses = [float(train.step(method, batch, seed=0, t=t)["loss"]) for t in range(steps)]
    return losses, _predict(method, *batch)


def _predict(method: Method, image: Tensor, mask: Tensor) -> Tensor:
    """`mask` is for an oracle, and for no other."""
    training = method.training
    method.eval()
    with torch.no_grad(), train.autocast(method):
        out = method.predict_prompted(image, mask) if method.uses_target_masks else method.predict(image)
    method.train(training)
    return out


def _in_range(x: Tensor) -> bool:
    """In [0, 1] and without NaN, of which every comparison is false."""
    return bool(x.min() >= 0 and x.max() <= 1)


def _distance(probabilities: Tensor, mask: Tensor) -> float:
    return float(F.binary_cross_entropy(probabilities.float().clamp(0, 1), mask))


def _is_hparams(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Hparams)


def _first_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    if a.keys() != b.keys():
        return "the names of its parameters and buffers"
    return next((n for n in a if not torch.equal(a[n], b[n])), "")


def _global_state() -> dict[str, Any]:
    return {
        "torch's number of threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "whether torch is deterministic": torch.are_deterministic_algorithms_enabled(),
        "the current folder": os.getcwd(),
        "the environment variables": dict(os.environ),
        "numpy's global random state (draw from torch)": np.random.get_state(legacy=False)["state"]["key"].tobytes(),
        "Python's global random state (draw from torch)": random.getstate(),
    }


def _where_it_broke(error: Exception, cls: type[Method]) -> str:
    """The error and the last line of the method's own file that it came through."""
    files = {inspect.getfile(c) for c in cls.__mro__ if issubclass(c, Method) and c is not Method}
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: `{own[-1].line}`)" if own else ""
    return f"{type(error).__name__}: {error}{place}".replace("\n", "; ")
