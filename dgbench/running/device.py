"""Where a run computes: the choice of a device, how it is made deterministic, and what it costs there."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dgbench.errors import UsageError


def choose_device(name: str) -> str:
    """The device to use: `auto` is CUDA where there is one, else the CPU. Raises `UsageError` for one that fails."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif not (device.index or 0) < (count := torch.cuda.device_count()):  # without a context, which takes memory
            raise RuntimeError(f"PyTorch sees {count} GPUs here" if count else "PyTorch sees no GPU here")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}", "try --device cpu") from None
    return name


def all_devices(name: str) -> list[str]:
    """What `name` stands for: `cuda` for every GPU that CUDA_VISIBLE_DEVICES leaves, any other for one device."""
    chosen = choose_device(name)
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if chosen == "cuda" else [chosen]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside: quicker on small images and on a busy machine, and it adds in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_deterministic(device: str) -> set[str]:
    """Have this process compute the same on the same machine every time; call it before CUDA is used.

    On a GPU torch has no such algorithm for some operators, which then compute as they do: of those that are used here
    the gradients of bilinear and bicubic interpolation, of `grid_sample`, of adaptive pooling, and of padding that
    repeats or reflects, and the sums of `cumsum`. Their names are added to the set that is returned as they are met.
    """
    warned: set[str] = set()
    if device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
        _note_nondeterministic(warned)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # Or every new tensor is filled, in case someone reads it unwritten: nobody does, and it costs 7 to 9 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    return warned


def _note_nondeterministic(warned: set[str]) -> None:
    """From now on, what torch warns of as not deterministic is noted in place of being shown."""
    show = warnings.showwarning

    def note(message: Warning | str, *where: Any, **more: Any) -> None:
        name, found, _ = str(message).partition(" does not have a deterministic implementation")
        if found:
            warned.add(name)
        else:
            show(message, *where, **more)

    warnings.showwarning = note


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
