"""Layouts of people's disks become a table: the right mask with each image, and nothing guessed without a word."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from PIL import Image

from dgbench.errors import DataError, UsageError
from dgbench.images.adopt import Adoption, adopt, told
from dgbench.images.folder_task import FolderTask
from dgbench.images.table_task import TableTask
from tests.images.test_dicom import slice_file


def touch(root: Path, *names: str) -> Path:
    """Files whose content does not matter: adopt looks at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(adoption: Adoption) -> dict[str, list[str]]:
    """{domain/case: [image, masks ...]}, as paths below the root; a structure stands before its mask."""
    root = adoption.root
    return {
        f"{row['domain']}/{row['case']}": [
            (c.removeprefix("mask_") + "=" if c.startswith("mask_") else "") + Path(v).relative_to(root).as_posix()
            for c, v in row.items() if c not in ("domain", "case", "group")
        ]
        for row in adoption.rows
    }  # fmt: skip


LAYOUTS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "capitals": (["GE/Images/x.png", "GE/Masks/x.png", "Sie/Images/x.png", "Sie/Masks/x.png"],
                 {"GE/x": ["GE/Images/x.png", "GE/Masks/x.png"], "Sie/x": ["Sie/Images/x.png", "Sie/Masks/x.png"]}),
    "labels, and domains below": (["image/GE/x.png", "labels/GE/x.png", "image/Sie/y.png", "labels/Sie/y.png"],
                                  {"GE/x": ["image/GE/x.png", "labels/GE/x.png"],
                                   "Sie/y": ["image/Sie/y.png", "labels/Sie/y.png"]}),
    "suffixes, one level more": (["sets/A/1.png", "sets/A/1_mask.png", "sets/B/2.png", "sets/B/2_segmentation.png"],
                                 {"A/1": ["sets/A/1.png", "sets/A/1_mask.png"],
                                  "B/2": ["sets/B/2.png", "sets/B/2_segmentation.png"]}),
    "domains in names": (["GE_1.nii.gz", "GE_1_seg.nii.gz", "GE_2.nii.gz", "GE_2-label.nii.gz", "UCL3.nii.gz",
                          "UCL3_gt.nii.gz", "UCL4.nii.gz", "UCL4_gt.nii.gz"],
                         {"GE/GE_1": ["GE_1.nii.gz", "GE_1_seg.nii.gz"],
                          "GE/GE_2": ["GE_2.nii.gz", "GE_2-label.nii.gz"],
                          "UCL/UCL3": ["UCL3.nii.gz", "UCL3_gt.nii.gz"],
                          "UCL/UCL4": ["UCL4.nii.gz", "UCL4_gt.nii.gz"]}),
    "structures": (["A/images/x.png", "A/gt/x_disc.png", "A/gt/x_cup_mask.png", "B/images/y.png", "B/gt/disc/y.png",
                    "B/gt/cup/y.png"],
                   {"A/x": ["A/images/x.png", "cup=A/gt/x_cup_mask.png", "disc=A/gt/x_disc.png"],
                    "B/y": ["B/images/y.png", "cup=B/gt/cup/y.png", "disc=B/gt/disc/y.png"]}),
    "a folder for each case": (["A/p1/image.nii.gz", "A/p1/label.nii.gz", "B/p2/image.nii.gz", "B/p2/label.nii.gz"],
                               {"A/p1": ["A/p1/image.nii.gz", "A/p1/label.nii.gz"],
                                "B/p2": ["B/p2/image.nii.gz", "B/p2/label.nii.gz"]}),
    "BIDS, its masks among the derivatives": (
        ["s1/sub-01/anat/sub-01_T2w.nii.gz", "s1/derivatives/labels/sub-01/anat/sub-01_T2w_seg-manual.nii.gz",
         "s2/sub-02/anat/sub-02_T2w.nii.gz", "s2/derivatives/labels/sub-02/anat/sub-02_T2w_dseg.nii.gz"],
        {"s1/sub-01_T2w": ["s1/sub-01/anat/sub-01_T2w.nii.gz",
                           "s1/derivatives/labels/sub-01/anat/sub-01_T2w_seg-manual.nii.gz"],
         "s2/sub-02_T2w": ["s2/sub-02/anat/sub-02_T2w.nii.gz",
                           "s2/derivatives/labels/sub-02/anat/sub-02_T2w_dseg.nii.gz"]}),
    "a split into train and test": (["train/A/images/x.png", "train/A/masks/x.png", "test/B/images/y.png",
                                     "test/B/masks/y.png"],
                                    {"A/x": ["train/A/images/x.png", "train/A/masks/x.png"],
                                     "B/y": ["test/B/images/y.png", "test/B/masks/y.png"]}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_image_gets_its_own_masks_and_domain(tmp_path, layout):
    names, expected = LAYOUTS[layout]
    adoption = adopt(touch(tmp_path, *names))
    assert pairs(adoption) == expected and not adoption.unclear
    assert sum("mask" in rule for rule in adoption.rules) >= 1, "each rule that decided is told"


def test_a_domain_that_nothing_says_is_left_to_the_user(tmp_path):
    adoption = adopt(touch(tmp_path, "1.png", "1_mask.png", "2.png", "2_mask.png"))
    assert {row["domain"] for row in adoption.rows} == {"unknown"}
    assert any("column `domain`" in line for line in adoption.decide)


def test_what_no_rule_takes_is_told(tmp_path):
    adoption = adopt(touch(tmp_path, "A/x.png", "A/x_mask.png", "A/y.png", "A/z_mask.png", "B/x.png", "B/x_mask.png",
                           "B/scan.svs"))  # fmt: skip
    said = "\n".join(told(adoption))
    for name in ("A/y.png has no mask", "A/z_mask.png", "B/scan.svs is of a format that is not read"):
        assert name in said
    with pytest.raises(DataError, match="nothing in"):
        adopt(touch(tmp_path / "none", "x.png"))


def test_patients_of_several_cases_are_groups(tmp_path):
    names = [f"{d}/patient{p}/{v}{end}.png" for d in "AB" for p in (1, 2) for v in "lr" for end in ("", "_mask")]
    adoption = adopt(touch(tmp_path, *names))
    assert [(r["domain"], r["case"], r["group"]) for r in adoption.rows[:3]] == [
        ("A", "patient1_l", "patient1"), ("A", "patient1_r", "patient1"), ("A", "patient2_l", "patient2")]  # fmt: skip


@pytest.mark.parametrize("layout", ["{d}/images/{n}.png {d}/masks/{n}.png", "imagesTr/{n}_0000.png labelsTr/{n}.png"])
def test_patients_are_groups_in_every_layout_and_who_names_none_is_told(tmp_path, layout):
    names = [f"patient{p}_{v}" for p in (1, 2) for v in "lr"]
    files = [
        path.format(d=d, n=f"{d}{n}" if n == "x" else n) for d in "AB" for n in (*names, "x") for path in layout.split()
    ]
    adoption = adopt(touch(tmp_path, *files))
    assert {row["group"] for row in adoption.rows} == {"patient1", "patient2", ""}
    assert any("cases name no patient" in line for line in adoption.decide)


def test_of_two_nnunet_sets_each_has_its_own_intensities(tmp_path):
    for name, kind in (("Dataset001_CT", "CT"), ("Dataset002_MR", "MRI")):
        touch(
            tmp_path / name,
            *(f"{p}/{name}{i}{e}.nii.gz" for i in "12" for p, e in (("imagesTr", "_0000"), ("labelsTr", ""))),
        )
        (tmp_path / name / "dataset.json").write_text(
            json.dumps({"channel_names": {"0": kind}, "labels": {"organ": 1}})
        )
    adoption = adopt(tmp_path)
    assert {(row["domain"], row.get("modality", "")) for row in adoption.rows} == {
        ("Dataset001_CT", "ct"), ("Dataset002_MR", "")}  # fmt: skip
    assert not any("modality" in line for line in adoption.settings)


def test_a_link_stands_in_the_table_by_its_own_name(tmp_path):
    """Caches of downloads name their files by checksums, and links lead there."""
    for d in "AB":
        for kind in ("images", "masks"):
            touch(tmp_path, f"blobs/{d}{kind}")
            (tmp_path / "set" / d / kind).mkdir(parents=True)
            (tmp_path / "set" / d / kind / "x.png").symlink_to(tmp_path / f"blobs/{d}{kind}")
    adoption = adopt(tmp_path / "set")
    adoption.write(tmp_path / "mine.csv")
    assert "set/A/images/x.png" in (tmp_path / "mine.csv").read_text()


@pytest.mark.parametrize("old", [True, False])
def test_nnunets_raw_layout_with_channels_and_regions(tmp_path, old):
    names = [f"{part}/{s}_{i}{end}.nii.gz" for s in ("GE", "UCL") for i in (1, 2)
             for part, end in (("imagesTr", "_0000"), ("imagesTr", "_0001"), ("labelsTr", ""))]  # fmt: skip
    touch(tmp_path, *names, "imagesTs/GE_9_0000.nii.gz")
    card = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}} if old else \
        {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    adoption = adopt(tmp_path)
    assert pairs(adoption)["UCL/UCL_2"] == ["imagesTr/UCL_2_0000.nii.gz", "labelsTr/UCL_2.nii.gz"]
    named = '"organ" = [1]' if old else '"whole" = [1, 2], "core" = [2]'
    assert f"structures = {{ {named} }}" in adoption.settings
    assert 'modality = "ct"' in adoption.settings and any("0000 is taken" in line for line in adoption.decide)
    assert any("GE_9" in line for line in adoption.unclear), "a test image without a mask is told"


def test_folders_of_dicom_series_are_images(tmp_path):
    for site in "AB":
        for i in range(2):
            slice_file(tmp_path / site / "p1" / "DICOM" / f"{i}.dcm", i)
        touch(tmp_path, f"{site}/p1/mask.nii.gz")
    assert pairs(adopt(tmp_path)) == {f"{s}/p1": [f"{s}/p1/DICOM", f"{s}/p1/mask.nii.gz"] for s in "AB"}
    slice_file(tmp_path / "A/p1/DICOM/other.dcm", 3, SeriesInstanceUID="1.2.3", SeriesDescription="scout")
    adoption = adopt(tmp_path)
    assert list(pairs(adoption)) == ["unknown/p1"] and any("'scout' (1 files)" in line for line in adoption.unclear)


def test_a_table_is_written_once_with_paths_from_where_it_lies(tmp_path):
    adoption = adopt(touch(tmp_path / "scans", "A/x.png", "A/x_mask.png", "B/x.png", "B/x_mask.png"))
    (table,) = adoption.write(tmp_path / "tables" / "mine.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert rows[0] == {"case": "x", "domain": "A", "image": "../scans/A/x.png", "mask": "../scans/A/x_mask.png"}
    with pytest.raises(UsageError, match="there already"):
        adoption.write(table)


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,3}(_[0-9]{1,2})?", fullmatch=True), min_size=1, max_size=4,
                 unique=True)  # fmt: skip
