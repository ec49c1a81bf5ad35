"""Finding methods, tasks and published numbers: a file is a plug-in, its stem its name, and listing imports none."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from dgbench.errors import UsageError, require
from dgbench.names import problem

if TYPE_CHECKING:
    from dgbench.method import Method

Kind = Literal["methods", "datasets"]
WORD = {"methods": "method", "datasets": "task"}
# What a method may need beyond one image and its mask, as its class states it, and in words.
NEEDS = {
    "needs_batch": "batch > 1",
    "uses_target_masks": "target masks",
    "adapts_in_testing": "test images to adapt to",
}

# What kind of idea a method is, as the line "Family: NAME." of its header says it, and in words.
FAMILIES = {
    "baseline": "what the others are compared with: plain training, and what bounds it from below and above",
    "augmentation": "training images are changed, the network sees more than the source",
    "adversarial": "of all changes of a training image the one that hurts most is searched for",
    "feature statistics": "mean and deviation of feature maps, their style, are mixed or drawn",
    "representation": "what the network may rely on is split, muted or held to be alike",
    "normalization": "norms, or the images' own statistics, are chosen or matched",
    "foundation model": "a network pretrained on very many images is adapted, or asked as it is",
    "in context": "images of the source are shown with their masks beside the test image; nothing is trained",
    "test time": "the network adapts to the test images",
}

OF_DATA = ("domains", "cases", "structures", "access")  # what lists say of a task's data

NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # the last two of what is nested too deeply


@dataclass(frozen=True)
class Plugin:
    """Where a method or task is written; nothing of it has been imported."""

    name: str
    kind: Kind
    module: str
    path: Path | None
    origin: str  # "dgbench", a distribution's name, or the path given by --plugin
    attribute: str = ""  # the class an entry point names; "": the only one in the module

    def summary(self) -> str:
        """The first line of the file's docstring, or why the file cannot be imported, as far as reading it can tell."""
        if why := unfit(self.name, self.kind):
            return f"broken: {why}"
        if self.path is None:
            return f"(from the installed package {self.origin})"
        try:
            tree = _parsed(self.path.read_bytes())
        except (*NO_PYTHON, OSError) as error:
            return f"broken: {type(error).__name__}: {error}"
        for module in sorted(_imported(tree.body)):
            if _top_level_is_missing(module):
                return f"broken: it imports {module}, which is not installed"
        return (ast.get_docstring(tree) or "").partition("\n")[0]

    def header(self) -> str:
        """The file's docstring; "" where it cannot be read."""
        with suppress(*NO_PYTHON, OSError):
            return ast.get_docstring(_parsed(self.path.read_bytes())) or "" if self.path else ""
        return ""

    def derives(self) -> list[str]:
        """The plug-in files whose classes its own derive from, the nearest first; `_x`: one that is shared."""
        return list(dict.fromkeys(_bases(self.path))) if self.path else []

    def is_idea(self) -> bool:
        """Is it put over any other method, `other+name`: does its class join one of its own file to a network?"""
        with suppress(*NO_PYTHON, OSError):
            classes = (
                [n for n in _parsed(self.path.read_bytes()).body if isinstance(n, ast.ClassDef)] if self.path else []
            )
            own = {n.name for n in classes}
            return any(len(n.bases) > 1 and ast.unparse(n.bases[0]) in own for n in classes)
        return False

    def facts(self) -> dict[str, str]:
        """What the file's classes state of themselves in plain values: paper, pretrained, and what they need.

        A class also states what the classes of other plug-in files do that it derives from.
        """
        return _stated(self.path) if self.path else {}

    def data(self) -> dict[str, str]:
        """What a task's classes state of its data: domains, cases, structures, access; "" for what only running tells.

        Of ours values are computed from the constants of their files; of others only what is written out is taken.
        """
        if self.path is None:
            return {}
        found = _values(self.path, self.origin == "dgbench")
        listed = self.path.with_suffix(".csv")
        counts, cases = found.get("cases_expected"), ""
        if isinstance(counts, dict) and counts:
            cases = str(sum(counts.values()))
        elif listed.is_file() and {"domain", "case"} <= set((lines := listed.read_text().splitlines())[0].split(",")):
            cases = str(len(lines) - 1)
        named = {n: ", ".join(map(str, v)) for n in ("domains", "structures") if isinstance(v := found.get(n), tuple)}
        return {**named, "cases": cases, "access": str(found.get("access", "open"))}


