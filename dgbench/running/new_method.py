"""A method file to start from: the commented template in methods/, under a new name."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from dgbench.errors import UsageError
from dgbench.files import make_folder
from dgbench.registry import METHODS, unfit


def write_method(name: str, folder: Path) -> Path:
    """Write `folder`/`name`.py, a method that runs as it stands, and return its path.

    Raises `UsageError` when the name is no identifier or is taken, and when the file is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' cannot name a method",
            "use lower-case letters, digits and '_', a letter first: it names a file, a class and rows of tables",
        )
    if why := unfit(name, "methods"):
        raise UsageError(f"'{name}' cannot name a method: {why}", "choose another name")
    if name in METHODS.names():
        raise UsageError(f"there is a method '{name}' already", "choose another name")
    template = (METHODS.folder() / "_template.py").read_text(encoding="utf-8")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if re.search(rf"\b{class_name}\b", template):  # it would hide what the file imports
        class_name += "Method"
    make_folder(folder)
    path = Path(folder) / f"{name}.py"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template.replace("Template", class_name))
    except FileExistsError:
        raise UsageError(f"{path} exists", "choose another name or folder; nothing is overwritten") from None
    return path
