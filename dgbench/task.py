"""What a task is: domains of cases, each an image with its mask and its spacing.

A concrete task is one file in datasets/ (or a folder, `images.folder_task`). It knows where its files lie and
what their numbers mean; it knows nothing of methods, of network sizes or of protocols.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dgbench.errors import DataError, DgbenchError, UsageError
from dgbench.fingerprint import of_code
from dgbench.plausibility import Doubt, doubt


@dataclass(frozen=True, eq=False)
class Case:
    """One patient: a volume, or one photograph (D = 1).

    Attributes
    ----------
    image: float32 (D, C, H, W) in [0, 1] by the task's documented intensity rule, at its own resolution; C is 1 or 3.
    mask: bool (D, K, H, W), one plane per structure; structures may overlap (the cup lies inside the disc).
    spacing: distance between voxel centres along (D, H, W), in the task's unit ("mm" or "px").
    odd: what its mask's files hold that may be a mistake, and what to do: pairs of sentences, as of `plausibility`.
    scored: bool (D, H, W), where predictions count, as a field of view; None: everywhere. Elsewhere the mask is empty.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float]
    odd: Sequence[tuple[str, str]] = ()
    scored: np.ndarray | None = None


@dataclass(frozen=True)
class TaskInfo:
    """All that a method is told about its task: nothing that leads to an image."""

    name: str
    structures: tuple[str, ...]
    image_size: int
    steps: int


