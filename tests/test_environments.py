"""Where dgbench is installed, image, cluster, conda, CI, follows pyproject.toml, and takes nothing of a user along."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SUPPORTED = SpecifierSet(PROJECT["project"]["requires-python"])
PYTHONS = [f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in SUPPORTED]
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
APPTAINER = (ROOT / "apptainer.def").read_text()
CPU = "https://download.pytorch.org/whl/cpu"


def instructions(name: str) -> list[str]:
    """What follows the instructions of one name, in order."""
    return [line.partition(" ")[2] for line in DOCKERFILE if line.startswith(f"{name} ")]


def section(name: str) -> list[str]:
    """The lines of a section of the Apptainer definition."""
    found = re.search(rf"^%{name}\n((?:    .*\n|\n)*)", APPTAINER, re.MULTILINE)
    assert found, name
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def is_sent(path: str) -> bool:
    """Does .dockerignore let a file into an image? The last pattern that fits it or a folder above decides."""
    sent = True
    places = [path, *map(str, PurePosixPath(path).parents)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").rstrip("/")
        anywhere = pattern.startswith("**/") and pattern[3:] in PurePosixPath(path).parts
        if anywhere or any(p.count("/") == pattern.count("/") and fnmatchcase(p, pattern) for p in places):
            sent = line.startswith("!")
    return sent


def installed_files() -> list[str]:
    """All that a wheel is built from, relative to the checkout."""
    tools = PROJECT["tool"]["setuptools"]
    found = ["pyproject.toml", "README.md", "LICENSE"]
    for package in tools["packages"]:
        parent = ".".join(package.split(".")[:2])
        place = package.replace(parent, tools["package-dir"].get(parent, parent), 1).replace(".", "/")
        kinds = ["*.py", *tools["package-data"].get(package, [])]
        of_it = [p.relative_to(ROOT).as_posix() for kind in kinds for p in (ROOT / place).glob(kind)]
        assert of_it, package
        found += of_it
    return found


def test_the_image_gets_all_that_is_installed_and_nothing_that_a_user_made():
    assert [path for path in installed_files() if not is_sent(path)] == []
    users = ["results/phantom/sdg/erm/A-seed0/run.json", "results/mine.csv", "data/prostate/x.nii.gz", "scans/a/1.png"]
    for path in (*users, ".git/config", ".venv/bin/python", "dgbench/scores/__pycache__/study.pyc"):
        assert not is_sent(path), path


def test_the_image_copies_what_is_there_and_is_not_run_as_root():
    sources = [place for line in instructions("COPY") if "--from" not in line for place in shlex.split(line)[:-1]]
    assert {"constraints.txt", "dgbench", "methods", "datasets", "results"} <= set(sources)
    assert [place for place in sources if not (ROOT / place).exists()] == []
    (user,) = instructions("USER")
    assert user.isdigit() and int(user) > 0, "a number: some hosts look whether it is 0"
    assert instructions("ENTRYPOINT") == [json.dumps(list(PROJECT["project"]["scripts"]))]
    first, second = instructions("FROM")
    assert first == f"{second} AS build" and instructions("WORKDIR")[-1] == "/work"


def test_the_definition_for_clusters_installs_the_same_in_the_same_way():
    copied = [line.split()[0] for line in section("files")]
    assert all(list(ROOT.glob(place)) for place in copied)
    given = {str(p.relative_to(ROOT)) for place in copied for p in ROOT.glob(place)}
    assert [p for p in installed_files() if not given & {p, *map(str, PurePosixPath(p).parents)}] == []
    arguments = dict(line.split("=", 1) for line in section("arguments"))
    defaults = dict(line.split("=", 1) for line in instructions("ARG"))
    assert arguments == defaults and arguments["TORCH_INDEX"] == CPU
    (install,) = (line for line in section("post") if "pip install" in line)
    (same,) = (line for line in instructions("RUN") if "pip install" in line)
    assert re.sub(r"\{\{ (\w+) \}\}", r"${\1}", install) == same.partition(" && ")[2]
    assert arguments["PYTHON"] in PYTHONS
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert section("runscript") == ['exec dgbench "$@"']


def test_condas_environment_is_of_a_python_and_versions_that_are_tested():
    told = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, by_pip = told["dependencies"]
    assert python.removeprefix("python=") in PYTHONS and pip == "pip"
    assert by_pip["pip"] == ["--constraint constraints.txt", f"--extra-index-url {CPU}", ".[formats,dicom]"]


def test_every_python_is_named_wherever_pythons_are():
    assert [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if ":: 3." in c] == PYTHONS
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert workflow["tested"]["strategy"]["matrix"]["python"] == PYTHONS
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"python(3\.\d+)", makefile) == PYTHONS and f"< (3, {int(PYTHONS[-1][2:]) + 1})" in makefile
    first, last = PYTHONS[0], PYTHONS[-1]
    for page in (makefile, (ROOT / "README.md").read_text(), (ROOT / "docs/install.md").read_text()):
        assert re.search(rf"Python {re.escape(first)}\s+to\s+{re.escape(last)}\b", page)


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(r) for group in (PROJECT["project"]["dependencies"], *extras) for r in group]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_tested_version_is_one_that_is_allowed(requirement: Requirement):
    lines = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {re.sub("[-_.]+", "-", name).lower(): version for name, _, version in lines}
    assert pinned[re.sub("[-_.]+", "-", requirement.name).lower()] in requirement.specifier
