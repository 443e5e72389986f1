"""k-means: Lloyd's iterations as numpy has them, known clusters found, nothing that depends on threads."""

import numpy as np
import pytest
import torch

from splitlearn.kernels import clusters
from splitlearn.kernels.clusters import centroids_of, nearest


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def squared_error(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return (points - centroids[nearest(points, centroids)]).square().sum().item()


@pytest.mark.parametrize("num", [1, 5, 16])
def test_the_nearest_is_the_first_of_the_least_distance(num, monkeypatch):
    points, centroids = randn(300, 3), randn(num, 3, seed=1)
    distances = ((points.numpy()[:, None] - centroids.numpy()) ** 2).sum(2)
    for at_a_time in (1, 100, 1 << 22):
        monkeypatch.setattr(clusters, "DISTANCES", at_a_time)
        assert np.array_equal(nearest(points, centroids).numpy(), distances.argmin(1))
    assert nearest(points, torch.zeros(4, 3).double()).count_nonzero() == 0


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_the_iterations_are_lloyds(iterations):
    points = randn(500, 4)
    centroids = clusters._start(points, 8).numpy()
    for _ in range(iterations):
        places = ((points.numpy()[:, None] - centroids) ** 2).sum(2).argmin(1)
        centroids = np.stack([points.numpy()[places == i].mean(0) for i in range(8)])
    assert np.allclose(centroids_of(points, 8, iterations).numpy(), centroids, atol=1e-5)


def test_more_iterations_and_more_centroids_are_less_error():
    points = randn(2000, 4)
    errors = [squared_error(points, centroids_of(points, 16, iterations)) for iterations in (1, 3, 10, 30)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    errors = [squared_error(points, centroids_of(points, num, 20)) for num in (1, 2, 8, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx((points - points.mean(0)).square().sum().item(), rel=1e-6)


def test_clusters_far_apart_are_found_whatever_their_size():
    middles = 100 * torch.eye(4).double()
    sizes = (5, 20, 400, 1000)
    points = torch.cat([middle + 0.1 * randn(size, 4) for middle, size in zip(middles, sizes, strict=True)])
    found = centroids_of(points, 4, 20)
    assert ((found[:, None] - middles).norm(dim=2).amin(0) < 1).all()


def test_fewer_points_than_centroids():
    points = randn(3, 2)
    assert squared_error(points, centroids_of(points, 8, 10)) < 1e-12  # rounded to float32
    assert centroids_of(torch.ones(50, 2).double(), 4, 10).eq(1).all()


def test_what_is_drawn_does_not_depend_on_threads_or_the_state_of_torchs_generator():
    points, found = randn(30_000, 4), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        found.append(centroids_of(points, 16, 5))
        torch.set_num_threads(before)
    assert torch.equal(*found)
