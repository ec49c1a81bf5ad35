"""The built wheel is whole: tried by itself, away from the checkout, as a user installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in ("dgbench", "methods", "datasets", "results/published"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content and nothing else of ours."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def python(installed: Path, *arguments: str) -> str:
    """Run Python far from the checkout; the wheel's dgbench comes first, whatever else is installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_installs_one_module_and_its_licence(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"dgbench"}
    assert any(n.endswith("/LICENSE") for n in names) and "dgbench/py.typed" in names


def test_the_wheel_holds_every_file_of_the_engine_and_every_plugin(wheel: Path, root: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("dgbench", "dgbench"), ("methods", "dgbench/methods"), ("datasets", "dgbench/datasets")):
        every = [p.relative_to(root / folder) for p in (root / folder).rglob("*.*") if "__pycache__" not in p.parts]
        files = {f"{inside}/{p.as_posix()}" for p in every}
        assert folder != "dgbench" or {"dgbench/scores/study.py", "dgbench/pages/tables.md.jinja"} <= files
        assert files <= names, f"not in the wheel: {files - names}"
    for kind in ("*.csv", "*.csv.gz", "*.json"):
        tables = {f"dgbench/published/{p.name}" for p in (root / "results" / "published").glob(kind)}
        assert tables and tables <= names


def test_the_installed_wheel_finds_methods_tasks_and_published_numbers(installed: Path, root: Path):
    code = (
        "import dgbench, dgbench.registry as r\n"
        "print(dgbench.__file__)\n"
        "print(*(n for n, p in r.METHODS.plugins().items() if p.origin == 'dgbench'))\n"
        "print(*(n for n, p in r.TASKS.plugins().items() if p.origin == 'dgbench'))\n"
        "print(*(p.name for p in r.published_files()))\n"
        "print(r.get_method('erm').__module__)\n"
    )
    where, methods, tasks, published, module = python(installed, "-c", code).splitlines()
    assert Path(where).is_relative_to(installed)
    assert methods.split() == sorted(p.stem for p in (root / "methods").glob("[!_]*.py"))
    assert tasks.split() == sorted(p.stem for p in (root / "datasets").glob("[!_]*.py"))
    assert published.split() == sorted(p.name for p in (root / "results" / "published").glob("*.csv"))
    assert module == "dgbench.methods.erm"


def test_the_installed_command_line_lists_and_writes_methods(installed: Path, tmp_path: Path):
    listed = python(installed, "-m", "dgbench", "list", "methods")
    assert "erm" in listed and "broken" not in listed
    python(installed, "-m", "dgbench", "new", "my_method", "--folder", str(tmp_path))
    assert "class MyMethod(ERM)" in (tmp_path / "my_method.py").read_text()


def test_our_folders_are_no_modules_of_their_own(installed: Path):
    code = "import importlib.util as u; print([n for n in ('methods', 'results', 'published') if u.find_spec(n)])"
    assert python(installed, "-c", code).strip() == "[]"


@pytest.mark.parametrize("first", ["dgbench.methods()", "import dgbench.methods.erm"])
def test_the_installed_package_of_methods_also_lists_them(installed: Path, first: str):
    code = f"import dgbench\n{first}\nimport dgbench.methods.erm\nprint('erm' in dgbench.methods().index)"
    assert python(installed, "-c", code).strip() == "True"
