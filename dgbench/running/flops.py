"""What a training step and a predicted image cost in floating-point operations: a count, the same on every machine.

Counted are matrix products, convolutions and attention (as its two products, whatever kernel computes it), a
multiplication and an addition as two, as `torch.utils.flop_counter` does; what is done point by point (norms,
activations, augmentation, optimizers) is not. The method is built anew for it, on the CPU and on a drawn batch, so
that no run is touched. Where arithmetic would take long, shapes alone are followed, on the meta device; a method
that reads values cannot be followed there and computes in any case.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgbench.files import cache_folder, make_folder, read_json, write_json
from dgbench.fingerprint import of_code
from dgbench.method import Batch, Hparams, Method
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.running import train
from dgbench.seeding import key
from dgbench.settings import plain
from dgbench.task import TaskInfo

VERSION = 1  # of what is counted: another one counts anew
QUICK = 2**16  # pixels of a batch up to which computing takes no longer than following shapes
STEPS = 8  # whose mean is taken where a step's cost is drawn at random


def train_step(cls: type[Method], info: TaskInfo, hparams: Hparams) -> int:
    """FLOPs of one `update` on a batch of `hparams.batch_size`, forward and backward; the mean where it is drawn.

    Every image holds every structure. Embeddings that are kept on disk cost nothing: of all steps with an image, only
    the first computes them.
    """

    def count(device: str) -> int:
        method = _built(cls, info, hparams, device, pretrained=True)
        batch, kept = _batch(method, hparams.batch_size, device), _keep_embeddings(method)
        train.configure(method)
        method.train()
        if kept:
            _counted(lambda: method.update(batch), 0)
        found = [_counted(lambda: method.update(batch), t) for t in range(2)]
        if found[0] != found[1]:
            found += [_counted(lambda: method.update(batch), t) for t in range(2, STEPS)]
        return round(fmean(found))

    return _once("step", cls, info, hparams, hparams.batch_size, count)


def predict_image(cls: type[Method], info: TaskInfo, hparams: Hparams, pretrained: bool = True) -> int:
    """FLOPs of predicting one image that was never seen before, after one step on two others."""

    def count(device: str) -> int:
        method = _built(cls, info, hparams, device, pretrained)
        _keep_embeddings(method)
        train.configure(method)
        method.train()
        _counted(lambda: method.update(_batch(method, 2, device)), 0)
        _keep_embeddings(method)
        image, mask = _batch(method, 1, device)
        method.eval().requires_grad_(False)
        with torch.no_grad():
            if method.uses_target_masks:
                return _counted(lambda: method.predict_prompted(image, mask), 0)
            return _counted(lambda: method.predict(image), 0)

    return _once("image" if pretrained else "image of given weights", cls, info, hparams, 1, count)


def costs(cls: type[Method], info: TaskInfo, hparams: Hparams, steps: int) -> dict[str, int]:
    """What run.json says: FLOPs of a step, of all `steps` (0: given weights), of a predicted image, as far as known.

    A method that fails on a drawn batch has none, and no run is lost for it.
    """
    found: dict[str, int] = {}
    with contextlib.suppress(Exception):
        found["train_step_flops"] = train_step(cls, info, hparams) if steps else 0
        found["train_flops"] = steps * found["train_step_flops"]
    with contextlib.suppress(Exception):
        found["predict_image_flops"] = predict_image(cls, info, hparams, pretrained=steps > 0)
    return found


# --- how it is counted -----------------------------------------------------------------------------------------------


def _once(
    what: str, cls: type[Method], info: TaskInfo, hparams: Hparams, images: int, count: Callable[[str], int]
) -> int:
    """The count, kept in the cache folder by all that decides it."""
    decisive = [VERSION, torch.__version__, what, of_code(cls), [c.__name__ for c in cls.__mro__]]
    decisive += [info.structures, info.image_size, plain(replace(hparams, steps=None))]
    name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
    path = make_folder(cache_folder() / "flops") / f"{name}.json"
    known = (read_json(path) or {}).get("flops")
    if isinstance(known, int):
        return known
    with torch.random.fork_rng(devices=()):
        found = _count(count, images * (hparams.image_size or info.image_size) ** 2)
    write_json(path, {"flops": found})
    return found


def _count(count: Callable[[str], int], pixels: int) -> int:
    if pixels > QUICK:
        with contextlib.suppress(Exception):  # it reads values, in one of the many ways that the meta device refuses
            return count("meta")
    return count("cpu")


def _counted(call: Callable[[], object], t: int) -> int:
    """FLOPs of a call, whose draws are those of step t."""
    torch.manual_seed(key(0, "step", t))
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _WholeStep()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops()


class _WholeStep(contextlib.nullcontext[None]):
    """In the place of torch's tracker of modules, whose hooks refuse a gradient that a step takes of a leaf."""

    parents = ("Global",)


def _built(cls: type[Method], info: TaskInfo, hparams: Hparams, device: str, pretrained: bool) -> Method:
    with torch.device(device):
        return train.build(cls, info, hparams, 0, device, pretrained)[0]


def _batch(method: Method, images: int, device: str) -> Batch:
    """Noise, and in the middle of every image each structure."""
    side = method.image_size
    image = torch.rand(images, 3 * (2 * method.neighbours + 1), side, side, device=device)
    mask = torch.zeros(images, len(method.task.structures), side, side, device=device)
    mask[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return Batch(image, mask)


class _Kept:
    """As an `EmbeddingCache`, in memory and for one batch of each size."""

    def __init__(self) -> None:
        self.known: dict[torch.Size, Tensor] = {}

    def __call__(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        if image.shape not in self.known:
            with torch.no_grad():
                self.known[image.shape] = compute(image)
        return self.known[image.shape]


def _keep_embeddings(method: Method) -> bool:
    """Put an empty `_Kept` in the place of every cache; was there any?"""
    names = [name for name, value in vars(method).items() if isinstance(value, EmbeddingCache | _Kept)]
    for name in names:
        setattr(method, name, _Kept())
    return bool(names)