DOMAINS = st.dictionaries(st.sampled_from(["GE", "UCL", "b"]), NAMES, min_size=2)
WORDS = st.sampled_from([("Images", "Masks"), ("image", "label"), ("img", "labels"), ("photos", "gt")])


@given(DOMAINS, WORDS, st.sampled_from(["", "disc", "a_b"]))
@trials(max_examples=8, deadline=None)
def test_what_is_adopted_is_what_the_folder_task_reads(tmp_path_factory, domains, words, structure):
    """The same files under the names that FolderTask wants, and under other usual ones."""
    home = tmp_path_factory.mktemp("layouts")
    plane = np.zeros((4, 4), np.uint8)
    plane[1:3, 1:3] = 1
    end = f"_{structure}" if structure else ""
    for root, (images, masks) in (("wanted", ("images", "masks")), ("usual", words)):
        for domain, cases in domains.items():
            for case in cases:
                for path in (f"{domain}/{images}/{case}.png", f"{domain}/{masks}/{case}{end}.png"):
                    (home / root / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(plane).save(home / root / path)
    folder = FolderTask(home / "wanted")
    table = TableTask(adopt(home / "usual").write(home / "cases.csv")[0])
    assert sorted(table.domains) == sorted(folder.domains) and table.structures == folder.structures
    for domain in folder.domains:
        assert table.case_ids(domain) == folder.case_ids(domain)
        for case in folder.case_ids(domain):
            got = [p.relative_to((home / "usual").resolve()).name for p in map(Path.resolve, table.files(domain, case))]
            assert got == [p.name for p in folder.files(domain, case)]
