"""What is held fixed so that two rows of a table may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from dgbench.errors import UsageError, require


@dataclass(frozen=True)
class Protocol:
    """Which slices count, at which resolution, in which unit, what a missed structure costs, how means are taken.

    Attributes
    ----------
    slices: trained on and tested: all of a volume, or only those whose reference mask is not empty.
    resolution: of the masks that are compared: the image's own (probabilities are resized back), or the network's.
    distances: in the image's spacing, or in voxels of the network's grid.
    missed: a missed structure costs the image's diagonal, and one falsely found the same, beside the mean over those
        that are there; or both make the mean NaN.
    mean: "domains": cases -> structures -> targets -> sources, each target equal; "cases": target cases pooled.
    selection: which weights are tested: those of the last step, or those with the best mean Dice on the source's
        validation cases, of `every` so many steps; of equal ones the earliest.
    steps, batch_size: of a run whose settings do not say otherwise; None: the method's own.
    beside: the published scores that runs of it may stand beside, and what differs all the same.
    budget: of a training: so many steps, or what plain training for the task's steps computes (FLOPs).
    folds: 0: trained on a source and tested on the other domains; else trained inside each domain on all but one of so
        many folds of its groups, and tested on that one: a bound, which is never ranked.
    """

    name: str
    slices: Literal["all", "foreground"]
    resolution: Literal["image", "network"]
    distances: Literal["physical", "voxel"]
    missed: Literal["penalty", "nan"]
    mean: Literal["domains", "cases"]
    metrics: tuple[str, ...]
    selection: Literal["last", "best-on-source"] = "last"
    every: int = 0
    steps: int | None = None
    batch_size: int | None = None
    beside: str = ""
    budget: Literal["steps", "compute"] = "steps"
    folds: int = 0

    @property
    def training(self) -> dict[str, Any]:
        """The hyperparameters that it fixes."""
        fixed = {"steps": self.steps, "batch_size": self.batch_size}
        return {name: value for name, value in fixed.items() if value is not None}

    def caption(self) -> str:
        """The protocol in one sentence, for the foot of a table."""
        return (
            f"protocol {self.name}: "
            + (f"trained inside the target, on all but the tested one of {self.folds} folds, " if self.folds else "")
            + {"all": "all slices", "foreground": "only slices whose reference mask is not empty"}[self.slices]
            + ", masks compared at "
            + {"image": "the image's own resolution", "network": "the network's resolution"}[self.resolution]
            + {"physical": ", distances by the image's spacing", "voxel": ", distances in voxels"}[self.distances]
            + {"penalty": ", a missed structure costs the image's diagonal", "nan": ", a missed structure is NaN"}[
                self.missed
            ]
            + {"domains": ", each target domain weighs the same", "cases": ", target cases pooled"}[self.mean]
            + {
                "last": ", weights of the last step",
                "best-on-source": ", weights with the best Dice on the source's validation cases, of those of every "
                f"{self.every} steps",
            }[self.selection]
            + {"steps": "", "compute": ", training may compute what plain training does"}[self.budget]
            + (f"; {self.steps} steps of batch {self.batch_size} but for variants of them" if self.training else "")
            + (f"; {self.beside}" if self.beside else "")
        )

    def bounds(self, other: Protocol) -> bool:
        """Does it say what can be reached inside the domains that `other` tests, all else being held fixed alike?"""
        return bool(self.folds) and replace(self, name=other.name, folds=0) == other

    def rules(self) -> dict[str, str]:
        """What it holds fixed, by name, as text; what it leaves open is not there."""
        kept = {name: value for name, value in asdict(self).items() if value}
        return {name: ", ".join(value) if isinstance(value, tuple) else str(value) for name, value in kept.items()}


DEFAULT, IN_DOMAIN = "sdg", "in_domain"
EVERY_METRIC = ("dice", "asd", "assd", "hd95")
# What a published comparison of eight methods held fixed, as far as it says and a run here can follow it.
AUDIT = Protocol(
    "audit", "foreground", "image", "physical", "penalty", "domains", EVERY_METRIC, "best-on-source", 500, 8000, 8,
    "beside the published runs of sdg-protocol-audit 2026, which had SGD, a sum of cross-entropy and Dice loss, other "
    "spatial augmentation, a quarter of the source's cases to validate on, drawn anew by each seed, and an image size "
    "that is not stated",
)  # fmt: skip

PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(DEFAULT, "all", "image", "physical", "penalty", "domains", EVERY_METRIC),
        # What the authors' released code computes, so that its published table has something to stand beside.
        Protocol("dapsam", "foreground", "network", "voxel", "nan", "cases", ("dice", "asd")),
        # Nearly every paper's upper bound.
        Protocol(IN_DOMAIN, "all", "image", "physical", "penalty", "domains", EVERY_METRIC, folds=5),
        AUDIT,
        replace(AUDIT, name="audit-all", slices="all"),
    )
}
PROTOCOLS |= {
    f"{n}-compute": replace(p, name=f"{n}-compute", budget="compute") for n, p in PROTOCOLS.items() if p.steps is None
}
Budget = Literal["equal-steps", "equal-compute"]


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `UsageError`, which names all, for an unknown one."""
    return PROTOCOLS[require(name, list(PROTOCOLS), "protocol")]


def budgeted(name: str, budget: Budget | None) -> str:
    """The name of the protocol with another budget; None: its own. Raises `UsageError` for one that has another."""
    protocol = get_protocol(name)
    if budget is not None:
        require(budget, get_args(Budget), "budget")
    if budget is None or budget.removeprefix("equal-") == protocol.budget:
        return name
    if protocol.budget == "compute":
        raise UsageError(f"protocol {name} is one of equal compute", "leave --budget out, or name another protocol")
    return f"{name}-compute"
