"""What the files of others can do, and how far a method is kept from its targets: docs/security.md, line by line."""

import contextlib
import gzip
import io
import json
import mmap
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from rich.text import Text

from dgbench import cli, registry
from dgbench.errors import DataError, RunError, UsageError
from dgbench.files import gunzip, read_json, sha256, write_json
from dgbench.images.find_task import get_task
from dgbench.images.preparation import prepare
from dgbench.networks.checkpoints import load_state
from dgbench.pages.screen import Screen
from dgbench.pages.table import Cell, Table, as_text, csv_text
from dgbench.running import guard, plan, predict, records, worker
from dgbench.running.test import Predictions
from dgbench.scores.importing import read_table
from tests.discs import write_discs
from tests.toy_runs import run

PIXELS = Path(__file__).with_name("pixels.py")

# --- how far a method is kept from its targets -----------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """A hidden mask, a prepared domain in a hidden folder with an allowed one beside it, and another run."""
    prepared = ("prepared/target/masks.npy", "prepared/source/masks.npy")
    for name in ("data/mask.npy", *prepared, "toy/sdg/erm/B-seed0/r.npy"):
        (tmp_path / name).parent.mkdir(parents=True)
        np.save(tmp_path / name, np.arange(8))
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "toy/sdg/erm/B-seed0/weights.safetensors")
    hidden = guard.Hidden(
        [tmp_path / "data/mask.npy"],
        [tmp_path / "prepared"],
        tmp_path / "toy",
        [tmp_path / "prepared/source", tmp_path / "toy/sdg/erm/A-seed0"],
    )
    return tmp_path, hidden


def by_link(folder):
    os.link(folder / "data/mask.npy", folder / "hard.npy")
    return np.load(folder / "hard.npy")


def by_symlink(folder):
    (folder / "soft.npy").symlink_to(folder / "data/mask.npy")
    return np.load(folder / "soft.npy")


def by_another_name(folder):
    os.rename(folder / "data/mask.npy", folder / "mine.npy")
    return np.load(folder / "mine.npy")


def by_open_folder(folder):
    inside = os.open(folder / "prepared/target", os.O_RDONLY)
    return open(os.open("masks.npy", os.O_RDONLY, dir_fd=inside), "rb").read()


def by_number(folder):
    inside = os.open(folder / "data", os.O_RDONLY)
    return open(f"/dev/fd/{os.open('mask.npy', os.O_RDONLY, dir_fd=inside)}", "rb")


def by_thread(folder):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit((folder / "data/mask.npy").read_bytes).result()


def by_open_map(folder):
    inside = os.open(folder / "data", os.O_RDONLY)
    return mmap.mmap(os.open("mask.npy", os.O_RDONLY, dir_fd=inside), 0, prot=mmap.PROT_READ)


