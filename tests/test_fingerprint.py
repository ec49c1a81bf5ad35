"""What can change a number makes a run stale, and nothing else does."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgbench import registry
from dgbench.fingerprint import UNCOUNTED, of_code, reached
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.images.table_task import TableTask
from dgbench.running import plan, train, worker
from tests.discs import write_discs

ROOMS = ("", "images", "networks", "running")
BUILDING = "dgbench.images.preparation:_build"
# Executed by a run, and what they give is in its fingerprint by itself.
BY_VALUE = {
    "resolve_hparams",
    "_convert",
    "own_settings",
    "hparams_class",
    "content_fingerprint",
    "code_fingerprint",
    "_looked_up",
    "Task",
}
READING = {
    f"dgbench.images.{name}"
    for name in (
        "formats",
        "pixels",
        "dicom",
        "volume_formats",
        "file_task",
        "listed_task",
        "own_task",
        "folder_task",
        "table_task",
        "task_settings",
    )
}


def modules(root):
    paths = [p for room in ROOMS for p in (root / "dgbench" / room).glob("*.py")]
    names = {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {n: p for n, p in names.items() if n not in ("dgbench.cli", "dgbench.__main__", "dgbench.face")}


def all_reached():
    methods = [registry.get_method(name) for name in registry.METHODS.names()]
    tasks = [FolderTask, TableTask, *(registry.TASKS.get(name) for name in registry.TASKS.names())]
    return reached("dgbench.running.worker:make", BUILDING, *methods, *tasks)


def test_every_module_either_counts_or_is_named_with_the_reason_why_not(root):
    counting = {module for module, _ in all_reached()}
    rooms = {f"dgbench.{room}" for room in ROOMS if room}  # their docstrings
    for name in modules(root):
        if name not in rooms:
            assert (name in counting) != (name in UNCOUNTED), f"{name}: a run names it, or UNCOUNTED says why not"
    assert set(UNCOUNTED) <= set(modules(root)), "UNCOUNTED names a module that is gone"


def top_level_names(path):
    """{line: the name of the definition at the top of the file that holds it}"""
    names = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            names |= dict.fromkeys(range(first, node.end_lineno + 1), node.name)
    return names


@pytest.fixture
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)


def test_every_function_that_a_run_executes_is_in_its_fingerprint(tmp_path, root, monkeypatch, deterministic):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = FolderTask(write_discs(tmp_path / "discs", cases=3))
    settings = {"steps": "2", "width": "4", "batch_size": "2"}
    (run,) = plan.plan(task, ["erm"], sources=["dim"], settings=settings, results=tmp_path / "r")
    Path(run.folder).mkdir(parents=True)
    executed = set()

    def note(frame, event, _):
        if event == "call":
            executed.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.setprofile(note)
    try:
        prepared = {d: prepare(task, d, task.image_size).folder for d in task.domains}
        worker.make(worker.Order(run, prepared, False, "cpu", 1, 0.0), train.Watch())
    finally:
        sys.setprofile(None)
    assert (Path(run.folder) / "RESULT.json").is_file()
    counted = reached("dgbench.running.worker:make", BUILDING, registry.get_method("erm"))
    missing = set()
    for name, path in modules(root).items():
        lines = {line for file, line in executed if file == str(path)}
        names = top_level_names(path)
        found = {names[line] for line in lines if line in names}
        by_value = name in UNCOUNTED or name in READING
        missing |= {(name, f) for f in found - BY_VALUE if not by_value and (name, f) not in counted}
    keeping = ("prepare", "_building", "_installed")  # what has `_build` work, and where its work is found again
    assert missing <= {("dgbench.images.preparation", name) for name in keeping}


EDITS = """
import ast, sys
from pathlib import Path
from dgbench import registry
from dgbench.fingerprint import reached
from dgbench.images.folder_task import FolderTask
from dgbench.running import plan

root, discs, results = map(Path, sys.argv[1:])
NAMES = ["erm", "dapsam", "sam_decoder"]

def planned():
    return [r.fingerprint for r in plan.plan(FolderTask(discs), NAMES, sources=["dim"], results=results)]

