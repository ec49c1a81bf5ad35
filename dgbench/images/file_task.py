"""A task whose cases are image files in a folder: where the folder lies, and how a file's numbers become [0, 1]."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dgbench.errors import DataError
from dgbench.images.formats import Pixels, by_range
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
            raise DataError(f"task '{name}' has no data: no folder {path}", f"{self.download} (or use --data DIR)")
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

    def verify(self) -> list[str]:
        """As every task's, but a folder that is missing is said once and not for each of its cases."""
        try:
            _ = self.folder
        except DataError as error:
            return [f"{error.cause}: {error.remedy}"]
        return list(dict.fromkeys(super().verify()))
