import pytest
import torch

from splitlearn.topologies.averaging import average_states


@pytest.mark.parametrize(
    "weights, expected",
    [(None, [2.0, 5.0]), ([1, 1], [2.0, 5.0]), ([1, 3], [2.5, 6.5]), ([3.0, 1.0], [1.5, 3.5]), ([0, 2], [3.0, 8.0])],
)
def test_average(weights, expected):
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0])
    assert torch.equal(average_states([{"a": one}, {"a": other}], weights)["a"], torch.tensor(expected))
    (mean,) = average_states([[one], [other]], weights)
    assert torch.equal(mean, torch.tensor(expected))
    assert one.tolist() == [1, 2] and other.tolist() == [3, 8]


def test_average_of_three():
    states = [[torch.tensor([float(value)])] for value in (1, 2, 6)]
    assert average_states(states) == [torch.tensor([3.0])]
    assert average_states(states, [2, 1, 1]) == [torch.tensor([2.5])]


def test_average_keeps_the_first_integers():
    states = [{"n": torch.tensor(number), "x": torch.tensor(float(number))} for number in (3, 5)]
    mean = average_states(states)
    assert mean.keys() == {"n", "x"}
    assert mean["n"].dtype == torch.int64 and mean["n"].item() == 3
    assert mean["x"].item() == 4


def test_average_refuses_another_number_of_weights():
    with pytest.raises(ValueError):
        average_states([[torch.ones(1)]] * 2, [1, 1, 1])
