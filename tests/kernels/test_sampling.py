"""A sample of many values in order."""

import pytest
import torch

from splitlearn.kernels.bases import second_moments
from splitlearn.kernels.sampling import stride

SHAPES = [(256, 16, 16), (512, 8, 8), (128, 14, 14), (100, 7, 7), (24, 28, 28), (33, 15, 9), (1, 1, 9973)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_has_all_columns_and_places_of_a_map_alike(shape):
    places = torch.arange(shape[1] * shape[2]).repeat(shape[0])
    for most in (50, 1000, 4096):
        step = stride(len(places), most)
        sampled = places[::step]
        assert len(sampled) <= 2 * most and (step > 1 or len(places) < 2 * most)
        for found, number in ((sampled % shape[2], shape[2]), (sampled, shape[1] * shape[2])):
            counts = found.bincount(minlength=number)
            assert counts.max() - counts.min() <= 1


def test_few_values_are_all_taken():
    assert [stride(num, 64) for num in (1, 7, 63, 64, 65, 100, 127)] == 7 * [1]


@pytest.mark.parametrize("shape", [(256, 16, 16), (128, 14, 14)], ids=str)
def test_moments_of_a_sample_are_those_of_a_map_whose_border_is_unlike_the_rest(shape, noise):
    maps = noise(6, *shape)
    maps[:3, :, :, 1:] *= 0.1
    maps[3:, :, :, 0] *= 0.1
    rows = maps.view(6, -1)
    every = rows @ rows.t() / rows.square().sum()
    assert (second_moments(rows, 4096) - every).norm() < 0.1 * every.norm()
