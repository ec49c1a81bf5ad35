"""Selection: which weights of a training are tested, where the protocol does not say those of its last step.

The source's validation cases decide and nothing else. A look changes nothing of the training: every step draws its own
random numbers. The best weights so far are part of a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dgbench.method import Method


@dataclass
class Selected:
    """The best look so far, what a checkpoint holds of it: of which step, its mean Dice in [0, 1]; 0: none yet.

    seconds: spent on all looks. shown: the last look's Dice, until the history has it.
    """

    step: int = 0
    dice: float = 0.0
    seconds: float = 0.0
    shown: float | None = None


@dataclass(frozen=True)
class BestOnSource:
    """Looks at every `every`th step and at the last; `score` is the mean Dice over the source's validation cases."""

    every: int
    score: Callable[[Method], float]

    def due(self, step: int, steps: int) -> bool:
        """Is it time for a look, after so many of all steps?"""
        return step % self.every == 0 or step == steps

    def look(self, method: Method, selected: Selected, step: int) -> bool:
        """Validate; are these the best weights so far? Of equal ones the earliest stay."""
        started = time.monotonic()
        selected.shown = self.score(method)
        method.train()
        selected.seconds += time.monotonic() - started
        better = not selected.step or selected.shown > selected.dice
        if better:
            selected.step, selected.dice = step, selected.shown
        return better
