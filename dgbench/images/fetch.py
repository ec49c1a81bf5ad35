"""Downloading a task's data into the layout that the task reads: whole, the published ones, and nothing beside.

An archive may be anybody's: nothing of it is written outside its folder, links are left out, and it cannot become
larger than the disk or than an honest archive would. What was fetched is noted in a file beside the data, checksums
among it: a file whose publisher states none must be the same the next time.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dgbench import transfer
from dgbench.errors import REFUSALS, ROOM, DataError
from dgbench.files import Taken, lock, make_folder, move, read_json, sha256, write_json

NOTED = "FETCHED.json"  # in a task's folder: {file: url, sha256, and the names at the top of what was unpacked}
MOST_FILES = 1_000_000
RATIO, ALLOWANCE = 100, 64 << 20  # an archive becomes at most so many times its bytes, or so many bytes
PACKED = (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile)
LITTER = ("__MACOSX", ".DS_Store")
Report = Callable[[str, int, int | None], None]  # what is done, bytes that are there, bytes in all where they are known


@dataclass(frozen=True)
class Download:
    """One file of a release.

    Attributes
    ----------
    url: where it is published, for everyone, without an account.
    file: the name under which it is kept in the task's folder.
    sha256: of the file, where its publisher or somebody who checked it states one; None: that of the first download is
        noted and compared later.
    size: in bytes, where it is stated.
    unpack_to: folder, in the task's folder, into which the archive is unpacked ("" is the task's folder itself), after
        which the archive is deleted; None for a file that is used as it is.
    inside: what is taken of the archive: the folder in it whose content comes to `unpack_to`; "" for all, "*" for all
        without the one folder that everything lies in, if it does.
    """

    url: str
    file: str
    sha256: str | None = None
    size: int | None = None
    unpack_to: str | None = None
    inside: str = ""


def fetch(downloads: Sequence[Download], folder: Path, report: Report = lambda name, done, size: None) -> list[str]:
    """Download all that is not there, one after the other; the names of those that were fetched now.

    Raises `DataError` for the first that cannot be had, or is not the published one: what came so far is kept, and the
    same call goes on. What the disk refuses is raised as the system's own error.
    """
    fetched = []
    try:
        with lock(make_folder(folder)):
            for left in folder.glob(".unpacking-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            for one in downloads:
                if not is_here(one, folder):
                    _fetch(one, folder, report)
                    fetched.append(one.file)
    except Taken as error:
        raise DataError(str(error), "wait until it is done, then run this again") from None
    return fetched


def is_here(one: Download, folder: Path) -> bool:
    """Was it fetched, and is still there what came of it? Its content is looked at by `Task.verify`."""
    noted = (read_json(folder / NOTED) or {}).get(one.file)
    if not isinstance(noted, dict) or noted.get("url") != one.url:
        return False
    return all((folder / (one.unpack_to or "") / name).exists() for name in noted.get("top", [one.file]))


def _fetch(one: Download, folder: Path, report: Report) -> None:
    path, part = folder / one.file, folder / f"{one.file}.part"
    into = f" and unpack it into {folder / one.unpack_to}" if one.unpack_to is not None else ""
    by_hand = f"download {one.url} by hand as {path}{into}"
    noted = read_json(folder / NOTED) or {}
    if not path.is_file():
        transfer.download(one.url, part, one.size, by_hand, lambda done: report(f"fetching {one.file}", done, one.size))
    found = sha256(path if path.is_file() else part)
    _compare(one, part if part.exists() else path, found, noted.get(one.file), by_hand)
    if part.exists():
        move(part, path)
        transfer.forget(part)
    told: dict[str, Any] = {"url": one.url, "sha256": found, "bytes": path.stat().st_size}
    if one.unpack_to is not None:
        unpacking = f"unpacking {one.file}"
        told["top"] = unpack(path, folder / one.unpack_to, one.inside, lambda done: report(unpacking, done, None))
    write_json(folder / NOTED, noted | {one.file: told})
    if one.unpack_to is not None:
        path.unlink()


def _compare(one: Download, path: Path, found: str, noted: Any, by_hand: str) -> None:
    """Raises `DataError` for a file that is not the published one, or not that of before; what was downloaded just now
    is deleted first, a file that somebody put there is left to them."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    before = noted.get("sha256") if isinstance(noted, dict) and noted.get("url") == one.url else None
    if head.startswith((b"<!doctype html", b"<html")):
        cause, remedy = f"{one.url} gave a web page in place of {one.file}", by_hand
    elif one.sha256 and found != one.sha256:
        cause = f"{one.url} is not the published {one.file}: its sha256 is {found}, not {one.sha256}"
        remedy = f"run this again; or {by_hand}"
    elif not one.sha256 and before and found != before:
        cause = f"{one.url} is another file than when it was fetched first: its sha256 is {found}, then {before}"
        remedy = f"ask its publisher what changed; to take it all the same delete {path.parent / NOTED}"
    else:
        return
    if path.name == one.file:
        raise DataError(cause, f"move {path} away: dgbench did not download it; then run this again")
    transfer.forget(path)
    raise DataError(cause, remedy)


