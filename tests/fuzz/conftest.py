"""What all fuzzed inputs share: installed packages are looked through once, not for each of thousands of inputs."""

import functools
import importlib.metadata
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_is_installed_meanwhile() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", functools.cache(importlib.metadata.entry_points))
        yield
