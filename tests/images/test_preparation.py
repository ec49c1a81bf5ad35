"""Prepared data: what goes in comes out, and nothing is decoded twice."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from dgbench import files
from dgbench.errors import DataError
from dgbench.images import preparation
from dgbench.images.folder_task import FolderTask
from dgbench.images.mock import Sketch, write_png
from dgbench.images.preparation import (
    PreparedDomain,
    content_fingerprint,
    duration,
    mask_to_network,
    network_box,
    prepare,
    to_image,
    to_network,
    with_neighbours,
)
from dgbench.task import Case, Task
from tests.discs import draw


class Drawn(Task):
    """Two volumes of three slices; the prostate lies in the middle one."""

    name = "drawn"
    domains = ("A",)
    structures = ("prostate",)
    image_size = 16

    def __init__(self, shape=(3, 16, 16), change=lambda case: case):
        super().__init__()
        self.shape, self.change, self.loads = shape, change, 0

    def case_ids(self, domain):
        return ["one", "two"]

    def load(self, domain, case_id):
        self.loads += 1
        rng = np.random.default_rng(len(case_id) + ord(case_id[0]))
        image = (rng.integers(0, 256, (self.shape[0], 1, *self.shape[1:])) / 255).astype(np.float32)
        mask = np.zeros((self.shape[0], 1, *self.shape[1:]), bool)
        mask[1, 0, 4:8, 5:11] = True
        return self.change(Case(case_id, image, mask, (3.0, 0.5, 0.5)))


def test_an_8_bit_image_at_network_size_comes_back_bit_for_bit(tmp_path):
    task = Drawn()
    domain = prepare(task, "A", 16, tmp_path)
    batch = domain.batch(np.arange(6))
    original = np.concatenate([task.load("A", i).image for i in ("one", "two")])
    assert batch.image.shape == (6, 3, 16, 16)
    assert np.array_equal(batch.image[:, :1].numpy(), original)
    assert np.array_equal(batch.image[:, 2].numpy(), original[:, 0])
    assert batch.mask.sum(dim=(1, 2, 3)).tolist() == [0, 24, 0, 0, 24, 0]


def test_a_gray_image_is_expanded_to_three_channels_without_a_copy(tmp_path):
    assert prepare(Drawn(), "A", 16, tmp_path).batch(slice(0, 2)).image.stride(1) == 0


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("chosen", [np.array([5, 0, 5]), slice(1, 4)])
def test_slices_kept_on_a_device_are_those_of_the_files_bit_for_bit(tmp_path, chosen, neighbours):
    domain = prepare(Drawn(), "A", 16, tmp_path)
    read = domain.batch(chosen, neighbours=neighbours)
    size = domain.images.nbytes + domain.masks.nbytes
    assert not domain.keep_on("cpu", most=size - 1)
    assert domain.keep_on("cpu", most=size)
    domain.images = domain.masks = None  # no file is read any more
    kept = domain.batch(chosen, neighbours=neighbours)
    assert torch.equal(read.image, kept.image) and read.image.stride() == kept.image.stride()
    assert torch.equal(read.mask, kept.mask) and kept.mask.dtype == torch.float32


def test_every_intensity_that_can_be_stored_is_restored_on_a_device_as_on_the_processor(tmp_path):
    domain = prepare(Drawn(), "A", 16, tmp_path)
    domain.images = np.arange(2**16, dtype=np.uint16).reshape(256, 1, 16, 16)
    domain.masks = np.zeros((256, 1, 16, 16), np.uint8)
    read = domain.batch(slice(None)).image
    domain.keep_on("cpu", most=10**9)
    assert torch.equal(domain.batch(slice(None)).image, read) and read.max() == 1


def test_the_reference_is_kept_at_the_image_s_own_resolution(tmp_path):
    task = Drawn(shape=(3, 20, 31))
    domain = prepare(task, "A", 16, tmp_path)
    assert domain.images.shape == (6, 1, 16, 16)
    assert np.array_equal(domain.reference("two"), task.load("A", "two").mask)
    assert domain.cases["two"].spacing == (3.0, 0.5, 0.5)


def test_foreground_slices_are_those_whose_mask_is_not_empty(tmp_path):
    domain = prepare(Drawn(), "A", 16, tmp_path)
    assert domain.slice_indices(["one", "two"], foreground=True).tolist() == [1, 4]
    assert domain.slice_indices(["two"], foreground=False).tolist() == [3, 4, 5]
    assert domain.case_of(4) == "two"


def test_a_second_preparation_reads_no_image(tmp_path):
    task = Drawn()
    prepare(task, "A", 16, tmp_path)
    loads = task.loads
    prepare(task, "A", 16, tmp_path)
    assert task.loads == loads


def test_another_size_is_another_preparation(tmp_path):
    assert prepare(Drawn(), "A", 16, tmp_path).folder != prepare(Drawn(), "A", 8, tmp_path).folder


def test_damaged_arrays_are_noticed_and_made_again(tmp_path, capsys):
    domain = prepare(Drawn(), "A", 16, tmp_path)
    before = domain.images.copy()
    content = bytearray((domain.folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (domain.folder / "images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npy is damaged"):
        PreparedDomain(domain.folder)
    again = prepare(Drawn(), "A", 16, tmp_path)
    assert "made again" in capsys.readouterr().err
    assert np.array_equal(again.images, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, image=c.image * np.nan), "NaN or infinite"),
        (lambda c: replace(c, image=c.image + 1), "leaves"),
        (lambda c: replace(c, mask=c.mask[:, :, :-1]), "image and mask differ"),
        (lambda c: replace(c, mask=np.zeros_like(c.mask)), "the mask is empty"),
        (lambda c: replace(c, spacing=(3.0, 0.0, 0.5)), "spacing"),
        (lambda c: replace(c, image=c.image[..., :1], mask=c.mask[..., 5:6]), "16 x 1 pixels is a line"),
    ],
)
def test_a_case_that_cannot_be_used_is_named_and_nothing_is_left(tmp_path, change, message):
    with pytest.raises(DataError, match=f"A/one.*{message}.*A/two"):
        prepare(Drawn(change=change), "A", 16, tmp_path)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == []


def test_a_task_may_allow_empty_masks(tmp_path):
    task = Drawn(change=lambda c: replace(c, mask=np.zeros_like(c.mask)))
    task.empty_masks = True
    assert not prepare(task, "A", 16, tmp_path).masks.any()


@pytest.mark.parametrize(("shape", "box"), [((20, 20), (16, 16)), ((10, 20), (8, 16)), ((300, 10), (16, 1))])
def test_the_aspect_of_an_image_is_kept(shape, box):
    assert network_box(*shape, 16) == box


def test_resizing_equals_pillow_s_bicubic_and_nearest():
    rng = np.random.default_rng(0)
    image = rng.random((1, 1, 50, 40), np.float32)
    mask = rng.random((1, 1, 50, 40)) > 0.5
    expected = np.asarray(Image.fromarray(image[0, 0]).resize((26, 32), Image.Resampling.BICUBIC)).clip(0, 1)
    np.testing.assert_allclose(to_network(image, 32)[0, 0, :, :26], expected, atol=1e-5)
    nearest = np.asarray(Image.fromarray(mask[0, 0].astype(np.uint8)).resize((26, 32), Image.Resampling.NEAREST))
    assert np.array_equal(mask_to_network(mask, 32)[0, 0, :, :26], nearest)
    assert not to_network(image, 32)[..., 26:].any()
    assert not mask_to_network(mask, 32)[..., 26:].any()


def test_probabilities_go_back_to_where_they_came_from():
    mask = np.zeros((1, 1, 60, 90), bool)
    mask[0, 0, 12:40, 20:70] = True
    back = to_image(torch.from_numpy(mask_to_network(mask, 45)).float(), 60, 90) >= 0.5
    assert back.shape == mask.shape
    assert (back.numpy() != mask).mean() < 0.02  # the border moves by less than a pixel of the network's grid


def test_at_the_network_s_own_size_nothing_is_resampled():
    probability = torch.rand(2, 1, 16, 16)
    assert torch.equal(to_image(probability, 16, 16), probability)


# --- slices beside each other ---------------------------------------------------------------------------------------


def which(image: torch.Tensor, domain: PreparedDomain) -> list[list[int]]:
    """Of each image the indices of the slices it holds, three channels each."""
    known = domain.batch(slice(None)).image
    return [
        [int(next(i for i, one in enumerate(known) if torch.equal(one, part))) for part in stack.split(3)]
        for stack in image
    ]


def test_a_slice_comes_amid_its_neighbours_and_a_volumes_end_is_repeated(tmp_path):
    domain = prepare(Drawn(), "A", 16, tmp_path)  # two volumes: slices 0, 1, 2 and 3, 4, 5
    batch = domain.batch(np.array([1, 5, 3]), neighbours=1)
    assert batch.image.shape == (3, 9, 16, 16) and batch.image.dtype == torch.float32
    assert which(batch.image, domain) == [[0, 1, 2], [4, 5, 5], [3, 3, 4]]
    assert torch.equal(batch.mask, domain.batch(np.array([1, 5, 3])).mask), "the mask is that of the slice itself"
    two = domain.batch(slice(0, 3), neighbours=2).image
    assert which(two, domain) == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 2, 2]]


def test_a_volume_outside_a_prepared_domain_gets_the_same_neighbours(tmp_path):
    domain = prepare(Drawn(), "A", 16, tmp_path)
    volume = domain.batch(slice(3, 6)).image
    for neighbours in (1, 2, 4):
        expected = domain.batch(slice(3, 6), neighbours=neighbours).image
        assert torch.equal(with_neighbours(volume, neighbours), expected)
        assert torch.equal(with_neighbours(volume[:, :1], neighbours), expected)


def test_a_photograph_in_colours_is_its_own_neighbour(tmp_path):
    def photograph(case):
        return replace(case, image=np.stack([case.image[1:2, 0] / (c + 1) for c in range(3)], 1), mask=case.mask[1:2])

    domain = prepare(Drawn(change=photograph), "A", 16, tmp_path)
    alone = domain.batch(slice(0, 2)).image
    assert not torch.equal(alone[:, 0], alone[:, 1])
    assert torch.equal(domain.batch(slice(0, 2), neighbours=2).image, alone.repeat(1, 5, 1, 1))


def test_slices_of_a_nifti_volume_arrive_in_the_order_of_the_scan(tmp_path):
    grays = np.array([50, 10, 200, 90], np.uint8)  # of four slices, with a bright corner that fixes the scale
    volume = np.broadcast_to(grays[:, None, None], (4, 12, 10)).copy()
    volume[:, 0, 0] = 255
    mask = np.zeros_like(volume)
    mask[2, 3:9, 2:8] = 1
    for domain in "AB":
        for kind, array in (("images", volume), ("masks", mask)):
            (tmp_path / "task" / domain / kind).mkdir(parents=True)
            path = tmp_path / "task" / domain / kind / "scan.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array.T, np.diag([0.5, 0.5, 3.0, 1.0])), path)
    domain = prepare(FolderTask(tmp_path / "task"), "A", 12, tmp_path / "cache")
    batch = domain.batch(np.array([2, 0]), neighbours=1)
    (before, own, after), first = batch.image[:, ::3, 6, 5].tolist()  # one pixel of each slice
    assert before < after < own  # 10, 90, 200
    assert first[0] == first[1] > first[2]  # 50, 50, 10
    assert batch.mask.sum((1, 2, 3)).tolist() == [36, 0]


# --- what a domain's images are --------------------------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path):
    """Two domains of two pictures each, as TIFF: a pixel is a byte of the file."""
    for domain in ("near", "far"):
        for case in range(2):
            image, mask = draw(np.random.default_rng([len(domain), case]), 0.3, 0.6)
            for kind, array in (("images", image), ("masks", mask)):
                path = tmp_path / "scans" / domain / kind / f"case{case}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "scans"


def content(scans: Path, domain: str = "near", task: FolderTask | None = None) -> str:
    return content_fingerprint(task or FolderTask(scans), domain, 48, scans.parent / "cache")


def with_one_other_byte(path: Path, how: str) -> None:
    """A pixel in the middle of a mask becomes 1, or 0 again; size and time of modification stay."""
    before, changed = path.stat(), bytearray(path.read_bytes())
    pixels = np.asarray(Image.open(path))
    start = changed.index(pixels.tobytes())
    changed[start + pixels.size // 2 + 24] ^= 1
    if how == "in place":
        path.write_bytes(changed)
    else:
        (path.parent / "other").write_bytes(changed)
        os.replace(path.parent / "other", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("settled", [files.SETTLED, 0.0])  # just written, and long ago
@pytest.mark.parametrize("how", ["in place", "another file moved there"])
def test_a_mask_with_one_other_byte_in_it_is_another_one_though_size_and_time_are_the_same(
    scans, monkeypatch, settled, how
):
    monkeypatch.setattr(files, "SETTLED", settled)
    task, path = FolderTask(scans), scans / "near" / "masks" / "case1.tif"
    time.sleep(0.05)  # several ticks of the file system's clock
    before, far = content(scans, task=task), content(scans, "far")
    for expected in (False, True):
        with_one_other_byte(path, how)
        assert (content(scans, task=task) == before) is expected  # in this process, with the task at hand
        assert (content(scans) == before) is expected
    assert content(scans, "far") == far


PRINTED = """
import sys
from pathlib import Path
from dgbench.images.folder_task import FolderTask
from dgbench.images.mock import Sketch, write_png
from dgbench.images.preparation import content_fingerprint
print(content_fingerprint(FolderTask(Path(sys.argv[1])), "near", 48, Path(sys.argv[2])))
"""


def test_another_process_sees_it_too(scans, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 0.0)
    time.sleep(0.05)
    before = content(scans)
    with_one_other_byte(scans / "near" / "masks" / "case1.tif", "in place")
    command = [sys.executable, "-c", PRINTED, str(scans), str(scans.parent / "cache")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert before != other == content(scans)


def test_a_file_is_read_once_when_it_has_long_been_as_it_is(scans, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 0.0)
    time.sleep(0.05)
    before = content(scans)
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} is read again"))
    monkeypatch.setattr(FolderTask, "load", lambda *arguments: pytest.fail("a case is decoded again"))
    assert content(scans) == before


def test_images_are_the_same_however_they_are_packed_named_elsewhere_and_described(scans):
    before = content(scans)
    path = scans / "near" / "images" / "case0.tif"
    Image.open(path).save(path, compression="tiff_lzw")  # another file with the same pixels
    assert content(scans) == before
    (scans / "task.toml").write_text('citation = "Doe 2030"\nsources = ["far"]\nempty_masks = true\n')
    assert content(scans) == before
    shutil.move(scans / "far" / "images" / "case0.tif", scans / "far" / "images" / "case2.tif")
    shutil.move(scans / "far" / "masks" / "case0.tif", scans / "far" / "masks" / "case2.tif")
    assert content(scans) == before


@pytest.mark.parametrize(
    "line",
    [
        "intensity = [0, 200]",
        "spacing = [0.5, 0.5]",
        'structures = ["disc"]',
        "structures = { structure = [2, 1] }",
        "image_size = 32",
        "steps = 7",
    ],
)
def test_what_the_task_makes_of_the_files_counts(scans, line):
    """The last of them names a value that no mask holds, and so changes nothing."""
    before = content(scans)
    (scans / "task.toml").write_text(f"{line}\n")
    assert (content(scans) == before) is ("[2, 1]" in line)


def test_another_code_that_reads_the_same_images_changes_nothing_and_one_that_reads_others_does(scans):
    class Tidied(FolderTask):
        def load(self, domain, case_id):
            read = super().load(domain, case_id)
            return replace(read, mask=read.mask.copy())

    class Darker(FolderTask):
        def load(self, domain, case_id):
            read = super().load(domain, case_id)
            return replace(read, image=read.image * np.float32(0.5))

    before = content(scans)
    assert content(scans, task=Tidied(scans)) == before
    assert content(scans, task=Darker(scans)) != before


def test_a_file_that_is_gone_is_named(scans):
    task, path = FolderTask(scans), scans / "near" / "masks" / "case1.tif"
    path.unlink()
    with pytest.raises(DataError, match=rf"missing file {path}"):
        content(scans, task=task)


def test_a_task_that_fails_on_a_case_in_its_own_way_has_the_others_verified():
    def change(case):
        if case.id == "one":
            raise KeyError("window")
        return replace(case, image=case.image + 1)

    of_domains, first, second = Drawn(change=change).verify()
    assert "1 domain(s)" in of_domains
    assert first == "A/one cannot be read: KeyError: 'window'"
    assert second.startswith("A/two: image leaves [0, 1]")


# --- large sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch) -> FolderTask:
    """Twelve scans of a domain, and one of another."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    sketch = Sketch()
    for k, (domain, count) in enumerate((("near", 12), ("far", 1))):
        for n in range(count):
            labels = sketch.labels(24, 24)
            write_png(tmp_path / "many" / domain / "images" / f"scan{n:02}.png", sketch.gray(labels, k))
            write_png(tmp_path / "many" / domain / "masks" / f"scan{n:02}.png", labels)
    return FolderTask(tmp_path / "many")


