"""Commands: the lines for a shell that make runs again."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence

from dgbench import registry
from dgbench.images.find_task import is_named
from dgbench.running.records import RunRecord
from dgbench.task import Task


def commands(runs: Sequence[RunRecord], task: Task | None) -> Iterator[str]:
    """Those that make the runs of one variant again. task: where its images are; None where they are not at hand."""
    name = runs[0].task
    data = str(task.data) if task and task.data else f"PATH/TO/{name}"
    where = ["--task", name if is_named(name) else data, "--protocol", runs[0].bound or runs[0].protocol]
    for r in (r for r in runs if r.external):
        words = ["dgbench", "score", "PATH/TO/PREDICTIONS", "--method", r.method, *where, "--source", r.source]
        yield shlex.join([*words, "--seed", str(r.seed)])
    sources: dict[tuple[str, tuple, str | None], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for r in (r for r in runs if not r.external):
        settings = tuple(sorted(r.record.get("settings", {}).items()))
        sources[r.method, settings, r.record.get("checkpoint")][r.seed].append(r.source)
    for (method, settings, checkpoint), by_seed in sources.items():
        for these in dict.fromkeys(map(tuple, by_seed.values())):
            seeds = ",".join(str(seed) for seed, of in by_seed.items() if tuple(of) == these)
            words = ["dgbench", "run", "--method", method, *where, "--seed", seeds]
            if set(these) != set(runs[0].record.get("sources", ())):
                words += [w for source in these for w in ("--source", source)]
            words += [w for key, value in settings for w in ("--set", f"{key}={value}")]
            words += ["--checkpoint", checkpoint] if checkpoint else []
            yield shlex.join([*words, *(w for p in _plugins(method) for w in ("--plugin", p))])


def _plugins(method: str) -> list[str]:
    """The files of a method, or of the methods joined in it by "+", that do not come with dgbench."""
    known = registry.METHODS.plugins()
    parts = {part: known.get(part) for part in method.split("+")}
    return [str(p.path) if p else f"{part}.py" for part, p in parts.items() if p is None or p.origin == str(p.path)]
