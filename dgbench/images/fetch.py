"""Downloading a task's data into the layout that the task reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """One file of a release.

    Attributes
    ----------
    url: where it is published, for everyone, without an account.
    file: the name under which it is kept in the task's folder.
    sha256: of the file, where its publisher or somebody who checked it states one; None: that of the first download is
        kept and compared later.
    size: in bytes, where it is stated.
    unpack_to: folder, in the task's folder, into which the archive is unpacked ("" is the task's folder itself); None
        for a file that is used as it is.
    inside: what is taken of the archive: the folder in it whose content comes to `unpack_to`; "" for all.
    """

    url: str
    file: str
    sha256: str | None = None
    size: int | None = None
    unpack_to: str | None = None
    inside: str = ""