def arrays(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_threads_give_the_same_arrays_in_the_same_order_and_numpy_opens_them(many, tmp_path):
    one, four = (prepare(many, "near", 16, tmp_path / str(jobs), jobs=jobs).folder for jobs in (1, 4))
    assert one.name == four.name and arrays(one) == arrays(four)
    assert np.load(four / "images.npy").shape == (12, 1, 16, 16) and torch.get_num_threads() >= 1


def test_what_was_ended_goes_on_after_the_last_case_that_is_whole(many, tmp_path, monkeypatch):
    whole = arrays(prepare(many, "near", 16, tmp_path / "whole").folder)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(many, "near", 16, report=stop, jobs=1)
    (left,) = (tmp_path / "cache" / "prepared").glob(".building-*")
    with open(left / "images.npy", "r+b") as file:  # the disk forgot the end of the seventh
        file.truncate(file.seek(0, 2) - 5)
    (left / ".index.json.7.tmp").touch()  # the process that wrote it was killed
    loaded, load = [], FolderTask.load
    monkeypatch.setattr(FolderTask, "load", lambda self, d, i: (loaded.append(i), load(self, d, i))[1])
    told: list[tuple[int, int]] = []
    again = prepare(many, "near", 16, report=lambda *news: told.append(news), jobs=1)
    assert told == [(n, 12) for n in range(6, 13)] and loaded == [f"scan{n:02}" for n in range(6, 12)]
    assert arrays(again.folder) == whole and not left.exists() and not [*again.folder.glob(".*.tmp")]


def test_a_change_in_one_domain_leaves_the_others_prepared(many):
    before = {d: prepare(many, d, 16).folder for d in ("near", "far")}
    write_png(Path(many.location) / "far" / "images" / "scan00.png", np.full((24, 24), 7, np.uint8))
    after = {d: prepare(FolderTask(Path(many.location)), d, 16).folder for d in ("near", "far")}
    assert after["near"] == before["near"] and after["far"] != before["far"]


def test_how_long_it_takes_is_said_now_and_then(many, capsys, monkeypatch):
    monkeypatch.setattr("dgbench.images.preparation.PAUSE", -1.0)
    prepare(many, "near", 16, jobs=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0].startswith("preparing many/near: 2 of 12 cases, about ")
    clock = iter([0.0, 60.0, 61.0])  # a minute of looking at files, then a second a case
    monkeypatch.setattr("dgbench.images.preparation.time.monotonic", lambda: next(clock))
    report = preparation._lines("slow")
    for done in (0, 1, 2):
        report(done, 32)
    assert capsys.readouterr().err == "preparing slow: 2 of 32 cases, about 30 s left\n"
    assert [duration(s) for s in (40, 700, 12600)] == ["40 s", "12 min", "3.5 h"]
