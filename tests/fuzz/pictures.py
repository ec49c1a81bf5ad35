"""Image files drawn at random, as plain values that a failing test can print; and what may happen to a file's bytes."""

import gzip
import io
from dataclasses import dataclass

import nibabel
import numpy as np
from hypothesis import strategies as st
from PIL import Image

MODES = {
    "png": ("L", "LA", "P", "RGB", "RGBA", "1", "I;16"),
    "jpg": ("L", "RGB"),
    "tif": ("L", "RGB", "1", "I;16", "F"),
    "bmp": ("L", "P", "RGB", "1"),
}
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8")


@dataclass(frozen=True)
class Raster:
    """A PNG, JPEG, TIFF or BMP file. side: (H, W). levels: how many values there are. pages: of a TIFF."""

    suffix: str
    mode: str
    side: tuple[int, int]
    levels: int
    seed: int
    pages: int = 1
    compression: str | None = None

    def values(self) -> np.ndarray:
        """What is to come back: (D, H, W), or (D, H, W, 3) in colour."""
        rng = np.random.default_rng(self.seed)
        shape = (self.pages, *self.side, *((3,) if self.mode in ("RGB", "RGBA", "P") else ()))
        if self.suffix == "jpg":  # which keeps what is smooth
            ramp = np.add.outer(np.arange(self.side[0]), np.arange(self.side[1])) * 255 // max(1, sum(self.side))
            return np.broadcast_to(ramp[..., *([None] * (len(shape) - 3))], shape).astype(np.uint8)
        if self.mode == "P":
            return self.palette()[self.indices()]
        if self.mode == "1":
            return (rng.integers(0, 2, shape) * 255).astype(np.uint8)
        if self.mode == "F":
            return (rng.integers(0, self.levels, shape) / 7 - 3).astype(np.float32)
        step = (65535 if self.mode == "I;16" else 255) // max(1, self.levels - 1)
        dtype = np.uint16 if self.mode == "I;16" else np.uint8
        return (rng.integers(0, self.levels, shape) * step).astype(dtype)

    def palette(self) -> np.ndarray:
        """(levels, 3), all colours different."""
        grays = np.random.default_rng(1).permutation(256)[: self.levels, None]
        return grays.repeat(3, axis=1) ^ [0, 1, 2]

    def indices(self) -> np.ndarray:
        """(1, H, W) of a palette's colours."""
        return np.random.default_rng(self.seed).integers(0, self.levels, (1, *self.side)).astype(np.uint8)

    def content(self) -> bytes:
        """The file."""
        pages = [self._page(page) for page in (self.indices() if self.mode == "P" else self.values())]
        stream = io.BytesIO()
        options = {"save_all": True, "append_images": pages[1:]} if self.pages > 1 else {}
        if self.compression:
            options["compression"] = self.compression
        kind = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP"}[self.suffix]
        pages[0].save(stream, kind, **options, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
        return stream.getvalue()

    def _page(self, page: np.ndarray) -> Image.Image:
        if self.mode == "P":
            image = Image.fromarray(page).convert("P")
            image.putpalette(self.palette().astype(np.uint8).tobytes())
            return image
        if self.mode == "1":
            return Image.fromarray(page > 0)
        if self.mode in ("LA", "RGBA"):
            clear = np.random.default_rng(self.seed).integers(0, 256, self.side, dtype=np.uint8)
            return Image.fromarray(np.dstack([page, clear]), self.mode)
        return Image.fromarray(page)


@dataclass(frozen=True)
class Volume:
    """A NIfTI file. shape: (x, y, z). spacing: in `units` along these. scale: (slope, intercept) of the header."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    levels: int
    seed: int
    endian: str = "<"
    version: int = 1
    scale: tuple[float, float] | None = None
    turn: float = 0.0
    units: str = "mm"

    def voxels(self) -> np.ndarray:
        """(x, y, z) as they lie in the file."""
        top = min(self.levels, np.iinfo(self.dtype).max + 1) if self.dtype[0] != "f" else self.levels
        return np.random.default_rng(self.seed).integers(0, top, self.shape).astype(self.dtype)

    def values(self) -> np.ndarray:
        """What is to come back: (D, H, W)."""
        slope, intercept = self.scale or (1, 0)
        return self.voxels().reshape(self.shape[:3]).astype(float).T * slope + intercept

    def content(self) -> bytes:
        """The file."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        affine = np.array([[c, -s, 0, 7], [s, c, 0, -3], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ np.diag([*self.spacing, 1])
        kind = nibabel.Nifti1Image if self.version == 1 else nibabel.Nifti2Image
        header = kind.header_class(endianness=self.endian)
        header.set_xyzt_units(self.units)
        header.set_data_dtype(np.dtype(self.dtype).newbyteorder(self.endian))
        raw = bytearray(kind(self.voxels(), affine, header, dtype=np.dtype(self.dtype)).to_bytes())
        if self.scale:
            edited = kind.header_class(bytes(raw[: kind.header_class.sizeof_hdr]), check=False)
            edited["scl_slope"], edited["scl_inter"] = self.scale
            raw[: kind.header_class.sizeof_hdr] = edited.binaryblock
        return gzip.compress(bytes(raw), 1, mtime=0) if self.suffix.endswith("gz") else bytes(raw)


@dataclass(frozen=True)
class Damage:
    """What happened to a file. where: the part of it that comes before; bit: which of eight is flipped there."""

    kind: str
    where: float = 0.0
    bit: int = 0

    def of(self, content: bytes) -> bytes:
        """What is left."""
        at = int(self.where * len(content))
        if self.kind == "cut":
            return content[:at]
        if self.kind == "flipped" and content:
            return content[:at] + bytes([content[at] ^ 1 << self.bit]) + content[at + 1 :]
        if self.kind == "zeroed":
            return content[:at] + bytes(len(content) - at)
        if self.kind == "twice":
            return content[:at] + content[at:] * 2
        return {"page": b"<!DOCTYPE html>404", "json": b'{"error": 404}', "list": b"[1]"}.get(self.kind, b"")


SIDE = st.integers(1, 24)
KINDS = ("cut", "flipped", "flipped", "flipped", "zeroed", "twice", "page", "json", "list", "empty")
DAMAGE = st.builds(
    Damage, st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True, allow_subnormal=False), st.integers(0, 7)
)


