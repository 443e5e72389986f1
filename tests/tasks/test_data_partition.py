import numpy as np
import pytest
from samples import numbered

from splitlearn.errors import UserError
from splitlearn.tasks.partition import labels, partition


@pytest.mark.parametrize("num_clients", [1, 2, 3, 7, 32])
def test_iid_parts_are_even_disjoint_and_complete(num_clients, digits, config):
    train = digits[0]
    parts = partition(train, num_clients, config().partition, 0)
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    sizes = [len(part) for part in parts]
    assert len(sizes) == num_clients and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_clients", [1, 2, 7])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0])
def test_dirichlet_parts_are_disjoint_complete_and_not_empty(num_clients, alpha, digits, config):
    train = digits[0]
    cfg = config("partition=dirichlet", f"partition.alpha={alpha}").partition
    parts = partition(train, num_clients, cfg, 0)
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    assert len(parts) == num_clients and all(part.size for part in parts)


def test_smaller_alpha_makes_clients_less_alike(digits, config):
    train = digits[0]

    def skew(alpha):
        """Mean over clients and seeds of the share of a client's commonest class."""
        cfg = config("partition=dirichlet", f"partition.alpha={alpha}").partition
        parts = [part for seed in range(5) for part in partition(train, 5, cfg, seed)]
        return np.mean([np.bincount(labels(train)[part]).max() / len(part) for part in parts])

    skews = [skew(alpha) for alpha in (0.1, 1.0, 100.0)]
    assert skews[0] > skews[1] + 0.1 > skews[2] + 0.2


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_partition_repeats_with_the_seed(name, digits, config):
    cfg = config(f"partition={name}").partition
    first, again, other = (partition(digits[0], 3, cfg, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("alpha", [0, -1])
def test_alpha_must_be_above_zero(alpha, config):
    with pytest.raises(UserError, match=f"partition.alpha={alpha}"):
        partition(numbered(20), 2, config("partition=dirichlet", f"partition.alpha={alpha}").partition, 0)


def test_alpha_that_leaves_a_client_without_samples_is_refused(config):
    cfg = config("partition=dirichlet", "partition.alpha=0.001").partition
    with pytest.raises(UserError, match=r"partition.alpha=0.001 leaves some of 20 clients"):
        partition(numbered(20), 20, cfg, 0)


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_more_clients_than_samples_are_refused(name, config):
    with pytest.raises(UserError, match=r"4 samples .* num_clients=5"):
        partition(numbered(4), 5, config(f"partition={name}").partition, 0)
