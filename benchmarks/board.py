"""The rows of a task's board, all made anew on one machine: every method at its defaults, seed after seed.

    python benchmarks/board.py phantom --results board [--seeds 0,1,2] [--jobs 1] [--pack NAME]
    python benchmarks/board.py /images/breast_us --results board --only 'erm,dapsam[steps=500;batch_size=4]'

A seed is finished for every method before the next begins, so that wherever it is stopped whole seeds stand in the
table; called again, it goes on. Several processes with the same --results share the runs. Methods that cannot be run
here, for want of weights, are named. Under `in_domain` the upper bound is made of `erm`, with the first seed.
With --pack, scores-TASK-NAME.tar.xz is written beside the results: record, score of every case and checksums.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from dgbench import registry
from dgbench.images.find_task import get_task
from dgbench.method import resolve_hparams
from dgbench.running.plan import read_variant
from dgbench.running.records import find_runs
from dgbench.scores.archives import archive

FIRST = ("erm", "constant")  # what every other row is compared with
VARIANTS = {"csdg": ["consistency=10.0"], "randconv": ["consistency=0.0"], "srcsm": ["matching=True"]}
FILES = ("run.json", "cases.csv", "RESULT.json")


def rows(task: str, only: list[str]) -> tuple[list[str], dict[str, str]]:
    """The variants that can be run here, `erm` and `constant` first, and {variant: why not} of the others."""
    names = [*FIRST, *(n for n in registry.METHODS.names() if n not in FIRST)]
    every = [v for n in names for v in (n, *(f"{n}[{setting}]" for setting in VARIANTS.get(n, [])))]
    able, unable = list[str](), dict[str, str]()
    for variant in only or every:
        try:
            name, settings = read_variant(variant)
            cls = registry.get_method(name)
            cls.find_pretrained(resolve_hparams(cls, get_task(task).name, settings))
        except Exception as error:
            unable[variant] = "; ".join(str(error).splitlines())
        else:
            able.append(variant)
    return able, unable


def run(task: str, variants: list[str], seed: str, results: Path, jobs: int, *options: str) -> None:
    command = [sys.executable, "-m", "dgbench", "run", "--task", task, "--seed", seed, "--jobs", str(jobs)]
    command += ["--results", str(results), *options]
    for variant in variants:
        command += ["--method", variant]
    subprocess.run(command, check=False)  # a run that failed is named there, and stops no other


def pack(task: str, results: Path, name: str) -> Path:
    """What others need of the runs, as in results/."""
    folders = find_runs(results, task)
    members = {f"{f.relative_to(results)}/{file}": (f / file).read_bytes() for f in folders for file in FILES}
    path = results / f"scores-{task}-{name}.tar.xz"
    path.write_bytes(archive(members))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="its name, or its folder")
    parser.add_argument("--results", type=Path, default=Path("board"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="methods and variants, with commas")
    parser.add_argument("--pack", metavar="NAME")
    given = parser.parse_args()
    variants, unable = rows(given.task, [n for n in given.only.split(",") if n])
    for name, why in unable.items():
        print(f"not run: {name}: {why}", flush=True)
    if not variants:
        sys.exit("nothing can be run")
    for number, seed in enumerate(given.seeds.split(",")):
        run(given.task, variants, seed, given.results, given.jobs)
        if not number and "erm" in variants:
            run(given.task, ["erm"], seed, given.results, given.jobs, "--protocol", "in_domain")
    if given.pack:
        print(pack(get_task(given.task).name, given.results, given.pack))


if __name__ == "__main__":
    main()
