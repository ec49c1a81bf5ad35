"""A folder of images is a task: which files belong together, which values are structures, what a mistake is told."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageFilter

from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.images.task_settings import SETTINGS

DISC = np.zeros((12, 10), np.uint8)
DISC[3:9, 2:8] = 1
CUP = np.zeros_like(DISC)
CUP[5:7, 4:6] = 1


def gray(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, DISC.shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([0.5, 0.5, 3.0, 1.0])), path)
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two domains of two photographs, index masks of one structure."""
    for number, name in enumerate(("A/x", "A/y", "B/x", "B/z")):
        domain, case = name.split("/")
        save(tmp_path / "two" / domain / "images" / f"{case}.png", gray(number))
        save(tmp_path / "two" / domain / "masks" / f"{case}.png", DISC)
    return tmp_path / "two"


def toml(folder: Path, text: str) -> FolderTask:
    (folder / "task.toml").write_text(text, encoding="utf-8")
    return FolderTask(folder)


# --- as it stands ---------------------------------------------------------------------------------------------------


def test_a_folder_is_a_task_without_a_line_of_configuration(two):
    (two / "manifest.csv").write_text("domain,case\n")
    (two / "notes").mkdir()
    (two / "A/images/.DS_Store").touch()
    (two / "A/images/Thumbs.db").touch()
    task = get_task(str(two))
    assert (task.name, task.domains, task.structures, task.unit) == ("two", ("A", "B"), ("structure",), "px")
    assert task.case_ids("A") == ["x", "y"] and task.targets("A") == ("B",) and task.verify() == []
    case = task.load("B", "z")
    assert case.image.shape == (1, 1, 12, 10) and case.spacing == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(case.mask[0, 0], DISC > 0)
    np.testing.assert_allclose(case.image[0, 0], gray(3) / 255, atol=1e-6)
    assert task.files("B", "z") == [two / "B/images/z.png", two / "B/masks/z.png"]


def test_the_engine_can_prepare_it(two, tmp_path):
    domain = prepare(FolderTask(two), "A", 16, tmp_path / "cache")
    assert domain.images.shape == (2, 1, 16, 16) and list(domain.cases) == ["x", "y"]
    np.testing.assert_array_equal(domain.reference("x")[0, 0], DISC > 0)


@pytest.mark.parametrize("value", [1, 255, 128])
def test_a_mask_of_two_values_has_one_structure_whatever_the_second_is(two, value):
    for path in two.glob("*/masks/*.png"):
        save(path, DISC * np.uint8(value))
    task = FolderTask(two)
    assert task.structures == ("structure",) and task.verify() == []


def test_domains_that_write_1_and_domains_that_write_255_mean_the_same(two):
    save(two / "B/masks/x.png", DISC * 255)
    task = FolderTask(two)
    assert task.structures == ("structure",) and task.verify() == []


def test_the_values_found_in_all_masks_are_the_structures(two):
    save(two / "B/masks/x.png", DISC + CUP * 2)
    task = FolderTask(two)
    assert task.structures == ("structure_1", "structure_3")
    case = task.load("B", "x")
    np.testing.assert_array_equal(case.mask[0, 1], CUP > 0)
    np.testing.assert_array_equal(case.mask[0, 0], (DISC - CUP) > 0)


@pytest.mark.parametrize("layout", ["masks/{case}_{structure}.png", "masks/{structure}/{case}.png"])
def test_one_mask_for_each_structure_in_the_files_name_or_in_a_folder(tmp_path, layout):
    for domain in "AB":
        for case in ("p_1", "p_1_late"):  # the longer name wins: p_1_late_cup.png is of p_1_late
            save(tmp_path / domain / f"images/{case}.png", gray(len(domain + case)))
            for structure, mask in {"optic_disc": DISC, "cup": CUP}.items():
                save(tmp_path / domain / layout.format(case=case, structure=structure), mask * 255)
    task = FolderTask(tmp_path)
    assert task.case_ids("A") == ["p_1", "p_1_late"] and task.structures == ("cup", "optic_disc")
    case = task.load("B", "p_1")
    np.testing.assert_array_equal(case.mask[0], np.stack([CUP, DISC]) > 0)
    image, cup, disc = task.files("B", "p_1")
    assert image.name == "p_1.png" and "cup" in str(cup) and "optic_disc" in str(disc)


