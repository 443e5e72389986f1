"""k-means: the centroids of points, the same for the same points on every device."""

import torch
from torch import Tensor

SEED = 0
STARTED_ON = 1 << 13  # points at most, evenly spaced, that the first centroids are drawn from
DISTANCES = 1 << 22  # that are computed at a time


def centroids_of(points: Tensor, num: int, iterations: int) -> Tensor:
    """(num, n) float64: centroids of `points` (p, n) float64 after Lloyd's iterations, or fewer where nothing moves.

    They start from k-means++ (Arthur and Vassilvitskii, SODA 2007), with a fixed seed. One that no point is nearest to
    stays where it was. They are rounded to float32 in each iteration: a sum's order, which is a device's own, does not
    decide where they go.
    """
    centroids = _start(points, num)
    for _ in range(iterations):
        places = nearest(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, places, points)
        counts = torch.bincount(places, minlength=num).unsqueeze(1)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centroids).float().double()
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """(p,) int64: of which of the centroids (num, n) each point is the nearest; the first, of several."""
    halves = centroids.square().sum(1) / 2
    height = max(1, DISTANCES // len(centroids))
    return torch.cat([(halves - part @ centroids.T).argmin(1) for part in points.split(height)])


def _start(points: Tensor, num: int) -> Tensor:
    """The first centroids: each is drawn with probability in proportion to its squared distance from those before."""
    few = points[:: -(-len(points) // STARTED_ON)].cpu().float().double()  # on the CPU, for any device
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.rand(num, generator=generator, dtype=torch.float64).tolist()
    chosen = [int(draws[0] * len(few))]
    distances = (few - few[chosen[0]]).square().sum(1)
    for draw in draws[1:]:
        sums = distances.cumsum(0)
        chosen.append(min(int(torch.searchsorted(sums, draw * sums[-1], right=True)), len(few) - 1))
        distances = torch.minimum(distances, (few - few[chosen[-1]]).square().sum(1))
    return few[chosen].to(points.device)
