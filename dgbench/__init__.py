"""dgbench: a benchmark suite for single-source domain generalization of medical image segmentation."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout methods/ and datasets/ lie beside this package, in a wheel inside it: one import path for both.
if not (Path(__file__).parent / "methods").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))