def _values(path: Path, trusted: bool) -> dict[str, Any]:
    """The attributes of a file's classes as far as they follow from its own constants; nothing is imported."""
    try:
        nodes = _parsed(path.read_bytes()).body
    except (*NO_PYTHON, OSError):
        return {}
    constants: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (above := _plugin_file(node.module or "", path)) and above != path:
            found |= _values(above, trusted)
        if isinstance(node, ast.ClassDef):  # one that a constant is made of, of which only the names are asked for
            constants[node.name] = lambda *given, **named: None
        for known, lines in ((constants, [node]), (found, node.body if isinstance(node, ast.ClassDef) else [])):
            for line in lines:
                if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                    target = line.targets[0] if isinstance(line, ast.Assign) else line.target
                    with suppress(Exception):  # it hangs on what is not here
                        known[ast.unparse(target)] = (
                            eval(compile(ast.Expression(line.value), str(path), "eval"), constants | found)
                            if trusted
                            else ast.literal_eval(line.value)
                        )
    return found


@functools.lru_cache(maxsize=512)
def _parsed(content: bytes) -> ast.Module:
    """A file that others derive from is asked again and again."""
    return ast.parse(content)


def said(header: str, paper: str = "") -> dict[str, str]:
    """What a method's header says of it, "" for what it does not say: family, year and differs.

    year: the last one that stands before the link `paper`. differs: from "Differs" to the end of the paragraph.
    """
    family = re.search(r"\bFamily: ([^.\n]*)\.", header)
    cited, link, _ = header.partition(paper or "\0")
    years = re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"https?://\S+", "", cited)) if link else []
    differs = re.search(r"\bDiffers[^:.]*:\s+(.*?)(?:\n\s*\n|\Z)", header, re.DOTALL)
    return {
        "family": family[1] if family else "",
        "year": years[-1] if years else "",
        "differs": " ".join(differs[1].split()) if differs else "",
    }


