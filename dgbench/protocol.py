"""What is held fixed so that two rows of a table may be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dgbench.errors import UsageError, require


@dataclass(frozen=True)
class Protocol:
    """Which slices count, at which resolution, in which unit, what a missed structure costs, how means are taken.

    Attributes
    ----------
    slices: trained on and tested: all of a volume, or only those whose reference mask is not empty.
    resolution: of the masks that are compared: the image's own (probabilities are resized back), or the network's.
    distances: in the image's spacing, or in voxels of the network's grid.
    missed: a missed or falsely found structure costs the image's diagonal, or makes the case NaN.
    mean: "domains": cases -> structures -> targets -> sources, each target equal; "cases": target cases pooled.
    budget: of a training: the task's number of steps, or what plain training for so many steps computes (FLOPs).
    """

    name: str
    slices: Literal["all", "foreground"]
    resolution: Literal["image", "network"]
    distances: Literal["physical", "voxel"]
    missed: Literal["penalty", "nan"]
    mean: Literal["domains", "cases"]
    metrics: tuple[str, ...]
    budget: Literal["steps", "compute"] = "steps"

    def caption(self) -> str:
        """The protocol in one sentence, for the foot of a table."""
        return (
            f"protocol {self.name}: "
            + {"all": "all slices", "foreground": "only slices whose reference mask is not empty"}[self.slices]
            + ", masks compared at "
            + {"image": "the image's own resolution", "network": "the network's resolution"}[self.resolution]
            + {"physical": ", distances by the image's spacing", "voxel": ", distances in voxels"}[self.distances]
            + {"penalty": ", a missed structure costs the image's diagonal", "nan": ", a missed structure is NaN"}[
                self.missed
            ]
            + {"domains": ", each target domain weighs the same", "cases": ", target cases pooled"}[self.mean]
            + ", weights of the last step"
            + {"steps": "", "compute": ", training may compute what plain training does"}[self.budget]
        )


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("sdg", "all", "image", "physical", "penalty", "domains", ("dice", "asd", "assd", "hd95")),
        # What the authors' released code computes, so that its published table has something to stand beside.
        Protocol("dapsam", "foreground", "network", "voxel", "nan", "cases", ("dice", "asd")),
    )
}
PROTOCOLS |= {f"{n}-compute": replace(p, name=f"{n}-compute", budget="compute") for n, p in PROTOCOLS.items()}
Budget = Literal["equal-steps", "equal-compute"]


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `UsageError`, which names all, for an unknown one."""
    return PROTOCOLS[require(name, list(PROTOCOLS), "protocol")]


def budgeted(name: str, budget: Budget | None) -> str:
    """The name of the protocol with another budget; None: its own. Raises `UsageError` for one that has another."""
    protocol = get_protocol(name)
    if budget is None or budget.removeprefix("equal-") == protocol.budget:
        return name
    if protocol.budget == "compute":
        raise UsageError(f"protocol {name} is one of equal compute", "leave --budget out, or name another protocol")
    return f"{name}-compute"
