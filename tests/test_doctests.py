"""An example in a docstring shows what it says: all of them are run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATHS = [p for top in ("dgbench", "methods", "datasets") for p in sorted((ROOT / top).rglob("*.py"))]
WITH_EXAMPLES = [p for p in PATHS if ">>> " in p.read_text(encoding="utf-8")]


def examples(path: Path) -> doctest.TestResults:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return doctest.testmod(importlib.import_module(name if name.startswith("dgbench") else f"dgbench.{name}"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_examples_of_a_file_give_what_they_show(path: Path):
    failed, tried = examples(path)
    assert tried and not failed
