"""The prostate task on small volumes in the layout of the release: six sites, their numbering, their quirks."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dgbench.datasets.prostate import FIRST, FOLDER, SITES, Prostate, unit_slice
from dgbench.errors import DataError
from dgbench.images.find_task import get_task
from dgbench.images.mock import write_nifti
from dgbench.images.preparation import prepare
from dgbench.pages.cards import card

GRID = np.diag([0.5, 0.5, 3.6, 1.0])
COUNTS = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}


def write_case(folder: Path, site: str, case: str, seed: int, side: int = 384) -> None:
    ending = "Segmentation" if site == "BMC" else "segmentation"
    image = np.zeros((side, side, 2), np.int16)
    image[10:40, 10:40] = np.random.default_rng(seed).integers(1, 700, (30, 30, 2))
    mask = np.zeros((side, side, 2), np.uint8)
    mask[20:30, 15:25, 1] = 1
    if site in ("RUNMC", "BMC"):  # two zones
        mask[24:30, 15:25, 1] = 2
    for name, voxels in ((case, image), (f"{case}_{ending}", mask)):
        nibabel.save(nibabel.Nifti1Image(voxels, GRID), folder / site / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All 116 cases, two slices each."""
    folder = tmp_path_factory.mktemp("release")
    numbers = iter(range(1000))
    for site in SITES:
        (folder / site).mkdir()
        for case in Prostate().case_ids(site):
            write_case(folder, site, case, next(numbers))
    return folder


@pytest.fixture
def release(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "prostate"))


def test_the_list_of_cases_is_the_release_s_own():
    task = get_task("prostate")
    assert {site: len(task.case_ids(site)) for site in task.domains} == COUNTS
    assert task.case_ids("UCL") == ["Case01", *(f"Case{n}" for n in range(26, 38))]
    assert task.case_ids("BIDMC")[:3] == ["Case00", "Case02", "Case03"] and task.case_ids("HK")[-1] == "Case49"
    assert task.source_domains == task.domains and len(task.targets("HK")) == 5


def test_the_layout_of_the_release_has_no_problem(whole):
    assert get_task("prostate", whole).verify() == []


def test_both_zones_are_prostate_and_the_spacing_is_the_header_s(whole):
    task = Prostate(whole)
    for site, ending in (("BMC", "Segmentation"), ("UCL", "segmentation")):
        case = task.load(site, "Case01")
        assert case.image.shape == (2, 1, 384, 384) and case.mask.shape == (2, 1, 384, 384)
        assert case.spacing == pytest.approx((3.6, 0.5, 0.5)) and task.unit == "mm"
        assert not case.mask[0].any() and case.mask[1, 0, 15:25, 20:30].all() and case.mask.sum() == 100  # (y, x)
        assert task.files(site, "Case01")[1].name == f"Case01_{ending}.nii.gz"


def test_a_z_score_of_the_slice_is_the_one_of_the_clipped_numbers():
    """Worked by hand: of the positive voxels 1..1000 the outermost 0.2 % on each side are drawn in, 0 stays 0."""
    voxels = np.append(np.arange(1, 1001), [0, 0]).astype(np.float32).reshape(2, 501)
    low, high = 1 + 0.002 * 999, 1 + 0.998 * 999
    clipped = np.where(voxels > 0, voxels.clip(low, high), 0)
    unit = unit_slice(voxels)
    assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1
    np.testing.assert_allclose(unit, clipped / high, rtol=1e-6)
    scores = [(v - v.mean()) / v.std() for v in (unit.astype(float), clipped.astype(float))]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_black_slice_stays_black():
    assert not unit_slice(np.zeros((4, 4), np.float32)).any()


def test_the_header_of_a_mask_is_not_asked_where_it_lies(release):
    path = release / "HK/Case38_segmentation.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), np.eye(4)), path)
    assert Prostate(release).load("HK", "Case38").spacing == pytest.approx((3.6, 0.5, 0.5))


def test_the_engine_can_prepare_a_site(whole, tmp_path):
    domain = prepare(get_task("prostate", whole), "HK", 96, tmp_path)
    assert domain.images.shape == (24, 1, 96, 96) and len(domain.slice_indices(list(domain.cases), True)) == 12


def test_without_data_the_message_says_what_from_where_into_which_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DGBENCH_DATA", raising=False)
    task = get_task("prostate")
    with pytest.raises(DataError, match="no folder data/prostate") as failure:
        task.load("BMC", "Case00")
    remedy = failure.value.remedy
    for needed in ("https://liuquande.github.io/SAML", "Raw_nii", "ISBI_1.5", "HCRUDB", "_Segmentation", "--data"):
        assert needed in remedy
    assert "--mock" in remedy
    assert "\n" not in remedy and len(task.verify()) == 1


