"""Submissions: the scores of finished runs packed to be passed on, unpacked with care, and looked at before they count.

A submission is one archive, scores-<task>-<name>.tar.xz, as those in results/: run.json, cases.csv and RESULT.json of
each run, no image, no mask, no weights. What tells of the machine and its user is taken out of run.json, and what its
makers disclose (`DISCLOSED`) is put in, under "submission".
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PureWindowsPath
from typing import Any

from dgbench.errors import DataError, DgbenchError, UsageError, require
from dgbench.files import is_name, make_folder, read_json, write_atomic
from dgbench.names import MOCK
from dgbench.running.records import RunRecord, broken_files, find_runs, read_run
from dgbench.scores import suspicion
from dgbench.scores.archives import MOST_PACKED, archive, brought_of, lay, located, unpacked
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study
from dgbench.scores.verify import verify

DISCLOSED = {
    "pretraining": "which data the pretrained weights saw, as far as known; none where nothing was pretrained",
    "trials": "how many settings were tried before these, and on which data they were compared",
    "targets": "no, if nobody looked at the targets' images or scores before all was fixed; else yes, and how",
}
# What a run is called: it is not changed, but looked through. All other text of run.json is cleaned.
IDENTITY = {
    *("task", "protocol", "method", "variant", "source", "seed", "domains", "sources", "targets", "structures"),
    *("data", "citation", "collections", "paper", "fingerprint", "started", "unit", "origin"),
}
NOBODY = {"root", "user", "localhost", "runner", "ubuntu", "admin"}  # names that tell nothing
PATH = re.compile(r"(?<![\w.:/~\\])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()\[\]]+){2,}[/\\]?")


# --- packing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """What would be written. members: the files by their names in the archive. removed: what was taken out.

    verdicts: for each protocol and variant, "" where it will be ranked, else why not.
    """

    path: Path
    members: Mapping[str, bytes]
    removed: tuple[str, ...]
    verdicts: tuple[tuple[str, str, str], ...]

    def write(self) -> Path:
        """Raises `UsageError` when another submission of that name is there."""
        content = archive(self.members)
        if self.path.exists() and self.path.read_bytes() != content:
            raise UsageError(f"another submission is there: {self.path}", "give another --name, or delete it first")
        if len(content) > MOST_PACKED:
            remedy = "submit fewer runs at a time"
            raise UsageError(f"the archive takes {len(content):,} bytes, more than {MOST_PACKED:,}", remedy)
        make_folder(self.path.parent)
        write_atomic(self.path, content)
        return self.path


def pack(results: Path, task: str, name: str, told: Mapping[str, str], to: Path, beside: Sequence[Path] = ()) -> Packed:
    """All finished runs of a task, made ready to be passed on; nothing is written.

    told: an answer to each of `DISCLOSED`. beside: folders of results that they would be ranked with. Raises
    `UsageError` for an answer that is missing, or a run that is named after this machine or its user, `DataError` that
    names all runs that cannot be read.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"'{name}' cannot name a submission", "use letters, digits, '.', '-' and '_'")
    if task.startswith(MOCK):
        raise UsageError(drawn(task), f"run {task.removeprefix(MOCK)} on its real images, without --mock")
    if wanting := list(undisclosed(told)):
        raise UsageError(f"not disclosed: {'; '.join(wanting)}", "answer by --disclose KEY=TEXT, or --disclosure FILE")
    runs, problems = list[RunRecord](), list[str]()
    for folder in find_runs(results, task):
        try:
            runs.append(read_run(folder))
        except DgbenchError as error:
            problems.append(error.cause)
    if problems:
        raise DataError(
            "\n- ".join([f"{len(problems)} runs cannot be passed on:", *problems]), "mend or move them away"
        )
    if not runs:
        raise UsageError(f"no finished run of task {task} in {results}", "make some, or give another folder")
    words, removed, members = private_words(), list[str](), dict[str, bytes]()
    for run in runs:
        place = "/".join([run.task, run.protocol, run.variant, run.path.name])
        _refuse_private(place, run, words)
        record = {k: v if k in IDENTITY else cleaned(v, words, f"{k} of {place}", removed) for k, v in _of(run).items()}
        record["submission"] = {"name": name, **{key: told[key].strip() for key in DISCLOSED}}
        whole = _json(record)
        result = dict(read_json(run.path / "RESULT.json") or {})
        result["files"] = {**result["files"], "run.json": sha256(whole).hexdigest()}
        members[f"{place}/run.json"] = whole
        members[f"{place}/cases.csv"] = (run.path / "cases.csv").read_bytes()
        members[f"{place}/RESULT.json"] = _json(result)
    with tempfile.TemporaryDirectory() as laid:
        lay(members, Path(laid))
        verdicts = tuple(_verdicts(Path(laid), task, beside))
    for archived in brought_of(task):
        with unpacked([archived]) as theirs:
            again = _again(runs, _read(theirs[0], []))
        verdicts = tuple((p, v, "its runs come with dgbench" if (p, v) in again else why) for p, v, why in verdicts)
    return Packed(to / f"scores-{task}-{name}.tar.xz", members, tuple(dict.fromkeys(removed)), verdicts)


