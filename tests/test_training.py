import copy
import itertools
import math

import pytest
import torch
from simulation import compose
from torch import nn

from splitlearn import seeds, training
from splitlearn.training import Trainable

OPTIMIZERS = {
    "momentum": ["optimizer=sgd"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true"],
    "plain": ["optimizer=sgd", "optimizer.momentum=0"],
    "adam": ["optimizer=adam"],
}
optimizers = pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)) for _ in range(number)
    ]


def step(trainable: Trainable, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    inputs, labels = batch
    trainable.optimizer.zero_grad()
    nn.functional.cross_entropy(trainable.segment(inputs), labels).backward()
    trainable.optimizer.step()


def assert_same_weights(one: Trainable, other: Trainable) -> None:
    first, second = one.segment.state_dict(), other.segment.state_dict()
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@optimizers
def test_handing_on_is_training_alone(overrides):
    cfg = compose(*overrides)
    alone, pair = Trainable(network(), cfg), [Trainable(network(), cfg), Trainable(network(1), cfg)]
    for number, batch in enumerate(batches(7)):
        step(alone, batch)
        giver, taker = pair[number % 2], pair[1 - number % 2]
        step(giver, batch)
        taker.load(giver.state())
    assert_same_weights(alone, pair[0])
    assert_same_weights(alone, pair[1])


def changed(before: dict, after: dict) -> list[str]:
    """Where two states differ."""
    before, after = (dict(torch.utils._pytree.tree_flatten_with_path(state)[0]) for state in (before, after))
    assert before.keys() == after.keys()
    return [
        torch.utils._pytree.keystr(path)
        for path, leaf in before.items()
        if isinstance(leaf, torch.Tensor) and not torch.equal(leaf, after[path])
    ]


@optimizers
def test_training_on_does_not_change_a_state_that_was_taken(overrides):
    trainable = Trainable(network(), compose(*overrides))
    first, second = batches(2)
    step(trainable, first)
    state = trainable.state()
    before = copy.deepcopy(state)
    step(trainable, second)
    assert changed(before, trainable.state())
    assert not changed(before, state)


@optimizers
def test_training_on_does_not_change_the_giver(overrides):
    giver, taker = (Trainable(network(), compose(*overrides)) for _ in range(2))
    first, second = batches(2)
    step(giver, first)
    before = copy.deepcopy(giver.state())
    taker.load(giver.state())
    step(taker, second)
    assert changed(before, taker.state())
    assert not changed(before, giver.state())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_alone_do_not_hand_on_the_optimizer(optimizer):
    giver, taker = (Trainable(network(seed), compose(f"optimizer={optimizer}")) for seed in range(2))
    first, second = batches(2)
    step(giver, first)
    taker.load(training.state_of(giver.segment))
    assert_same_weights(giver, taker)
    assert not taker.optimizer.state_dict()["state"]
    step(giver, second)
    step(taker, second)
    assert not torch.equal(giver.segment[0].weight, taker.segment[0].weight)


def test_learning_rate_stays_the_receivers():
    giver, taker = (Trainable(network(), compose("schedule=cosine", "epochs=4")) for _ in range(2))
    for batch in batches(3):
        step(giver, batch)
        giver.schedule.step()
    taker.load(giver.state())
    assert giver.learning_rate < taker.learning_rate == 0.05
    step(taker, batch)
    taker.schedule.step()
    assert taker.learning_rate == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)) / 2)


def test_state_holds_parameters_and_buffers():
    segment = network()
    state = training.state_of(segment)
    assert state.keys() == segment.state_dict().keys()
    assert "1.running_mean" in state and "1.num_batches_tracked" in state
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize(
    "weights, expected",
    [(None, [2.0, 5.0]), ([1, 1], [2.0, 5.0]), ([1, 3], [2.5, 6.5]), ([3.0, 1.0], [1.5, 3.5]), ([0, 2], [3.0, 8.0])],
)
def test_average(weights, expected):
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0])
    assert torch.equal(training.average_states([{"a": one}, {"a": other}], weights)["a"], torch.tensor(expected))
    (mean,) = training.average_states([[one], [other]], weights)
    assert torch.equal(mean, torch.tensor(expected))
    assert one.tolist() == [1, 2] and other.tolist() == [3, 8]


def test_average_of_three():
    states = [[torch.tensor([float(value)])] for value in (1, 2, 6)]
    assert training.average_states(states) == [torch.tensor([3.0])]
    assert training.average_states(states, [2, 1, 1]) == [torch.tensor([2.5])]


def test_average_keeps_the_first_integers():
    states = [{"n": torch.tensor(number), "x": torch.tensor(float(number))} for number in (3, 5)]
    mean = training.average_states(states)
    assert mean.keys() == {"n", "x"}
    assert mean["n"].dtype == torch.int64 and mean["n"].item() == 3
    assert mean["x"].item() == 4


def test_average_refuses_another_number_of_weights():
    with pytest.raises(ValueError):
        training.average_states([[torch.ones(1)]] * 2, [1, 1, 1])


def test_average_of_states_loads():
    states = [training.state_of(network(seed)) for seed in (0, 1)]
    segment = network(2)
    training.load_state(segment, training.average_states(states))
    assert torch.allclose(segment[0].weight, (network(0)[0].weight + network(1)[0].weight) / 2)


def test_gradients_are_zeros_where_there_are_none():
    segment = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    segment[0].requires_grad_(False)
    segment(torch.ones(5, 2)).sum().backward()
    gradients = training.gradients_of(segment)
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in segment.parameters()]
    assert not gradients[0].any() and not gradients[1].any()
    assert torch.equal(gradients[2], segment[1].weight.grad)
    assert gradients[3].tolist() == [5]


@pytest.mark.parametrize(
    "decoded, original, expected",
    [
        ([3.0, 0.0], [3.0, 4.0], 0.8),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([6.0, 8.0], [-3.0, -4.0], 3.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 2.0], [0.0, 0.0], 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_relative_error(decoded, original, expected, dtype):
    error = training.relative_error(torch.tensor(decoded, dtype=dtype), torch.tensor(original, dtype=dtype))
    assert isinstance(error, float) and error == pytest.approx(expected, rel=1e-12)


def test_nbytes_of_nested():
    tree = {"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.bfloat16), "word")], "b": {"c": torch.tensor(1)}, "d": 5}
    assert training.nbytes_of(tree) == 12 + 4 + 8
    assert training.nbytes_of([None, {}, 1.5]) == 0


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_precision(precision, dtype):
    with training.autocast(compose(f"precision={precision}"), torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_derived_seeds_differ_by_purpose():
    purposes = [(), ("uplink",), ("downlink",), ("uplink", 0), ("uplink", 1), ("uplink", 1, 2), ("uplink", 12), ("1",)]
    derived = {seeds.derive(seed, *purpose) for seed, purpose in itertools.product((0, 1), purposes)}
    assert len(derived) == 2 * len(purposes)
    assert all(0 <= seed < 2**63 for seed in derived)


def test_derived_seeds_are_the_same_everywhere():
    assert seeds.derive(0, "uplink", 1) == 867657509820122943


def test_generators_repeat_and_differ_by_purpose():
    draws = [torch.rand(4, generator=seeds.generator(0, *purpose)) for purpose in (("a",), ("a",), ("b",))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(4, generator=seeds.generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)
