"""Are an image and its mask plausible? What is odd may be meant: it is told, with numbers, and refuses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# A background covers most of an image's rim and at least three of its corners, a structure seldom both: of 273 real and
# drawn masks none is told, and 261 when background and structure are exchanged.
MOST, MOST_OF_RIM = 0.9, 0.5
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")  # Pillow's modes with a channel of transparency
FULL, JUMP, MANY_JUMPS = (1 << 16) - 1, 0.75, 10  # what 16 bits hold; the share that is no edge of an image; so many
ALIKE = 0.1  # correlation of neighbouring pixels; of real images it is above 0.7
READ = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")  # Pillow's names; the last two lie in public releases
BLACK = 8  # a palette's colour is black when no channel is above it

Colour = tuple[int, int, int]
Palettes = dict[int, tuple[Colour, Path]]  # what palettes give to the values of masks, and where it was seen first
Told = tuple[str, str]  # what is odd, and what to do


class Doubt(NamedTuple):
    """What is odd about a case's mask, in one sentence, and what to do. case: its id in its domain."""

    case: str
    cause: str
    remedy: str


SWAPPED = "if background and structure are exchanged, save the masks with 0 for the background; if it is meant, go on"
INDICES = "of a palette dgbench reads the indices, not the colours: save the masks as gray, 0 being the background"
WRAPPED = "save the image with enough bits and the right sign (signed for HU); if it is meant, go on"
NOISE = "look at the slice: a file that was decoded wrongly looks like this; if it is meant, go on"
OPAQUE = "dgbench reads a mask's values, not its transparency: save the masks as gray without transparency"


def doubt(domain: str, case: str, structures: Sequence[str], mask: np.ndarray, odd: Sequence[Told]) -> Doubt | None:
    """Of a loaded case: do its structures, bool (D, K, H, W), lie where a background would? odd: as `of_file` tells."""
    told = [*_coverage(mask, structures), *odd]
    return Doubt(case, f"{domain}/{case}: {'; '.join(cause for cause, _ in told)}", told[-1][1]) if told else None


def summary(domain: str, doubts: Sequence[Doubt]) -> str:
    """Two lines for whoever starts a run on these masks; "" when there is no doubt."""
    if not doubts:
        return ""
    more = f" (and {len(doubts) - 1} more of {domain}: `dgbench data verify` lists all)" if doubts[1:] else ""
    return f"warning: {doubts[0].cause}{more}\ntry:     {doubts[0].remedy}"