@st.composite
def rasters(draw: st.DrawFn, suffixes: tuple[str, ...] = ("png", "jpg", "tif", "bmp")) -> Raster:
    suffix = draw(st.sampled_from(suffixes))
    mode = draw(st.sampled_from(MODES[suffix]))
    pages, compression = 1, None
    if suffix == "tif":
        pages = draw(st.integers(1, 4))
        group4 = ("group4",) if mode == "1" else ()
        compression = draw(st.sampled_from((None, "tiff_deflate", "tiff_lzw", "packbits", *group4)))
    seed, levels = draw(st.integers(0, 99)), draw(st.sampled_from((1, 2, 3, 17, 256)))
    # Of several pages each side is 2 long at least, as of volumes.
    height, width = (max(draw(SIDE), min(pages, 2)) for _ in range(2))
    return Raster(suffix, mode, (height, width), levels, seed, pages, compression)


@st.composite
def volumes(draw: st.DrawFn, scaled: bool = True) -> Volume:
    # x and y are 2 long at least: what a volume of one row of voxels is, is told in tests/images/test_formats.py.
    axis = st.integers(2, 12)
    shape = (draw(axis), draw(axis), draw(st.integers(1, 6)), *draw(st.sampled_from(((), (), (1,), (1, 1)))))
    number = st.sampled_from((0.01, 0.3, 0.6, 1.0, 3.0, 12.5))
    return Volume(
        draw(st.sampled_from(("nii", "nii.gz"))), draw(st.sampled_from(DTYPES)), shape,
        (draw(number), draw(number), draw(number)), draw(st.sampled_from((1, 2, 5, 100, 30000))),
        draw(st.integers(0, 99)), draw(st.sampled_from("<>")), draw(st.sampled_from((1, 1, 2))),
        draw(st.sampled_from((None, None, (2.0, -1.0), (0.5, 10.0)))) if scaled else None,
        draw(st.sampled_from((0.0, 0.0, 0.4, 3.0))), draw(st.sampled_from(("mm", "mm", "meter", "micron", "unknown"))),
    )  # fmt: skip
