"""Captions: what the numbers of a table or figure are, and what a reader must know to compare them with others."""

from __future__ import annotations

from dgbench.metrics import METRICS
from dgbench.names import MOCK
from dgbench.scores.study import Study

ORDER_OF_MEANS = {  # by `Protocol.mean`
    "domains": "mean over cases, then structures, then targets (each domain equal), then sources",
    "cases": "mean over the cases of all targets pooled, then structures, then sources",
}


DRAWN = "MOCK: images drawn by dgbench, not those of the task, so that these numbers mean nothing; "
COST_OF_FALSE = (
    "a structure that is falsely found is in no mean and costs, in its case, what missing it would (Dice 1, or the "
    "image's diagonal), averaged over all cases and structures"
)


def counted(n: int | str, what: str) -> str:
    """ "1 seed", "3 seeds", and "1-3 seeds" of a number in words."""
    return f"{n} {what}{'' if str(n) == '1' else 's'}"


def measured(study: Study, metric: str) -> str:
    """A metric and its unit: "ASD (mm)"."""
    return f"{METRICS[metric].title} ({study.unit(metric)})"


def heading(study: Study, metric: str, structure: str | None = None) -> str:
    """What the numbers of a table are: "ASD (mm) of prostate"."""
    names = study.structures
    return f"{measured(study, metric)} of " + (
        structure or (names[0] if len(names) == 1 else f"{' and '.join(names)} averaged")
    )


def absences(study: Study) -> list[str]:
    """Which structures no reference of a domain holds, and what that means for its numbers, in sentences."""
    if study.protocol.missed == "nan":
        return []
    told = []
    for domain, structures in study.absent.items():
        every = len(structures) == len(study.structures)
        whose = "it is in no mean" if every else "its mean is over the others"
        told.append(f"No reference of {domain} holds {' or '.join(structures)}: {whose}.")
        if domain in study.sources:
            told.append(f"Trained on {domain} a method never sees {' or '.join(structures)}.")
    return told


def not_tested(study: Study) -> list[str]:
    """Where domains show the same patients: how many cases each source leaves out of its targets, in a sentence."""
    told: dict[str, dict[str, int]] = {r.source: r.record.get("excluded", {}) for r in study.records}
    if not study.paired:
        return []
    of = (f"{s} ({', '.join(f'{t} {n}' for t, n in of.items()) or 'none'})" for s, of in told.items())
    return [
        "The domains show the same patients; cases of patients that a source trains on are not tested. Left out, by "
        f"source: {', '.join(of)}."
    ]


def false_cost(study: Study) -> list[str]:
    """What a structure costs that was falsely found, where one could be, in a sentence."""
    told = study.any_absent and study.protocol.missed == "penalty"
    return [f"Means are over what references hold; {COST_OF_FALSE}. Ranked by the mean less that."] if told else []


def false_counts(n: float, of: float) -> str:
    """ "3 of 8": structures falsely found, of those that no reference holds."""
    return f"{n:.0f} of {of:.0f}" if of else "0"


def context(study: Study, variant: str | None = None, structure: str | None = None) -> str:
    """What a reader must know besides, of all variants or of one, to compare a number with another one."""
    protocol, cells = study.protocol, study.cells
    these = cells if variant is None else cells[cells["variant"] == variant]
    targets = these[(these["role"] == "target") & (these["metric"] == study.metrics[0])]
    cases = targets.groupby("target", observed=False)["n_cases"].max().fillna(0).astype(int)
    tested = targets if structure is None else targets[targets["structure"] == structure]
    counted = tested[tested["n_missed"].notna()]
    n = counted[["n_cases", "n_missed", "n_false_positive", "n_both_empty"]].sum()
    told = (
        f"Of {n['n_cases']} tested structures: {n['n_missed']} missed, {n['n_false_positive']} falsely found, "
        f"{n['n_both_empty']} absent from both masks. Metrics version {study.metrics_version}."
    )
    variants = study.runs if variant is None else [variant]
    words = dict.fromkeys(of for v in variants if (of := study.row(v, study.metrics[0]).published))
    published = (f"Published, not measured here: {of}" for of in words)
    parts = dict.fromkeys(r.record["scored_in"] for r in study.records if r.record.get("scored_in"))
    inside = (f"Scored in {part} only." for part in parts)
    drawn = DRAWN if study.task.startswith(MOCK) else ""
    return (
        f"Task {study.task}; {drawn}{protocol.caption()}. Averages: {ORDER_OF_MEANS[protocol.mean]}. "
        f"Seed numbers: {', '.join(str(s) for s in sorted(these['seed'].unique()))}. "
        f"Target cases: {', '.join(f'{d} {k}' for d, k in cases.items())}. "
        + " ".join([*([told] if len(counted) else []), *inside, *absences(study), *not_tested(study), *published])
    )