def _coverage(mask: np.ndarray, structures: Sequence[str]) -> Iterator[Told]:
    """The first structure, or all together, that is nearly the whole mask, or most of its rim with the corners."""
    planes = [*np.moveaxis(mask, 1, 0), mask.any(axis=1)]
    names = [*(f"'{s}' covers" for s in structures), "the structures together cover"]
    for name, plane in zip(names, planes, strict=True):
        inner = plane[:, 1:-1, 1:-1]
        covered, inside = int(np.count_nonzero(plane)), int(np.count_nonzero(inner))
        rim = (covered - inside) / max(1, plane.size - inner.size)
        corners = plane[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
        if covered > MOST * plane.size or (rim > MOST_OF_RIM and corners >= 0.75):
            share = f"{covered} of {plane.size} {'voxels' if len(plane) > 1 else 'pixels'} ({covered / plane.size:.0%})"
            yield f"{name} {share} and {rim:.0%} of the image's rim, where background is expected", SWAPPED
            return


def of_file(path: Path, values: np.ndarray, seen: Palettes | None = None) -> Iterator[Told]:
    """What is odd in how a PNG or TIFF file stores the values of a mask, which were read before.

    seen: the colours that the palettes of a task's other masks give to its values, to which those of this one are
    added. Of a file with neither palette nor transparency the header is all that is read.
    """
    from PIL import Image  # slow to import

    with Image.open(path, formats=READ) as file:
        if file.mode == "P" and (palette := file.getpalette()):
            table = np.reshape(palette, (-1, 3)).tolist()
            used = np.flatnonzero(np.bincount(values.ravel()))
            colours = {int(i): (*table[i],) for i in used if i < len(table)}
            yield from _palette(path, colours, (*table[0],), seen)
        if file.mode in ALPHA or ("transparency" in file.info and file.mode in ("1", "L", "P", "RGB")):
            yield from _transparency(path, file)


def of_image(path: Path, values: np.ndarray) -> Iterator[Told]:
    """What no reader refuses in a gray image's numbers, (D, H, W): a range that wrapped around, a slice of noise."""
    if values.ndim != 3:
        return
    if jumps := _wrapped(values):
        told = f"{jumps} neighbouring voxels of {path} differ by nearly all that 16 bits can hold"
        yield f"{told}, as where numbers wrapped around", WRAPPED
    if noisy := _noisy_slices(values):
        few = ", ".join(map(str, noisy[:5])) + (", ..." if noisy[5:] else "")
        yield f"neighbouring pixels of {path} have nothing in common in slice {few} of {len(values)}", NOISE


def _wrapped(values: np.ndarray) -> int:
    """Neighbours along a row of which one is near each end of 16 bits; the very ends, where values are cut off, not."""
    low, high = float(values.min()), float(values.max())
    if not FULL * JUMP < high - low <= FULL:
        return 0
    ends = (values == low) | (values == high) if values.dtype.kind == "u" else (values == np.float64(-(1 << 15)))
    inner = values.astype(np.float32)
    inner[ends] = np.nan
    jumps = int(np.count_nonzero(np.abs(np.diff(inner, axis=-1)) > FULL * JUMP))
    return jumps if jumps >= MANY_JUMPS else 0


def _noisy_slices(values: np.ndarray) -> list[int]:
    """Slices of which neither rows nor columns correlate with the next, and that are no weaker than the others."""
    if len(values) == 1 or min(values.shape[1:]) < 32:  # nothing to compare with, or too few pixels to tell
        return []
    found, spread = [], [float(plane.std(dtype=np.float64)) for plane in values]
    usual = float(np.median(spread))
    for i, plane in enumerate(values):
        if spread[i] < max(0.3 * usual, 1e-12):
            continue
        centred = plane.astype(np.float64) - plane.mean(dtype=np.float64)
        along = [(centred[1:] * centred[:-1]).mean(), (centred[:, 1:] * centred[:, :-1]).mean()]
        if max(along) < ALIKE * spread[i] ** 2:
            found.append(i)
    return found


def _palette(path: Path, colours: dict[int, Colour], ground: Colour, seen: Palettes | None) -> Iterator[Told]:
    """colours: of the indices that occur. ground: of index 0, whether it occurs or not."""
    black = [i for i, colour in colours.items() if max(colour) <= BLACK]
    grays = [colour[0] for colour in colours.values() if len(set(colour)) == 1]
    others = [(i, c, *seen.setdefault(i, (c, path))) for i, c in colours.items() if i] if seen is not None else []
    if max(ground) > BLACK and black:
        yield f"in the palette of {path} the background, 0, is {ground} and a structure, {black[0]}, is black", INDICES
    elif len(grays) == len(colours) and grays != sorted(grays):
        yield f"the palette of {path} gives {_listed(colours)} the grays {_listed(grays)}, in another order", INDICES
    elif different := [(i, c, first, other) for i, c, first, other in others if c != first]:
        i, c, first, other = different[0]
        yield f"the value {i} is {c} in the palette of {path} and {first} in that of {other}", INDICES


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def _transparency(path: Path, file: Any) -> Iterator[Told]:
    has_alpha = file.mode in ALPHA
    alpha = file.getchannel(file.getbands()[-1]) if has_alpha else file.convert("RGBA").getchannel("A")
    clear, values = np.asarray(alpha) == 0, np.asarray(file.getchannel(0) if has_alpha or file.mode == "RGB" else file)
    hidden = np.count_nonzero(values[clear])
    if clear.any() and not clear.all() and values.min() == values.max():
        told = f"{path} holds {int(values.flat[0])} everywhere, and only its transparency differs"
        yield f"{told}: {np.count_nonzero(clear)} of its {clear.size} pixels are clear", OPAQUE
    elif hidden:
        yield f"{hidden} of the {clear.size} pixels of {path} have a value though they are transparent", OPAQUE
