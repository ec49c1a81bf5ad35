"""A task whose cases are image files in a folder: where the folder lies, and how a file's numbers become [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dgbench.errors import DataError
from dgbench.images.formats import Pixels, by_range, values_of
from dgbench.images.mock import MARK
from dgbench.task import Task


class FileTask(Task):
    """A task whose cases are image files in a folder."""

    @property
    def place(self) -> Path:
        """Where the files lie or should: the folder given (or its sub-folder named as the task), else
        $DGBENCH_DATA/<task>, else ./data/<task>."""
        name = self.name or type(self).__module__.rpartition(".")[2]
        if self.data is None:
            return Path(os.environ.get("DGBENCH_DATA") or "data") / name
        path = Path(self.data)
        return path / name if (path / name).is_dir() else path

    @property
    def folder(self) -> Path:
        """`place`, if it is there. Raises `DataError` that says what to download."""
        if not (path := self.place).is_dir():
            name = self.name or type(self).__module__.rpartition(".")[2]
            tried = "" if type(self).mock is Task.mock else "; --mock draws small ones, to try a command"
            raise DataError(f"task '{name}' has no data: no folder {path}", f"{self.download} (or use --data DIR{tried})")
        return path

    @property
    def is_mock(self) -> bool:
        """Is it a folder of drawn images, see `images.mock`? Counts and checksums are those of the release."""
        try:
            return (self.folder / MARK).is_file()
        except DataError:
            return False

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """The file's numbers by the task's intensity rule: float32 (D, C, H, W) in [0, 1]."""
        return by_range(pixels, self.intensity_range)

    def there(self, paths: list[Path], whose: str) -> list[Path]:
        """The paths. Raises `DataError` that says which files are missing, and `whose`."""
        if missing := [str(p) for p in paths if not p.is_file()]:
            raise DataError(f"{whose} lacks {' and '.join(missing)}", self.download)
        return paths

    def planes(
        self, labels: np.ndarray, path: Path, structures: Mapping[str, Sequence[int]], others: Sequence[int] = ()
    ) -> np.ndarray:
        """The labels of a mask (D, H, W) -> bool (D, K, H, W), a plane for each of `structures`, {name: its labels}.

        A label may be of several structures. others: labels of the release that are in none. Raises `DataError` that
        names the labels that the release does not have, and the file, `path`.
        """
        known = {label for of in structures.values() for label in of} | {*others}
        if foreign := [label for label in values_of(labels) if label not in known]:
            few = ", ".join(map(str, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
            raise DataError(
                f"mask {path} holds the labels {few}, the release has {_spans(sorted(known))} only",
                f"download it again, or look whether it is another release: {self.download}",
            )
        return np.stack([np.isin(labels, of) for of in structures.values()], axis=1)

    def verify(self) -> list[str]:
        """As every task's, but a folder that is missing is said once and not for each of its cases."""
        try:
            _ = self.folder
        except DataError as error:
            return [f"{error.cause}: {error.remedy}"]
        return list(dict.fromkeys(super().verify()))


def _spans(numbers: Sequence[int]) -> str:
    """ "1, 2, 55 to 70": sorted whole numbers, four or more in a row as a span."""
    rows: list[list[int]] = []
    for n in numbers:
        if rows and n == rows[-1][-1] + 1:
            rows[-1].append(n)
        else:
            rows.append([n])
    told = (f"{r[0]} to {r[-1]}" if len(r) > 3 else ", ".join(map(str, r)) for r in rows)
    return ", ".join(told)
