"""The built wheel is whole: tried by itself, away from the checkout, as a user installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

BUILD = "from setuptools.build_meta import *; print(build_sdist('out'), build_wheel('out'), sep='\\n')"


def built(source: Path) -> tuple[Path, Path]:
    """The source distribution and the wheel that are built of a folder."""
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    sdist, wheel = done.stdout.splitlines()[-2:]
    return source / "out" / sdist, source / "out" / wheel


@pytest.fixture(scope="module")
def sdist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in which somebody made a run, so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source") / "checkout"
    hidden = (".git", ".venv", ".*cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info", "data")
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*hidden), symlinks=True)
    (copy / "results/phantom/sdg/erm/A-seed0").mkdir(parents=True, exist_ok=True)
    (copy / "results/phantom/sdg/erm/A-seed0/run.json").write_text("{}")
    return built(copy)[0]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as an installer does that finds no wheel."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return built(source)[1]


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
    tables = [f"published/*.{ending}" for ending in ("csv", "csv.gz", "json")]
    for kind in ("scores-*.tar.xz", "leaderboard-*", *tables):
        files = {f"dgbench/results/{p.relative_to(root / 'results')}" for p in (root / "results").glob(kind)}
        assert files and files <= names
    assert not any(name.startswith("dgbench/results/phantom") for name in names), "a run of whoever built it"


def test_the_source_distribution_is_the_whole_checkout_and_gives_the_same_wheel(sdist: Path, wheel: Path, root: Path):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert not any(name.startswith("results/phantom") for name in names), "a run of whoever built it"
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    assert set(tracked.stdout.splitlines()) - {".gitignore"} <= names
    (direct,) = (sdist.parent).glob("*.whl")
    one, other = zipfile.ZipFile(wheel), zipfile.ZipFile(direct)
    assert {n: one.read(n) for n in one.namelist()} == {n: other.read(n) for n in other.namelist()}


def test_distributions_stay_small(sdist: Path, wheel: Path):
    assert wheel.stat().st_size < 4e6 and sdist.stat().st_size < 6e6, "most of it are the scores of every case"


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


def test_the_installed_command_line_shows_the_board_that_comes_with_it_where_no_run_was_made(installed: Path):
    shown = python(installed, "-m", "dgbench", "leaderboard", "--task", "phantom", "--against", "erm", "--format", "md")
    assert "| freesdg | 1 | **65.75** |" in shown
    assert "No finished run of task phantom under protocol sdg in results: these come with dgbench." in shown


def test_our_folders_are_no_modules_of_their_own(installed: Path):
    code = "import importlib.util as u; print([n for n in ('methods', 'results', 'published') if u.find_spec(n)])"
    assert python(installed, "-c", code).strip() == "[]"


@pytest.mark.parametrize("first", ["dgbench.methods()", "import dgbench.methods.erm"])
def test_the_installed_package_of_methods_also_lists_them(installed: Path, first: str):
    code = f"import dgbench\n{first}\nimport dgbench.methods.erm\nprint('erm' in dgbench.methods().index)"
    assert python(installed, "-c", code).strip() == "True"
