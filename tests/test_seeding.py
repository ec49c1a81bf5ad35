"""Randomness depends on its key and on nothing else."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgbench.seeding import batch_indices, generator, key


def test_a_key_tells_its_parts_apart():
    assert key(1, "step", 2) == key(1, "step", 2)
    assert len({key(1, 23), key(12, 3), key(123), key(3, 12), key("1", "", "23")}) == 5


def test_two_generators_of_one_key_draw_the_same_whatever_was_drawn_before():
    torch.rand(7)
    first = torch.rand(3, generator=generator(0, "augment", 5))
    torch.rand(11)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "augment", 5)))


@given(seed=st.integers(0, 9), batch_size=st.integers(1, 9), n=st.integers(1, 30))
def test_every_slice_is_seen_once_in_each_pass_and_no_batch_is_short(seed, batch_size, n):
    batches = [batch_indices(seed, step, batch_size, n) for step in range(3 * n)]
    assert {len(b) for b in batches} == {batch_size}
    row = np.concatenate(batches)
    for start in range(0, len(row) - n + 1, n):
        assert sorted(row[start : start + n]) == list(range(n))


def test_a_batch_larger_than_the_source_repeats_slices_instead_of_ending():
    assert len(batch_indices(0, 0, 8, 3)) == 8


def test_passes_are_shuffled_differently_and_seeds_differ():
    first, second = batch_indices(0, 0, 20, 20), batch_indices(0, 1, 20, 20)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_indices(1, 0, 20, 20))


def test_a_key_has_63_bits_so_that_every_generator_takes_it():
    assert all(0 <= key(part) < 2**63 for part in range(200))
