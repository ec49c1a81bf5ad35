"""The masks of a run on their way from its test into predictions.npz, and back."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from dgbench.errors import DataError
from dgbench.running import test as testing


def corner(side: int) -> np.ndarray:
    """Two structures of a photograph: the left half, and a corner of 30 x 30 pixels."""
    mask = np.zeros((1, 2, side, side), bool)
    mask[0, 0, :, : side // 2] = mask[0, 1, :30, :30] = True
    return mask


def test_masks_wait_for_the_end_of_a_run_in_a_hundredth_of_their_size():
    """Sixteen of 800 x 800 pixels and two structures are 20 MB unpacked, 2.6 MB with eight voxels a byte."""
    tracemalloc.start()
    try:
        tested = [testing.Tested.of("A", f"case{i}", [], corner(800)) for i in range(16)]
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 0.2e6 and most < 4e6
    assert [t.shape for t in tested] == [(1, 2, 800, 800)] * 16


def test_the_file_is_numpy_s_own_of_packed_masks_to_the_byte_and_gives_each_mask_again(tmp_path):
    masks = {("A", "x"): corner(41), ("B", "x"): ~corner(60)}
    tested = [testing.Tested.of(*key, [], mask) for key, mask in masks.items()]
    testing.write_predictions(tested, tmp_path / "predictions.npz")
    index = json.dumps([["A", "x", [1, 2, 41, 41]], ["B", "x", [1, 2, 60, 60]]]).encode()
    packed = {f"mask_{i}": np.packbits(mask) for i, mask in enumerate(masks.values())}
    np.savez_compressed(tmp_path / "numpy.npz", index=np.frombuffer(index, np.uint8), **packed)
    assert (tmp_path / "predictions.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    found = testing.Predictions(tmp_path / "predictions.npz")
    assert list(found) == list(masks) and len(found) == 2
    for key, mask in masks.items():
        np.testing.assert_array_equal(found[key], mask)


def test_a_header_that_python_itself_cannot_tokenise_is_told(tmp_path):
    """A checksum that was made of the damaged file is right."""
    good = io.BytesIO()
    np.save(good, np.zeros(3, np.uint8))
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w") as file:
        file.writestr("index.npy", good.getvalue().replace(b"(3,)", b"(3, "))
    with pytest.raises(DataError, match=r"predictions\.npz cannot be read"):
        testing.Predictions(tmp_path / "predictions.npz")