def drawn(task: str) -> str:
    """Why scores of a task are no evidence."""
    return f"task {task} is of drawn images: its scores say that commands work, and nothing of methods"


def disclosure(path: Path) -> dict[str, str]:
    """The answers in a TOML file. Raises `UsageError` for a file that is none, or an answer to no question."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", 'a line looks like targets = "no"') from None
    return {require(key, list(DISCLOSED), f"key in {path}:"): str(value) for key, value in told.items()}


def undisclosed(told: Mapping[str, Any]) -> Iterator[str]:
    """The questions without an answer, or with one that is none."""
    for key, question in DISCLOSED.items():
        answer = str(told.get(key, "")).strip()
        if not answer or (key == "targets" and not re.match(r"(no|yes)\b", answer, re.IGNORECASE)):
            yield f"{key} ({question})"


def private_words() -> list[str]:
    """Names of this machine and its user, as far as they tell anything."""
    found = [Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]]
    with suppress(OSError, KeyError):  # a user without a name
        found.append(getpass.getuser())
    return sorted({w for w in found if len(w) > 2 and w.casefold() not in NOBODY}, key=len, reverse=True)


def cleaned(value: Any, words: Sequence[str], where: str, removed: list[str]) -> Any:
    """A value of run.json, of each path its last part alone, without private words; `removed` takes what went."""
    if isinstance(value, Mapping):
        return {
            cleaned(k, words, where, removed): cleaned(v, words, where, removed) for k, v in value.items()
        }  # a key may be a file's name
    if isinstance(value, list):
        return [cleaned(v, words, where, removed) for v in value]
    if not isinstance(value, str):
        return value
    text = PATH.sub(lambda m: PureWindowsPath(m[0]).name, value)
    for word in words:
        text = _word(word).sub("...", text)
    if text != value:
        removed.append(f"{value} -> {text} ({where.partition(' of ')[0]})")
    return text


def _refuse_private(place: str, run: RunRecord, words: Sequence[str]) -> None:
    """Raises `UsageError` for a name of the machine or its user where nothing can be taken out."""
    texts = [place, json.dumps({k: v for k, v in run.record.items() if k in IDENTITY}, ensure_ascii=False)]
    texts.append((run.path / "cases.csv").read_text(encoding="utf-8"))
    for word in words:
        if any(_word(word).search(text) for text in texts):
            remedy = "rename what is called so, or, if it tells nothing of you, pack as another user or elsewhere"
            raise UsageError(f"{place} is named after this machine or its user: '{word}'", remedy)


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE)


def _of(run: RunRecord) -> dict[str, Any]:
    """run.json as it lies there: a record that was read may have been filled up."""
    return read_json(run.path / "run.json") or {}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _verdicts(folder: Path, task: str, beside: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    for protocol in protocols(folder, task):
        ours = {r.variant for r in _records(folder, task, protocol)}
        board = rank(Study.load(folder, task, protocol, beside=beside))
        yield from ((protocol, of.variant, of.why) for of in board.every if of.variant in ours)


# --- looking at it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What becomes of a board. before: None where there was none."""

    task: str
    protocol: str
    before: Ranking | None
    after: Ranking


@dataclass(frozen=True)
class Review:
    """What was found in a submission. problems: it cannot be taken. doubts: what a person should look at."""

    archives: tuple[str, ...]
    disclosures: Mapping[str, Mapping[str, str]]
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


def review(archives: Sequence[Path], board: Sequence[Path] = ()) -> Review:
    """Verify submissions: schema, hashes, counts, sizes, whether scores are plausible; and what becomes of the board.

    board: archives or folders of what is there already. Raises `DataError` for an archive that is none.
    """
    found = Review(tuple(path.name for path in archives), {})
    told: dict[str, Mapping[str, str]] = {}
    with unpacked([*archives, *map(located, board)]) as folders:
        ours, theirs = folders[: len(archives)], folders[len(archives) :]
        runs, others = list[RunRecord](), list[RunRecord]()
        for path, folder in zip(archives, ours, strict=True):
            count, problems = verify(folder, scores_alone=True)
            found.problems.extend(p.replace(f"{folder.resolve()}/", "") for p in problems)
            if not count:
                found.problems.append(f"{path.name} holds no run")
            else:
                runs += _read(folder, found.problems)
        for run in runs:
            said = run.record.get("submission")
            said = said if isinstance(said, dict) else {}
            told[str(said.get("name") or "without a name")] = said
            found.problems.extend(suspicion.impossible(run))
            if run.task.startswith(MOCK) and (why := drawn(run.task)) not in found.problems:
                found.problems.append(why)
            found.doubts.extend(suspicion.unlikely(run))
        found.problems.extend(
            f"{name}: not disclosed: {question}" for name, said in told.items() for question in undisclosed(said)
        )
        for folder in theirs:
            others += _read(folder, [])
        problems, doubts = suspicion.repeated(runs)
        found.problems.extend([*problems, *suspicion.references([*others, *runs])])
        found.doubts.extend([*doubts, *(f"{v}: the board has its runs already" for _, v in _again(runs, others))])
        if not found.problems:
            found.effects.extend(_effects(runs, ours, theirs))
    return Review(found.archives, told, found.problems, found.doubts, found.effects)