def test_a_site_may_lie_under_the_release_s_own_name_and_one_that_is_missing_is_named(tmp_path):
    for released, case, site in (("ISBI_1.5", "Case00", "BMC"), ("HCRUDB", "Case03", "I2CVB")):
        (tmp_path / released).mkdir()
        ending = "Segmentation" if site == "BMC" else "segmentation"
        for name in (case, f"{case}_{ending}"):
            write_nifti(tmp_path / released / f"{name}.nii.gz", np.ones((2, 8, 8), np.uint8), (3.6, 0.5, 0.5))
        assert Prostate(tmp_path).load(site, case).spacing == pytest.approx((3.6, 0.5, 0.5))
    with pytest.raises(DataError, match="site UCL is missing"):
        Prostate(tmp_path).load("UCL", "Case01")


def packaged(folder: Path, layout: str) -> Prostate:
    """One case of each site as a package has it; its voxels are the number of the site."""
    places = {
        "MaxStyle": [f"reorganized/{d}/patient_0/{{}}_clipped.nii.gz" for d in FOLDER.values()],
        "DeSAM": [f"{{}}Tr/Prostate_{n:03d}" for n in FIRST.values()],
    }[layout]
    parts = {"MaxStyle": ("t2_img", "label"), "DeSAM": ("images", "labels")}[layout]
    for k, place in enumerate(places, 1):
        image, mask = (folder / place.format(part) for part in parts)
        if layout == "DeSAM":
            image, mask = Path(f"{image}_0000.nii.gz"), Path(f"{mask}.nii.gz")
        write_nifti(image, k * np.ones((2, 8, 8), np.int16), (3.6, 0.625, 0.625))
        write_nifti(mask, np.ones((2, 8, 8), np.uint8), (3.6, 0.625, 0.625))
    return Prostate(folder)


@pytest.mark.parametrize(
    ("layout", "first"),
    [("MaxStyle", ["patient_0"] * 6), ("DeSAM", [f"Prostate_{n:03d}" for n in (0, 30, 60, 79, 92, 104)])],
)
def test_packages_that_papers_pass_on_are_read_by_their_own_numbers_and_named(tmp_path, layout, first):
    task = packaged(tmp_path, layout)
    assert task.layout.startswith(layout) and "no slice without prostate" in task.layout
    assert [len(task.case_ids(d)) for d in SITES] == list(COUNTS.values())
    for k, (domain, case_id) in enumerate(zip(SITES, first, strict=True), 1):
        assert task.case_ids(domain)[0] == case_id
        assert nibabel.load(task.files(domain, case_id)[0]).get_fdata().max() == k
        assert task.load(domain, case_id).spacing == pytest.approx((3.6, 0.625, 0.625))
    assert "layout" in card(task) and Prostate().layout == "SAML"


def test_desam_s_numbers_end_with_115():
    ids = [i for first, n in zip(FIRST.values(), COUNTS.values(), strict=True) for i in range(first, first + n)]
    assert ids == list(range(116))


def test_verify_finds_everything_at_once(release):
    (release / "UCL/Case26.nii.gz").unlink()
    (release / "BIDMC/Case02.nii.gz").write_bytes((release / "BIDMC/Case02.nii.gz").read_bytes()[:-9])
    write_case(release, "HK", "Case40", 9000, side=64)
    write_case(release, "HK", "Case99", 9001)
    odd = np.full((384, 384, 2), 3, np.uint8)
    nibabel.save(nibabel.Nifti1Image(odd, GRID), release / "RUNMC/Case05_segmentation.nii.gz")
    shutil.copy(release / "I2CVB/Case03.nii.gz", release / "I2CVB/Case04.nii.gz")
    problems = Prostate(release).verify()
    for said in (
        f"site UCL lacks {release}/UCL/Case26.nii.gz",
        "BIDMC/Case02.nii.gz is no usable image: it is cut off",
        "HK/Case40.nii.gz has slices of 64 x 64",
        "HK/Case40_segmentation.nii.gz has slices of 64 x 64",
        "site HK holds 2 files that are in no list of cases: Case99.nii.gz",
        "RUNMC/Case05_segmentation.nii.gz holds the labels 3, the release has 1, 2 only",
        "I2CVB/Case04 has the same image as I2CVB/Case03",
    ):
        assert sum(said in p for p in problems) == 1, said
    assert len(problems) == 7


def test_a_site_in_the_place_of_another_is_noticed_by_its_masks_names(release):
    (release / "BMC").rename(release / "swap")
    (release / "RUNMC").rename(release / "BMC")
    (release / "swap").rename(release / "RUNMC")
    with pytest.raises(DataError, match=r"site BMC lacks .*Case00_Segmentation\.nii\.gz"):
        Prostate(release).load("BMC", "Case00")