def test_volumes_have_the_spacing_of_their_header(tmp_path):
    volume = np.random.default_rng(0).integers(0, 900, (3, 12, 10)).astype(np.int16)
    for domain in "AB":
        save(tmp_path / domain / "images/v.nii.gz", volume + ord(domain))
        save(tmp_path / domain / "masks/v.nii.gz", np.stack([DISC] * 3))
    task = FolderTask(tmp_path)
    case = task.load("A", "v")
    assert task.unit == "mm" and case.spacing == (3.0, 0.5, 0.5) and case.image.shape == (3, 1, 12, 10)
    assert case.image.min() == 0 and case.image.max() == 1 and case.mask[2, 0].sum() == 36


def test_a_domain_with_one_coloured_image_has_three_channels_and_another_stays_gray(two, tmp_path):
    for case, path in enumerate(two.glob("*/images/*.png")):
        save(path, np.repeat(gray(case)[..., None], 3, axis=2))
    save(two / "B/images/z.png", np.random.default_rng(9).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    task = FolderTask(two)
    assert task.load("A", "x").image.shape == (1, 1, 12, 10)
    assert task.load("B", "x").image.shape == task.load("B", "z").image.shape == (1, 3, 12, 10)
    assert prepare(task, "B", 16, tmp_path / "cache").images.shape == (2, 3, 16, 16)


# --- task.toml ------------------------------------------------------------------------------------------------------


def test_task_toml_names_structures_and_all_the_rest(two):
    task = toml(
        two,
        'name = "mine"\nstructures = ["disc"]\nspacing = [0.2, 0.3]\nimage_size = 64\nsteps = 7\nsources = ["B"]\n'
        'citation = "Me, 2026"\nlicence = "CC0"\nempty_masks = true\nintensity = [50, 150]\n'
        'collections = ["BUSI", "BUS-BRA"]\n',
    )
    assert (task.name, task.structures, task.image_size, task.steps) == ("mine", ("disc",), 64, 7)
    assert task.collections == ("BUSI", "BUS-BRA")
    assert (task.source_domains, task.citation, task.licence, task.empty_masks) == (("B",), "Me, 2026", "CC0", True)
    case = task.load("A", "x")
    assert case.spacing == (1.0, 0.2, 0.3) and task.unit == "mm" and "50" in task.intensity
    np.testing.assert_allclose(case.image[0, 0], ((gray(0) - 50.0) / 100).clip(0, 1), atol=1e-6)
    assert task.files("A", "x")[-1] == two / "task.toml"  # another map of values is other data


def test_task_toml_may_begin_with_a_byte_order_mark(two):
    assert toml(two, '\ufeffname = "mine"\n').name == "mine"


def test_structures_may_be_nested_by_a_table_of_values(two):
    for path in two.glob("*/masks/*.png"):
        save(path, DISC * 255 - CUP * np.uint8(127))  # rim 255, cup 128
    case = toml(two, "[structures]\ndisc = [128, 255]\ncup = 128\n").load("A", "x")
    np.testing.assert_array_equal(case.mask[0], np.stack([DISC, CUP]) > 0)


def test_an_unknown_key_gets_the_nearest_match(two):
    with pytest.raises(UsageError, match="image_sise") as failure:
        toml(two, "image_sise = 64\n")
    assert "did you mean 'image_size'?" in failure.value.remedy


@pytest.mark.parametrize(
    "line",
    [
        'image_size = "64"', "image_size = true", "image_size = 5", "steps = 0", "steps = 1.5", "structures = []",
        'structures = ["a", "a"]', "structures = [1]", "structures = {a = 0}", "structures = {a = []}",
        "spacing = [nan, 1]", "spacing = [inf, 1]", "steps = -5",
        "spacing = [1]", "spacing = [0, 1]", 'unit = "cm"', "intensity = [5, 5]",
        "sources = []", 'name = "../up"', 'name = ""', "citation = 5", 'empty_masks = "no"',
    ],
)  # fmt: skip
def test_a_value_that_means_nothing_is_refused_with_what_the_key_means(two, line):
    with pytest.raises(UsageError, match=r"task\.toml") as failure:
        toml(two, line)
    key = line.partition(" ")[0]
    assert failure.value.remedy == f"{key}: {SETTINGS[key][1]}"


def test_a_file_that_is_no_toml_and_a_source_that_is_no_domain_are_told(two):
    with pytest.raises(UsageError, match="cannot be read"):
        toml(two, "structures = [")
    with pytest.raises(UsageError, match="'C'"):
        toml(two, 'sources = ["C"]')


@pytest.mark.parametrize(("name", "why"), [("a/b", "sign that cannot be part"), ("Mean", "tables use this word")])
def test_a_structure_is_not_named_by_a_word_that_tables_use_or_no_path_can_hold(two, name, why):
    with pytest.raises(UsageError, match=f"task.toml: '{name}' cannot name a structure: .*{why}"):
        toml(two, f'structures = ["{name}"]')


def test_the_case_of_letters_does_not_make_a_second_task(two):
    """Where capitals do not count, results/Phantom and results/phantom are one folder."""
    with pytest.raises(UsageError, match="second task named 'Phantom'"):
        toml(two, 'name = "Phantom"')


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("a", "A", "domains 'A' and 'a' are one name to some systems"),
        ("Se\u0301", "S\u00e9", "are one name to some systems"),
        ("mean", "B", "'mean' cannot name a domain: tables use this word"),
        ("Worst", "B", "'Worst' cannot name a domain: tables use this word"),
        ("NUL", "B", "Windows keeps this name"),
        ("x" * 101, "B", "longer than 100 bytes"),
        ("B ", "C", "blanks at its ends"),
        ("B\u200b", "C", "a sign that cannot be part"),
    ],
)
def test_domains_that_tables_or_file_systems_would_mix_up_are_refused_early(tmp_path, one, other, said):
    for domain in (one, other):
        (tmp_path / "t" / domain / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=said) as failure:
        FolderTask(tmp_path / "t")
    assert failure.value.remedy.startswith("rename")


