"""The spinal cord challenge on drawn subjects in the layout of its release: four raters, two structures."""

from pathlib import Path

import numpy as np
import pytest

from dgbench.datasets.spinal_cord import SITES, SPACING, SpinalCord
from dgbench.errors import DataError
from dgbench.images.mock import Sketch, write_nifti


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "spinal_cord"
    folder.mkdir()
    (folder / "MOCK").touch()
    SpinalCord(folder).mock(folder, Sketch())
    return folder


def test_ten_labelled_subjects_of_each_site_and_none_of_those_without_masks(drawn):
    task = SpinalCord()
    assert all(task.case_ids(d) == [f"sc{n:02d}" for n in range(1, 11)] for d in task.domains)
    assert SpinalCord(drawn).verify() == []


def test_sites_have_their_own_voxels(drawn):
    task = SpinalCord(drawn)
    for domain in SITES:
        assert task.load(domain, "sc01").spacing == pytest.approx(SPACING[domain])


def test_the_reference_is_what_three_of_four_raters_marked_and_the_cord_holds_the_grey_matter(drawn, tmp_path):
    """One voxel each: grey by 4, 3 and 2 raters (the others say white), cord by 2, cord by 3 of which 2 grey."""
    votes = [[1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 2, 2, 2], [1, 2, 2, 2, 0]]
    name = "site1-sc01"
    ground = np.arange(25, dtype=np.int16).reshape(1, 5, 5)
    write_nifti(tmp_path / f"train/{name}-image.nii.gz", ground, (5.0, 0.5, 0.5))
    for rater, row in enumerate(votes, 1):
        mask = np.zeros((1, 5, 5), np.uint8)
        mask[0, 2] = row
        write_nifti(tmp_path / f"train/{name}-mask-r{rater}.nii.gz", mask, (5.0, 0.5, 0.5))
    cord, grey = SpinalCord(tmp_path).load("ucl", "sc01").mask[0, :, 2]
    assert cord.tolist() == [True, True, True, False, True]
    assert grey.tolist() == [True, True, False, False, False]
    case = SpinalCord(drawn).load("zurich", "sc02")
    assert (case.mask[:, 1] <= case.mask[:, 0]).all() and 0 < case.mask[:, 1].sum() < case.mask[:, 0].sum()


def test_each_slice_is_divided_by_its_maximum(drawn):
    image = SpinalCord(drawn).load("ucl", "sc01").image
    assert image.max(axis=(1, 2, 3)).tolist() == [1, 1, 1] and image.min() > 0


def test_a_rater_who_is_missing_is_named(drawn, tmp_path):
    (tmp_path / "train").mkdir()
    for path in (drawn / "train").glob("site2-sc01*"):
        if "r3" not in path.name:
            (tmp_path / "train" / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"montreal/sc01 lacks \S+site2-sc01-mask-r3\.nii\.gz\n"):
        SpinalCord(tmp_path).load("montreal", "sc01")
