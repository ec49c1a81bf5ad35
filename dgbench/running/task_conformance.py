"""Conformance of tasks: what every task must do, tried on drawn files; a failure says in a sentence what to change.

Tried on real files what needs no change of them is looked at: all of them are read by `dgbench data verify`.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dgbench import names
from dgbench.errors import DataError, DgbenchError, UsageError
from dgbench.images.file_task import FileTask
from dgbench.images.mock import MARK, Sketch
from dgbench.method import Hparams
from dgbench.running.conformance import Finding
from dgbench.settings import fields, number
from dgbench.task import Task, case_problems

LOOKED_AT = 2  # cases of each domain, where reading all would take long
ACCESS = ("open", "account", "form")


def check_task(kind: type[Task], data: Path | None = None) -> list[str]:
    """What must be changed before a task can be used, one sentence each; empty when all is well."""
    return [finding.advice for finding in run_checks(kind, data) if not finding.ok]


def run_checks(kind: type[Task], data: Path | None = None) -> Iterator[Finding]:
    """Try a task, one finding after the other. An error of its own code is a finding, too.

    data: the folder of its real files, of which none is changed; None: files that the task's `mock` draws.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject = _Subject(kind, data, Path(folder))
        for check in CHECKS:
            if check in ON_DRAWN and not subject.is_drawn:
                continue
            try:
                advice = list(check(subject))
            except Exception as error:
                advice = [_where_it_broke(error, kind)]
            yield from (Finding(str(check.__doc__), False, sentence) for sentence in advice)
            if not advice:
                yield Finding(str(check.__doc__), True, "")
            elif check in FIRST:
                return  # the checks after it would only fail for the same reason


