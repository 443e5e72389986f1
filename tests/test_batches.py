"""How many samples a client's batches have."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn.batches import LAST_BATCH, batch_sizes, largest_batch, num_batches
from splitlearn.roles.fit import check_batches
from splitlearn.roles.progress import share_of
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


@given(st.integers(0, 500), st.integers(1, 70), st.sampled_from(LAST_BATCH), st.integers(1, 5))
def test_a_batchs_share_of_an_optimizer_step_is_known_without_the_list_of_all(num_samples, batch_size, how, accumulate):
    sizes = batch_sizes(num_samples, batch_size, how)
    assert num_batches(num_samples, batch_size, how) == len(sizes)
    cfg = SimpleNamespace(batch_size=batch_size, last_batch=how, accumulate=accumulate)
    for number in range(len(sizes)):
        first = number // accumulate * accumulate
        assert share_of(number + 1, num_samples, cfg) == sizes[number] / sum(sizes[first : first + accumulate])


def test_a_number_of_samples_that_is_made_up_takes_no_memory():
    cfg = SimpleNamespace(batch_size=1, last_batch="keep", accumulate=4)
    assert num_batches(1 << 53, 1) == 1 << 53 and share_of(1 << 52, 1 << 53, cfg) == 0.25
    check_batches(0, 1 << 53, cfg, "a network", None)


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
