"""The screen: a console on which a name of somebody else's run is text, and nothing that a terminal obeys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# What a terminal obeys (all but tab and line feed), and what has the letters after it read in another order.
CONTROLS = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with a question mark in a box for every control character but tab and the ends of lines."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


class Screen(Console):
    """rich's console, which itself would pass escape sequences on."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, all text made printable; what rich says to the terminal stays."""
        for segment in super().render(renderable, options):
            plain = segment.control or not CONTROLS.search(segment.text)
            yield segment if plain else segment._replace(text=printable(segment.text))
