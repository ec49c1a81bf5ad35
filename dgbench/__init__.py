"""dgbench: a benchmark suite for single-source domain generalization of medical image segmentation.

`run`, `status`, `leaderboard`, `compare`, `multiverse`, `report`, `score`, `export`, `submit`, `review`, `merge`,
`site`, `methods` and `tasks` do what the commands of these names do, `import_scores` what `dgbench import` does; see
`dgbench.face`. Nothing slow is imported before one is called.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

FACE = (
    "compare", "export", "import_scores", "leaderboard", "merge", "methods", "multiverse", "report", "review", "run",
    "score", "site", "status", "submit", "tasks",
)  # fmt: skip

# In a checkout methods/ and datasets/ lie beside this package, in a wheel inside it: one import path for both.
if not (Path(__file__).parent / "methods").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))


class _MethodsPackage(ModuleType):
    """The package of methods, which lists them when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("dgbench.face").methods(*arguments, **options)


# `dgbench.methods` is the package that methods are imported from and the function that lists them. An import would put
# the package in the function's place whenever it came second, so that one object has to be both. The package holds a
# docstring only: importing it here costs nothing.
importlib.import_module("dgbench.methods").__class__ = _MethodsPackage


def __getattr__(name: str) -> Any:
    if name in FACE:  # by name: the contract, which this file is a part of, may not import the rooms above it
        return getattr(importlib.import_module("dgbench.face"), name)
    raise AttributeError(f"module 'dgbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *FACE})
