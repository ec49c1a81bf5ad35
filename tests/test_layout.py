"""The house keeps its shape: who may import whom, what the engine may know, where a file belongs."""

from __future__ import annotations

import ast
import csv
import math
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgbench.registry import METHODS, TASKS, published_files

ROOT = Path(__file__).resolve().parent.parent
ENGINE = sorted((ROOT / "dgbench").rglob("*.py"))
PLUGINS = sorted([*(ROOT / "methods").glob("*.py"), *(ROOT / "datasets").glob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# A room may import itself and the rooms named here; "contract" is what lies in dgbench/ itself.
MAY_IMPORT = {
    "contract": set(),
    "images": {"contract"},
    "networks": {"contract"},
    "running": {"contract", "images", "networks"},
    "scores": {"contract", "images", "networks", "running"},
    "pages": {"contract", "images", "networks", "running", "scores"},
    "cli": {"contract", "images", "networks", "running", "scores", "pages"},
}
FOR_METHODS = {"contract", "networks"}
FOR_TASKS = {"contract", "images"}


def room_of(module: str) -> str:
    """`dgbench.scores.study` -> "scores", `dgbench.task` -> "contract"; the face and the command line are one room."""
    _, first, *rest = [*module.split("."), ""]
    if first in ("cli", "__main__", "face"):
        return "cli"
    assert first in MAY_IMPORT or not any(rest), f"{module}: '{first}' is no room, give it its place in MAY_IMPORT"
    return first if first in MAY_IMPORT else "contract"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """All modules a file imports, at its top or inside a function: `from dgbench import data` is dgbench.data."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: write dgbench...."
            if str(node.module).partition(".")[0] == "dgbench":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def modules() -> set[str]:
    return {module_of(p) for p in ENGINE}


def ours(path: Path) -> set[str]:
    """Our own modules that a file imports, plug-ins among them."""
    known = modules()
    found = set()
    for name in imports(path):
        if name.startswith(("dgbench.methods.", "dgbench.datasets.")):
            found.add(".".join(name.split(".")[:3]))
        elif name == "dgbench" or name.startswith("dgbench."):
            while name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


@pytest.mark.parametrize("path", ENGINE, ids=module_of)
def test_a_room_imports_only_the_rooms_below_it_and_never_a_plugin(path: Path):
    room = room_of(module_of(path))
    for name in ours(path):
        assert not name.startswith(("dgbench.methods", "dgbench.datasets")), f"{path} imports {name}: use the registry"
        assert room_of(name) in {room} | MAY_IMPORT[room], f"{path} -> {name}"


def test_no_module_imports_itself_by_way_of_another():
    above = {module_of(p): ours(p) & modules() - {"dgbench"} for p in ENGINE}

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in cleared:
            for other in above[name] - {name}:
                walk(other, (*way, name))
            cleared.add(name)

    cleared: set[str] = set()
    for name in sorted(above):
        walk(name, ())


def test_metrics_and_statistics_stand_alone():
    for path in (ROOT / "dgbench/metrics.py", ROOT / "dgbench/scores/statistics.py"):
        assert ours(path) <= {"dgbench.errors"}, path


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_plugin_imports_its_rooms_and_at_most_one_baseline(path: Path):
    family = {n for n in ours(path) if n.startswith(("dgbench.methods.", "dgbench.datasets."))}
    for name in ours(path) - family:
        rooms = FOR_METHODS if path.parent.name == "methods" else FOR_TASKS
        assert room_of(name) in rooms and name != "dgbench.registry", f"{path} imports {name}"
    assert all(n.startswith(f"dgbench.{path.parent.name}.") for n in family), f"{path} imports the other kind"
    bases = [n for n in family if "._" not in n]
    assert len(bases) <= 1, f"{path} derives from {bases}: from one baseline at most"
    for base in bases:
        above = ours(ROOT / (base.removeprefix("dgbench.").replace(".", "/") + ".py"))
        deeper = [n for n in above if n.startswith(("dgbench.methods.", "dgbench.datasets.")) and "._" not in n]
        assert not deeper, f"{path} derives from {base}, which derives from {deeper}: one level only"


def test_nothing_imports_our_folders_as_modules_of_their_own():
    """A user may have a package `datasets` installed: ours are reached as dgbench.datasets only."""
    for path in [*ENGINE, *PLUGINS, *TESTS, *ROOT.glob("benchmarks/*.py")]:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & {"methods", "datasets", "results"}, path


@pytest.mark.parametrize("path", ENGINE, ids=module_of)
def test_the_engine_knows_no_method_and_no_task_by_name(path: Path):
    """Neither as a value nor in a name. Protocols and layouts may be called as what they were made for; padding has a
    mode."""
    from dgbench.face import Layout
    from dgbench.protocol import PROTOCOLS

    known = {*METHODS.names(), *TASKS.names()} - {*PROTOCOLS, *typing.get_args(Layout)}
    tree = parsed(path)
    modes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "mode"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in modes:
            assert node.value not in known, f"dgbench/{path.name}:{node.lineno} knows '{node.value}'"
        name = node.id if isinstance(node, ast.Name) else node.name if isinstance(node, ast.ClassDef) else ""
        assert name.lower() not in known, f"dgbench/{path.name}:{getattr(node, 'lineno', 0)} knows {name}"


def test_the_command_line_starts_without_what_is_slow_to_import():
    slow = {"torch", "torchvision", "timm", "segment_anything", "pandas", "matplotlib", "scipy", "nibabel", "medpy"}
    code = f"import sys, dgbench.cli, dgbench.registry as r; r.METHODS.names(); print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_file_says_what_it_is_for():
    for path in [*ENGINE, *PLUGINS, *TESTS, *ROOT.glob("benchmarks/*.py")]:
        assert ast.get_docstring(parsed(path)) or path.stat().st_size == 0, f"{path.relative_to(ROOT)} has no docstring"


def test_a_method_is_short_enough_to_be_read():
    """The flagship, which follows its authors' code in every detail, may take twice as long as all others."""
    for path in ROOT.glob("methods/*.py"):
        limit = 300 if path.stem == "dapsam" else 155
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, f"{path.name} is longer than {limit} lines"


def test_no_room_is_named_for_nothing():
    """Words of other fields, and names that say nothing, stay out of file names and of what we define."""
    foreign = {"env", "algorithm", "solver", "trainer", "fold", "objective"}
    empty = {"utils", "util", "common", "core", "helpers", "misc", "base"}
    for path in [*ENGINE, *PLUGINS]:
        assert path.stem.strip("_") not in empty | foreign, path
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                words = set(node.name.lower().split("_"))
            elif isinstance(node, ast.arg):
                words = set(node.arg.split("_"))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                words = set(node.id.lower().split("_"))
            else:
                continue
            assert not words & foreign, f"{path.name}:{node.lineno}: {words & foreign}"


def test_no_committed_file_is_large():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert paths
    large = [str(p.relative_to(ROOT)) for p in paths if p.is_file() and p.stat().st_size > 1_000_000]
    assert not large


@pytest.mark.parametrize("path", published_files(), ids=lambda p: p.stem)
def test_every_published_number_can_be_looked_up(path: Path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    what = ["task", "method", "source", "target", "structure", "metric"]
    seen = set()
    for row in rows:
        assert list(row) == [*what, "value", "citation", "table_or_page", "protocol", "note"]
        assert "https://" in row["citation"] and row["protocol"]
        assert all(row[column] for column in what)
        value = float(row["value"])
        assert math.isfinite(value) and value >= 0
        assert row["metric"] != "dice" or value <= 1, "Dice is a fraction"
        key = tuple(row[column] for column in (*what, "note"))
        assert key not in seen, f"twice: {key}"
        seen.add(key)
