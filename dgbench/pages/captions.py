"""Captions: what the numbers of a table or figure are, and what a reader must know to compare them with others."""

from __future__ import annotations

from dgbench.metrics import METRICS
from dgbench.scores.study import Study

ORDER_OF_MEANS = {  # by `Protocol.mean`
    "domains": "mean over cases, then structures, then targets (each domain equal), then sources",
    "cases": "mean over the cases of all targets pooled, then structures, then sources",
}


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
    return (
        f"Task {study.task}; {protocol.caption()}. Averages: {ORDER_OF_MEANS[protocol.mean]}. "
        f"Seed numbers: {', '.join(str(s) for s in sorted(these['seed'].unique()))}. "
        f"Target cases: {', '.join(f'{d} {k}' for d, k in cases.items())}. "
        + " ".join([*([told] if len(counted) else []), *(f"Published, not measured here: {of}" for of in words)])
    )