class Task(ABC):
    """A benchmark task. Subclass it in datasets/<name>.py; class attributes are its data card."""

    name: str = ""  # set by the registry: the name of the file
    domains: Sequence[str]
    sources: Sequence[str] | None = None  # None: every domain. Domains that may only be tested are left out here.
    structures: Sequence[str]
    image_size: int  # side of the square the network sees, in pixels
    steps: int = 2000  # training steps of a run: the same budget for every method unless --set steps says otherwise
    unit: str = "mm"  # of the spacing: "mm" or "px"
    empty_masks: bool = False  # may a case hold none of the structures? If not, an empty mask is an error
    intensity: ClassVar[str] = ""  # how the file's numbers become [0, 1], in one sentence
    intensity_range: tuple[float, float] | None = None  # the file's numbers that become 0 and 1, of a folder of images
    citation: str = ""
    licence: str = ""
    collections: Sequence[str] = ()  # public ones that the images are from, by which `networks.provenance` knows them
    download: str = ""  # where the data come from and in which folder layout they must lie
    paired: bool = False  # do domains show the same patients? Then a group's name means the same in all of them
    scored_in: str = ""  # the part of an image where predictions count, in words: see `Case.scored`
    further_metrics: Sequence[str] = ()  # of `metrics.FURTHER`, besides those that every run has
    cases_expected: Mapping[str, int] = {}  # by domain, how many cases the release has; `verify` counts
    access: ClassVar[str] = "open"  # who may have the data: "open" to all, or by "account" or "form"
    steps_to_get: ClassVar[Sequence[str]] = ()  # how to get what `dgbench data fetch` cannot, one instruction each
    sources_of_data: ClassVar[Sequence[Any]] = ()  # what it can: `images.fetch.Download`s
    doubts: Sequence[Doubt] = ()  # after `verify`: what is odd and may be meant

    def __init__(self, data: Path | None = None):
        """`data`: the folder with the task's files; None for a task that needs none."""
        self.data = data

    @abstractmethod
    def case_ids(self, domain: str) -> list[str]:
        """Sorted ids of a domain's cases, from a fixed list rather than from what happens to lie in a folder."""

    @abstractmethod
    def load(self, domain: str, case_id: str) -> Case:
        """Read one case. Raises `DataError` that names the file and what is wrong with it."""

    def files(self, domain: str, case_id: str) -> list[Path]:
        """All files that a case is read from: a change in another one, as a table of spacings, would go unnoticed."""
        return []

    def group(self, domain: str, case_id: str) -> str:
        """The patient, pair of eyes or video that a case belongs to: by default the case is a group of its own.

        Cases of a group stay on one side of a split, and are drawn together where intervals are bootstrapped.
        """
        return case_id

    def said_of(self, domain: str, case_id: str) -> Sequence[Any]:
        """What a list says of a case that decides how its files are read; with the files it is what the case is."""
        return ()

    @property
    def layout(self) -> str:
        """Which of several ways the files lie in, where a task can read more than one; it is in every run's record."""
        return ""

    @property
    def is_mock(self) -> bool:
        """Are these generated files in place of the release? Then nothing is counted or compared with its lists."""
        return False

    def mock(self, folder: Path, sketch: Any) -> None:
        """Write small drawn files of exactly the release's layout into `folder`: a handful of cases of each domain.

        sketch: an `images.mock.Sketch`, which draws them. Names, types, encodings and quirks are those of the release;
        a source has at least two cases, so that it can be trained on and validated.
        """
        raise UsageError(f"task '{self.name}' has no mock", "write its method `mock`: see that of datasets/prostate.py")

    @property
    def info(self) -> TaskInfo:
        """What a method is told of the task."""
        return TaskInfo(self.name, tuple(self.structures), self.image_size, self.steps)

    @property
    def source_domains(self) -> tuple[str, ...]:
        """The domains that may be trained on."""
        return tuple(self.domains if self.sources is None else self.sources)

    def targets(self, source: str) -> tuple[str, ...]:
        """All domains but the source, in the task's order."""
        return tuple(d for d in self.domains if d != source)

    def tested(self, source: str, target: str) -> list[str]:
        """Ids of the target's cases that a method trained on the source is tested on: all of them.

        Where domains show the same patients, without those that the source trains on. Raises `DataError` when none is
        left.
        """
        ids = self.case_ids(target)
        if not self.paired:
            return ids
        seen = {self.group(source, i) for i in self.split(source)[0]}
        if left := [i for i in ids if self.group(target, i) not in seen]:
            return left
        raise DataError(
            f"every patient of domain '{target}' is among the training patients of source '{source}'",
            "hold other patients out in `split`: training patients are never tested on",
        )

    def excluded(self, source: str) -> dict[str, int]:
        """By target, how many of its cases are not tested, as their patients are trained on; only where there are."""
        counts = {t: len(self.case_ids(t)) - len(self.tested(source, t)) for t in self.targets(source)}
        return {target: n for target, n in counts.items() if n}

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """(training, validation) case ids of a source: fixed, whole groups held out until it is one case in five.

        The order is that of a hash of the groups' names, so it is arbitrary but the same on every machine and at every
        seed. Where domains show the same patients, it is the same in all of them.
        """
        ids, groups = self.case_ids(source), self._groups(source)
        held_out: set[str] = set()
        while groups[1:] and len(held_out) < max(1, round(len(ids) / 5)):
            held_out.update(groups.pop(0))
        return [i for i in ids if i not in held_out], [i for i in ids if i in held_out]

    def folds(self, domain: str, most: int) -> list[list[str]]:
        """Case ids of a domain in so many parts, or fewer where it has fewer groups: whole groups, dealt out in turn.

        The order is that of `split`: the folds are fixed, and where domains show the same patients, the same in all.
        """
        dealt: list[list[str]] = [[] for _ in range(most)]
        for n, cases in enumerate(self._groups(domain)):
            dealt[n % most] += cases
        return [sorted(part) for part in dealt if part]

    def _groups(self, domain: str) -> list[list[str]]:
        """A domain's case ids by group, in the order of a hash of the groups' names, two at least."""
        ids, groups = self.case_ids(domain), dict[str, list[str]]()
        for i in ids:
            groups.setdefault(self.group(domain, i), []).append(i)
        if len(groups) < 2:
            of = f"{len(ids)} case(s)" + (f" of {len(groups)} group" if len(groups) < len(ids) else "")
            raise DataError(
                f"domain '{domain}' of task '{self.name}' has {of}: a source needs at least 2",
                "one case is held out to validate on the source; add cases or test on this domain only",
            )
        within = "" if self.paired else f"{domain}/"
        ordered = sorted(groups, key=lambda g: hashlib.sha256(f"{within}{g}".encode(errors="surrogateescape")).digest())
        return [groups[g] for g in ordered]

    @property
    def location(self) -> str:
        """What `images.find_task` finds the task by: its name, or the folder of images."""
        return self.name

    def code_fingerprint(self) -> str:
        """sha256 of the code that makes cases of files: its intensity rule and its choices are part of the data."""
        return of_code(type(self), beyond=["dgbench.task"])

    def verify(self) -> list[str]:
        """Everything that is wrong with the task's data, one sentence each; an empty list when all is well.

        What is no more than odd is in `doubts` afterwards.
        """
        problems: list[str] = []
        doubts: list[Doubt | None] = []
        seen: dict[bytes, str] = {}
        if len(self.domains) < 2:
            problems.append(f"task '{self.name}' has {len(self.domains)} domain(s): generalization needs at least 2")
        for domain in self.domains:
            try:
                ids = self.case_ids(domain)
            except DgbenchError as error:
                problems.append(error.cause)
                continue
            except Exception as error:  # of a task's own code: the other domains are looked at
                problems.append(f"domain '{domain}' cannot be read: {type(error).__name__}: {error}")
                continue
            if not ids:
                problems.append(f"domain '{domain}' has no case")
            for duplicate in sorted({i for i in ids if ids.count(i) > 1}):
                problems.append(f"domain '{domain}' lists case '{duplicate}' twice")
            for case_id in ids:
                try:
                    case = self.load(domain, case_id)
                except DgbenchError as error:
                    problems.append(error.cause)
                    continue
                except Exception as error:
                    problems.append(f"{domain}/{case_id} cannot be read: {type(error).__name__}: {error}")
                    continue
                found = case_problems(case, self, f"{domain}/{case_id}")
                problems += found
                doubts += [] if found else [doubt(domain, case_id, self.structures, case.mask, case.odd)]
                content = hashlib.sha256(case.image.tobytes()).digest()
                if content in seen:
                    problems.append(f"{domain}/{case_id} has the same image as {seen[content]}")
                seen.setdefault(content, f"{domain}/{case_id}")
        self.doubts = [d for d in doubts if d]
        return [*problems, *self._count_problems(), *self._split_problems()]

    def _count_problems(self) -> list[str]:
        """Domains that have another number of cases than the release."""
        problems = []
        for domain, expected in {} if self.is_mock else self.cases_expected.items():
            with suppress(DgbenchError):  # said above
                if (n := len(self.case_ids(domain))) != expected:
                    problems.append(f"domain '{domain}' has {n} case(s), the release {expected}")
        return problems

    def _split_problems(self) -> list[str]:
        """Groups that are on both sides of a split, or that a paired task trains on and tests."""
        problems = []
        for source in self.source_domains:
            try:
                training, validation = self.split(source)
            except DgbenchError:  # a list that is missing was said above, and too few cases are when it is trained on
                continue
            sides = [(source, validation, f"the validation cases of '{source}'")]
            for target in self.targets(source) if self.paired else ():
                try:
                    sides.append((target, self.tested(source, target), f"the tested cases of '{target}'"))
                except DgbenchError as error:
                    problems.append(error.cause)
            trained = {self.group(source, i) for i in training}
            for domain, ids, side in sides:
                if both := sorted(trained & {self.group(domain, i) for i in ids}):
                    few = ", ".join(both[:3]) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
                    problems.append(f"group {few} is among the training cases of '{source}' and among {side}")
        return problems


