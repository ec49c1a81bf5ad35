"""What is odd about a mask: it is told with its numbers and with what to do, and never refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dgbench import cli, registry
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.plausibility import INDICES, OPAQUE, SWAPPED, Doubt, doubt, of_file, of_image, summary
from dgbench.running import launchers, plan

Y, X = np.mgrid[:48, :48]
DISC = (Y - 23.5) ** 2 + (X - 23.5) ** 2 < 97  # 308 of 2304 pixels
CUP = (Y - 23.5) ** 2 + (X - 23.5) ** 2 < 25  # 80 of them


def paletted(indices: np.ndarray, *colours: int | tuple[int, int, int], **saved: object) -> Image.Image:
    """A palette image; a colour that is one number is gray."""
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette([c for colour in colours for c in (colour if isinstance(colour, tuple) else (colour,) * 3)])
    image.info.update(saved)
    return image


def quantised() -> Image.Image:
    """The mask as Pillow's quantiser writes it: index 0 is white, the disc, and index 1 the black background."""
    return Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8)).quantize(2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two domains of two photographs, a gray mask of the disc for each."""
    rng = np.random.default_rng(0)
    for place in ("A/images", "A/masks", "B/images", "B/masks"):
        (tmp_path / "two" / place).mkdir(parents=True)
        for name in ("x.png", "y.png"):
            pixels = rng.integers(0, 256, DISC.shape) if place.endswith("images") else DISC
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "two" / place / name)
    return tmp_path / "two"


def told(tmp_path: Path, image: Image.Image, **saved: object) -> list[tuple[str, str]]:
    image.save(tmp_path / "m.png", **saved)
    return [
        (cause.replace(f"{tmp_path}/", ""), remedy) for cause, remedy in of_file(tmp_path / "m.png", np.array(image))
    ]


# --- where structures lie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "said"),
    [
        (~DISC, "'disc' covers 1996 of 2304 pixels (87%) and 100% of the image's rim"),
        (np.ones_like(DISC), "'disc' covers 2304 of 2304 pixels (100%) and 100% of the image's rim"),
        ((Y > 0) & (X > 1), "'disc' covers 2162 of 2304 pixels (94%) and 49% of the image's rim"),
    ],
)
def test_a_structure_where_the_background_is_expected_is_told_with_its_numbers(plane, said):
    found = doubt("A", "x", ["disc"], plane[None, None], ())
    assert found == Doubt("x", f"A/x: {said}, where background is expected", SWAPPED)


@pytest.mark.parametrize("plane", [DISC, CUP, Y > 15, (X < 36) & (Y < 47), np.zeros_like(DISC)])
def test_a_structure_that_is_large_or_touches_the_rim_is_nothing_odd(plane):
    """The third covers 67 % of the pixels, 59 % of the rim and two corners, as what lies below a surface does."""
    assert doubt("A", "x", ["disc"], plane[None, None], ()) is None


def test_a_mask_whose_values_begin_at_1_leaves_no_background_to_any_structure():
    """As labels counted from 1 do: 1 for the left half and 2 for the right one."""
    found = doubt("A", "x", ["left", "right"], np.stack([X < 24, X >= 24])[None], ())
    assert found and "the structures together cover 2304 of 2304 pixels (100%)" in found.cause


# --- how a file stores its values ------------------------------------------------------------------------------------


def test_a_palette_as_a_quantiser_writes_it_has_its_background_elsewhere(tmp_path):
    ((cause, remedy),) = told(tmp_path, quantised())
    assert cause == "in the palette of m.png the background, 0, is (255, 255, 255) and a structure, 1, is black"
    assert remedy == INDICES


def test_a_palette_of_grays_in_another_order_than_its_indices_is_told(tmp_path):
    ((cause, _),) = told(tmp_path, paletted(DISC.astype(int) + CUP, 0, 255, 128))
    assert cause == "the palette of m.png gives 0, 1, 2 the grays 0, 255, 128, in another order"


def test_a_value_that_has_two_colours_in_two_files_is_told_at_the_second(tmp_path):
    """A quantiser numbers the colours that it finds: the green cup is 2 beside a red rim, and 1 without it."""
    seen: dict = {}
    for name, image in {
        "both.png": paletted(DISC.astype(int) + CUP, 0, (255, 0, 0), (0, 255, 0)),
        "cup.png": paletted(CUP, 0, (0, 255, 0)),
    }.items():
        image.save(tmp_path / name)
        found = list(of_file(tmp_path / name, np.array(image), seen))
        assert bool(found) == (name == "cup.png")
    where = [f"the palette of {tmp_path}/cup.png", f"that of {tmp_path}/both.png"]
    assert found[0][0] == f"the value 1 is (0, 255, 0) in {where[0]} and (255, 0, 0) in {where[1]}"


@pytest.mark.parametrize(
    "image",
    [
        paletted(DISC, 0, 255),
        paletted(DISC, 0, (128, 0, 0)),
        paletted(DISC.astype(int) + CUP, 0, 1, 2),
        paletted(DISC, (255, 255, 255), (200, 0, 0)),
        paletted(DISC, 0, 255, 0),
        Image.fromarray(DISC),
        Image.fromarray(np.dstack([DISC * np.uint8(255)] * 3 + [np.full(DISC.shape, 255, np.uint8)])),
        Image.fromarray(np.dstack([DISC * np.uint8(255)] * 3 + [DISC * np.uint8(128)])),
    ],
)
def test_a_palette_or_a_transparency_that_agrees_with_the_values_is_nothing_odd(tmp_path, image):
    """Black or white at 0, a colour that does not occur, a background that is transparent."""
    assert told(tmp_path, image) == []


def test_a_structure_that_is_drawn_by_transparency_alone_is_told(tmp_path, folder):
    clear = np.dstack([np.zeros((48, 48, 3), np.uint8), DISC * np.uint8(255)])
    ((cause, remedy),) = told(tmp_path, Image.fromarray(clear))
    differs = "holds 0 everywhere, and only its transparency differs: 1996 of its 2304 pixels are clear"
    assert (cause, remedy) == (f"m.png {differs}", OPAQUE)
    Image.fromarray(clear).save(folder / "A/masks/x.png")
    (problem,) = FolderTask(folder).verify()
    assert problem == f"A/x: the mask is empty; {folder}/A/masks/x.png {differs}"


@pytest.mark.parametrize(("image", "saved"), [
    (Image.fromarray(np.dstack([np.where(CUP, 9, DISC).astype(np.uint8), ~CUP * np.uint8(255)])), {}),
    (paletted(DISC.astype(int) + CUP, 0, 100, 200), {"transparency": 2}),
    (Image.fromarray(DISC.astype(np.uint8) + CUP), {"transparency": 2}),
])  # fmt: skip
def test_values_that_a_viewer_would_not_show_are_counted(tmp_path, image, saved):
    ((cause, remedy),) = told(tmp_path, image, **saved)
    assert cause == "80 of the 2304 pixels of m.png have a value though they are transparent" and remedy == OPAQUE


def test_1_and_255_in_one_mask_are_two_things_that_are_read_as_one(folder):
    """As in sets that mark a band to be ignored around each object with 255."""
    for name, band in (("x", 1), ("y", 255)):
        Image.fromarray(np.where(CUP, band, DISC).astype(np.uint8)).save(folder / f"A/masks/{name}.png")
    task = FolderTask(folder)
    assert task.load("A", "x").odd == []
    ((cause, remedy),) = task.load("A", "y").odd
    assert "A/masks/y.png holds both 1 and 255, which are read as one structure" in cause
    assert "name both in" in remedy
    (folder / "task.toml").write_text("structures = { disc = [1, 255], cup = 255 }")
    assert FolderTask(folder).load("A", "y").odd == []


# --- where it is told ------------------------------------------------------------------------------------------------


def test_data_verify_tells_what_is_odd_and_what_to_do_and_refuses_nothing(folder):
    quantised().save(folder / "A/masks/x.png")
    Image.fromarray((~DISC).astype(np.uint8)).save(folder / "B/masks/y.png")
    said = CliRunner().invoke(cli.app, ["data", "verify", str(folder)])
    where = "'structure' covers 1996 of 2304 pixels (87%) and 100% of the image's rim, where background is expected"
    assert said.exit_code == 0 and said.stdout.splitlines() == [
        f"? A/x: {where}; "
        f"in the palette of {folder}/A/masks/x.png the background, 0, is (255, 255, 255) and a structure, 1, is black",
        f"  try: {INDICES}",
        f"? B/y: {where}",
        f"  try: {SWAPPED}",
        "no problem; 2 mask(s) to look at",
    ]
    (folder / "B/images/y.png").unlink()
    said = CliRunner().invoke(cli.app, ["data", "verify", str(folder)])
    assert said.exit_code == 3 and "? A/x" in said.stdout and "all is well" not in said.stdout


def test_a_run_tells_the_first_doubt_of_each_domain_before_it_begins(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(launchers, "_work_off", lambda *_: None)
    for name in ("x", "y"):
        quantised().save(folder / f"A/masks/{name}.png")
    registry.add_plugin(Path(__file__).parent / "pixels.py")
    task = FolderTask(folder)
    runs = plan.plan(task, ["pixels"], results=tmp_path / "results")
    for _ in range(2):  # the second time from the cache
        texts: list = []
        launchers.launch(task, runs, options=launchers.Options("cpu", jobs=1), report=texts.append)
        warned, *rest = [text for text in texts if "warning" in text]
        assert not rest and warned.startswith("warning: A/x: 'structure' covers 1996 of 2304 pixels (87%)")
        assert warned.endswith(f"(and 1 more of A: `dgbench data verify` lists all)\ntry:     {INDICES}")
    assert prepare(task, "B", task.image_size).doubts == [] and summary("B", []) == ""


# --- images ----------------------------------------------------------------------------------------------------------


def smooth(high: float) -> np.ndarray:
    """(3, 40, 40) int16: a body of -1000 to `high` in air, as CT has it."""
    y, x = np.mgrid[:40, :40]
    body = np.exp(-((y - 20) ** 2 + (x - 20) ** 2) / 120)
    return np.stack([np.rint(-1000 + (high + 1000) * body + z).astype(np.int16) for z in range(3)])


def told_of(values: np.ndarray) -> str:
    return "; ".join(cause for cause, _ in of_image(Path("a.nii.gz"), values))


def test_signed_numbers_that_were_read_as_unsigned_are_told_and_ordinary_ones_are_not():
    assert told_of(smooth(3000)) == "" and told_of(smooth(3000) + 1000) == ""
    assert "differ by nearly all that 16 bits can hold" in told_of(smooth(3000).astype(np.uint16))
    cut_off = np.clip(smooth(3000).astype(int) * 100, 0, 65535).astype(np.uint16)
    cut_off[:, 10:20] = 65535
    assert told_of(cut_off) == "", "what is cut off at the very ends of the range, as writing in a radiograph, is none"


def test_a_16_bit_overflow_is_told():
    wide = smooth(3000).astype(int) * 15
    assert "wrapped around" in told_of(wide.astype(np.int16))


def test_slices_of_pure_noise_are_told_by_number_and_noise_around_a_body_is_not():
    rng = np.random.default_rng(0)
    volume = smooth(3000) + rng.normal(0, 50, (3, 40, 40)).astype(np.int16)
    assert told_of(volume) == ""
    volume[1] = rng.integers(-1000, 3000, (40, 40))
    assert "have nothing in common in slice 1 of 3" in told_of(volume)
    faint = np.concatenate([volume[:1], rng.normal(0, 5, (1, 40, 40)).astype(np.int16)])
    assert told_of(faint) == "", "the air beyond a body is noise, and weak"
