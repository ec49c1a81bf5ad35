"""Masks that another system wrote: which file is whose, what may be in it, and the run that comes of them."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from dgbench.errors import DataError, UsageError
from dgbench.files import read_json
from dgbench.images.folder_task import FolderTask
from dgbench.images.nnunet import Labels, export
from dgbench.images.preparation import prepare
from dgbench.method import Batch, Hparams, Method
from dgbench.networks.provenance import started_from
from dgbench.protocol import get_protocol
from dgbench.running import foreign_files as files
from dgbench.running.foreign import Foreign, score
from dgbench.running.predict import load_run
from dgbench.running.records import read_run
from dgbench.running.test import cases_csv, measure_domain, predict_case
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from dgbench.scores.verify import verify
from tests.discs import write_discs
from tests.toy_runs import run as toy_run

SDG = get_protocol("sdg")
SHAPE = (3, 20, 24)
CUP_IN_DISC = {"disc": (1, 2), "cup": (2,)}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([0.8, 0.9, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> FolderTask:
    """Three sites of three volumes each: a disc and a cup in it, masks in a file for each."""
    root = tmp_path_factory.mktemp("volumes") / "volumes"
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for s, site in enumerate("abc"):
        for i in range(3):
            away = (y - 8 - s) ** 2 + (x - 10 - i) ** 2
            write_nifti(root / site / "images" / f"{site}{i}.nii.gz", (100 * z + away).astype(np.int16))
            for structure, radius in (("disc", 6), ("cup", 3)):
                write_nifti(
                    root / site / "masks" / f"{site}{i}_{structure}.nii.gz", (away < radius**2).astype(np.uint8)
                )
    (root / "task.toml").write_text('structures = ["disc", "cup"]\nimage_size = 24\n')
    return FolderTask(root)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> FolderTask:
    return FolderTask(write_discs(tmp_path_factory.mktemp("photographs") / "discs", cases=3))


def hand_in(task: FolderTask, source: str, folder: Path, **stated: str) -> Path:
    """The reference masks of every target, as arrays with a plane for each structure."""
    for domain in task.targets(source):
        (folder / domain).mkdir(parents=True)
        for case_id in task.case_ids(domain):
            np.save(folder / domain / f"{case_id}.npy", np.moveaxis(task.load(domain, case_id).mask, 1, 0))
    if stated:
        (folder / "dgbench.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in stated.items()))
    return folder


# --- what a file holds -----------------------------------------------------------------------------------------------


def mask() -> np.ndarray:
    """bool (3, 2, 20, 24): a cup in a disc."""
    whole = np.zeros((3, 2, 20, 24), bool)
    whole[:, 0, 4:15, 5:16] = whole[1:, 1, 8:12, 8:12] = True
    return whole


def planes(of: np.ndarray) -> np.ndarray:
    return np.moveaxis(of, 1, 0)


BACKGROUND_FIRST = np.concatenate([~mask()[:, :1], mask()[:, :1] & ~mask()[:, 1:], mask()[:, 1:]], axis=1)


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (planes(mask()), None, mask()),
        (planes(mask()).astype(np.uint8) * 255, None, mask()),
        (0.7 * planes(mask()) + 0.1, None, mask()),
        (mask().sum(axis=1), CUP_IN_DISC, mask()),
        (mask().sum(axis=1).astype(np.float32), CUP_IN_DISC, mask()),
        (mask().sum(axis=1), {"disc": (1,), "cup": (2,)}, BACKGROUND_FIRST[:, 1:]),
        (0.8 * planes(BACKGROUND_FIRST) + 0.2 / 3, None, BACKGROUND_FIRST[:, 1:]),
    ],
    ids=["planes", "0 and 255", "probabilities", "index mask", "as floats", "one label each", "softmax"],
)  # fmt: skip
def test_masks_and_probabilities_of_several_structures(values, labels, expected, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", values)
    found = files.read_mask(files.Found([tmp_path / "x.npz"]), SHAPE, ("disc", "cup"), labels, [])
    np.testing.assert_array_equal(found, expected)


def test_an_image_format_says_the_same_as_an_array(tmp_path):
    """A TIFF of probabilities, a PNG with a palette and NIfTI, by structure or as index mask."""
    truth = mask()
    Image.fromarray(truth[0, 0].astype(np.float32) * 0.6).save(tmp_path / "soft.tif")
    palette = Image.fromarray(truth[1].sum(0).astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "index.png")
    write_nifti(tmp_path / "disc.nii.gz", truth[:, 0].astype(np.float32) * 0.9)
    write_nifti(tmp_path / "cup.nii.gz", truth[:, 1].astype(np.uint8))
    grid = [np.diag([0.8, 0.9, 3.0, 1.0])]
    one = files.read_mask(files.Found([tmp_path / "soft.tif"]), (1, 20, 24), ("disc",), None, grid)
    two = files.read_mask(files.Found([tmp_path / "index.png"]), (1, 20, 24), ("disc", "cup"), CUP_IN_DISC, grid)
    apart = files.Found()
    for name in ("cup", "disc"):
        apart.parts[name].append(tmp_path / f"{name}.nii.gz")
    each = files.read_mask(apart, SHAPE, ("disc", "cup"), None, grid)
    for found, expected in ((one, truth[:1, :1]), (two, truth[1:2]), (each, truth)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (mask().sum(axis=1), "index mask, and structures of the task overlap"),
        (mask().sum(axis=1) * 0.4, "one plane of probabilities, for 2 structures"),
        (planes(mask()) * 5.5 - 2, "from -2 to 3.5, no probabilities"),
        (planes(mask())[:, :, :-1], "is 2 x 3 x 19 x 24, its case 3 x 20 x 24"),
        (np.full((2, *SHAPE), np.nan), "NaN"),
        (np.zeros((3, *SHAPE)), "3 planes that do not sum to 1"),
        (np.arange(2 * 3 * 20 * 24).reshape(2, *SHAPE), "1439 values besides 0"),
        (np.array(["a"]), "no numbers"),
    ],
)
def test_what_can_be_no_mask_of_the_case_is_refused(values, why, tmp_path):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(DataError, match=re.escape(why)):
        files.read_mask(files.Found([tmp_path / "x.npy"]), SHAPE, ("disc", "cup"), None, [])


def test_a_volume_that_lies_elsewhere_in_space_is_refused(tmp_path):
    write_nifti(tmp_path / "x.nii.gz", np.ones(SHAPE, np.uint8))
    flipped = np.diag([-0.8, 0.9, 3.0, 1.0])
    with pytest.raises(DataError, match="lies elsewhere in space"):
        files.read_mask(files.Found([tmp_path / "x.nii.gz"]), SHAPE, ("disc",), None, [flipped])


# --- which file is whose ---------------------------------------------------------------------------------------------


def test_files_are_found_by_the_task_s_names_in_folders_or_where_a_name_is_of_one_domain(tmp_path):
    cases = {"a": ["x", "x_cup"], "b": ["x", "y"]}
    for name in ("a/x.png", "a/x_cup.png", "a/x_cup_cup.nii.gz", "b/x_disc.npz", "b/x_cup.npz", "y.tif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x.png").touch()
    found, wrong = files.find(tmp_path, cases, ("disc", "cup"))
    assert {place: len(of.paths) for place, of in found.items()} == {
        ("a", "x"): 1, ("a", "x_cup"): 2, ("b", "x"): 2, ("b", "y"): 1,
    }  # fmt: skip
    assert [p.name for p in found["a", "x"].whole] == ["x.png"], "a case of that name goes before a structure"
    assert wrong == {
        "of several domains: put the files of each into a folder <domain>/": ["x.png (a and b)"],
        "doubled": ["a/x_cup.png and a/x_cup_cup.nii.gz"],
    }


def test_all_that_is_wrong_is_named_at_once_and_nothing_is_written(volumes, tmp_path):
    folder = hand_in(volumes, "a", tmp_path / "theirs")
    training = volumes.split("a")[0][0]
    (folder / "a").mkdir()
    np.save(folder / "a" / f"{training}.npy", np.zeros((2, *SHAPE)))
    (folder / "b" / "b0.npy").unlink()
    np.save(folder / "b" / "b1.npy", np.zeros((2, 3, 20, 25)))
    np.savez(folder / "c" / "c0.npz", planes(volumes.load("c", "c0").mask))
    np.save(folder / "c" / "c9.npy", np.zeros(3))
    (folder / "c" / "c2.mat").touch()
    (folder / "c" / "c1.npy").write_bytes(b"")
    with pytest.raises(DataError) as told:
        score(volumes, Foreign(folder, "a"), "sdg", tmp_path / "results")
    for words in (
        f"of a training case of the source, which says nothing of other domains (take it out) (1): a/{training}",
        "missing (1): b/b0", "b1.npy is 2 x 3 x 20 x 25, its case 3 x 20 x 24", "doubled (1): c/c0.npy and c/c0.npz",
        "no case of the task is named so (1): c/c9.npy", "c/c2.mat", "c1.npy cannot be read",
    ):  # fmt: skip
        assert words in told.value.cause, told.value.cause
    assert told.value.exit_code == 3 and not (tmp_path / "results").exists()


def test_predictions_that_are_all_empty_are_a_mistake_and_one_is_a_miss(discs, tmp_path):
    folder = hand_in(discs, "dim", tmp_path / "theirs")
    np.save(folder / "bright" / "case0.npy", np.zeros((48, 48), bool))
    done = score(discs, Foreign(folder, "dim"), "sdg", tmp_path / "results")
    assert "empty (1): bright/case0: what is there counts as missed" in done.notes
    assert (done.run.cases["flag"] == "missed").sum() == 1
    for path in folder.rglob("*.npy"):
        np.save(path, np.zeros((48, 48), bool))
    with pytest.raises(DataError, match="no prediction holds a structure"):
        score(discs, Foreign(folder, "dim"), "sdg", tmp_path / "results")


@pytest.mark.parametrize(
    ("turned", "asked"),
    [
        (lambda mask: mask, ""),
        (lambda mask: mask.swapaxes(-1, -2), "with height and width exchanged"),
        (lambda mask: mask[..., ::-1, :], "upside down"),
        (lambda mask: mask[..., ::-1], "with left and right exchanged"),
        (lambda mask: np.rot90(mask, -1, (-2, -1)), "turned by a quarter, "),
        (lambda mask: ~mask, "with inside and outside exchanged"),
        (np.zeros_like, ""),
    ],
    ids=["as they are", "exchanged", "upside down", "mirrored", "turned", "inverted", "one is found"],
)
def test_masks_that_would_fit_another_way_round_are_asked_about(turned, asked, tmp_path):
    """On square images nothing else tells: the masks are scored as they lie, and look like those of a poor method."""
    y, x = np.mgrid[:32, :32]
    for domain in ("a", "b"):
        for i in range(3):  # a blot near a corner, longer than wide
            blot = (abs(y - 8) < 7 - i) & (abs(x - 22) < 4)
            for kind, values in (("images", 90 * blot + 60 + i), ("masks", blot)):
                (tmp_path / "corner" / domain / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / "corner" / domain / kind / f"{domain}{i}.png")
    task = FolderTask(tmp_path / "corner")
    handed = hand_in(task, "a", tmp_path / "theirs")
    for n, path in enumerate(sorted(handed.rglob("*.npy"))):
        if n or turned is not np.zeros_like:  # all of them empty would be a mistake
            np.save(path, turned(np.load(path)))
    done = score(task, Foreign(handed, "a", "theirs"), "sdg", tmp_path / "results")
    (note,) = [n for n in done.notes if "lie as the images do" in n] or [""]
    assert note.startswith(asked) and bool(note) == bool(asked)
    assert not asked or "mean Dice of 100.0 %" in note


def test_what_is_stated_is_known_by_name(discs, tmp_path):
    folder = hand_in(discs, "dim", tmp_path / "theirs", bugdet="none")
    with pytest.raises(UsageError, match="unknown statement 'bugdet'") as told:
        score(discs, Foreign(folder, "dim"), "sdg", tmp_path)
    assert "did you mean 'budget'" in told.value.remedy
    (folder / "dgbench.toml").unlink()
    with pytest.raises(UsageError, match="labels must give the mask values of every structure"):
        score(discs, Foreign(folder, "dim", given={"labels": "{rim=[1]}"}), "sdg", tmp_path)
    with pytest.raises(UsageError, match="nobody can check"):
        score(discs, Foreign(folder, "dim"), "sdg-compute", tmp_path)


# --- the run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["sdg", "dapsam"])
def test_the_reference_handed_in_scores_1_and_its_run_is_one_like_any_other(volumes, protocol, tmp_path):
    folder = hand_in(volumes, "a", tmp_path / "theirs")
    done = score(volumes, Foreign(folder, "a", "copied", 4), protocol, tmp_path / "results")
    run = read_run(tmp_path / f"results/volumes/{protocol}/copied (not trained here)/a-seed4")
    assert run.external and (run.method, run.seed) == ("copied", 4)
    assert (run.cases["dice"] == 1).all() and (run.cases["asd"] == 0).all() and len(run.cases) == 12
    assert {"budget not stated", "pretraining not stated"} < set(done.notes)
    assert verify(tmp_path / "results") == (1, [])
    with pytest.raises(UsageError, match="no weights"):
        load_run(run.path)
    again = score(volumes, Foreign(folder, "a", "copied", 4), protocol, tmp_path / "results")
    assert again.run.record["fingerprint"] == run.record["fingerprint"], "the same masks"
    assert [p.name for p in run.path.parent.glob(".*")] == [".a-seed4.old1"], "what was there is moved aside"


class Bright(Method):
    """Finds what is bright."""

    hparams: Hparams

    def loss(self, batch: Batch) -> torch.Tensor:
        return batch.image.mean()

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1]


def test_scores_are_those_that_a_method_with_the_same_masks_has(discs, tmp_path):
    """The masks that a method predicted, handed in, give its scores again, to the byte."""
    method, protocol = Bright(discs.info, Hparams()), SDG
    ours = []
    for name in discs.targets("dim"):
        domain = prepare(discs, name, discs.image_size)
        ours += measure_domain(method, domain, {i: i for i in domain.cases}, "target", protocol, 0)
        (tmp_path / "theirs" / name).mkdir(parents=True)
        for case in domain.cases.values():
            np.save(tmp_path / "theirs" / name / case.id, predict_case(method, domain, case, protocol, 0)[0][:, 0])
    theirs = score(discs, Foreign(tmp_path / "theirs", "dim"), "sdg", tmp_path / "results")
    assert (theirs.run.path / "cases.csv").read_text() == cases_csv(ours)
    assert 0 < theirs.run.cases["dice"].mean() < 1


@pytest.mark.parametrize(
    ("stated", "seeds", "why"),
    [
        ({"budget": "one afternoon", "pretraining": "ImageNet"}, 3, ""),
        ({"budget": "one afternoon", "pretraining": "none"}, 2, "fewer than 3 seeds of a system outside dgbench"),
        ({"budget": " "}, 1, "budget not stated; pretraining not stated; one seed"),
    ],
)
def test_a_row_is_ranked_with_every_source_three_seeds_and_what_must_be_stated(stated, seeds, why):
    """Wherever it was made, beside rows that one machine made."""
    scores = {domain: [0.7, 0.8, 0.9] for domain in "ABC"}
    theirs = {"origin": "external", "stated": stated, "method": "theirs", "hparams": {}}
    runs = [toy_run("theirs (not trained here)", s, scores, n, **theirs) for s in "ABC" for n in range(seeds)]
    where = {"environment": {"hardware": "a processor", "device": "cpu"}}
    board = rank(Study([*runs, *(toy_run("erm", s, scores, n, **where) for s in "ABC" for n in (0, 1))], SDG))
    (of,) = (of for of in board.every if of.row.method == "theirs")
    assert of.why == why and (of.rank is None) == bool(why)
    assert of.row.budget == (stated["budget"].strip() or "not stated")
    assert board.study.named("theirs") == of.variant and [r.variant for r in board.ranked if r.variant == "erm"]


def test_weights_that_are_stated_by_name_are_known_by_what_they_saw():
    assert started_from({"stated": {"pretraining": "SAM_ViT_B, then ImageNet"}}) == ["sam_vit_b", "imagenet"]
    assert started_from({"stated": {"pretraining": "none"}}) == started_from({}) == []


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


def test_a_round_trip_by_nnu_net_s_layout_scores_1(volumes, tmp_path):
    """Its images and index masks lie as nnU-Net wants them; masks in the same labels, handed in, are the reference."""
    exported = export(volumes, "b", tmp_path)
    told = json.loads((exported.folder / "dataset.json").read_text())
    assert exported.folder.name == "Dataset501_volumes_b"
    assert told["labels"] == {"background": 0, "disc": [1, 2], "cup": [2]} and told["regions_class_order"] == [1, 2]
    training, validation = volumes.split("b")
    names = {p.relative_to(exported.folder).as_posix() for p in exported.folder.rglob("*.nii.gz")}
    assert names == {
        *(f"imagesTr/{i}_0000.nii.gz" for i in training), *(f"labelsTr/{i}.nii.gz" for i in training),
        *(f"imagesTs/{d}/{i}_0000.nii.gz" for d in "ac" for i in volumes.case_ids(d)),
        *(f"imagesTs/b/{i}_0000.nii.gz" for i in validation),
    }  # fmt: skip
    image = nibabel.load(exported.folder / "imagesTr" / f"{training[0]}_0000.nii.gz")
    assert image.header.get_zooms() == pytest.approx((0.8, 0.9, 3.0)) and image.shape == SHAPE[::-1]
    labels = Labels(volumes.structures, (volumes.load("b", i).mask for i in training))
    for domain, ids in {"a": volumes.case_ids("a"), "c": volumes.case_ids("c"), "b": validation}.items():
        for i in ids:
            write_nifti(exported.predictions / domain / f"{i}.nii.gz", labels.index_mask(volumes.load(domain, i).mask))
    done = score(volumes, Foreign(exported.predictions, "b"), "sdg", tmp_path / "results")
    assert done.run.method == "nnunet" and len(done.run.cases) == 14 and (done.run.cases["dice"] == 1).all()
    assert set(done.run.cases["role"]) == {"target", "validation"}
    commands = "\n".join(exported.commands)
    assert "nnUNetv2_train 501 3d_fullres all" in commands and commands.count("nnUNetv2_predict -d 501") == 3
    with pytest.raises(UsageError, match="is there already"):
        export(volumes, "b", tmp_path)


def test_photographs_are_png_with_the_colours_they_have(discs, tmp_path):
    exported = export(discs, "dim", tmp_path, 7)
    told = json.loads((exported.folder / "dataset.json").read_text())
    assert (told["file_ending"], told["labels"]) == (".png", {"background": 0, "disc": 1})
    assert exported.folder.name == "Dataset007_discs_dim" and "regions_class_order" not in told
    (case,) = discs.split("dim")[1]
    shown = np.asarray(Image.open(exported.folder / f"imagesTs/dim/{case}_0000.png"))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(discs.root / f"dim/images/{case}.png")))


def test_structures_that_cross_have_a_region_of_their_own():
    """What nnU-Net paints over must leave both: the regions of a and b, and then their meeting."""
    both = np.zeros((1, 2, 4, 4), bool)
    both[0, 0, :3], both[0, 1, 2:] = True, True
    labels = Labels(("a", "b"), [both])
    told = labels.described()
    assert told["labels"] == {"background": 0, "a": [1, 3], "b": [2, 3], "a and b": [3]}
    assert told["regions_class_order"] == [1, 2, 3]
    painted = labels.index_mask(both)
    again = np.stack([np.isin(painted, labels.by_structure[s]) for s in ("a", "b")], axis=1)
    np.testing.assert_array_equal(again, both)


@pytest.mark.parametrize("source", ["dim", "bright"])
def test_gray_and_coloured_domains_go_to_one_network_with_as_many_channels(tmp_path, source):
    """It has three, whichever of them it is trained on: it would refuse images of another number."""
    for path in write_discs(tmp_path / "discs").glob("bright/images/*.png"):
        gray = np.array(Image.open(path))
        Image.fromarray(np.dstack([gray, gray // 2, gray])).save(path)
    exported = export(FolderTask(tmp_path / "discs"), source, tmp_path / "out")
    paths = [*exported.folder.glob("imagesT?/*.png"), *exported.folder.glob("imagesTs/*/*.png")]
    assert len(paths) == 15 and {np.asarray(Image.open(path)).shape for path in paths} == {(48, 48, 3)}
    assert read_json(exported.folder / "dataset.json")["channel_names"] == {"0": "R", "1": "G", "2": "B"}
