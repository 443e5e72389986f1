"""How many samples a client's batches have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn.batches import LAST_BATCH, batch_sizes, largest_batch
from splitlearn.tasks.loading import EpochBatches


@pytest.mark.parametrize(
    "num_samples, keep, merge, drop",
    [
        (0, [], [], []),
        (1, [1], [1], []),
        (3, [3], [3], []),
        (4, [4], [4], [4]),
        (5, [4, 1], [5], [4]),
        (10, [4, 4, 2], [4, 6], [4, 4]),
        (11, [4, 4, 3], [4, 4, 3], [4, 4]),
    ],
)
def test_the_last_batch(num_samples, keep, merge, drop):
    assert [batch_sizes(num_samples, 4, how) for how in LAST_BATCH] == [keep, merge, drop]


@given(st.integers(0, 500), st.integers(1, 70), st.sampled_from(LAST_BATCH), st.integers(0, 3))
def test_an_epoch_has_these_batches_and_each_sample_once(num_samples, batch_size, how, done):
    sizes = batch_sizes(num_samples, batch_size, how)
    assert max(sizes, default=1) <= largest_batch(batch_size, how)
    assert how != "merge" or batch_size == 1 or num_samples == 1 or 1 not in sizes
    sampler = EpochBatches(num_samples, batch_size, 0, 0, last_batch=how)
    whole = list(sampler)
    assert list(map(len, whole)) == sizes and len(sampler) == len(sizes)
    indices = [index for batch in whole for _, index in batch]
    assert len(set(indices)) == len(indices) == sum(sizes) >= num_samples - (batch_size - 1) * (how == "drop")
    sampler.start_at(1, done)
    assert list(sampler) == whole[done:]