def test_a_name_is_one_name_however_its_accents_are_written(tmp_path):
    """macOS wrote e and an accent (NFD) where others write one letter (NFC); an image finds its mask all the same."""
    nfd, nfc = "Se\u0301vres", "S\u00e9vres"
    for domain in (nfd, "B"):
        save(tmp_path / "t" / domain / "images" / f"{nfd}.png", gray(1))
        save(tmp_path / "t" / domain / "masks" / f"{nfc}.png", DISC)
    (tmp_path / "t" / "task.toml").write_text(f'sources = ["{nfd}"]\nstructures = ["{nfd}"]\n')
    task = FolderTask(tmp_path / "t")
    assert nfd != nfc and set(task.domains) == {"B", nfc} and task.case_ids(nfc) == [nfc]
    assert list(task.sources) == [nfc] and list(task.structures) == [nfc]
    assert task.load(nfc, nfc).mask.sum() == 36


def test_a_folder_may_not_take_the_name_of_a_task(two):
    with pytest.raises(UsageError, match="second task named 'prostate'"):
        toml(two, 'name = "prostate"')


def test_pictures_in_millimetres_need_a_spacing(two):
    with pytest.raises(DataError, match=r"x\.png has no spacing in mm"):
        toml(two, 'unit = "mm"').load("A", "x")


