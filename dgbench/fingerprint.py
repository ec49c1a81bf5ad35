"""What decides a number: a fingerprint of code that notices every change of what is computed, and no other.

Code is taken definition by definition: a function, class or constant at the top of a file, and in turn every definition
of dgbench, or of other code that is not installed from a release, that it names. Of each counts what Python computes
with: no comment, docstring, annotation or error text, and not the module it lies in, so that files can be tidied,
renamed and moved. Not seen is a data file that code opens by a name of its own: let a setting name it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

# Modules of the contract, images, networks and running that cannot change a number, and why. All others count.
UNCOUNTED = {
    "dgbench": "names only",
    "dgbench.errors": "words",
    "dgbench.files": "bytes are written and read back as they are",
    "dgbench.fingerprint": "it looks at the others",
    "dgbench.images.adopt": "it writes a table of files, which are read as others are",
    "dgbench.images.mask_files": "predicted masks of other images, after the run",
    "dgbench.images.find_task": "the task that it finds is in the fingerprint by its own code",
    "dgbench.images.cache": "it lists and deletes what can be made again",
    "dgbench.images.nnunet": "images for another system",
    "dgbench.images.mock": "it draws files, which are read as others are",
    "dgbench.images.fetch": "files are used by what lies in them",
    "dgbench.plausibility": "what is odd is told, and changes nothing",
    "dgbench.networks.provenance": "what weights have seen is told beside their scores",
    "dgbench.networks.download": "weights are used by their checksum",
    "dgbench.protocol": "its values are in the fingerprint of a run by themselves",
    "dgbench.networks.torchvision_ops": "it lets torchvision be imported where its operators cannot be loaded",
    "dgbench.transfer": "what is downloaded is used by its checksum, or by what lies in it",
    "dgbench.registry": "what it finds is in the fingerprint by its own code",
    "dgbench.names": "it refuses names",
    "dgbench.settings": "the values that it reads are in the fingerprint of a run by themselves",
    "dgbench.running.conformance": "checks of a method, beside its runs",
    "dgbench.running.task_conformance": "checks of a task, beside its runs",
    "dgbench.running.description": "what is written about a run",
    "dgbench.running.flops": "a count beside a run; steps that follow from it are in its fingerprint by themselves",
    "dgbench.running.foreign": "masks that another system wrote",
    "dgbench.running.foreign_files": "masks that another system wrote",
    "dgbench.running.guard": "it refuses, and computes nothing",
    "dgbench.running.launchers": "processes: a run does not depend on those beside it",
    "dgbench.running.machine": "how many runs are made at the same time",
    "dgbench.running.new_method": "a file to start from",
    "dgbench.running.notice": "what a run says of itself on its way",
    "dgbench.running.orientation": "a question about masks that another system wrote",
    "dgbench.running.plan": "its choices are in the fingerprint by themselves",
    "dgbench.running.predict": "other images, after the run",
    "dgbench.running.records": "reading what a run left",
    "dgbench.running.slurm": "where and when runs are made",
    "dgbench.running.squeue": "what waits and runs on a cluster",
    "dgbench.running.trained_before": "weights that training anew would give, to the bit",
    "dgbench.running.status": "where runs stand",
}
IGNORED = {"ctx", "kind", "returns", "type_comment", "type_ignores", "type_params"}  # fields of syntax trees


@dataclass(frozen=True)
class Definition:
    """`text`: what it computes, normalised. `names`: the definitions it names, as (module, name); name "*": all."""

    text: str
    names: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class _Module:
    definitions: dict[str, Definition]  # "": the statements that define nothing
    imported: dict[str, list[str]]  # {name: what it stands for, with all its dots}


def of_code(*roots: type | str, beyond: Sequence[str] = ()) -> str:
    """sha256 of what the roots compute with; see `reached`."""
    known = reached(*roots, beyond=beyond)
    items = set()
    for (_, name), definition in known.items():
        used = sorted((n, known[m, n].text) for m, n in definition.names if (m, n) in known)
        items.add((name, definition.text, hashlib.sha256(repr(used).encode()).hexdigest()))
    return hashlib.sha256(repr(sorted(items)).encode()).hexdigest()


def reached(*roots: type | str, beyond: Sequence[str] = ()) -> dict[tuple[str, str], Definition]:
    """The definitions that decide what the roots compute, by (module, name).

    A root is a class, which counts with its bases, or a definition of dgbench as "module:name". Of a plug-in's file
    all counts. `beyond`: modules that are not looked into, besides `UNCOUNTED`.
    """
    files: dict[str, Path] = {}
    waiting: list[tuple[str, str]] = []
    for root in roots:
        if isinstance(root, str):
            waiting.append((root.partition(":")[0], root.partition(":")[2]))
            continue
        for cls in root.__mro__:
            if cls.__module__.partition(".")[0] not in ("builtins", "abc", "typing", "torch"):
                files[cls.__module__] = Path(inspect.getfile(cls)).resolve()
                waiting.append((cls.__module__, cls.__name__ if _is_engine(cls.__module__) else "*"))
    found: dict[tuple[str, str], Definition] = {}
    seen: set[tuple[str, str]] = set()
    while waiting:
        module, name = place = waiting.pop()
        if place in seen or module in UNCOUNTED or module in beyond:
            continue
        seen.add(place)
        path = files.get(module) or Path(getattr(_spec(module), "origin", None) or "")
        if path.suffix == ".py":
            read = _read(path, module, path.read_bytes())
            for part in read.definitions if name == "*" else {name, ""} & set(read.definitions):
                found[module, part] = read.definitions[part]
                waiting += read.definitions[part].names
            if name not in read.definitions:  # imported there from elsewhere
                waiting += filter(None, (_place(dotted, module) for dotted in read.imported.get(name, ())))
    return found


def _is_engine(module: str) -> bool:
    return module.startswith("dgbench.") and not module.startswith(("dgbench.methods.", "dgbench.datasets."))


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module lies; packages above it are imported, it is not."""
    above = module.rpartition(".")[0]
    if above and getattr(_spec(above), "submodule_search_locations", None) is None:
        return None
    return importlib.util.find_spec(module)