class _Subject:
    """A task, and the folder that it reads."""

    def __init__(self, kind: type[Task], data: Path | None, folder: Path):
        self.kind, self.data, self.folder = kind, data, folder
        self.computed = kind.files is Task.files  # no files, so none is missing, cut or doubled
        self.is_drawn = data is None and not self.computed

    def task(self, data: Path | None = None) -> Task:
        """Made anew."""
        return self.kind(data or self.data or (None if self.computed else self.folder / "drawn"))

    def copy(self) -> Path:
        """Of the drawn files, to be damaged."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return Path(shutil.copytree(self.folder / "drawn", self.folder / "copy"))

    def cases(self, task: Task) -> Iterator[tuple[str, str]]:
        """(domain, case) of the first few of each domain."""
        for domain in task.domains:
            yield from ((domain, case_id) for case_id in task.case_ids(domain)[:LOOKED_AT])


def says(subject: _Subject) -> Iterator[str]:
    """says what it is: domains, structures, intensity rule, citation, licence"""
    task = subject.task()
    if not (sys.modules[subject.kind.__module__].__doc__ or "").strip():
        yield "begin the file with a docstring: what is shown in one sentence, which lists show, then the citation"
    for name in ("citation", "licence", "intensity", "download"):
        if not str(getattr(task, name)).strip():
            yield f"`{name}` is empty: a reader of its tables must know it"
    for what in ("domains", "structures"):
        if isinstance(getattr(task, what), str):
            yield f"`{what}` must be several names in parentheses, not a text"
            return
    for given, kind in ((task.domains, "domain"), (task.structures, "structure")):
        try:
            names.check(given, kind, "this task")
        except DataError as error:
            yield f"{error.cause}: {error.remedy}"
    if len(task.domains) < 2:
        yield "`domains` must be at least two: one is trained on, the others are tested on"
    if not task.structures:
        yield "`structures` must name what the masks show"
    if strange := [s for s in task.source_domains if s not in task.domains]:
        yield f"`sources` names {strange[0]}, which is not among `domains`"
    if not task.source_domains:
        yield "`sources` is empty: leave it out where every domain may be trained on"
    for name in ("image_size", "steps"):
        try:
            number(name, getattr(task, name), int, fields(Hparams)[name].range)
        except (UsageError, AttributeError) as error:
            yield f"{error}".replace("\n", "; ")
    if task.unit not in ("mm", "px"):
        yield f"`unit` is {task.unit!r}: it must be 'mm' or 'px'"
    if task.access not in ACCESS:
        yield f"`access` is {task.access!r}: it must be one of {', '.join(ACCESS)}"
    if task.access != "open" and not task.steps_to_get:
        yield f"who wants the data needs an {task.access}: say how to get them in `steps_to_get`, one instruction each"
    if subject.data is None and not subject.computed and not isinstance(task, FileTask):
        yield "derive it from FileTask: `--data`, `dgbench predict` and `dgbench data fetch` then know its files"


def draws(subject: _Subject) -> Iterator[str]:
    """draws the same small files every time"""
    contents = []
    for name in ("drawn", "again"):
        folder = subject.folder / name
        folder.mkdir()
        try:
            subject.kind().mock(folder, Sketch())
        except UsageError as error:
            yield f"{error.cause}, by which the checks are made without its data: {error.remedy}; or use --data"
            return
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([(str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in found])
        (folder / MARK).touch()
    if not contents[0]:
        yield "`mock` writes no file"
    elif contents[0] != contents[1]:
        yield "`mock` must draw the same bytes every time: from its sketch alone, by no clock and no other generator"
    shutil.rmtree(subject.folder / "again")


def lists(subject: _Subject) -> Iterator[str]:
    """lists the cases of every domain: sorted, each once, the same every time"""
    one, other = subject.task(), subject.task()
    for domain in one.domains:
        ids = one.case_ids(domain)
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            yield "case_ids must give a list of texts"
            return
        if len(ids) < (least := 2 if domain in one.source_domains else 1):
            yield f"domain {domain} has {len(ids)} cases: it needs at least {least}, one of them to validate on"
        if ids != sorted(ids):
            yield f"case_ids('{domain}') must be sorted: a run depends on their order"
        if len(set(ids)) < len(ids):
            yield f"case_ids('{domain}') names a case twice"
        if ids != one.case_ids(domain) or ids != other.case_ids(domain):
            yield f"case_ids('{domain}') must be the same every time"
        if bad := next((i for i in ids if names.problem(i, "case")), None):
            yield f"case {bad!r} of {domain} cannot be called so: {names.problem(bad, 'case')}"
    yield from _refuses(lambda: one.case_ids("no such domain"), "case_ids of a domain that it does not have", "domain")


def loads(subject: _Subject) -> Iterator[str]:
    """loads cases as they must be, the same every time"""
    task = subject.task()
    for domain, case_id in subject.cases(task):
        case = task.load(domain, case_id)
        if case.id != case_id:
            yield f"load('{domain}', '{case_id}') gives a case named '{case.id}'"
        problems = case_problems(case, task, f"{domain}/{case_id}")
        yield from problems
        again = subject.task().load(domain, case_id)
        if not problems and not (np.array_equal(case.image, again.image) and np.array_equal(case.mask, again.mask)):
            yield f"load('{domain}', '{case_id}') must give the same every time"
        if task.unit == "px" and not problems and case.spacing[1:] != (1.0, 1.0):
            yield f"{domain}/{case_id} has a spacing of {case.spacing}, and `unit` is 'px': give 1, or set it to 'mm'"
        files = task.files(domain, case_id)
        if not subject.computed and not (files and all(isinstance(p, Path) for p in files)):
            yield f"files('{domain}', '{case_id}') must name all files that the case is read from, as a list of paths"
    first = task.domains[0]
    yield from _refuses(lambda: task.load(first, "no such case"), "load of a case that it does not have", "case")


def splits(subject: _Subject) -> Iterator[str]:
    """splits each source in two that share no case and no patient, and tests on other domains"""
    task = subject.task()
    for source in task.source_domains:
        train, validation = parts = task.split(source)
        ids = set(task.case_ids(source))
        if not (train and validation):
            yield f"split('{source}') leaves no case to {'validate on' if train else 'train on'}"
        if both := sorted(set(train) & set(validation)):
            yield f"split('{source}') has {both[0]} both to train and to validate on"
        if strange := sorted({*train, *validation} - ids):
            yield f"split('{source}') names {strange[0]}, which is not among its cases"
        if (list(map(list, parts))) != list(map(list, subject.task().split(source))):
            yield f"split('{source}') must be the same every time"
        if group := getattr(task, "group", None):
            of_train, of_validation = ({group(source, i) for i in part} for part in parts)
            if torn := sorted(of_train & of_validation):
                yield f"split('{source}') has cases of {torn[0]} on both sides: keep a group together"
        targets = task.targets(source)
        if source in targets:
            yield f"targets('{source}') must not hold the source itself"
        if not targets or set(targets) - set(task.domains):
            yield f"targets('{source}') must be some of the other domains, it is {', '.join(targets) or 'empty'}"


def fingerprints(subject: _Subject) -> Iterator[str]:
    """is known by its code"""
    one, other = (subject.task().code_fingerprint() for _ in range(2))
    if one != other or len(one) != 64:
        yield "code_fingerprint must be one sha256: leave it to Task"


def verifies(subject: _Subject) -> Iterator[str]:
    """finds nothing wrong with what it draws"""
    yield from (f"on its own mock verify says: {problem}" for problem in subject.task().verify())


def notices_doubles(subject: _Subject) -> Iterator[str]:
    """finds an image that stands for two cases"""
    task = subject.task(subject.copy())
    domain = task.source_domains[0]
    # Two cases may be read from one file, as frames of it.
    every = {files[0]: files for case_id in task.case_ids(domain) if (files := task.files(domain, case_id))}
    one, other = list(every.values())[:2]
    shutil.copy(one[0], other[0])
    if any("same image" in problem for problem in task.verify()):
        return
    for file, double in zip(one, other, strict=False):  # of an image that another file cuts out, as a field of view
        shutil.copy(file, double)
    if not any("same image" in problem for problem in task.verify()):
        yield f"verify must say that {other[0].name} has the same image as {one[0].name}: call super().verify()"


def notices_damage(subject: _Subject) -> Iterator[str]:
    """tells a file that is missing, or cut off, by its name"""
    where = subject.task().domains[0], subject.task().case_ids(subject.task().domains[0])[0]

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    # The image; what belongs to it; the image again.
    for damage, said, part in ((Path.unlink, "missing", 0), (Path.unlink, "missing", 1), (cut, "cut off", 0)):
        task = subject.task(subject.copy())
        everything = task.files(*where)
        if not (files := everything[1:] if part else everything[:1]):
            continue
        for path in files:
            damage(path)
        told = f"where {files[0].name} is {said}"
        try:
            task.load(*where)
            yield f"{told}, load must raise DataError; it gives a case"
        except DgbenchError as error:
            if not any(path.name in str(error) for path in everything):
                yield f"{told}, the error must name it; it says: {error.cause}"
        except Exception as error:
            yield f"{told}, load must raise DataError, not {_where_it_broke(error, subject.kind)}"
        try:
            if not task.verify():
                yield f"{told}, verify must say so"
        except Exception as error:
            yield f"{told}, verify must list it and go on, not raise {_where_it_broke(error, subject.kind)}"


CHECKS: tuple[Callable[[_Subject], Iterator[str]], ...] = (
    says,
    draws,
    lists,
    loads,
    splits,
    fingerprints,
    verifies,
    notices_doubles,
    notices_damage,
)
ON_DRAWN = (draws, verifies, notices_doubles, notices_damage)
FIRST = (draws, lists)


def _refuses(call: Callable[[], object], what: str, kind: str) -> Iterator[str]:
    try:
        call()
    except UsageError:
        return
    except Exception as error:
        yield f"{what} must raise UsageError, see `errors.require`; it raises {type(error).__name__}: {error}"
    else:
        yield f"{what} must raise UsageError: `require(name, known, '{kind}')` does"


def _where_it_broke(error: Exception, kind: type[Task]) -> str:
    """The error and the last line of the task's own file that it came through."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == inspect.getfile(kind)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: `{own[-1].line}`)" if own else ""
    return f"{type(error).__name__}: {error}{place}".replace("\n", "; ")
