"""Settings: which values a method's hyperparameters may have, by type and by range, and how a value is written.

`--set`, the name of a variant and the record of a run hold text. What is written here is read back as the same value:
two spellings of a value are one variant, and two values are never one.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from dgbench.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, written into its type: `share: Annotated[float, Range(0, 1)] = 0.5`.

    low, high: the least and the most; above: what it must be greater than; None: no such limit. Of a tuple or list it
    holds for every entry, and there must be one; of an optional setting for what is not None. NaN and infinite numbers
    are in no range.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    odd: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (not self.odd or value % 2 == 1)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low} to {self.high}"
        limits = {"above": self.above, "of at least": self.low, "of at most": self.high}
        words = " and".join(f" {word} {limit}" for word, limit in limits.items() if limit is not None)
        return words + ", odd" * self.odd


FINITE = Range()
TYPES = "make it an int, float, bool, str, Path, Literal or Enum, a tuple or list of one, or one of these or None"


class Field(NamedTuple):
    """A setting: its type, and the numbers it may be."""

    kind: Any
    range: Range

    @property
    def allowed(self) -> str:
        """In words."""
        return _words(self.kind, self.range)


def fields(kind: type) -> dict[str, Field]:
    """Those of a dataclass of settings. One that states no range has that of the class it derives from, if any."""
    ranges: dict[str, Range] = {}
    for base in reversed(kind.__mro__[:-1]):
        hints = typing.get_type_hints(base, include_extras=True)
        ranges |= {name: found for name, hint in hints.items() if (found := _range(hint))}
    hints = typing.get_type_hints(kind)
    return {f.name: Field(hints[f.name], ranges.get(f.name, FINITE)) for f in dataclasses.fields(kind)}


def read(name: str, text: str, field: Field, remedy: str) -> Any:
    """`text` as a value of a setting. Raises `UsageError` when it is none."""
    try:
        value = _read(text, field.kind)
    except ValueError:
        raise _refused(name, text, field, remedy) from None
    check(name, value, field, remedy, text)
    return value


def check(name: str, value: Any, field: Field, remedy: str, text: str | None = None) -> None:
    """Raises `UsageError` for a number that is not in the range of its setting; other values have none.

    text: as the value was given.
    """
    entries = value if isinstance(value, tuple | list) else [value]
    numbers = [n for n in entries if isinstance(n, int | float) and not isinstance(n, bool)]
    if (not entries and field.range != FINITE) or any(n not in field.range for n in numbers):
        raise _refused(name, spelled(value) if text is None else text, field, remedy)


def number(name: str, value: Any, kind: type, allowed: Range) -> Any:
    """An argument or option that is a number. Raises `UsageError`, as for a setting."""
    field = Field(kind, allowed)
    try:
        text = spelled(value)
    except ValueError:
        text = type(value).__name__
    return read(name, text, field, f"give {field.allowed}")


def spelled(value: Any) -> str:
    """A value as `--set` would give it. Raises `ValueError` for one that could not be read back."""
    if isinstance(value, tuple | list):
        parts = [spelled(entry) for entry in value]
        if any("," in part or not part or part != part.strip() for part in parts):
            raise ValueError("a text in a list can hold no comma, nor blanks at its ends")
        return ",".join(parts)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return str(float(value) + 0.0)  # -0.0 is 0.0
    if value is None or isinstance(value, str | int | Path):
        return str(value)
    if hasattr(value, "tolist"):  # of numpy or torch
        return spelled(value.tolist())
    raise ValueError(f"a {type(value).__name__} cannot be written as text")


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as values for JSON. Raises `UsageError` for one that text cannot give."""
    try:
        return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    except ValueError as error:
        raise UsageError(f"a default of {type(settings).__name__}: {error}", TYPES) from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    as_it_is = value is None or (isinstance(value, str | int | float) and not isinstance(value, Enum))
    return value if as_it_is else spelled(value)


def _refused(name: str, text: str, field: Field, remedy: str) -> UsageError:
    return UsageError(f"{name} cannot be {text!r}: it must be {field.allowed}", remedy)


def _range(hint: Any) -> Range | None:
    """What a type is annotated with, or a part of it."""
    own = (m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range))
    return next(own, None) or next(filter(None, map(_range, typing.get_args(hint))), None)


# --- text -> value ---------------------------------------------------------------------------------------------------

BOOLEAN = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _read(text: str, kind: Any) -> Any:
    """Raises `ValueError` for a text that is no value of the type, and for a type that no text can give."""
    origin, inner, text = typing.get_origin(kind), typing.get_args(kind), text.strip()
    if origin in (typing.Union, types.UnionType):
        for one in sorted(inner, key=lambda k: k in (str, Path)):  # last, what any text is
            with suppress(ValueError):
                return _read(text, one)
    elif origin is typing.Literal:
        for value in inner:
            with suppress(ValueError):
                if _read(text, type(value)) == value:
                    return value
    elif origin in (tuple, list):
        parts = text.removesuffix(",").split(",") if text else []
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if "" not in map(str.strip, parts) and (not fixed or len(parts) == len(inner)):
            of = inner if fixed else inner[:1] * len(parts)
            return origin(_read(part, one) for part, one in zip(parts, of, strict=True))
    elif inspect.isclass(kind) and issubclass(kind, Enum):
        if text in kind.__members__:
            return kind[text]
    elif kind is types.NoneType:
        if text.lower() == "none":
            return None
    elif kind is bool:
        if text.lower() in BOOLEAN:
            return BOOLEAN[text.lower()]
    elif kind is int:
        with suppress(ValueError):
            return int(text)
        value = float(text)
        if value.is_integer():  # 1e3
            return int(value)
    elif kind is float:
        return float(text) + 0.0
    elif kind in (str, Path):
        return kind(text)
    raise ValueError(text)


def _words(kind: Any, range_: Range) -> str:
    """What values of a type are, in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(one, range_) for one in inner)
    if origin is typing.Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(spelled, inner))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} with commas between: {', '.join(_words(one, range_) for one in inner)}"
    if origin in (tuple, list):
        return f"{_words(inner[0], range_)}, or several with commas between"
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    numbers = {int: f"a whole number{range_}", float: f"a number{range_}"}
    others = {bool: "true or false", str: "a text", Path: "a path", types.NoneType: "none"}
    return (numbers | others).get(kind) or "left as it is: its type cannot be given as text"
