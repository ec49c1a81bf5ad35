"""Archives of scores: scores-<task>[-<name>].tar.xz, the records, scores and checksums of runs, packed and unpacked.

Those that come with dgbench lie in results/, installed or not, and are found by their names alone.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dgbench.errors import DataError, UsageError
from dgbench.files import cache_folder, make_folder, sha256
from dgbench.registry import results_folder

MOST_PACKED, MOST = 1_000_000, 1 << 28  # bytes of an archive, and of what it unpacks to
MEMBER = re.compile(r"[^/]+/[^/]+/[^/]+/[^/]+-seed\d+/(run\.json|cases\.csv|RESULT\.json)")


def archive(members: Mapping[str, bytes]) -> bytes:
    """A .tar.xz of files; the same members give the same bytes, and nothing is said of whose they are."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9, format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    """The files in an archive of scores. Raises `DataError` for anything else in it, and for one that is too large."""
    members = dict[str, bytes]()
    try:
        if path.stat().st_size > MOST_PACKED:
            raise ValueError(f"it takes more than {MOST_PACKED:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(_unxz(path.read_bytes())), mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                named_out = any(part.startswith(".") for part in member.name.split("/"))
                named_out |= not member.name.isprintable()
                if not member.isfile() or named_out or not MEMBER.fullmatch(member.name) or member.name in members:
                    raise ValueError(f"it holds {member.name!r}, which is no record, scores or checksums of a run")
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    except (OSError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise DataError(f"{path} is no submission: {getattr(error, 'strerror', '') or error}", HOW) from None
    return members


def _unxz(content: bytes) -> bytes:
    """What is packed, its checksum compared and its end seen: tarfile would take what is cut off for whole.

    Raises `ValueError` for more than `MOST` bytes, `EOFError` for one that is cut off.
    """
    unpacker, whole = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28), bytearray()
    while not unpacker.eof:
        part = unpacker.decompress(content, 1 << 20)
        if not part and unpacker.needs_input and not content:
            raise EOFError("it is cut off")
        content = b""
        whole += part
        if len(whole) > MOST:
            raise ValueError(f"it becomes more than {MOST >> 20} MiB")
    return bytes(whole)


HOW = "make it with `dgbench submit`"


def lay(members: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder."""
    for name, content in members.items():
        make_folder((folder / name).parent)
        (folder / name).write_bytes(content)


def brought() -> dict[str, Path]:
    """The archives that come with dgbench, by name, sorted."""
    return {path.name: path for path in sorted(results_folder().glob("scores-*.tar.xz"))}


def brought_of(task: str) -> list[Path]:
    """The archives of a task's runs that come with dgbench: scores-TASK.tar.xz first, then scores-TASK-*.tar.xz."""
    known = brought()
    others = [path for name, path in known.items() if name.startswith(f"scores-{task}-")]
    return [*filter(None, [known.get(f"scores-{task}.tar.xz")]), *others]


def located(place: Path) -> Path:
    """A folder or archive that is there; else the archive of that name that comes with dgbench.

    Raises `UsageError` where neither is.
    """
    known = brought()
    if not place.exists() and str(place) not in known:
        told = f"give folders of results, or archives of scores; with dgbench come {', '.join(known) or 'none'}"
        raise UsageError(f"nothing is at {place}", told)
    return place if place.exists() else known[str(place)]


@contextmanager
def unpacked(places: Sequence[Path]) -> Iterator[list[Path]]:
    """Folders of results: those given, and for each archive one of its own, gone afterwards."""
    with tempfile.TemporaryDirectory() as root:
        folders = []
        for n, place in enumerate(places):
            if place.is_dir():
                folders.append(place)
                continue
            into = Path(root, str(n))
            into.mkdir()
            lay(members_of(place), into)
            folders.append(into)
        yield folders


def folder_of(place: Path) -> Path:
    """The folder that holds an archive's runs: in the cache, unpacked once; a folder is itself."""
    if place.is_dir():
        return place
    folder = cache_folder() / "scores" / f"{place.name.removesuffix('.tar.xz')}-{sha256(place)[:12]}"
    if not folder.is_dir():
        building = Path(tempfile.mkdtemp(prefix=".new-", dir=make_folder(folder.parent)))
        try:
            lay(members_of(place), building)
            with suppress(OSError):  # another process was first
                os.rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder
