"""A table of cases is a task: files stay where they lie, and all that is wrong with a table is told by line."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.images.preparation import PreparedDomain, prepare
from dgbench.images.table_task import TableTask
from tests.images.test_dicom import VOXELS, slice_file
from tests.images.test_folder_task import CUP, DISC, gray, save


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Files of two scanners in no order that a folder task would know."""
    for i, name in enumerate(("ge1", "ge2", "ucl1", "ucl2")):
        save(tmp_path / "pool" / f"{name}.png", gray(i))
        save(tmp_path / "pool" / f"{name}-disc.png", DISC)
        save(tmp_path / "elsewhere" / f"{name}.png", CUP)
    return tmp_path


def table(folder: Path, *lines: str, name: str = "mine.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def rows(form: str) -> list[str]:
    return [form.format(d=d, c=f"{d.lower()}{i}") for d in ("GE", "UCL") for i in (1, 2)]


def test_a_table_is_a_task(scans):
    path = table(scans, "case,domain,image,mask,group,age", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png,{c}'s,61"))
    task = get_task(str(path))
    assert (task.name, tuple(task.domains), task.structures, task.unit) == ("mine", ("GE", "UCL"), ("structure",), "px")
    assert task.case_ids("GE") == ["ge1", "ge2"] and task.group("GE", "ge2") == "ge2's" and task.verify() == []
    case = task.load("UCL", "ucl1")
    np.testing.assert_array_equal(case.mask[0, 0], DISC > 0)
    np.testing.assert_allclose(case.image[0, 0], gray(2) / 255, atol=1e-6)
    assert task.files("GE", "ge1") == [scans / "pool/ge1.png", scans / "pool/ge1-disc.png"]
    assert get_task(task.location).case_ids("UCL") == ["ucl1", "ucl2"], "another process finds it by its location"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_structures_are_columns_and_spreadsheets_write_semicolons(scans, separator):
    lines = ["\ufeffcase,domain,image,mask_disc,mask_cup,spacing",
             *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png,elsewhere/{c}.png,0.2 0.3")]  # fmt: skip
    task = TableTask(table(scans, *(line.replace(",", separator) for line in lines)))
    case = task.load("GE", "ge1")
    assert dict(zip(task.structures, case.mask.sum(axis=(0, 2, 3)), strict=True)) == {"cup": 4, "disc": 36}
    assert case.spacing == (1.0, 0.2, 0.3) and task.unit == "mm"


def test_what_task_toml_says_of_a_folder_stands_beside_the_table(scans):
    path = table(scans, "case,domain,image,mask", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png"), name="cases.csv")
    assert TableTask(path).name == scans.name, "'cases' says nothing: the folder does"
    path.with_suffix(".toml").write_text('name = "eyes"\nstructures = ["disc"]\nsources = ["UCL"]\n')
    task = TableTask(path)
    assert (task.name, task.structures, task.source_domains) == ("eyes", ("disc",), ("UCL",))
    assert task.files("GE", "ge1")[-1].name == "cases.toml"
    path.with_suffix(".toml").write_text('modality = {Ge = "ct"}\n')
    with pytest.raises(UsageError, match="'Ge'\nknown: GE, UCL"):
        TableTask(path)


def test_windows_differ_by_domain(scans):
    """CT by its Hounsfield units, MR by percentiles of each file, a third by two numbers."""
    header, form = "case,domain,image,mask,modality,intensity", "{c},{d},pool/{c}.png,pool/{c}-disc.png,"
    task = TableTask(table(scans, header, *(r + ("CT," if "GE" in r else ",0 50") for r in rows(form))))
    np.testing.assert_allclose(task.load("GE", "ge1").image[0, 0], ((gray(0) + 160.0) / 400).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(task.load("UCL", "ucl1").image[0, 0], (gray(2) / 50.0).clip(0, 1), atol=1e-6)
    assert task.intensity == "GE: [-160, 240] to [0, 1], clipped; UCL: [0.0, 50.0] to [0, 1], clipped"
    assert task.intensity_range == {"GE": (-160, 240), "UCL": (0, 50)}


def test_a_series_and_a_frame_are_images(tmp_path):
    for i in range(5):
        slice_file(tmp_path / "series" / f"{i}.dcm", i)
    cine = np.stack([VOXELS.T, VOXELS.T * 2], axis=-1)
    nibabel.save(nibabel.Nifti1Image(cine, np.diag([0.75, 0.5, 3, 1])), tmp_path / "cine.nii.gz")
    half = (VOXELS > 1000).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(half.T, np.diag([0.75, 0.5, 3, 1])), tmp_path / "b.nii.gz")
    np.save(tmp_path / "a.npy", half)
    task = TableTask(table(tmp_path, "case,domain,image,mask,frame", "a,A,series,a.npy,", "b,B,cine.nii.gz,b.nii.gz,1"))
    assert task.verify() == []
    assert len(task.files("A", "a")) == 6, "each slice of a series counts"
    np.testing.assert_array_equal(task.load("A", "a").mask[:, 0], half > 0)


def test_what_a_table_says_of_a_case_is_part_of_what_is_prepared(scans, tmp_path, monkeypatch):
    """The files are the same: a corrected spacing or frame must not meet the arrays made before."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    seen = []
    for spacing in ("5 5", "0.5 0.5"):
        line = "{c},{d},pool/{c}.png,pool/{c}-disc.png," + spacing
        domain = prepare(TableTask(table(scans, "case,domain,image,mask,spacing", *rows(line))), "GE", 16)
        seen.append((PreparedDomain(domain.folder).cases["ge1"].spacing, domain.fingerprint))
    assert [spacing for spacing, _ in seen] == [(1, 5, 5), (1, 0.5, 0.5)] and seen[0][1] != seen[1][1]


def test_frames_of_one_image_are_of_one_patient_and_a_name_is_one_in_any_form_of_unicode(scans):
    path = table(scans, "case,domain,image,mask,frame", "ed,GE,pool/ge1.png,pool/ge1-disc.png,0",
                 "es,GE,pool/ge1.png,elsewhere/ge1.png,1", "x,UCL,pool/ucl1.png,pool/ucl1-disc.png,")  # fmt: skip
    task = TableTask(path)
    assert [task.group(*of) for of in (("GE", "ed"), ("GE", "es"), ("UCL", "x"))] == ["ge1", "ge1", "x"]
    path = table(scans, "case,domain,image,mask,group", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png,MG"))
    path.write_text(path.read_text().replace("MG", "Mu\u0308ller", 1).replace("MG", "M\u00fcller"))
    assert len({TableTask(path).group(d, c) for d, c in (("GE", "ge1"), ("GE", "ge2"))}) == 1


def test_a_patient_of_two_domains_is_told_unless_it_is_stated(scans):
    path = table(scans, "case,domain,image,mask,group", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png,volunteer"))
    task = TableTask(path)
    assert task.verify() == []
    assert task.doubts[-1].cause == "group volunteer is in several domains (GE, UCL): trained on and tested on"
    path.with_suffix(".toml").write_text("paired = true\n")
    task = TableTask(path)
    assert task.paired and task.verify() == [] and not task.doubts


def test_domains_without_a_mask_value_in_common_are_no_structures(scans):
    """The source would have none of the targets' structures, and no method could find them."""
    for name in ("ucl1", "ucl2"):
        save(scans / "pool" / f"{name}-disc.png", np.where(DISC > 0, 128, 0).astype(np.uint8))
        save(scans / "pool" / f"{name.replace('ucl', 'ge')}-disc.png", np.where(DISC > 0, 200, 0).astype(np.uint8))
    with pytest.raises(DataError, match="the masks of GE hold 200, those of UCL 128: no value is in both") as told:
        TableTask(table(scans, "case,domain,image,mask", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png")))
    assert "structures = { structure = [200, 128] }" in told.value.remedy


def test_a_mask_of_0_and_1_is_the_structure_whatever_threshold_others_need(scans):
    save(scans / "pool" / "ucl1-disc.png", (DISC > 0).astype(np.uint8))
    path = table(scans, "case,domain,image,mask", *rows("{c},{d},pool/{c}.png,pool/{c}-disc.png"))
    path.with_suffix(".toml").write_text("threshold = 128\n")
    assert TableTask(path).load("UCL", "ucl1").mask.sum() == (DISC > 0).sum()


def test_a_dicom_file_without_a_suffix_and_a_mask_of_another_format_than_its_suffix_are_read(tmp_path):
    """As archives of hospitals write images, and users rename masks that were refused by their suffix."""
    for i, name in enumerate(("IM000001", "IM000002")):
        slice_file(tmp_path / name, i)
    half = Image.fromarray(np.where(VOXELS[0] > 1000, 255, 0).astype(np.uint8))
    half.save(tmp_path / "mask.gif")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((tmp_path / "mask.gif").read_bytes())
    task = TableTask(table(tmp_path, "case,domain,image,mask", "a,A,IM000001,a.png", "b,B,IM000002,b.png"))
    assert task.verify() == []
    np.testing.assert_array_equal(task.load("A", "a").mask[0, 0], VOXELS[0] > 1000)


def test_all_that_is_wrong_with_a_table_is_told_with_line_numbers(scans):
    (scans / "notes.txt").touch()
    path = table(
        scans, "case,domain,image,mask,spacing,frame,modality",
        "ge1,GE,pool/ge1.png,pool/ge1-disc.png,,,", "ge1,GE,pool/ge1.png,pool/ge1-disc.png,,,", "",
        "ge3,GE,pool/gone.png,notes.txt,0,-1,xrays", ",mean,pool/ge1.png,,,,", "short,GE",
    )  # fmt: skip
    with pytest.raises(DataError) as failure:
        TableTask(path)
    for said in (
        "line 3: case 'ge1' of domain 'GE' stands in line 2 already",
        f"line 5: there is no image {scans}/pool/gone.png",
        f"line 5: mask {scans}/notes.txt is no PNG",
        "line 5: spacing is '0'",
        "line 5: frame is '-1'",
        "line 5: modality is 'xrays': give ct,",
        "line 6: 'mean' cannot name a domain",
        "line 6: '' cannot name a case",
        "line 6: no mask",
        "line 7: 2 cells, and the first line has 7",
    ):
        assert said in failure.value.cause


def test_a_mask_of_two_cases_is_a_slip_unless_they_are_of_one_patient(scans):
    """A cell that was copied: the second case would be scored, and trained on, by the mask of the first."""
    cells = [
        "ge1,GE,pool/ge1.png,pool/ge1-disc.png,",
        "ge2,GE,pool/ge2.png,pool/ge1-disc.png,",
        rows("{c},{d},pool/{c}.png,pool/{c}-disc.png,")[2],
    ]
    with pytest.raises(DataError, match=r"line 3: mask \S*ge1-disc.png is that of case 'ge1': give both one `group`"):
        TableTask(table(scans, "case,domain,image,mask,group", *cells))
    both = [f"{cell}p7" for cell in cells[:2]]
    assert TableTask(table(scans, "case,domain,image,mask,group", *both, cells[2])).case_ids("GE") == ["ge1", "ge2"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("case,site,image,mask", "no column 'domain'"),
        ("case,domain,image", "no column 'mask'"),
        ("case,domain,image,mask,mask_disc", "both 'mask' and 'mask_disc'"),
        ("case,domain,image,mask,spacings", "unknown column 'spacings': did you mean 'spacing'?"),
        ("case,domain,image,mask,mask", "two columns 'mask'"),
    ],
)
def test_a_header_is_told_what_it_lacks(scans, header, said):
    with pytest.raises(DataError, match="line 1") as failure:
        TableTask(table(scans, header, "a,b,c,d,e"))
    assert said in failure.value.cause


def test_what_is_no_table_is_told(scans):
    with pytest.raises(DataError, match="there is no table"):
        get_task(str(scans / "gone.csv"))
    with pytest.raises(DataError, match="is empty"):
        TableTask(table(scans, ""))
    Image.fromarray(DISC).save(scans / "picture.png")
    (scans / "picture.png").rename(scans / "picture.csv")
    with pytest.raises(DataError, match="CSV in UTF-8"):
        TableTask(scans / "picture.csv")