WAYS = {
    "the mask of a target": lambda folder: (folder / "data/mask.npy").read_bytes(),
    "os.open": lambda folder: os.open(folder / "data/mask.npy", os.O_RDONLY),
    "a memory map": lambda folder: np.load(folder / "data/mask.npy", mmap_mode="r"),
    "a copy": lambda folder: shutil.copy(folder / "data/mask.npy", folder / "mine.npy"),
    "a path with ..": lambda folder: np.load(folder / "prepared/../data/mask.npy"),
    "what lies prepared": lambda folder: np.load(folder / "prepared/target/masks.npy"),
    "what another run learned": lambda folder: (folder / "toy/sdg/erm/B-seed0/weights.safetensors").read_bytes(),
    "a hard link": by_link,
    "a symbolic link": by_symlink,
    "another name": by_another_name,
    "an open folder": by_open_folder,
    "a memory map in an open folder": by_open_map,
    "the number of an open file": by_number,
    "a thread": by_thread,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_python_opens_of_a_target_is_refused(secret, way):
    folder, hidden = secret
    with pytest.raises(RunError, match=r"opened .* while it was being trained"), guard.no_access(hidden):
        WAYS[way](folder)


def test_the_source_and_files_of_ones_own_stay_open(secret):
    folder, hidden = secret
    with guard.no_access(hidden):
        np.load(folder / "prepared/source/masks.npy")
        np.load(folder / "toy/sdg/erm/B-seed0/r.npy")
        (folder / "toy/sdg/erm/A-seed0").mkdir()
        (folder / "toy/sdg/erm/A-seed0/cases.csv").write_text("")
    assert np.load(folder / "data/mask.npy").sum() == 28


def test_a_method_that_catches_the_refusal_has_failed_all_the_same(secret):
    folder, hidden = secret

    def catches():
        with contextlib.suppress(RunError):
            (folder / "data/mask.npy").read_bytes()

    with pytest.raises(RunError, match=r"opened .*mask\.npy"), guard.no_access(hidden):
        catches()


def test_a_library_in_another_language_is_not_seen(secret):
    """The page says so: against this only reproduction without the targets helps."""
    folder, hidden = secret
    with guard.no_access(hidden):
        assert safetensors.torch.load_file(folder / "toy/sdg/erm/B-seed0/weights.safetensors")["w"] == 1
        assert torch.from_file(str(folder / "data/mask.npy"), size=8, dtype=torch.uint8)[1] == ord("N")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Discs, and the same where the targets of `bright` are other images."""
    folder = tmp_path_factory.mktemp("made")
    cache = pytest.MonkeyPatch()
    cache.setenv("DGBENCH_CACHE", str(folder / "cache"))
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield write_discs(folder / "discs", cases=3, steps=3)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    cache.undo()


def make(images: Path, method: Path, results: Path, checkpoint: Path | None = None) -> tuple[Path, worker.Outcome]:
    """The run of a method from `bright`, in this process; and how it ended."""
    registry.add_plugin(method)
    task = get_task(str(images))
    (planned,) = plan.plan(task, [method.stem], sources=["bright"], results=results, checkpoint=checkpoint)
    prepared = {domain: prepare(task, domain, task.image_size).folder for domain in task.domains}
    order = worker.Order(planned, prepared, False, "cpu", 1, 60.0)
    return Path(planned.folder), worker.attempt(order, lambda news: None, lambda: False)


CHEAT = """
import dgbench.method
from dgbench.images.find_task import get_task
from tests.pixels import Pixels

class Cheat(Pixels):
    def {when}(self, *arguments):
        self.__dict__["stolen"] = {how}
        return super().{when}(*arguments)
"""


@pytest.mark.parametrize("when", ["__init__", "augment", "predict"])
def test_a_run_whose_method_opens_a_target_at_any_time_fails(made, tmp_path, when):
    by_itself, by_the_task = f"open('{made}/dim/masks/case0.png').read()", f"get_task('{made}').load('dim', 'case0')"
    (tmp_path / "cheat.py").write_text(CHEAT.format(when=when, how=by_itself if when == "augment" else by_the_task))
    folder, outcome = make(made, tmp_path / "cheat.py", tmp_path / "results")
    assert outcome.status == "failed" and "/dim/" in outcome.message and "while it was being trained" in outcome.message
    assert not (folder / "RESULT.json").exists() and (folder / "FAILED.json").exists()


def test_weights_do_not_depend_on_what_the_targets_are(made, tmp_path):
    """What no way of reading gets round: other images in place of the targets, and the weights are the same bytes."""
    other = shutil.copytree(made, tmp_path / "discs")
    for image in [*other.glob("dim/*/*.png"), *other.glob("inverted/*/*.png")]:
        shutil.copy(other / "bright" / image.parent.name / image.name, image)
    folders = [make(images, PIXELS, tmp_path / images.parent.name)[0] for images in (made, other)]
    first, second = (read_json(folder / "RESULT.json")["files"] for folder in folders)
    assert first["weights.safetensors"] == second["weights.safetensors"]
    assert first["cases.csv"] != second["cases.csv"]
    again, _ = make(made, PIXELS, tmp_path / "again", folders[0] / "weights.safetensors")  # nothing was remembered
    assert read_json(again / "RESULT.json")["files"]["cases.csv"] == first["cases.csv"]


# --- what the files of others can do ---------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """Weights old and new, and masks: each holds a pickle that would make a folder."""
    monkeypatch.chdir(tmp_path)
    with open("old.pth", "wb") as file:
        pickle.dump(Payload(), file)
    torch.save({"w": Payload()}, "new.pth")
    np.savez("predictions.npz", index=np.array([Payload()], dtype=object))
    for name in ("old.pth", "new.pth"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            load_state(tmp_path / name)
    with pytest.raises(DataError, match="allow_pickle"):
        Predictions(tmp_path / "predictions.npz")
    assert not (tmp_path / "it-ran").exists()


def test_listing_does_not_run_a_plug_in(tmp_path):
    (tmp_path / "evil.py").write_text('"""Innocent."""\nimport dgbench.method\nraise SystemExit("it ran")\n')
    registry.add_plugin(tmp_path / "evil.py")
    assert registry.METHODS.plugins()["evil"].summary() == "Innocent."
    assert registry.METHODS.plugins()["evil"].facts() == {}


def masks_of(path: Path, shape: list[int], packed: bytes) -> Path:
    index = np.frombuffer(json.dumps([["B", "case", shape]]).encode(), np.uint8)
    np.savez_compressed(path, index=index, mask_0=np.frombuffer(packed, np.uint8))
    return path


def test_masks_that_would_fill_the_memory_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    small = masks_of(tmp_path / "bomb.npz", [1, 1, 4000, 4000], bytes(2_000_000))
    assert small.stat().st_size < 5_000
    assert Predictions(small)["B", "case"].nbytes == 16_000_000
    monkeypatch.setattr("dgbench.running.test.free_memory_mb", lambda: 15.0)
    with pytest.raises(DataError, match=r"mask_0 takes .* GB of memory"):
        Predictions(small)["B", "case"]


@pytest.mark.parametrize("shape", [[1, 1, 10**6, 10**6], [1, 1, -1, -8], [1, 1, "8", "8"], [1, 1, 8, 9]])
def test_masks_are_as_large_as_they_say(tmp_path, shape):
    with pytest.raises(DataError, match="cannot be read"):
        Predictions(masks_of(tmp_path / "p.npz", shape, bytes(8)))["B", "case"]


def test_a_table_that_becomes_a_thousand_times_larger_is_not_unpacked(tmp_path):
    content = gzip.compress(bytes(1 << 20))
    assert len(content) < 1100 and gunzip(content, 1 << 20) == bytes(1 << 20)
    with pytest.raises(ValueError, match="more than 0 MiB"):
        gunzip(content, (1 << 20) - 1)
    path = tmp_path / "scores.csv.gz"
    path.write_bytes(gzip.compress(b"method\n") + content[: len(content) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(path)


@pytest.fixture
def finished(tmp_path):
    """A function that writes a finished run with entries of its record changed, as somebody may send one."""
    told = run("erm", "A", {"A": [0.9], "B": [0.8]}).record | {"started": "2030-01-01", "data": {}}

    def write(files: dict | None = None, **changed) -> Path:
        folder = tmp_path / "results/toy/sdg/erm/A-seed0"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", told | changed)
        (folder / "cases.csv").write_text("")
        names = {n: sha256(folder / n) for n in ("run.json", "cases.csv")}
        write_json(folder / "RESULT.json", {"schema": 1, "files": names | (files or {})})
        return folder

    return write


@pytest.mark.parametrize("name", ["../../../x", "/x", "..", "", "a\\b", "a\0"])
def test_a_run_that_would_name_files_outside_its_folder_is_left_out(finished, name):
    folder = finished(variant=name)
    with pytest.raises(DataError, match="cannot be a folder"):
        records.read_run(folder)
    runs, left_out = records.read_runs(folder.parents[3], "toy", "sdg")
    assert not runs and "cannot be a folder" in left_out[0]


@pytest.mark.parametrize("content", ["[1, 2]", "{}", '{"files": 3}', "[" * 100_000])
@pytest.mark.parametrize("name", ["run.json", "RESULT.json"])
def test_a_record_that_is_none_stops_no_table(finished, name, content):
    folder = finished()
    (folder / name).write_text(content)
    if name == "run.json":
        write_json(folder / "RESULT.json", {"schema": 1, "files": {name: sha256(folder / name)}})
    runs, left_out = records.read_runs(folder.parents[3], "toy", "sdg")
    assert not runs and left_out[0].startswith("Left out: ")


def test_a_checksum_of_a_file_outside_is_never_looked_at(finished, tmp_path):
    (tmp_path / "private").write_text("secret")
    outside = {"../../../../../private": sha256(tmp_path / "private")}
    folder = finished(files=outside)
    assert records.broken_files(folder, read_json(folder / "RESULT.json")) == list(outside)


def test_a_structure_names_a_mask_inside_the_folder_of_predictions(tmp_path, monkeypatch):
    record = run("erm", "A", {"B": [0.8]}, structures=["../../outside"])
    image = tmp_path / "image.png"
    shutil.copy(next(write_discs(tmp_path / "discs", cases=1).glob("dim/images/*.png")), image)
    method = type("Constant", (), {"uses_target_masks": False})()
    monkeypatch.setattr(predict, "load_run", lambda folder, device: (method, record))
    monkeypatch.setattr(predict, "_reading", lambda record, task, domain: (lambda pixels: pixels.values, ""))
    monkeypatch.setattr(predict, "predict_image", lambda method, image: np.ones((1, 1, 48, 48), bool))
    (written,) = predict.predict_files(tmp_path, [image], tmp_path / "a/b/masks", "cpu")
    assert written.resolve().parent == tmp_path / "a/b/masks"


# --- what hostile names can do ---------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;mine\x07\x1b[2J\x9b31m"
HOSTILE = f"{ESCAPES}\u202egnp.[red]x[/] ![a](https://evil.example/b.png);=cmd|'/C calc'!A0\rok"


def test_a_name_cannot_give_orders_to_a_terminal_nor_to_who_reads_a_table():
    table = Table("t", HOSTILE, (HOSTILE, "n"), [("", [[Cell(HOSTILE), Cell("1")]])], foot=HOSTILE)
    frame = pd.DataFrame({"variant": [HOSTILE]})
    pages = {kind: as_text([table], kind, HOSTILE) for kind in ("md", "tex", "html")} | {"csv": csv_text(frame)}
    for kind, text in pages.items():
        assert not set(text) & set("\x1b\x07\x9b\r\u202e"), kind
    assert "](" not in pages["md"]
    assert ";'=cmd" in pages["csv"]


def test_a_name_cannot_give_orders_to_the_terminal_of_a_command():
    screen = Screen(file=io.StringIO(), force_terminal=True, width=200)
    screen.print(f"[bold]{registry.__name__}[/]", Text(HOSTILE), ESCAPES, highlight=False)
    shown = screen.file.getvalue()
    assert "\x1b[1m" in shown  # the bold is ours
    assert not set(shown.replace("\x1b[1m", "").replace("\x1b[0m", "")) & set("\x1b\x07\x9b\r\u202e")
    assert "[red]x[/]" in shown


def test_the_command_line_writes_to_such_a_screen():
    assert isinstance(cli.console, Screen) and isinstance(cli.errors, Screen)
