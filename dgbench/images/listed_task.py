"""A task whose cases stand in a list beside its file, with checksums of all that a case is read from."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, read_case
from dgbench.images.mock import FEW
from dgbench.task import Case


class ListedTask(FileTask):
    """One structure; a case is an image with one mask file or several, of which it is the union.

    listed: a CSV file with the columns domain, case, and sha256 of what the case is read from: `image`, of the image
    file; `masks`, of the mask files joined in the order of their names. A task may have further columns.
    """

    listed: ClassVar[Path]

    @cached_property
    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        """The list by (domain, case)."""
        with open(self.listed, newline="", encoding="utf-8") as file:
            return {(row["domain"], row["case"]): row for row in csv.DictReader(file)}

    def case_ids(self, domain: str) -> list[str]:
        """Of the list; the first few, where images are drawn."""
        require(domain, self.domains, "domain")
        return sorted(case for of, case in self.rows if of == domain)[: FEW if self.is_mock else None]

    def row(self, domain: str, case_id: str) -> dict[str, str]:
        """A case's row of the list. Raises `UsageError`, which names the nearest, for a case that is not in it."""
        return self.rows[domain, require(case_id, self.case_ids(domain), f"case of {domain}")]

    def load(self, domain: str, case_id: str) -> Case:
        """The image and the union of its masks, on the image's own grid."""
        pixels, mask = self.read(domain, case_id)
        return Case(case_id, self.intensities(pixels), mask, pixels.spacing or (1.0, 1.0, 1.0))

    def read(self, domain: str, case_id: str) -> tuple[Pixels, np.ndarray]:
        """The image in the file's own numbers, and the mask: bool (D, 1, H, W)."""
        image, *masks = self.files(domain, case_id)
        if not masks:
            raise DataError(f"image {image} has no mask", self.download)
        pixels, planes = read_case(image, masks)
        return pixels, np.any([plane != 0 for plane in planes], axis=0)[:, None]

    def contents(self, domain: str, case_id: str) -> dict[str, str]:
        """{column of the list: sha256 of what lies here}."""
        image, *masks = self.files(domain, case_id)
        return {"image": _sha256([image]), "masks": _sha256(masks)}

    def verify(self) -> list[str]:
        """Also: the content of every case is the listed one."""
        problems = super().verify()
        if self.is_mock:
            return problems
        for (domain, case_id), row in self.rows.items():
            try:
                found = self.contents(domain, case_id)
            except (DataError, OSError):  # said above
                continue
            for column in (c for c, checksum in found.items() if checksum != row[c]):
                files = " and ".join(map(str, self.files(domain, case_id)[:2]))
                problems.append(f"{domain}/{case_id}: the {column} of {files} are not those of the list")
        return problems


def _sha256(paths: Iterable[Path]) -> str:
    """Of the files' bytes, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