def case_problems(case: Case, task: Task, name: str) -> list[str]:
    """What is wrong with a loaded case, one sentence each: shapes, ranges, NaN, spacing, emptiness."""
    image, mask, structures = case.image, case.mask, len(task.structures)
    if image.ndim != 4 or image.shape[1] not in (1, 3) or image.dtype != np.float32:
        return [f"{name}: image must be float32 (D, 1 or 3, H, W), got {image.dtype} {image.shape}"]
    if mask.dtype != bool or mask.shape != (image.shape[0], structures, *image.shape[2:]):
        expected = (image.shape[0], structures, *image.shape[2:])
        return [f"{name}: image and mask differ: mask must be bool {expected}, got {mask.dtype} {mask.shape}"]
    problems = []
    if not np.isfinite(image).all():
        problems.append(f"{name}: image holds {int((~np.isfinite(image)).sum())} voxels that are NaN or infinite")
    elif image.min() < 0 or image.max() > 1:
        problems.append(f"{name}: image leaves [0, 1]: {image.min():.3g} to {image.max():.3g}")
    if not all(math.isfinite(s) and s > 0 for s in case.spacing):
        problems.append(f"{name}: spacing {case.spacing} must be three positive numbers")
    if min(image.shape[2:]) < 2:
        problems.append(f"{name}: a slice of {image.shape[2]} x {image.shape[3]} pixels is a line, not an image")
    scored, voxels = case.scored, (image.shape[0], *image.shape[2:])
    if scored is not None and (scored.dtype != bool or scored.shape != voxels):
        problems.append(f"{name}: scored must be bool {voxels}, got {scored.dtype} {scored.shape}")
    elif scored is not None and (mask & ~scored[:, None]).any():
        problems.append(f"{name}: the mask holds voxels where nothing is scored")
    if not mask.any() and not task.empty_masks:
        problems.append("; ".join([f"{name}: the mask is empty", *(cause for cause, _ in case.odd)]))
    return problems