@cache
def _is_at_hand(top: str) -> bool:
    """Is it dgbench, or a user's own code on Python's path, which may change any time, rather than a release?"""
    if top == "dgbench" or top in sys.stdlib_module_names or top in ("torch", "torchvision"):  # these may be built here
        return top == "dgbench"
    spec = _spec(top)
    lies = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
    return bool(lies) and not {"site-packages", "dist-packages"} & {part for p in lies for part in Path(p).parts}


def _place(dotted: str, module: str) -> tuple[str, str] | None:
    """`dgbench.metrics.measure` -> ("dgbench.metrics", "measure"); None for what is foreign to the package it is in."""
    where, *rest = dotted.split(".")
    if where != module.partition(".")[0] and not _is_at_hand(where):
        return None
    while rest and _spec(f"{where}.{rest[0]}"):
        where = f"{where}.{rest.pop(0)}"
    return where, rest[0] if rest else "*"


@lru_cache(maxsize=4096)
def _read(path: Path, module: str, content: bytes) -> _Module:
    """The definitions of a file."""
    tree = ast.parse(content)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    imported: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                stands_for = alias.name if alias.asname else alias.name.partition(".")[0]
                imported.setdefault(alias.asname or stands_for, []).append(stands_for)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                imported.setdefault(alias.asname or alias.name, []).append(f"{origin}.{alias.name}")
    parts: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        parts.setdefault(_defined(statement), []).append(statement)
    reader = _Reader(module, imported, set(parts) - {""})
    definitions = {name: reader.definition(body) for name, body in parts.items()}
    return _Module({name: found for name, found in definitions.items() if found.text != "[]"}, imported)


def _defined(statement: ast.stmt) -> str:
    """The name that a statement at the top of a file defines; "" when it does something else, or more."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    if isinstance(statement, ast.Assign | ast.AnnAssign) and len(targets) == 1 and isinstance(targets[0], ast.Name):
        return targets[0].id
    return statement.name if isinstance(statement, ast.FunctionDef | ast.ClassDef) else ""


class _Reader:
    """Syntax trees as text. Not `ast.dump`: that of another version of Python says the same in other words."""

    def __init__(self, module: str, imported: dict[str, list[str]], own: set[str]):
        self.module, self.imported, self.own = module, imported, own
        self.names: set[tuple[str, str]] = set()

    def definition(self, body: list[ast.stmt]) -> Definition:
        self.names = {p for dotted in self.imported.get("*", ()) if (p := _place(dotted, self.module))}
        return Definition(self.text(body), frozenset(self.names))

    def text(self, node: object) -> str:
        if isinstance(node, list):
            return f"[{','.join(filter(None, map(self.text, node)))}]"
        if not isinstance(node, ast.AST):
            return ascii(node)
        if isinstance(node, ast.Import | ast.ImportFrom) or _says_nothing(node):
            return ""
        if isinstance(node, ast.Subscript) and self._dotted(node.value) == ["typing.Annotated"]:
            return self.text(node.slice.elts[0])  # type: ignore[attr-defined]  # a range refuses, it computes nothing
        if isinstance(node, ast.Name | ast.Attribute) and (dotted := self._dotted(node)):
            return "|".join(map(self._reference, dotted))
        if isinstance(node, ast.Name) and node.id in self.own:
            self.names.add((self.module, node.id))
            return node.id
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            return f"Raise({self.text(node.exc.func)})"
        ignored = IGNORED | {"annotation"} if isinstance(node, ast.arg) else IGNORED
        fields = [(n, v) for n, v in ast.iter_fields(node) if n not in ignored and v is not None and v != []]
        return f"{type(node).__name__}({','.join(f'{n}={self.text(v)}' for n, v in fields)})"

    def _dotted(self, node: ast.expr) -> list[str]:
        """`F.pad` -> ["torch.nn.functional.pad"]; empty for a name that is not imported."""
        if isinstance(node, ast.Attribute):
            return [f"{base}.{node.attr}" for base in self._dotted(node.value)]
        return self.imported.get(node.id, []) if isinstance(node, ast.Name) else []

    def _reference(self, dotted: str) -> str:
        if place := _place(dotted, self.module):
            self.names.add(place)
            return dotted.removeprefix(f"{place[0]}.")
        return dotted


def _says_nothing(node: ast.AST) -> bool:
    """A docstring, or imports for a type checker alone."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not node.orelse