def test_slices_need_the_distance_between_them(two):
    pages = [Image.fromarray(gray(i)) for i in range(2)]
    (two / "A/images/x.png").unlink()
    pages[0].save(two / "A/images/x.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(DISC).save(two / "A/masks/x.tif", save_all=True, append_images=[Image.fromarray(CUP)])
    (two / "A/masks/x.png").unlink()
    with pytest.raises(DataError, match="between its 2 slices"):
        toml(two, "spacing = [0.5, 0.5]").load("A", "x")
    case = toml(two, "spacing = [2, 0.5, 0.5]").load("A", "x")
    assert case.spacing == (2, 0.5, 0.5) and case.mask.sum(axis=(1, 2, 3)).tolist() == [36, 4]


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "A/masks/x.png").unlink(), r"image \S*A/images/x\.png has no mask"),
        (lambda f: (f / "A/images/x.png").unlink(), r"mask \S*A/masks/x\.png has no image"),
        (lambda f: save(f / "A/images/x.jpg", gray(5)), r"'x' of domain 'A' is there twice: \S*x\.jpg and \S*x\.png"),
        (lambda f: save(f / "A/masks/x.tif", DISC), r"case 'x' of domain 'A' is there twice"),
        (lambda f: save(f / "A/masks/x.png", DISC[:5]), r"differ in size"),
        (lambda f: save(f / "A/masks/x.png", 0 * DISC), r"A/x: the mask is empty"),
        (lambda f: save(f / "A/masks/x_cup.png", CUP), r"'x' has a mask of its own name and masks of structures"),
        (lambda f: (f / "A/images/x.png").write_bytes(b""), r"x\.png is no usable image: it is empty"),
        (lambda f: (f / "A/images/w.dcm").touch(), r"image \S*w\.dcm has no mask"),
        (lambda f: (f / "A/images/w.svs").touch(), r"w\.svs is no PNG, JPEG, TIFF, BMP, NIfTI"),
        (lambda f: (f / "A/images/patient7").mkdir(), r"patient7 is no PNG.* file, and no folder of a DICOM series"),
        (lambda f: (f / "A/images/gone.png").symlink_to(f / "nowhere"), r"gone"),
        (lambda f: (f / "A/masks").rename(f / "A/Masks"), r"no folder \S*A/masks: it holds Masks/, images/; .*adopt"),
        (lambda f: save(f / "B/images/copy.png", gray(2)) and save(f / "B/masks/copy.png", DISC), "the same image"),
        (lambda f: [p.rename(p.with_name("=x.png")) for p in f.glob("A/*/x.png")], "'=x' cannot name a case"),
    ],
)  # fmt: skip
def test_verify_says_what_is_wrong_with_which_file(two, spoil, said):
    spoil(two)
    problems = FolderTask(two).verify()
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problems[0])


def test_verify_says_all_at_once_and_a_run_says_it_of_the_case(two):
    (two / "A/masks/x.png").unlink()
    (two / "A/images/y.png").write_bytes(b"<html>")
    (two / "A/masks/y.png").write_bytes(b"")
    save(two / "B/masks/x.png", DISC[:5])
    (two / "B/images/z.png").unlink()
    task = FolderTask(two)
    assert len(task.verify()) == 4
    with pytest.raises(DataError, match="has no mask") as failure:
        task.load("A", "x")
    assert "masks/NAME" in failure.value.remedy
    with pytest.raises(DataError, match="has no image"):
        task.files("B", "z")


def test_values_outside_the_map_are_named_with_the_map(two):
    save(two / "B/masks/x.png", DISC + CUP * 6)
    task = toml(two, "structures = {disc = [1, 2]}")
    with pytest.raises(DataError, match=r"B/masks/x\.png holds values of no structure: 7") as failure:
        task.load("B", "x")
    assert "disc = [1, 2]" in failure.value.remedy