def _bases(path: Path, below: frozenset[Path] = frozenset()) -> Iterable[str]:
    """Of a file, and then of each of these files; the one that asks is no base of its own."""
    try:
        nodes = _parsed(path.read_bytes()).body
    except (*NO_PYTHON, OSError):
        return
    names = {b.id for n in nodes if isinstance(n, ast.ClassDef) for b in n.bases if isinstance(b, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and names & {a.asname or a.name for a in node.names}:
            file = _plugin_file(node.module or "", path)
            if file and file not in below | {path}:
                yield file.stem
                yield from _bases(file, below | {path})


def _stated(path: Path, only: str = "", below: frozenset[tuple[Path, str]] = frozenset()) -> dict[str, str]:
    """By the classes of a file, or by one of them; those of its own file and of other plug-in files count as well.

    below: the classes that derive from these, which must not be derived from again.
    """
    try:
        nodes = _parsed(path.read_bytes()).body
    except (*NO_PYTHON, OSError):
        return {}
    classes = {n.name: n for n in nodes if isinstance(n, ast.ClassDef)}
    imported = {
        alias.asname or alias.name: (file, alias.name)
        for n in nodes
        if isinstance(n, ast.ImportFrom) and (file := _plugin_file(n.module or "", path))
        for alias in n.names
    }
    stated: dict[str, str] = {}
    for node in [classes[only]] if only in classes else classes.values():
        for base in (b.id for b in reversed(node.bases) if isinstance(b, ast.Name)):
            file, name = imported.get(base, (path if base in classes else None, base))
            derived = below | {(path, node.name)}
            stated |= _stated(file, name, derived) if file and (file, name) not in derived else {}
        for line in node.body:
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                name = ast.unparse(line.targets[0])
                stated.pop(name, None)
                stated |= {name: str(line.value.value)} if line.value.value else {}
    return stated


def _plugin_file(module: str, importer: Path) -> Path | None:
    """The file of a plug-in's module, one of ours or one that lies beside its importer; nothing is imported."""
    package, _, name = module.rpartition(".")
    kinds = {f"dgbench.{registry.kind}": registry.folder() for registry in (METHODS, TASKS)}
    file = kinds.get(package, importer.parent) / f"{name}.py"
    return file if (package in kinds or not package) and file.is_file() else None


@dataclass
class Registry:
    """The plug-ins of one kind: those in our folder, installed entry points, and files given by path."""

    kind: Kind
    extra: list[Path] = field(default_factory=list)

    def folder(self) -> Path:
        """Where our own plug-ins of this kind lie, in a checkout and in an installed wheel."""
        spec = importlib.util.find_spec(f"dgbench.{self.kind}")
        assert spec is not None and spec.submodule_search_locations, f"dgbench.{self.kind} is not installed"
        return Path(spec.submodule_search_locations[0]).resolve()

    def plugins(self) -> dict[str, Plugin]:
        """All by name, sorted. Raises `UsageError` when two have one name."""
        package = f"dgbench.{self.kind}"
        found: dict[str, Plugin] = {}

        def add(plugin: Plugin) -> None:
            other = next((p for name, p in found.items() if name.casefold() == plugin.name.casefold()), None)
            if other and other.path and other.path == plugin.path:
                return  # one of ours, also given by its path
            if other:
                raise UsageError(
                    f"two {self.kind} are named '{plugin.name}': {other.path or other.module} and "
                    f"{plugin.path or plugin.module}",
                    "rename one of them: the file's name is the name in every table",
                )
            found[plugin.name] = plugin

        for path in sorted(self.folder().glob("[!_]*.py")):
            add(Plugin(path.stem, self.kind, f"{package}.{path.stem}", path, "dgbench"))
        for point in importlib.metadata.entry_points(group=package):
            origin = point.dist.name if point.dist else "entry point"
            add(Plugin(point.name, self.kind, point.module, None, origin, point.attr))
        for path in self.extra:
            if defines(path) == self.kind:
                add(Plugin(path.stem, self.kind, f"dgbench_plugin_{path.stem}", path, str(path)))
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Sorted."""
        return list(self.plugins())

    def get(self, name: str) -> type:
        """The one concrete class a plug-in defines. Its own traceback is shown when its import fails."""
        plugins = self.plugins()
        plugin = plugins[require(name, list(plugins), WORD[self.kind])]
        if why := unfit(name, self.kind):
            raise UsageError(f"'{name}' of {plugin.origin} cannot name a {WORD[self.kind]}: {why}", "rename it there")
        module = _load(plugin)
        base: type
        if self.kind == "methods":
            from dgbench.method import Method as base
        else:
            from dgbench.task import Task as base
        if plugin.attribute:
            classes = [getattr(module, plugin.attribute)]
        else:
            own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == plugin.module]
            classes = [c for c in own if not (c.__name__.startswith("_") or inspect.isabstract(c))]
        classes = [c for c in classes if inspect.isclass(c) and issubclass(c, base)]
        classes = [c for c in classes if not any(issubclass(other, c) for other in classes if other is not c)]
        if len(classes) != 1:
            raise UsageError(
                f"{plugin.path or plugin.module} defines {len(classes)} concrete {WORD[self.kind]} classes, not one",
                f"leave exactly one public subclass of {base.__name__} in it; shared code goes to a file named _x.py",
            )
        classes[0].name = name
        return classes[0]


METHODS = Registry("methods")
TASKS = Registry("datasets")


def add_plugin(path: Path) -> None:
    """Make a method or task file known by its path (`--plugin`). The file is read, not run."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"no such plug-in file: {path}", "give the path of a .py file; `dgbench new NAME` writes one")
    why = "it has not the ending .py" if path.suffix != ".py" else unfit(path.stem, defines(path))
    if why:
        raise UsageError(
            f"{path.name} cannot be a plug-in: its file name is its name in commands, paths and tables, and {why}",
            "name it with letters, digits, '-' and '_', a letter first, and the ending .py",
        )
    for registry in (METHODS, TASKS):
        if path not in registry.extra:
            registry.extra.append(path)


def unfit(name: str, kind: Kind) -> str:
    """Why a method or task cannot be called so; "" when it can. Names of variants join methods by other signs."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        return "it is not of letters, digits, '-' and '_', a letter first"
    return problem(name, WORD[kind])


def results_folder() -> Path:
    """Where the boards and scores that come with dgbench lie: results/ beside the package; of a wheel inside it."""
    package = Path(__file__).resolve().parent
    inside = package / "results"
    return inside if inside.is_dir() else package.parent / "results"


def published_folder() -> Path:
    """Where the numbers quoted from papers lie."""
    return results_folder() / "published"


def published_files() -> list[Path]:
    """The tables of numbers quoted from papers, sorted."""
    return sorted(published_folder().glob("*.csv"))


def boards() -> list[Path]:
    """The rankings that come with dgbench, with full precision: results/leaderboard-*.csv."""
    return sorted(published_folder().parent.glob("leaderboard-*.csv"))


def get_method(name: str) -> type[Method]:
    """The method of that name; `a+b` is method a with the idea of method b put over it, and so on."""
    first, *ideas = name.split("+")
    method = METHODS.get(first)
    for idea in ideas:
        method = _combined(method, METHODS.get(idea))
    return method


def budget_name() -> str:
    """The method that `sets_budget`; those that derive from it state so, too."""
    plugins = METHODS.plugins().items()
    return next(name for name, plugin in plugins if "sets_budget" in plugin.facts() and not plugin.derives())


def floors() -> list[str]:
    """The methods that are stated to ignore the images, sorted."""
    return [name for name, plugin in METHODS.plugins().items() if "ignores_images" in plugin.facts()]


def budget_method() -> type[Method]:
    """Its class."""
    return get_method(budget_name())


def _combined(base: type[Method], other: type[Method]) -> type[Method]:
    """`base` under the idea of `other`: the part of it that its file writes as a class of its own, for any method.

    The settings are those of `base` and what the file of `other` adds.
    """
    from dgbench.method import Method, hparams_class

    ideas = [c for c in other.__mro__[1:] if c.__module__ == other.__module__]
    if not ideas:
        raise UsageError(
            f"'{other.name}' cannot be put over another method: it is one with its network",
            f"derive a class from both in a file of your own, or run '{other.name}' by itself",
        )
    written = [vars(c) for c in base.__mro__ if issubclass(c, Method) and c is not Method]
    for step in ("loss", "update"):
        if step in vars(ideas[0]) and any(step in body for body in written):
            raise UsageError(
                f"'{base.name}' and '{other.name}' both write their own {step}: one would silently replace the other",
                "derive a class from both in a file of your own that does what both should do",
            )
    if "loss" in vars(ideas[0]) and not _asks_for_loss(base):
        raise UsageError(
            f"'{base.name}' never asks for the loss that '{other.name}' writes: it would be plain {base.name}",
            "derive a class from both in a file of your own that does what both should do",
        )
    settings, theirs = hparams_class(base), hparams_class(other)
    baseline = next((c for c in other.__mro__[1:] if not issubclass(ideas[0], c)), Method)
    beyond = [inspect.get_annotations(c) for c in theirs.__mro__ if not issubclass(hparams_class(baseline), c)]
    hints, defaults = typing.get_type_hints(theirs, include_extras=True), theirs()
    added = [f.name for f in dataclasses.fields(theirs) if any(f.name in own for own in beyond)]
    twice = [n for n in added if n in {f.name for f in dataclasses.fields(settings)}]
    if twice:
        raise UsageError(
            f"'{base.name}' and '{other.name}' both have a setting named {', '.join(twice)}",
            "derive a class from both in a file of your own, with names that differ",
        )
    # A list may be no default, what gives one may.
    fields = [(n, hints[n], dataclasses.field(default_factory=functools.partial(getattr, defaults, n))) for n in added]
    merged = dataclasses.make_dataclass(
        f"{settings.__name__}And{theirs.__name__}", fields, bases=(settings,), frozen=True
    )
    body = {"__module__": other.__module__, "__annotations__": {"hparams": merged}, "paper": base.paper}
    combined: type[Method] = type(f"{base.__name__}And{other.__name__}", (ideas[0], base), body)
    combined.name = f"{base.name}+{other.name}"
    combined.images_come_again = base.images_come_again and getattr(ideas[0], "only_predicts", False)
    return combined


def _asks_for_loss(method: type[Method]) -> bool:
    """Does its `update` call its `loss`, itself or by `super()`?"""
    for cls in (c for c in method.__mro__ if "update" in vars(c)):
        waiting, names = [inspect.unwrap(vars(cls)["update"]).__code__], set[str]()
        for code in waiting:
            names.update(code.co_names)
            waiting += [inner for inner in code.co_consts if inspect.iscode(inner)]
        if "loss" in names or "super" not in names:
            return "loss" in names
    return False


_loaded_from: dict[str, bytes] = {}  # {module: its file's content}: a file may be edited while a notebook is open


def _load(plugin: Plugin) -> ModuleType:
    if plugin.path is None or plugin.origin == "dgbench":
        return importlib.import_module(plugin.module)
    loaded, content = sys.modules.get(plugin.module), plugin.path.read_bytes()
    if loaded is not None and (loaded.__file__, _loaded_from.get(plugin.module)) == (str(plugin.path), content):
        return loaded
    spec = importlib.util.spec_from_file_location(plugin.module, plugin.path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[plugin.module], _loaded_from[plugin.module] = module, content
    try:  # not by its loader, which takes what was compiled before if an edit left size and second as they were
        exec(compile(content, str(plugin.path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[plugin.module]
        raise
    return module


def defines(path: Path) -> Kind:
    """What a file given by path is, told from what it imports of dgbench: reading it must not run it."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        imported = _imported(ast.walk(ast.parse(text)))
    except NO_PYTHON:  # a broken file is listed as broken, where it most likely belongs
        imported = set(re.findall(r"^\s*(?:from|import)\s+(dgbench[.\w]*)", text, re.MULTILINE))
    is_method = any(m.startswith("dgbench.method") for m in imported)
    of_tasks = ("dgbench.task", "dgbench.images", "dgbench.datasets")
    is_task = any(m.startswith(of_tasks) for m in imported)
    return "datasets" if is_task and not is_method else "methods"


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Absolute names of the modules that these statements import."""
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules |= {node.module, *(f"dgbench.{a.name}" for a in node.names if node.module == "dgbench")}
    return modules


def _top_level_is_missing(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in sys.modules and importlib.util.find_spec(top) is None