def after(path, insert, at):  # the plan while a line stands before another one
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join([*lines[:at], insert, *lines[at:]]))
    found = planned()
    path.write_text(text)
    return found

whole = planned()
methods = [registry.get_method(name) for name in NAMES]
counted = reached("dgbench.running.worker:make", "dgbench.images.preparation:_build", *methods)
for module in sorted({module for module, _ in counted}):
    inside = module if ".methods." not in module else module.removeprefix("dgbench.")
    path = root / (inside.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    counting = [n for n in tree.body if (module, getattr(n, "name", "")) in counted]
    functions = [n for top in counting for n in ast.walk(top) if isinstance(n, ast.FunctionDef)]
    if functions:
        last = functions[-1].body[-1]
        noticed = after(path, " " * last.col_offset + "changed = 1\\n", last.lineno - 1) != whole
        print(module, "noticed" if noticed else "MISSED")
    first_import = next(n.lineno for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and n.lineno > 1)
    words = after(path, "import colorsys  # a remark\\n\\n'another docstring'\\n", first_import) == whole
    print(module, "kept" if words else "STALE")
print("end")
"""


def test_an_edit_of_any_file_that_computes_is_noticed_and_one_of_words_is_not(tmp_path, root):
    for folder in ("dgbench", "methods", "datasets"):
        shutil.copytree(root / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    discs = write_discs(tmp_path / "discs", cases=2)
    done = subprocess.run(
        [sys.executable, "-c", EDITS, str(tmp_path / "copy"), str(discs), str(tmp_path / "results")],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "copy"), "DGBENCH_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    *verdicts, end = done.stdout.splitlines()
    assert end == "end", done.stderr
    assert {v.split()[1] for v in verdicts} == {"noticed", "kept"}, done.stdout
    assert len(verdicts) >= 40


METHOD = '''"""A method."""
from dgbench.losses import dice_loss
from dgbench.method import Batch, Method
import torch.nn.functional as F
{imports}

WEIGHT = 2.0


class Mine(Method):
    """Mine."""

    def loss(self, batch: Batch):
        return WEIGHT * dice_loss(self.logits(batch.image), batch.mask) + {term}
'''


FINGERPRINTS = """
import os, sys
import torch  # once
from dgbench.fingerprint import of_code
for folder in sys.argv[1:]:
    if not os.fork():
        sys.path.insert(0, folder)
        from ward.mine import Mine
        print(of_code(Mine), flush=True)
        os._exit(0)
    os.wait()
"""


def fingerprints(folder: Path, packages: dict[str, dict[str, str]]) -> dict[str, str]:
    """Of a method in a package of its own, `ward`, each written in another way: {name: files without .py}."""
    for name, files in packages.items():
        for module, text in {"__init__": "", **files}.items():
            path = folder / name / "ward" / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    command = [sys.executable, "-c", FINGERPRINTS, *(str(folder / name) for name in packages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))


def test_words_spelling_and_place_do_not_count_and_what_is_imported_does(tmp_path):
    relu = "F.relu(batch.mask).mean()"
    plain = METHOD.format(imports="", term=relu)
    helper = "def term(x):\n    return x.mean()\n"
    used = METHOD.format(imports="from ward.shared import term", term="term(batch.mask)")
    other = helper.replace("mean", "sum")
    same = {
        "plain": plain,
        "imports": METHOD.format(imports="import json\nfrom dgbench import losses", term=relu),
        "words": plain.replace('"""Mine."""', '"""Yours."""  # ours') + "\n",
        "annotation": plain.replace("batch: Batch", "batch"),
        "alias": plain.replace("functional as F", "functional as f").replace("F.relu", "f.relu"),
        "spelling": plain.replace("losses import dice_loss", "losses import dice_loss as d").replace(
            "* dice_loss", "* d"
        ),
    }
    packages = {name: {"mine": text} for name, text in same.items()}
    packages |= {
        "constant": {"mine": plain.replace("2.0", "3.0")},
        "swapped": {"mine": plain.replace("import torch.nn.functional as F", "import torch as F")},
        "shared": {"mine": used, "shared": helper},
        "grown": {"mine": used, "shared": helper + "def unused():\n    return 1\n"},
        "renamed": {"mine": used.replace("ward.shared", "ward.parts"), "parts": f'"""Parts."""\n{helper}'},
        "moved": {"mine": METHOD.format(imports=helper, term="term(batch.mask)")},
        "edited": {"mine": used, "shared": other},
        "elsewhere": {"mine": used, "shared": "from ward.other import term\n", "other": other},
    }
    found = fingerprints(tmp_path, packages)
    assert len({found[name] for name in same}) == 1
    assert len({found[name] for name in ("shared", "grown", "renamed", "moved")}) == 1
    assert len({found[name] for name in ("plain", "constant", "swapped", "shared", "edited", "elsewhere")}) == 6


BESIDE = METHOD.format(imports="from beside_mine import term", term="term(batch.mask)")


def test_a_file_beside_a_plugin_counts_as_the_plugin_does(tmp_path, monkeypatch):
    """On Python's path as it is where a notebook runs; it is no package of the plug-in's and not of dgbench's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    beside, mine = tmp_path / "beside_mine.py", tmp_path / "mine.py"
    mine.write_text(BESIDE)
    beside.write_text("def term(x):\n    return x.mean()\n\n\ndef unused(x):\n    return x\n")
    registry.add_plugin(mine)
    before = of_code(registry.get_method("mine"))
    beside.write_text('"""Words."""\n\n\ndef term(x):\n    return x.mean()\n')
    assert of_code(registry.get_method("mine")) == before
    beside.write_text('"""Words."""\n\n\ndef term(x):\n    return x.amax()\n')
    assert of_code(registry.get_method("mine")) != before
    assert not {"torch", "numpy", "json"} & {module.partition(".")[0] for module, _ in all_reached()}


def test_an_edit_that_leaves_size_and_second_as_they_were_is_seen_in_the_same_process(tmp_path):
    """Python's own cache of compiled files knows a file by these two, and would compute with the old one."""
    mine, found = tmp_path / "mine.py", set()
    mine.touch()
    registry.add_plugin(mine)
    for weight in ("2.0", "3.0", "4.0"):
        mine.write_text(METHOD.format(imports="", term="0").replace("WEIGHT = 2.0", f"WEIGHT = {weight}"))
        os.utime(mine, (10**9, 10**9))
        cls = registry.get_method("mine")
        assert f"{sys.modules[cls.__module__].WEIGHT}" == weight
        found.add(of_code(cls))
    assert len(found) == 3


def test_a_file_that_a_setting_names_counts_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task, weights = FolderTask(write_discs(tmp_path / "discs", cases=2)), tmp_path / "weights.pth"

    def planned():
        settings = {"initialisation": str(weights)}
        return plan.plan(task, ["erm"], sources=["dim"], settings=settings, results=tmp_path)[0].fingerprint

    weights.write_bytes(b"some weights")
    before, status = planned(), weights.stat()
    assert planned() == before
    weights.write_bytes(b"more weights")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert planned() != before


def test_patients_and_further_metrics_count_where_a_task_names_them(tmp_path, monkeypatch):
    """Both are in the scores of a run: images of one patient are drawn together where intervals are made."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = FolderTask(write_discs(tmp_path / "discs", cases=2))

    def planned():
        return plan.plan(task, ["constant"], sources=["dim"], results=tmp_path)[0].fingerprint

    before = planned()
    monkeypatch.setattr(task, "group", lambda domain, case_id: "smith" if domain == "bright" else case_id)
    of_one_patient = planned()
    task.further_metrics = ["cldice"]
    assert len({before, of_one_patient, planned()}) == 3


def test_the_prepared_images_are_made_again_when_the_code_that_makes_them_changes(tmp_path, monkeypatch):
    task = FolderTask(write_discs(tmp_path / "discs", cases=2))
    first = prepare(task, "dim", 48, tmp_path / "cache").folder
    assert prepare(task, "dim", 48, tmp_path / "cache").folder == first
    monkeypatch.setattr("dgbench.images.preparation.code_fingerprint", lambda: "another")
    again = prepare(task, "dim", 48, tmp_path / "cache").folder
    assert again != first and again.name.rpartition("-")[2] == first.name.rpartition("-")[2]  # the same images
