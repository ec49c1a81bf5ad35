"""The size and the shape of the house: lines per room, long functions, imports in circles and imports that climb.

    python benchmarks/house.py [another checkout]

Imports inside functions count like those at the top. An engine without rooms is one room: counts and circles only.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BELOW = {  # what each room may import besides itself
    "contract": set(),
    "images": {"contract"},
    "networks": {"contract"},
    "running": {"contract", "images", "networks"},
    "scores": {"contract", "images", "networks", "running"},
    "pages": {"contract", "images", "networks", "running", "scores"},
    "cli": {"contract", "images", "networks", "running", "scores", "pages"},
    "methods": {"contract", "networks"},
    "datasets": {"contract", "images"},
}
PLUGINS = ("methods", "datasets")
LINES, PARAMETERS = 50, 6


def room_of(path: Path, root: Path) -> str:
    """dgbench/scores/study.py -> "scores", dgbench/task.py -> "contract", methods/erm.py -> "methods"."""
    top, *inside = path.relative_to(root).parts
    if top != "dgbench" or len(inside) > 1:
        return inside[0] if top == "dgbench" else top
    return "cli" if path.stem in ("cli", "__main__", "face", "__init__") else "contract"


def module_of(path: Path, root: Path) -> str:
    """The name a file is imported by: methods/erm.py is dgbench.methods.erm."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("dgbench", *parts) if parts[0] in PLUGINS else parts).removesuffix(".__init__")


def python_files(root: Path, *tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def import_graph(root: Path) -> dict[str, set[str]]:
    """Our modules that each of our modules imports. The face, which all of them pass through, is no one's import."""
    paths = {module_of(path, root): path for path in python_files(root, "dgbench", *PLUGINS)}

    def known(name: str) -> str:
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return name

    return {name: {known(n) for n in imported(path)} - {"", "dgbench", name} for name, path in paths.items()}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other by whatever way, one line for each such group."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, ahead = set(), set(graph[start])
        while ahead:
            seen |= ahead
            ahead = set().union(*(graph[name] for name in ahead)) - seen
        reached[start] = seen
    groups = {frozenset(n for n in graph if n in reached[m] and m in reached[n]) for m in graph if m in reached[m]}
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def climbs(root: Path) -> list[str]:
    """Imports of a room that is not below; none are found where the engine has no rooms."""
    paths = {module_of(path, root): path for path in python_files(root, "dgbench", *PLUGINS)}
    rooms = {name: room_of(path, root) for name, path in paths.items()}
    if "running" not in rooms.values():
        return []
    return [
        f"{name} ({rooms[name]}) -> {other} ({rooms[other]})"
        for name, others in import_graph(root).items()
        for other in sorted(others)
        if rooms[other] not in {rooms[name]} | BELOW[rooms[name]]
    ]


def large_functions(root: Path) -> list[str]:
    """Functions over 50 lines, decorators not counted, or with more than 6 parameters besides self or cls."""
    found = []
    for path in python_files(root, "dgbench", *PLUGINS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                parameters = len(given) - (given[:1] in (["self"], ["cls"]))
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LINES or parameters > PARAMETERS:
                    where = f"{path.relative_to(root)}:{node.lineno} {node.name}"
                    found.append(f"{where}: {lines} lines, {parameters} parameters")
    return found


def lines_by_room(root: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in python_files(root, "dgbench", *PLUGINS, "tests"):
        counts[room_of(path, root)] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def main(root: Path) -> None:
    counts = lines_by_room(root)
    for room in (*BELOW, "tests"):
        print(f"{room:12} {counts[room]:6,}")
    engine = [counts[room] for room in BELOW if room not in PLUGINS]
    print(f"{'executed':12} {sum(engine[:4]):6,}   contract to running\n{'engine':12} {sum(engine):6,}")
    found = {
        f"functions over {LINES} lines or {PARAMETERS} parameters": large_functions(root),
        "circles": circles(import_graph(root)),
        "climbs": climbs(root),
    }
    for title, rows in found.items():
        print(f"\n{title}: {len(rows)}", *rows, sep="\n  ")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