def test_a_jpeg_mask_is_parted_in_the_middle_and_its_doubtful_pixels_are_counted(two):
    (two / "B/masks/x.png").unlink()
    Image.fromarray(DISC * 255).save(two / "B/masks/x.jpg", quality=30)
    values = np.asarray(Image.open(two / "B/masks/x.jpg")).astype(int)
    task = FolderTask(two)
    assert task.structures == ("structure",)
    case = task.load("B", "x")
    np.testing.assert_array_equal(case.mask[0, 0], DISC > 0)
    doubtful = int(((values > 32) & (values < 223)).sum())
    told = f"{doubtful} of the 120 pixels of {two}/B/masks/x.jpg are neither black nor white"
    assert doubtful and told in case.odd[0][0]
    save(two / "B/masks/x.jpg", gray(5) // 2)
    with pytest.raises(DataError, match=r"x\.jpg.* JPEG blurs"):
        task.load("B", "x")


def test_a_jpeg_of_several_structures_is_refused_because_it_is_blurred(two):
    (two / "B/masks/x.png").unlink()
    save(two / "B/masks/x.jpg", DISC * 100 + CUP * 100)
    with pytest.raises(DataError, match=r"x\.jpg.* JPEG blurs"):
        toml(two, "structures = {disc = [1, 2], cup = 2}").load("B", "x")


def test_a_mask_with_soft_borders_is_told_how_to_be_read(two):
    large = np.ones((4, 4), np.uint8)
    for i, path in enumerate(two.glob("*/masks/*.png")):
        Image.fromarray(np.kron(DISC * 255, large)).filter(ImageFilter.GaussianBlur(1)).save(path)
        save(path.parents[1] / "images" / path.name, np.kron(gray(i), large))
    with pytest.raises(DataError, match=r"its borders are soft, with \d+ pixels between 1 and 254") as failure:
        FolderTask(two).load("A", "x")
    assert f"write threshold = 128 into {two / 'task.toml'}" in failure.value.remedy
    mask = toml(two, "threshold = 128").load("A", "x").mask
    assert abs(mask.sum() - 16 * DISC.sum()) <= 8, "but for the corners, the disc is what it was"


def test_windows_may_differ_by_domain(two):
    task = toml(two, 'intensity = {A = [50, 150]}\nmodality = {B = "ct"}')
    np.testing.assert_allclose(task.load("A", "x").image[0, 0], ((gray(0) - 50.0) / 100).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(task.load("B", "x").image[0, 0], ((gray(2) + 160.0) / 400).clip(0, 1), atol=1e-6)
    assert toml(two, 'modality = "ct-lung"').intensity_range == (-1350, 150)
    with pytest.raises(UsageError, match="unknown domain of intensity"):
        toml(two, "intensity = {C = [0, 1]}")


def test_a_photograph_in_the_place_of_a_mask_adds_no_structures(two):
    save(two / "B/masks/x.png", gray(0))
    task = FolderTask(two)
    assert task.structures == ("structure",)
    with pytest.raises(DataError, match="values of no structure"):
        task.load("B", "x")


def test_a_mask_of_one_structure_must_have_two_values_and_belong_to_the_task(tmp_path):
    for domain in "AB":
        save(tmp_path / domain / "images/x.png", gray(ord(domain)))
        for structure in ("disc", "cup"):
            save(tmp_path / domain / f"masks/x_{structure}.png", DISC)
    save(tmp_path / "A/masks/x_disc.png", DISC + CUP)
    (tmp_path / "B/masks/x_cup.png").unlink()
    assert FolderTask(tmp_path).verify() == [
        f"mask {tmp_path}/A/masks/x_disc.png of one structure holds 2 values besides 0",
        f"image {tmp_path}/B/images/x.png has no mask of 'cup'",
    ]
    with pytest.raises(DataError, match=r"'cup' is no structure of the task \(disc\)"):
        toml(tmp_path, 'structures = ["disc"]').load("A", "x")


def test_a_mistaken_path_is_told_before_anything_else(tmp_path, two):
    with pytest.raises(DataError, match="no folder"):
        FolderTask(tmp_path / "nowhere")
    with pytest.raises(DataError, match="it is one domain"):
        FolderTask(two / "A")
    with pytest.raises(DataError, match="no sub-folder"):
        FolderTask(two / "A/images")
    (two / "A/images").rename(two / "A/Images")
    (two / "A/masks").rename(two / "A/labels")
    with pytest.raises(DataError, match="Images/ and labels/ itself: it is one domain") as failure:
        FolderTask(two / "A")
    assert "dgbench data adopt" in failure.value.remedy
    with pytest.raises(DataError, match="domain 'A' has no case: it holds Images/, labels/; `dgbench data adopt"):
        FolderTask(two).case_ids("A")


def test_one_domain_is_not_enough(two):
    (two / "B").rename(two.parent / "B")
    task = FolderTask(two)
    assert any("at least 2" in p for p in task.verify())
    with pytest.raises(DataError, match="one domain only, 'A'"):
        task.targets("A")


def test_an_unknown_domain_or_case_is_told_with_what_there_is(two):
    with pytest.raises(UsageError, match="unknown domain 'a'"):
        FolderTask(two).case_ids("a")
    with pytest.raises(DataError, match="no case 'q'"):
        FolderTask(two).load("A", "q")


# --- real images ----------------------------------------------------------------------------------------------------


def test_breast_ultrasound_of_four_sources_is_a_task_as_it_stands(root):
    folder = Path(os.environ.get("DGBENCH_BREAST_US") or root / "../shared/data/breast_us")
    if not folder.is_dir():
        pytest.skip("the breast ultrasound images are not here")
    task = FolderTask(folder)
    assert task.domains == ("BUS-BRA", "BUS-UC", "BUSI", "BrEaST")
    assert [len(task.case_ids(d)) for d in task.domains] == [30, 20, 30, 15]
    assert (task.name, task.structures, task.unit) == ("breast_us", ("structure",), "px")
    assert task.verify() == [] and task.doubts == []
