"""LiteMedSAM's image encoder beside timm's own blocks with the same weights: seconds of the processor a step.

Run: OMP_NUM_THREADS=1 python benchmarks/tiny_vit.py [SIZE] [REPEATS]

`trained` is a step of the whole encoder, `adapted` one through frozen weights to something before them, `prediction`
the forward pass alone. The two take turns in one process, and time is that of the thread, not of the clock, so that
neighbours spoil both alike and little. Printed are the least of the repeats and the ratio of the least.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgbench.networks import tiny_vit

SIZE, SLICES, REPEATS = 128, 2, 5
THEIRS, OURS = "timm's", "ours"


def plain() -> nn.Module:
    """Out of timm's blocks as they come."""
    theirs = {ours: package for package, ours in tiny_vit.OURS.items()}
    net = tiny_vit.TinyViTEncoder(4)
    for module in net.modules():
        module.__class__ = theirs.get(type(module), type(module))
    return net


def step(net: nn.Module, image: Tensor) -> Tensor:
    net.zero_grad()
    out = net(image)
    out.square().mean().backward()
    return out


def prepare(net: nn.Module, kind: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    net.train(kind == "trained").requires_grad_(kind == "trained")
    return net, step if kind != "prediction" else torch.inference_mode()(nn.Module.__call__)


def main() -> None:
    size, repeats = [int(given) for given in (*sys.argv[1:], *(SIZE, REPEATS)[len(sys.argv) - 1 :])]
    torch.manual_seed(0)
    nets = {THEIRS: plain(), OURS: tiny_vit.TinyViTEncoder(4)}
    for net in nets.values():
        for key, parameter in net.named_parameters():
            if key.endswith(("conv3.bn.weight", "attention_biases")):  # 0 at the start, which hides what they weigh
                nn.init.normal_(parameter)
    nets[OURS].load_state_dict(nets[THEIRS].state_dict())
    print(
        f"LiteMedSAM's encoder, {size} px, batch {SLICES}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for kind in ("trained", "adapted", "prediction"):
        image = torch.rand(SLICES, 3, size, size).requires_grad_(kind == "adapted")
        least, outs = dict.fromkeys(nets, float("inf")), {}
        for repeat in range(repeats + 1):  # the first warms up
            for name in nets:
                net, act = prepare(nets[name], kind)
                start = time.process_time()
                outs[name] = act(net, image)
                if repeat:
                    least[name] = min(least[name], time.process_time() - start)
        apart = (outs[OURS] - outs[THEIRS]).abs().max().item()
        print(
            f"{kind:12}" + "".join(f"{name} {least[name]:6.2f} s   " for name in nets)
            + f"{least[THEIRS] / least[OURS]:.2f}x faster, at most {apart:.0e} apart", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
