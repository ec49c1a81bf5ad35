"""Masks as gray values: JPEG, colours, palettes; a folder that is not whole."""

from pathlib import Path

import numpy as np
import pytest

from dgbench.errors import DataError
from dgbench.images.formats import read
from dgbench.images.mock import MARK, Sketch, write_bmp, write_jpg, write_packed_ppm, write_png
from dgbench.images.photo_task import PhotoTask, read_gray_masks, white


class Moles(PhotoTask):
    """Two photographs, as a release without a list."""

    name = "moles"
    domains = ("A",)
    structures = ("mole",)
    download = "download moles"
    cases_expected = {"A": 2}  # noqa: RUF012

    def find(self, domain: str) -> dict[str, list[Path]]:
        return {i: [p, self.folder / "masks" / f"{i}.png"] for i, p in self.names("images", ".jpg", ".png").items()}


def moles(folder: Path) -> Moles:
    sketch = Sketch()
    for name in "ab":
        labels = sketch.labels(20, 24)
        write_jpg(folder / "images" / f"{name}.jpg", sketch.photograph(labels, 0))
        write_png(folder / "masks" / f"{name}.png", labels * 255)
    (folder / "images" / "._a.jpg").write_bytes(b"a file that a Mac left")
    return Moles(folder)


def test_a_copy_that_is_not_whole_is_refused_since_its_results_would_pass_as_those_of_all(tmp_path):
    assert moles(tmp_path).case_ids("A") == ["a", "b"]
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"'A' of task 'moles' has 1 cases in .*, the release has 2") as failure:
        Moles(tmp_path).case_ids("A")
    assert failure.value.remedy == "download moles"
    (tmp_path / MARK).touch()
    assert Moles(tmp_path).case_ids("A") == ["a"], "drawn files are a handful"


def test_a_folder_that_is_missing_is_named_with_what_to_download(tmp_path):
    with pytest.raises(DataError, match=r"lacks the folder .*images") as failure:
        Moles(tmp_path).case_ids("A")
    assert failure.value.remedy == "download moles"


def test_a_mask_that_went_through_jpeg_is_parted_at_128(tmp_path):
    labels = Sketch().labels(48, 64)
    write_jpg(tmp_path / "mask.jpg", labels * 255)
    lossy = read(tmp_path / "mask.jpg").values[0]
    assert len(np.unique(lossy)) > 2, "the border is soft"
    mask, odd = white(lossy, tmp_path / "mask.jpg")
    np.testing.assert_array_equal(mask, labels > 0)
    assert odd == []


def test_many_pixels_between_black_and_white_are_told_by_their_number(tmp_path):
    gray = np.zeros((10, 10), np.uint8)
    gray[2:8, 2:8] = 255
    gray[4:6, 2:7] = 100
    mask, [(cause, remedy)] = white(gray, tmp_path / "m.jpg")
    assert mask.sum() == 26 and "10 of the 100 pixels of" in cause and "save them as PNG" in remedy


def test_a_mask_of_0_and_1_is_not_black_everywhere(tmp_path):
    assert white(np.eye(4, dtype=np.uint8), tmp_path)[0].sum() == 4
    assert white(np.zeros((4, 4), np.uint8), tmp_path)[0].sum() == 0


def test_colours_and_palettes_of_masks_become_the_gray_that_is_seen(tmp_path):
    labels = Sketch().labels(16, 16)
    write_png(tmp_path / "image.png", labels)
    write_png(tmp_path / "rgb.png", np.stack([labels * 255] * 3, axis=-1))
    write_png(tmp_path / "palette.gif", labels * 255)
    _, grays = read_gray_masks(tmp_path / "image.png", [tmp_path / "rgb.png", tmp_path / "palette.gif"])
    for gray in grays:
        np.testing.assert_array_equal(gray, labels * 255)


def test_all_broken_files_of_a_case_are_told_at_once_and_so_are_two_sizes(tmp_path):
    write_png(tmp_path / "image.png", np.zeros((16, 20), np.uint8))
    write_png(tmp_path / "mask.png", np.zeros((20, 16), np.uint8))
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png .*it is empty; .*none\.png cannot be read"):
        read_gray_masks(tmp_path / "image.png", [tmp_path / "empty.png", tmp_path / "none.png"])
    with pytest.raises(DataError, match=r"mask\.png is 20 x 16, .*image\.png is 16 x 20"):
        read_gray_masks(tmp_path / "image.png", [tmp_path / "mask.png"])


def test_gray_photographs_have_three_channels_as_the_coloured_ones_beside_them(tmp_path):
    task = moles(tmp_path)
    gray = Sketch().gray(Sketch().labels(20, 24), 0)
    write_jpg(tmp_path / "images" / "a.jpg", gray)
    assert task.load("A", "a").image.shape == task.load("A", "b").image.shape == (1, 3, 20, 24)


def test_bmp_gif_and_packed_ppm_are_read_to_the_bit(tmp_path):
    colours = Sketch().photograph(Sketch().labels(20, 24), 1)
    write_bmp(tmp_path / "a.bmp", colours)
    write_packed_ppm(tmp_path / "a.ppm.gz", colours)
    for name in ("a.bmp", "a.ppm.gz"):
        np.testing.assert_array_equal(read(tmp_path / name).values[0], colours)
    write_packed_ppm(tmp_path / "g.ppm.gz", colours[..., 0])
    write_png(tmp_path / "g.gif", colours[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "g.ppm.gz").values[0], colours[..., 0])
    seen = read(tmp_path / "g.gif").values[0]
    np.testing.assert_array_equal(seen[..., 0] if seen.ndim == 3 else seen, colours[..., 0])
    (tmp_path / "cut.ppm.gz").write_bytes((tmp_path / "a.ppm.gz").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cut\.ppm\.gz is no usable image"):
        read(tmp_path / "cut.ppm.gz")
