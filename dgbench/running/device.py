"""Where a run computes: the choice of a device, how it is made deterministic, and what it costs there."""

from __future__ import annotations

import sys

import torch

from dgbench.errors import UsageError


def choose_device(name: str) -> str:
    """The device to use: `auto` is CUDA where there is one, else the CPU. Raises `UsageError` for one that fails."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}", "try --device cpu") from None
    return name


def make_deterministic(device: str) -> None:
    """Have this process compute the same on the same machine every time."""
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # Or every new tensor is filled, in case someone reads it unwritten: nobody does, and it costs 7 to 9 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def bfloat16_here() -> dict[str, str]:
    """Is `precision=bfloat16` fast here, in words: {"processor" or a GPU's name: words}."""
    told = {"processor": _bfloat16_of_processor()}
    for i in range(torch.cuda.device_count()):
        fast = torch.cuda.get_device_capability(i) >= (8, 0)
        told[torch.cuda.get_device_name(i)] = "fast" if fast else "emulated, slower than float32"
    return told


def _bfloat16_of_processor() -> str:
    if torch.cpu._is_amx_tile_supported():
        return "fast (AMX)"
    if torch.cpu._is_avx512_bf16_supported():
        return "in hardware (AVX512_BF16, no AMX)"
    return f"emulated, slower than float32 ({torch.backends.cpu.get_cpu_capability()}; no AMX, no AVX512_BF16)"


def peak_memory_mb(device: str) -> float:
    """The most memory this process has had: on the GPU if it computes there, else in all. NaN where it is not known."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