def _read(folder: Path, problems: list[str]) -> list[RunRecord]:
    runs = []
    for place in find_runs(folder):
        try:
            run = read_run(place)
            len(run.cases)
        except DgbenchError as error:
            problems.append(error.cause.replace(f"{folder}/", ""))
        else:
            runs.append(run)
    return runs


def _again(runs: Sequence[RunRecord], others: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Protocol and variant of what others have every run of, packed or not."""
    known = {(*r.path.parts[-4:], _identity(r.path)) for r in others}
    new = {(r.protocol, r.variant) for r in runs if (*r.path.parts[-4:], _identity(r.path)) not in known}
    return sorted({(r.protocol, r.variant) for r in runs} - new)


def _effects(runs: Sequence[RunRecord], ours: Sequence[Path], theirs: Sequence[Path]) -> Iterator[Effect]:
    for task, protocol in sorted({(r.task, r.protocol) for r in runs}):
        with suppress(UsageError):  # no run of it in any of them
            before = None
            with suppress(UsageError):
                before = _ranking(theirs, task, protocol)
            after = _ranking([*theirs, *ours], task, protocol)
            assert after is not None
            yield Effect(task, protocol, before, after)


def _ranking(folders: Sequence[Path], task: str, protocol: str) -> Ranking | None:
    """The board of the runs in some folders, the first that has a variant giving it; None where there is none."""
    having = [f for f in folders if find_runs(f, task, protocol)]
    return rank(Study.load(having[0], task, protocol, beside=having[1:])) if having else None


def protocols(folder: Path, task: str) -> list[str]:
    """Those that a folder of results has finished runs of."""
    return sorted({path.parts[-3] for path in find_runs(folder, task)})


def _records(folder: Path, task: str, protocol: str) -> list[RunRecord]:
    return [read_run(path) for path in find_runs(folder, task, protocol)]


# --- joining ---------------------------------------------------------------------------------------------------------


def merge(places: Sequence[Path], to: Path) -> list[Path]:
    """Copy the finished runs of folders and archives into one folder; returns those that were not there.

    A run that several have is taken from the one that has most of its files. Raises `DataError` that names every run of
    which two have other scores; nothing is written then, and nothing that lies there is replaced.
    """
    chosen: dict[Path, Path] = {}
    conflicts = []
    places = [located(place) for place in places]
    with unpacked([*places, *([to] if to.is_dir() else [])]) as folders:
        names = dict(zip(folders, [*places, to], strict=False))
        for folder in folders:
            for run in find_runs(folder):
                inside = run.relative_to(folder)
                other = chosen.setdefault(inside, run)
                if _identity(run) != _identity(other):
                    whose = names[next(f for f in folders if other.is_relative_to(f))]
                    conflicts.append(f"{inside}: other scores in {whose} and {names[folder]}")
                elif names[folder] == to or len(list(run.iterdir())) > len(list(other.iterdir())):
                    chosen[inside] = run  # what is there stays
        if conflicts:
            told = "\n- ".join([f"{len(conflicts)} runs are in conflict, nothing was written:", *conflicts])
            raise DataError(told, "take one of each away, or rename its method")
        new = {inside: run for inside, run in chosen.items() if not run.is_relative_to(to)}
        for inside, run in new.items():
            parent = make_folder((to / inside).parent)
            building = Path(tempfile.mkdtemp(prefix=".merging-", dir=parent))
            try:
                listed = (read_json(run / "RESULT.json") or {}).get("files")
                names_of = filter(is_name, listed if isinstance(listed, dict) else ())
                for name in (n for n in (*names_of, "RESULT.json") if (run / n).is_file()):
                    shutil.copy2(run / name, building)
                building.chmod(0o755)
                os.rename(building, to / inside)
            except OSError as error:  # of a run that is not finished there
                told = f"{to / inside} cannot be written: {error.strerror}"
                raise DataError(told, "finish what lies there, or move it away") from None
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return [to / inside for inside in new]


def _identity(run: Path) -> str:
    """What two copies of one run share, though one of them was packed."""
    result = read_json(run / "RESULT.json") or {}
    files = result.get("files")
    scores = files.get("cases.csv") if isinstance(files, dict) else None
    return repr((result.get("fingerprint"), scores, broken_files(run, result, ["cases.csv"])))
