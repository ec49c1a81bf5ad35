"""Collection: every board that folders and archives of results hold, each under a name that stays.

A board is what one table may hold: the runs of one task and protocol, on the same images. Results that cannot stand in
one table with others of their task are a board of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dgbench import registry
from dgbench.errors import DgbenchError, UsageError
from dgbench.running.records import RunRecord, find_runs, read_runs
from dgbench.scores.boards import every_board
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.reproduce import Reproduction, repetition
from dgbench.scores.study import Study
from dgbench.scores.submission import unpacked

ARCHIVES = "scores-*.tar.xz"


@dataclass(frozen=True)
class Collected:
    """A board. name: task and protocol; of the second board of both, also which results it is from.

    archives: by run (variant, source, seed), the archive that it came in; one that lay in a folder is not in it.
    again: what came of the runs that were made again by `dgbench reproduce`.
    """

    name: str
    ranking: Ranking
    archives: dict[tuple[str, str, int], str]
    again: dict[tuple[str, str, int], Reproduction]


@dataclass(frozen=True)
class Collection:
    """Boards by name, sorted; and why others could not be made."""

    boards: dict[str, Collected]
    broken: tuple[DgbenchError, ...]


def key(run: RunRecord) -> tuple[str, str, int]:
    """What a run is called on its board."""
    return run.variant, run.source, run.seed


def collect(places: Sequence[Path]) -> Collection:
    """All boards of some results: of folders, with the archives of scores in them, or of archives alone.

    Published scores are boards, too: those that come with dgbench, and those that were imported into a folder. Raises
    `UsageError` where there is nothing.
    """
    for place in (p for p in places if not p.exists()):
        raise UsageError(f"nothing is at {place}", "give folders of results, or archives of scores")
    folders = [p for p in places if p.is_dir()]
    archives = [p for p in places if not p.is_dir()] + [a for f in folders for a in f.glob(ARCHIVES)]
    archives = sorted(dict.fromkeys(archives), key=lambda p: p.name.removesuffix(".tar.xz"))
    boards, broken = dict[str, Collected](), list[DgbenchError]()
    with unpacked([*archives, *folders]) as laid:  # the archives first: what is passed on keeps its name
        names = dict(zip(laid, [*archives, *folders], strict=True))
        for (task, protocol), having in _groups(laid).items():
            try:
                for study, first in _studies(task, protocol, having):
                    name = f"{task}-{protocol}"
                    name = name if name not in boards else _unused(f"{name}-{_label(names[first], task)}", boards)
                    boards[name] = _collected(name, study, names)
            except DgbenchError as error:
                cause = _named(error.cause, names)
                broken.append(type(error)(f"task {task}, protocol {protocol}: {cause}", error.remedy))
    if not boards and not broken:
        raise UsageError("no finished run in any of these results", "make some with `dgbench run`")
    return Collection(dict(sorted(boards.items())), tuple(broken))


def _groups(folders: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """By task and protocol the folders that have something of it; those with imported boards come first."""
    found: dict[tuple[str, str], list[Path]] = {}
    shipped = dict.fromkeys((b.told["task"], b.told["protocol"]) for f in folders[:1] for b in every_board(f))
    for folder in folders:
        own = {(b.told["task"], b.told["protocol"]) for b in every_board(folder) if b.path.is_relative_to(folder)}
        for pair in {path.parts[-4:-2] for path in find_runs(folder)} | own:
            these = found.setdefault((pair[0], pair[1]), [])
            these.insert(0 if pair in own else len(these), folder)
    return found | {pair: list(folders[:1]) for pair in shipped if pair not in found}


def _studies(task: str, protocol: str, folders: Sequence[Path]) -> Iterator[tuple[Study, Path]]:
    """Studies that between them hold what can be read of some folders, each with the first folder it is from."""
    left = list(folders)
    while left:
        first, *others = left
        newest = max(read_runs(first, task, protocol)[0], key=lambda r: str(r.record["started"]), default=None)
        study = Study.load(first, task, protocol, newest, others)
        seen = (*study.records, *study.again)
        used = [first, *(f for f in others if any(r.path.is_relative_to(f) for r in seen))]
        if others and len(used) < len(left):  # that it leaves out what is on another board need not be told
            study = Study.load(first, task, protocol, newest, used[1:])
        yield study, first
        left = [f for f in left if f not in used]


def _collected(name: str, study: Study, names: dict[Path, Path]) -> Collected:
    archives = {key(r): p.name for r in study.records for f, p in names.items() if f != p and r.path.is_relative_to(f)}
    study.left_out = tuple(_named(sentence, names) for sentence in study.left_out)
    again = {}
    for run in study.records:
        with suppress(DgbenchError):  # one that is not finished, or is broken, says nothing
            if not run.published and (found := repetition(run)):
                again[key(run)] = found
    return Collected(name, _ranked(study), archives, again)


def _ranked(study: Study) -> Ranking:
    """Every row is tested against plain training, where that can be ranked, else against the first one."""
    with suppress(UsageError):
        return rank(study, baseline=registry.budget_method().__module__.rpartition(".")[2])
    return rank(study)


def _named(sentence: str, names: dict[Path, Path]) -> str:
    """Of results only their own name: archives lay elsewhere for a while, and a folder's place is nobody's business."""
    for folder, place in names.items():
        sentence = sentence.replace(str(folder), place.resolve().name)
    return sentence


def _label(place: Path, task: str) -> str:
    """What tells some results from others of the same task: the name they were passed on under, or their folder's."""
    return re.sub(rf"^scores-({re.escape(task)}-?)?|\.tar\.xz$", "", place.resolve().name) or "scores"


def _unused(name: str, known: dict[str, Collected]) -> str:
    others = (f"{name}-{n}" for n in range(2, len(known) + 3))
    return next(n for n in (name, *others) if n not in known)
