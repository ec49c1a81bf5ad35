"""A method's network by torch's compiler: fewer and larger kernels, other rounding, the same arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.method import Method


def check_compiler(device: str) -> None:
    """Compile one line. Raises `UsageError` where that fails: a CPU needs a C++ compiler, a GPU needs Triton."""
    try:
        torch.compile(_line)(torch.zeros(2, device=device))
    except Exception as error:  # each part of the compiler has errors of its own
        needed = "Triton (pip install triton)" if device.startswith("cuda") else "a C++ compiler (g++)"
        cause = next(iter(str(error).split("\n")), "").strip() or type(error).__name__
        raise UsageError(
            f"torch cannot compile for {device} here: {cause}", f"install {needed}, or leave --compile out"
        ) from None


def _line(x: Tensor) -> Tensor:
    return x.sin() + 1


def compile_network(method: Method) -> bool:
    """Have `logits` compiled at its first call; False for a method that writes loss and predict without it."""
    if type(method).logits is Method.logits:
        return False
    method.logits = torch.compile(method.logits)  # type: ignore[method-assign]
    return True
