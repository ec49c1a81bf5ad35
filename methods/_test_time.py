"""Adapting to test images: what every such method shares, over any trained network with batch norms.

The trained weights never change. What a method learns from test images lives in `stream`, beside the network's state,
and works inside `predict` only: no checkpoint holds it, and `forget`, which is called before each domain, drops it.

`adaptation=episodic` forgets before each case, so that a case's prediction depends on that case alone. `online` goes on
over the cases of a domain, in the task's order, which is that of the rows of cases.csv.
A case's slices are one batch. A volume of more than `slices_at_once` is parted evenly, for memory: learning holds the
network's activations of all slices of a part, as a training step does those of its batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.method import Hparams, Method
from dgbench.methods._batchnorm import Moments, blended, normalised_by, pooled
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class TestTimeHparams(Hparams):
    """When what was learned is forgotten, and how many slices are looked at together."""

    __test__ = False  # no tests for pytest to collect

    adaptation: Literal["episodic", "online"] = "episodic"
    slices_at_once: Annotated[int, Range(1)] = 32


@dataclass(frozen=True)
class BlendHparams(TestTimeHparams):
    """Besides, the share of the test images' statistics in the batch norms; 0: the source's alone."""

    blend: Annotated[float, Range(0, 1)] = 1.0


@dataclass(frozen=True)
class LearningHparams(BlendHparams):
    """Besides, the learning rate at test time; with 0 and `blend=0` nothing is adapted."""

    test_learning_rate: Annotated[float, Range(0)] = 1e-3


class AtTestTime(Method):
    """An idea over any `Method` with batch norms: its trained network, adapted to (N, 3, H, W) where it predicts."""

    hparams: TestTimeHparams
    adapts_in_testing = True
    only_predicts = True
    whole_case = True
    stream: dict[Any, Any]  # what was learned since the engine, or an episode, began anew

    def __init__(self, task: TaskInfo, hparams: Any):
        super().__init__(task, hparams)
        self.forget()
        if self.uses_target_masks:
            raise UsageError("an oracle is prompted and adapts to nothing", "put the idea over another method")
        if not self.norms():
            raise UsageError(
                f"{type(self).__name__} adapts batch norms, and this network has none",
                "choose a method, norm or encoder with batch norms: `--method erm+tent`, `--set norm=batch`",
            )

    def forget(self) -> None:
        """Everything that test images have taught."""
        self.stream = {}

    def norms(self) -> list[Any]:
        """The batch norms with running statistics, scale and shift, in the network's order."""
        norms = (m for m in self.modules() if isinstance(m, _BatchNorm))
        return [m for m in norms if m.track_running_stats and m.affine]

    def own(self, image: Tensor) -> Tensor:
        """What the method below predicts, (N, K, H, W) probabilities, with the batch norms as they are."""
        return super().predict(image)

    def predict(self, image: Tensor) -> Tensor:
        """All slices of one case, (N, 3, H, W) -> (N, K, H, W) probabilities."""
        if self.hparams.adaptation == "episodic":
            self.forget()
        parts = image.tensor_split(-(-len(image) // self.hparams.slices_at_once))
        return torch.cat([self.adapt(part).detach() for part in parts])

    def adapt(self, image: Tensor) -> Tensor:
        """The same for slices that are one batch, (N, 3, H, W); learns in `stream`."""
        raise NotImplementedError(f"{type(self).__name__} must write adapt(image)")

    def since_forgotten(self, key: Any, moments: Moments, count: int) -> Moments:
        """These moments of `count` images, pooled with all that were given under this key since `forget`."""
        before, kept = self.stream.get(key, (0, moments))
        both = pooled(kept, moments, count / (before + count))
        self.stream[key] = before + count, both
        return both

    @contextmanager
    def blending(self, share: float) -> Iterator[None]:
        """Inside, norms use the batch's statistics to that share; with 0 they are left alone, to the last bit."""
        norms = self.norms() if share else []
        with normalised_by(norms, lambda index, test: blended(norms[index], test, share)):
            yield

    @contextmanager
    def learning(self, norms: Sequence[Any]) -> Iterator[list[nn.Parameter]]:
        """Inside, these norms work with copies of scale and shift, kept in `stream`, which may be learned."""
        given = [(n.weight, n.bias) for n in norms]
        copies = self.stream.setdefault("learned", [[nn.Parameter(p.detach().clone()) for p in pair] for pair in given])
        try:
            for norm, pair in zip(norms, copies, strict=True):
                norm.weight, norm.bias = pair
            with torch.enable_grad():
                yield [p for pair in copies for p in pair]
        finally:
            for norm, pair in zip(norms, given, strict=True):
                norm.weight, norm.bias = pair


@in_float32
def entropy(probability: Tensor) -> Tensor:
    """Of what a pixel is, inside or outside of a structure, in nats: (N, K, H, W) -> the same, from 0 to ln 2."""
    p = probability.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log() + (1 - p) * (1 - p).log())
