"""What a run predicts for a file is what its own test predicted for that case, voxel for voxel."""

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from PIL import Image

from dgbench import registry
from dgbench.errors import DataError, UsageError
from dgbench.files import read_json, sha256, write_json
from dgbench.images.find_task import get_task
from dgbench.images.folder_task import FolderTask
from dgbench.images.pixels import Pixels
from dgbench.running import launchers, plan
from dgbench.running.predict import _by_range, load_run, predict_files
from dgbench.running.records import read_run
from tests.datasets.test_fundus import riga  # noqa: F401 (a fixture)
from tests.datasets.test_prostate import SITES, write_case
from tests.discs import DOMAINS, draw, write_discs

PLUGIN = Path(__file__).parents[1] / "pixels.py"
QUICK = launchers.Options(device="cpu")


def photographs(folder):
    return write_discs(folder, cases=3)


def deep_gray(folder):
    """16 bits, of which the task says which become 0 and 1."""
    write_discs(folder, cases=3)
    for path in folder.glob("*/images/*.png"):
        gray = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(gray * 8).save(path)
    with (folder / "task.toml").open("a") as file:
        file.write("intensity = [0, 1000]\n")
    return folder


def volumes(folder):
    """NIfTI of three slices each, wider than high."""
    for number, (domain, look) in enumerate(DOMAINS.items()):
        for kind in ("images", "masks"):
            (folder / domain / kind).mkdir(parents=True)
        for case in range(3):
            slices = [draw(np.random.default_rng([number, case, i]), *look) for i in range(3)]
            for kind, stack in zip(("images", "masks"), map(np.stack, zip(*slices, strict=True)), strict=True):
                image = nibabel.Nifti1Image(stack[:, 4:].astype(np.int16).T, np.diag([0.5, 0.6, 3.0, 1.0]))
                nibabel.save(image, folder / domain / kind / f"case{case}.nii.gz")
    (folder / "task.toml").write_text('name = "volumes"\nstructures = ["disc"]\nimage_size = 32\nsteps = 12\n')
    return folder


