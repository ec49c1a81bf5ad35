"""Makes torchvision importable beside a CPU-only torch. Import this before segment_anything or timm.

With a CPU-only torch the package index's torchvision wheel cannot load its compiled operators, and then `import
torchvision`, and with it timm and segment_anything, fails with "operator torchvision::nms does not exist": the package
describes the shapes of `nms` and `qnms` at import time even when they are not there. Nothing here calls these
operators, so declaring their schemas is enough. Where torchvision imports as it is, nothing is declared.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _import_torchvision() -> torch.library.Library | None:
    """The library that holds the declared schemas, None where none is needed. Any other import error is raised."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left half done
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    import torchvision  # noqa: F401

    return library


LIBRARY = _import_torchvision()  # kept alive: the schemas vanish with it
