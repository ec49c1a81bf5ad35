"""The house keeps its shape: who may import whom, what the engine may know, where a file belongs."""

from __future__ import annotations

import ast
import csv
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgbench.registry import METHODS, TASKS, published_files

ROOT = Path(__file__).resolve().parent.parent
ENGINE = sorted((ROOT / "dgbench").glob("*.py"))
PLUGINS = sorted([*(ROOT / "methods").glob("*.py"), *(ROOT / "datasets").glob("*.py")])

# A module of the engine may import only those before it. A new one is given its place here.
ORDER = (
    *("errors", "task", "losses", "method", "keyed", "files", "protocol", "metrics", "weights", "torchvision_ops"),
    *("nets", "embeddings", "tiny_vit", "sam", "images", "augment", "registry", "folder", "data", "train", "evaluate"),
    *("records", "runs", "verify", "launch", "reproduce", "apply"),
    *("explain", "statistics", "tables", "published", "leaderboard", "compare"),
    *("plots", "figures", "shift", "sheets", "present", "listing", "report", "check", "new", "cli", "__main__"),
)
FOR_PLUGINS = ORDER[: ORDER.index("registry")]
# A task may be named by the path of a folder, and only the registry turns names into tasks.
AGAINST_THE_ORDER = {("registry", "folder")}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """All modules a file imports, at its top or inside a function: `from dgbench import data` is dgbench.data."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively: write dgbench...."
            packages = ("dgbench", "dgbench.methods", "dgbench.datasets")
            if node.module in packages:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def ours(path: Path) -> set[str]:
    return {name.removeprefix("dgbench.") for name in imports(path) if name.startswith("dgbench.")}


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.stem)
def test_the_engine_imports_in_one_direction_and_never_a_plugin(path: Path):
    if path.stem == "__init__":
        assert not ours(path)
        return
    assert path.stem in ORDER, f"give dgbench/{path.name} its place in ORDER"
    for name in ours(path):
        assert not name.startswith(("methods", "datasets")), f"{path.name} imports {name}: go through the registry"
        if (path.stem, name) not in AGAINST_THE_ORDER:
            assert ORDER.index(name) < ORDER.index(path.stem), f"{path.name} imports {name}, which comes after it"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_plugin_imports_the_lower_engine_and_at_most_one_baseline(path: Path):
    family = [n for n in ours(path) if n.startswith(("methods.", "datasets."))]
    for name in ours(path) - set(family):
        assert name in FOR_PLUGINS, f"{path} imports dgbench.{name}, which is made of plug-ins"
    assert all(n.startswith(path.parent.name + ".") for n in family), f"{path} imports the other kind of plug-in"
    bases = [n for n in family if not n.partition(".")[2].startswith("_")]
    assert len(bases) <= 1, f"{path} derives from {bases}: from one baseline at most"
    for base in bases:
        above = ours(ROOT / (base.replace(".", "/") + ".py"))
        deeper = [n for n in above if n.startswith(("methods.", "datasets.")) and "._" not in n]
        assert not deeper, f"{path} derives from {base}, which derives from {deeper}: one level only"


def test_nothing_imports_our_folders_as_modules_of_their_own():
    """A user may have a package `datasets` installed: ours are reached as dgbench.datasets only."""
    for path in [*ENGINE, *PLUGINS, *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & {"methods", "datasets", "results"}, path


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.stem)
def test_the_engine_knows_no_method_and_no_task_by_name(path: Path):
    """Neither as a value nor in a name. A protocol may be called as the method it was made for; padding has a mode."""
    from dgbench.protocol import PROTOCOLS

    known = {*METHODS.names(), *TASKS.names()}
    tree = parsed(path)
    modes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "mode"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in modes:
            assert node.value not in known - set(PROTOCOLS), f"dgbench/{path.name}:{node.lineno} knows '{node.value}'"
        name = node.id if isinstance(node, ast.Name) else node.name if isinstance(node, ast.ClassDef) else ""
        assert name.lower() not in known, f"dgbench/{path.name}:{getattr(node, 'lineno', 0)} knows {name}"


def test_the_command_line_starts_without_what_is_slow_to_import():
    slow = {"torch", "torchvision", "timm", "segment_anything", "pandas", "matplotlib", "scipy", "nibabel", "medpy"}
    code = f"import sys, dgbench.cli, dgbench.registry as r; r.METHODS.names(); print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_file_says_what_it_is_for():
    for path in [*ENGINE, *PLUGINS, *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert ast.get_docstring(parsed(path)) or path.stat().st_size == 0, f"{path.relative_to(ROOT)} has no docstring"


def test_a_method_is_short_enough_to_be_read():
    """The flagship, which follows its authors' code in every detail, may take twice as long as all others."""
    for path in ROOT.glob("methods/*.py"):
        limit = 300 if path.stem == "dapsam" else 150
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