def stored(path):
    """A written mask, bool (D, H, W)."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nibabel.load(path).dataobj).T > 0
    return np.asarray(Image.open(path))[None] > 0


def predicted_again(run, task, out):
    """Asserts the parity for a case of each target; returns how many voxels were predicted."""
    record, count = read_run(Path(run.folder)), 0
    for domain in task.targets(run.source):
        case = task.case_ids(domain)[-1]
        paths = list(predict_files(Path(run.folder), [task.files(domain, case)[0]], out / domain, device="cpu"))
        own = record.predictions(domain, case)
        for k, path in enumerate(paths):
            np.testing.assert_array_equal(stored(path), own[:, k])
        count += int(own.sum())
    return count


@pytest.mark.parametrize("images", [photographs, deep_gray, volumes])
def test_a_file_of_a_target_is_predicted_as_the_run_itself_predicted_it(tmp_path, monkeypatch, images):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    registry.add_plugin(PLUGIN)
    task = FolderTask(images(tmp_path / "images"))
    (run,) = plan.plan(task, ["pixels"], sources=["bright"], results=tmp_path / "r")
    assert [o.status for o in launchers.launch(task, [run], options=QUICK)] == ["done"]
    assert predicted_again(run, task, tmp_path / "out") > 0


def test_slices_are_shown_amid_their_neighbours_as_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    plugin = tmp_path / "amid.py"
    text = PLUGIN.read_text().replace("nn.Conv2d(3, 8", "nn.Conv2d(9, 8")
    text = text.replace("PixelsHparams\n\n    def", "PixelsHparams\n    neighbours = 1\n\n    def")
    plugin.write_text(text)
    registry.add_plugin(plugin)
    task = FolderTask(volumes(tmp_path / "images"))
    (run,) = plan.plan(task, ["amid"], sources=["bright"], results=tmp_path / "r")
    assert [o.status for o in launchers.launch(task, [run], options=QUICK)] == ["done"]
    assert predicted_again(run, task, tmp_path / "out") > 0


@pytest.mark.parametrize("name", ["prostate", "fundus"])
def test_a_task_of_ours_reads_new_images_by_its_own_rule(tmp_path, monkeypatch, request, name):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    if name == "fundus":
        request.getfixturevalue("riga")
    else:
        for site in SITES:
            (tmp_path / "prostate" / site).mkdir(parents=True)
            for number, case in enumerate(get_task("prostate").case_ids(site)):
                write_case(tmp_path / "prostate", site, case, number, side=48)
    plugin = tmp_path / "bright.py"  # what is bright enough: the rule decides every voxel
    bright = "(image[:, :1] > 0.6).float().expand(-1, len(self.task.structures), -1, -1)"
    plugin.write_text(PLUGIN.read_text().replace("return self.net(image).sigmoid()", f"return {bright}"))
    registry.add_plugin(plugin)
    task = get_task(name, tmp_path)
    settings = {"image_size": "40", "steps": "3"}
    (run,) = plan.plan(task, ["bright"], sources=task.source_domains[:1], settings=settings, results=tmp_path / "r")
    assert [o.status for o in launchers.launch(task, [run], options=QUICK)] == ["done"]
    assert predicted_again(run, task, tmp_path / "out") > 0


@pytest.fixture
def finished(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    registry.add_plugin(PLUGIN)
    task = FolderTask(write_discs(tmp_path / "images", cases=2, steps=2))
    (run,) = plan.plan(task, ["pixels"], sources=["bright"], settings={"batch_size": "3"}, results=tmp_path / "r")
    launchers.launch(task, [run], options=QUICK)
    return Path(run.folder)


def rewritten(folder, **values):
    """The run with another record, whole again."""
    record = {name: value for name, value in (read_json(folder / "run.json") | values).items() if value is not ...}
    write_json(folder / "run.json", record)
    result = read_json(folder / "RESULT.json")
    result["files"]["run.json"] = sha256(folder / "run.json")
    write_json(folder / "RESULT.json", result)


def test_a_run_is_loaded_with_the_settings_it_had_whatever_the_defaults_are_today(finished):
    hparams = load_run(finished)[0].hparams
    assert (hparams.batch_size, hparams.learning_rate) == (3, 0.01)
    recorded = read_json(finished / "run.json")["hparams"]
    rewritten(finished, hparams=recorded | {"learning_rate": 0.5}, settings={})  # a default that was another one then
    assert load_run(finished)[0].hparams.learning_rate == 0.5


def test_a_setting_that_is_gone_is_named(finished):
    rewritten(finished, hparams=read_json(finished / "run.json")["hparams"] | {"temperature": 2.0})
    with pytest.raises(DataError, match="pixels has no setting temperature any more"):
        load_run(finished)


def test_a_run_that_does_not_say_how_its_images_were_read_is_refused(finished, tmp_path):
    rewritten(finished, intensity_range=...)  # as records were before, or of a task that is not here
    with pytest.raises(UsageError, match="how images of task 'discs' are read is not known"):
        list(predict_files(finished, [tmp_path / "images" / "dim" / "images" / "case0.png"], tmp_path / "out"))


def test_an_image_that_cannot_be_read_is_named_and_the_others_have_their_masks(finished, tmp_path):
    folder = tmp_path / "images" / "dim" / "images"
    (folder / "case0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 2 images have no mask: \S+case0\.png is no usable image"):
        list(predict_files(finished, [folder / "case0.png", folder / "case1.png"], tmp_path / "out", device="cpu"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case1_disc.png"]


@pytest.mark.parametrize("what", ["method", "task"])
def test_code_that_changed_since_the_run_is_told(finished, tmp_path, capsys, what):
    image = tmp_path / "images" / "dim" / "images" / "case0.png"
    list(predict_files(finished, [image], tmp_path / "out", device="cpu"))
    assert capsys.readouterr().err == ""
    rewritten(finished, code=read_json(finished / "run.json")["code"] | {what: "another"})
    list(predict_files(finished, [image], tmp_path / "out", device="cpu"))
    name = {"method": "pixels", "task": "task 'discs'"}[what]
    assert (
        capsys.readouterr().err == f"the code of {name} changed since this run was made: its masks may be others now\n"
    )


def test_a_task_without_a_rule_for_files_is_refused(finished, tmp_path):
    rewritten(finished, task="phantom")  # whose images are computed, each slice by a rule of its own
    with pytest.raises(UsageError, match="how images of task 'phantom' are read is not known: its code has no rule"):
        list(predict_files(finished, [tmp_path / "images" / "dim" / "images" / "case0.png"], tmp_path / "out"))


def test_where_windows_differ_the_source_s_is_used_and_another_can_be_named(capsys):
    gray = Pixels(np.array([[[0, 50, 100], [0, 50, 100], [0, 50, 100]]]))
    run = SimpleNamespace(source="ct")
    limits = {"ct": [0, 50], "mr": [50, 100]}
    assert _by_range(limits, run, None)(gray)[0, 0, 0].tolist() == [0, 1, 1]
    assert "that of the source, ct, is used; --domain names another" in capsys.readouterr().err
    assert _by_range(limits, run, "mr")(gray)[0, 0, 0].tolist() == [0, 0, 1] and capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="unknown domain 'pet'"):
        _by_range(limits, run, "pet")


def test_no_mask_is_written_over_another_one_nor_among_references(finished, tmp_path):
    structure = read_run(finished).record["structures"][0]
    (tmp_path / "A" / "images").mkdir(parents=True)
    for image in (tmp_path / "a.png", tmp_path / "b" / "a.png"):
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    with pytest.raises(UsageError, match=f"two masks would be named a_{structure}"):
        list(predict_files(finished, [tmp_path / "a.png", tmp_path / "b" / "a.png"], tmp_path / "out"))
    for out in (tmp_path / "A" / "masks", tmp_path / "A" / "masks" / structure):
        with pytest.raises(UsageError, match="holds the reference masks of a domain"):
            list(predict_files(finished, [tmp_path / "a.png"], out))
