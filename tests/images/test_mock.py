"""Drawn images: the same every time, unlike between domains, with labels that lie where they are said to."""

from itertools import pairwise

import numpy as np
import pytest

from dgbench.errors import UsageError
from dgbench.images.find_task import get_task
from dgbench.images.formats import read
from dgbench.images.mock import Sketch, write_bmp, write_jpg, write_nifti, write_png, write_tiff
from dgbench.task import Task


def test_the_same_seed_draws_the_same_and_another_one_does_not(tmp_path):
    def drawn(seed: int) -> bytes:
        sketch = Sketch(seed)
        labels = sketch.label_volume(4, 20, 30, 2)
        write_nifti(tmp_path / f"{seed}.nii.gz", sketch.volume(labels, 3, -100, 200), (3.0, 0.5, 0.7))
        return sketch.photograph(labels[1], 0).tobytes() + (tmp_path / f"{seed}.nii.gz").read_bytes()

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("structures", [1, 2, 4])
def test_structures_lie_apart_or_one_in_the_other_and_never_at_the_border(structures):
    apart, nested = (Sketch().labels(48, 64, structures, nested=n) for n in (False, True))
    for labels in (apart, nested):
        assert labels.dtype == np.uint8 and sorted(np.unique(labels)) == list(range(structures + 1))
        assert not (labels[[0, -1]].any() or labels[:, [0, -1]].any())
    columns = [np.flatnonzero((apart == k + 1).any(axis=0)) for k in range(structures)]
    assert all(left[-1] < right[0] for left, right in pairwise(columns))
    for k in range(1, structures):
        rows = [np.flatnonzero((nested >= level).any(axis=1)) for level in (k, k + 1)]
        assert rows[0][0] < rows[1][0] and rows[1][-1] < rows[0][-1]


def test_a_volume_is_empty_at_both_ends_and_no_two_slices_of_its_image_are_alike():
    sketch = Sketch()
    labels = sketch.label_volume(5, 24, 24)
    assert labels.any(axis=(1, 2)).tolist() == [False, True, True, True, False]
    volume = sketch.volume(labels, 0, low=-1000, high=1000)
    assert volume.dtype == np.int16 and volume.shape == labels.shape and -1000 <= volume.min() < volume.max() <= 1000
    assert len({s.tobytes() for s in volume}) == 5


def test_domains_differ_more_than_cases_of_one_domain_do():
    sketch = Sketch()
    labels = sketch.labels(32, 32)
    means = [[float(sketch.photograph(labels, domain).mean()) for _ in range(3)] for domain in range(4)]
    within = max(max(m) - min(m) for m in means)
    between = min(abs(a[0] - b[0]) for i, a in enumerate(means) for b in means[:i])
    assert between > 2 * within
    assert sketch.gray(labels, 0)[labels == 1].mean() > sketch.gray(labels, 0)[labels == 0].mean() + 20


def test_what_is_written_is_read_as_it_was_and_folders_are_made(tmp_path):
    sketch = Sketch()
    labels = sketch.labels(10, 14)
    photograph = sketch.photograph(labels, 1)
    for write, name in ((write_png, "a.png"), (write_tiff, "a.tif")):
        write(tmp_path / "x" / "y" / name, photograph)
        np.testing.assert_array_equal(read(tmp_path / "x" / "y" / name).values[0], photograph)
    write_jpg(tmp_path / "a.jpg", labels * 255)
    assert read(tmp_path / "a.jpg").values.shape[:3] == (1, 10, 14)
    write_bmp(tmp_path / "a.bmp", labels)
    assert (tmp_path / "a.bmp").read_bytes()[:2] == b"BM"
    volume = sketch.volume(sketch.label_volume(3, 10, 14), 0)
    write_nifti(tmp_path / "a.nii.gz", volume, (3.6, 0.5, 0.7))
    found = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.values, volume)
    assert found.spacing == pytest.approx((3.6, 0.5, 0.7))


def test_frames_of_a_cine_are_the_last_axis_of_the_file(tmp_path):
    import nibabel

    frames = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)  # (T, D, H, W)
    write_nifti(tmp_path / "cine.nii.gz", frames, (40.0, 8.0, 1.2, 1.3))
    image = nibabel.load(tmp_path / "cine.nii.gz")
    assert image.shape == (5, 4, 3, 2) and image.header.get_zooms() == pytest.approx((1.3, 1.2, 8.0, 40.0))
    np.testing.assert_array_equal(np.diag(image.affine), np.float32([1.3, 1.2, 8.0, 1]))


def test_a_task_without_a_mock_says_so(tmp_path):
    class Bare(Task):
        name = "bare"

        def case_ids(self, domain):
            return []

        def load(self, domain, case_id):
            raise NotImplementedError

    with pytest.raises(UsageError, match="task 'bare' has no mock"):
        Bare().mock(tmp_path, Sketch())


def test_drawn_images_are_no_task_of_a_real_name(tmp_path, monkeypatch):
    """Else their scores would stand in tables as if they were of patients."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path))
    task = get_task("mock-skin")
    assert task.name == "mock-skin" and task.is_mock
    with pytest.raises(UsageError, match="the files of skin are drawn ones"):
        get_task("skin", task.folder)
