"""Downloading over HTTP: what was cut continues, and nothing is taken for a file that is none.

Not by a library: pooch begins a download that was cut anew, which for 10 GB over a night is no download, and
huggingface_hub continues those of its own hub only. What is needed beyond urllib is a range, and looking at the answer.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dgbench.errors import REFUSALS, ROOM, DataError

SILENCE = 30  # seconds after which a server that says nothing is given up
Report = Callable[[int], None]


def download(url: str, part: Path, size: int | None, by_hand: str, report: Report = lambda done: None) -> int:
    """Append what is missing of a file to `part`; how many bytes it has then.

    size: in bytes, where it is known before; None: as the server says, if it does. `report` hears how many bytes are
    there. Raises `DataError`, with `by_hand` as its remedy, when it cannot be had: what came so far is kept. What the
    disk refuses is raised as the system's own error.
    """
    try:
        done, whole = _receive(url, part, size, report, by_hand)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in REFUSALS and not isinstance(error, urllib.error.URLError):
            error.filename = error.filename or str(part)
            raise
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                forget(part)  # another file is published there now, a shorter one
        reason = error.reason if type(error) is urllib.error.URLError else error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise DataError(f"{url} cannot be downloaded: {text}", by_hand) from error
    if whole is not None and done < whole:
        raise DataError(
            f"{url} ended after {done:,} of {whole:,} bytes", f"run this again, it continues there; or {by_hand}"
        )
    return done


def forget(part: Path) -> None:
    """Delete what came so far: the next download begins anew."""
    for path in (part, _tag(part)):
        path.unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    """Holds what the server calls the version of the file that the part is of."""
    return part.with_name(f"{part.name}.tag")


def _receive(url: str, part: Path, size: int | None, report: Report, by_hand: str) -> tuple[int, int | None]:
    """(bytes that the part has then, bytes of the whole file or None)."""
    done = part.stat().st_size if part.exists() else 0
    if size is not None and done >= size:
        return done, size
    request = urllib.request.Request(url, headers={"User-Agent": "dgbench"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        with suppress(OSError):
            request.add_header("If-Range", _tag(part).read_text())
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        if answer.headers.get_content_type() == "text/html" and "content-type" in answer.headers:
            raise DataError(f"{url} answers with a web page, not with the file", by_hand)
        continued = answer.status == http.client.PARTIAL_CONTENT
        done = done if continued else 0
        told = answer.headers.get("Content-Length")
        whole = size if size is not None or told is None else done + int(told)
        if whole is not None and shutil.disk_usage(part.parent).free < whole - done:
            free = shutil.disk_usage(part.parent).free
            raise DataError(f"{part.parent} has {free:,} bytes free, and {part.name} needs {whole - done:,}", ROOM)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            _tag(part).write_text(tag)
        elif not continued:
            _tag(part).unlink(missing_ok=True)
        report(done)
        with open(part, "ab" if continued else "wb") as file:
            while (size is None or done <= size) and (chunk := answer.read(1 << 20)):
                file.write(chunk)
                done += len(chunk)
                report(done)
            file.flush()
            os.fsync(file.fileno())
    return done, whole
