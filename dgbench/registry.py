"""Finding methods and tasks by name: a file is a plug-in, its stem is its name, and listing imports none of them."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from dgbench.errors import UsageError, require

if TYPE_CHECKING:
    from dgbench.method import Method
    from dgbench.task import Task

Kind = Literal["methods", "datasets"]
WORD = {"methods": "method", "datasets": "task"}


@dataclass(frozen=True)
class Plugin:
    """Where a method or task is written; nothing of it has been imported."""

    name: str
    kind: Kind
    module: str
    path: Path | None
    origin: str  # "dgbench", a distribution's name, or the path given by --plugin

    def summary(self) -> str:
        """The first line of the file's docstring, or why the file cannot be read."""
        if self.path is None:
            return "(installed package)"
        try:
            doc = ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            return f"broken: {type(error).__name__}: {error}"
        return doc.partition("\n")[0]


@dataclass
class Registry:
    """The plug-ins of one kind: those in our folder, installed entry points, and files given by path."""

    kind: Kind
    extra: list[Path] = field(default_factory=list)

    def plugins(self) -> dict[str, Plugin]:
        """All by name, sorted. Raises `UsageError` when two have one name."""
        package = f"dgbench.{self.kind}"
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
        found: dict[str, Plugin] = {}

        def add(plugin: Plugin) -> None:
            if other := found.get(plugin.name):
                raise UsageError(
                    f"two {self.kind} are named '{plugin.name}': {other.path or other.module} and "
                    f"{plugin.path or plugin.module}",
                    "rename one of them: the file's name is the name in every table",
                )
            found[plugin.name] = plugin

        for path in sorted(Path(spec.submodule_search_locations[0]).glob("[!_]*.py")):
            add(Plugin(path.stem, self.kind, f"{package}.{path.stem}", path, "dgbench"))
        for point in importlib.metadata.entry_points(group=package):
            origin = point.dist.name if point.dist else "entry point"
            add(Plugin(point.name, self.kind, point.value.partition(":")[0], None, origin))
        for path in self.extra:
            if _defines(path) == self.kind:
                add(Plugin(path.stem, self.kind, f"dgbench_plugin_{path.stem}", path, str(path)))
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        return list(self.plugins())

    def get(self, name: str) -> type:
        """The one concrete class a plug-in defines. Its own traceback is shown when its import fails."""
        plugins = self.plugins()
        plugin = plugins[require(name, list(plugins), WORD[self.kind])]
        module = _load(plugin)
        base: type
        if self.kind == "methods":
            from dgbench.method import Method as base
        else:
            from dgbench.task import Task as base
        classes = [
            c
            for c in vars(module).values()
            if inspect.isclass(c) and issubclass(c, base) and c.__module__ == plugin.module and not c.__name__.startswith("_")
        ]
        if len(classes) != 1:
            raise UsageError(
                f"{plugin.path or plugin.module} defines {len(classes)} concrete {WORD[self.kind]} classes, not one",
                f"leave exactly one public subclass of {base.__name__} in it; shared code goes to a file named _x.py",
            )
        classes[0].name = name  # type: ignore[attr-defined]
        return classes[0]


METHODS = Registry("methods")
TASKS = Registry("datasets")


def add_plugin(path: Path) -> None:
    """Make a method or task file known by its path (`--plugin`)."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"no such plug-in file: {path}", "give the path of a .py file; `dgbench new NAME` writes one")
    _defines(path)
    for registry in (METHODS, TASKS):
        if path not in registry.extra:
            registry.extra.append(path)


def get_method(name: str) -> type[Method]:
    return METHODS.get(name)


def get_task(name: str, data: Path | None = None) -> Task:
    """The task of that name, or a folder of images when `name` is a path. `data`: where the task's files lie."""
    if "/" in name or "\\" in name or Path(name).is_dir() and name not in TASKS.names():
        from dgbench.folder import FolderTask

        return FolderTask(Path(name))
    return TASKS.get(name)(data)


def code_hash(cls: type) -> str:
    """sha256 over the source files of a class and of its bases: the code fingerprint of a run."""
    paths = {inspect.getfile(c) for c in cls.__mro__ if c.__module__.startswith("dgbench")}
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: Path(p).name):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _load(plugin: Plugin) -> ModuleType:
    if plugin.path is None or plugin.origin == "dgbench":
        return importlib.import_module(plugin.module)
    if plugin.module in sys.modules:
        return sys.modules[plugin.module]
    spec = importlib.util.spec_from_file_location(plugin.module, plugin.path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[plugin.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[plugin.module]
        raise
    return module


def _defines(path: Path) -> Kind:
    """What a file given by path is, told from the engine modules it imports: reading it must not run it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"plug-in {path} is no Python file: {error}", "mend the file, then try again") from None
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    is_task = "dgbench.task" in imported and "dgbench.method" not in imported
    return "datasets" if is_task else "methods"
