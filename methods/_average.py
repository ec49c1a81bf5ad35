"""The exponential moving average of a network's weights, which predicts in the place of the last ones.

Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM J. Control and Optimization 1992.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Average(nn.Module):
    """a <- d a + (1 - d) w after each step, d = min(decay, t / (t + 9)), t the steps before: at first the weights.

    So a short run, too, is averaged over its later part, and not with what the weights started from. Averaged are
    parameters and the running statistics of norms. They are buffers: this module's state, nothing to be trained.
    """

    steps: Tensor

    def __init__(self, net: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.zeros(()))
        for name, value in _weights(net):
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """After a step of the network's optimizer."""
        share = 1 - (self.steps / (self.steps + 9)).clamp(max=self.decay)
        for name, value in _weights(net):
            self.get_buffer(name.replace(".", "/")).lerp_(value, share)
        self.steps += 1

    def forward(self, net: nn.Module, *given: Any) -> Any:
        """What the network gives with the averaged weights in the place of its own."""
        own = {name: self.get_buffer(name.replace(".", "/")) for name, _ in _weights(net)}
        return functional_call(net, own, given)


def _weights(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in net.state_dict(keep_vars=True).items() if value.is_floating_point())