# --- archives --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A regular file of an archive. size: as the archive says, which may be a lie."""

    name: PurePosixPath
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, to: Path, inside: str = "", report: Callable[[int], None] = lambda done: None) -> list[str]:
    """Unpack a ZIP or tar file (gzip, bzip2, xz) into a folder; the names at its top, sorted.

    All is unpacked beside and then moved into its place, over what lies there. inside: see `Download`. Raises
    `DataError` for what is no archive, or leads out of its folder, or becomes too large, and then nothing is changed.
    """
    make_folder(to)
    building = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=to))
    remedy = f"it is not what it should be: delete {archive} and fetch it again"
    try:
        most = RATIO * archive.stat().st_size + ALLOWANCE
        with contextlib.closing(_members(archive)) as members:
            _extract(members, building, most, archive, report)
        top = _inside(building, inside, archive)
        names = sorted(path.name for path in top.iterdir())
        if not names:
            raise DataError(f"{archive} holds no file{f' in {inside}' if inside else ''}", remedy)
        _merge(top, to)
    except DataError:
        raise
    except Exception as error:  # zipfile, tarfile and what they decode with raise a dozen kinds; a name may be no name
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in REFUSALS):
            raise  # it is the machine's
        told = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")  # tarfile tells all that it tried
        raise DataError(f"{archive} cannot be unpacked: {told}", remedy) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return names


def _extract(members: Iterator[_Member], to: Path, most: int, archive: Path, report: Callable[[int], None]) -> None:
    done, remedy = 0, f"delete {archive}: no release looks like this"
    for count, member in enumerate(members):
        if set(member.name.parts) & set(LITTER):
            continue
        if count > MOST_FILES:
            raise DataError(f"{archive} holds more than {MOST_FILES:,} files", remedy)
        if done + member.size > most:
            raise DataError(f"{archive} becomes more than {most:,} bytes: it is made to fill the disk", remedy)
        free = shutil.disk_usage(to).free
        if member.size > free:
            raise DataError(f"{to.parent} has {free:,} bytes free, and {member.name} of {archive} needs more", ROOM)
        path = to / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() or contextlib.nullcontext() as source, open(path, "wb") as file:
            while source and (chunk := source.read(1 << 20)):
                done += len(chunk)
                if done > most:
                    raise DataError(f"{archive} becomes more than {most:,} bytes: it is made to fill the disk", remedy)
                file.write(chunk)
        report(done)


def _members(archive: Path) -> Generator[_Member, None, None]:
    """The regular files. Links and devices are left out; a name that leads out of the folder is a `DataError`."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.flag_bits & 1:
                    raise DataError(f"{archive} is encrypted", "unpack it by hand, with its password")
                if not info.filename.endswith("/") and kind in (0, stat.S_IFREG):
                    yield _Member(_safe(info.filename, archive), info.file_size, lambda i=info: zipped.open(i))  # type: ignore[misc]
        return
    with tarfile.open(archive) as tarred:  # which looks for itself how it is compressed
        for entry in tarred:
            if entry.isreg():
                yield _Member(_safe(entry.name, archive), entry.size, lambda e=entry: tarred.extractfile(e))  # type: ignore[misc]
        assert tarred.fileobj is not None
        if not isinstance(tarred.fileobj, PACKED):
            tarred.fileobj.seek(tarred.offset)
            if tarred.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it is cut off")
        while tarred.fileobj.read(1 << 20):  # to the end, which is what compares the checksum of what is packed
            pass


def _safe(name: str, archive: Path) -> PurePosixPath:
    """A member's name, if it stays in the folder on every system."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name or ":" in path.parts[0]:
        cause = f"{archive} holds '{name}', which leads out of its folder"
        raise DataError(cause, f"delete {archive}: no release looks like this")
    return path


def _inside(unpacked: Path, inside: str, archive: Path) -> Path:
    if inside == "*":
        (first, *others) = [*unpacked.iterdir(), unpacked]
        return first if len(others) == 1 and first.is_dir() else unpacked
    if not (unpacked / inside).is_dir():
        there = ", ".join(sorted(path.name for path in unpacked.iterdir())[:5])
        raise DataError(f"{archive} has no folder {inside}: it holds {there}", "its publisher changed it: tell dgbench")
    return unpacked / inside


def _merge(source: Path, to: Path) -> None:
    """Move every file to its place below `to`."""
    for folder, _, names in os.walk(source):
        into = to / Path(folder).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(folder) / name, into / name)
