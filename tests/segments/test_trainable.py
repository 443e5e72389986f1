import copy
import math

import pytest
import torch
from simulation import compose
from torch import nn

from splitlearn.errors import NonFiniteError
from splitlearn.segments import trainable as training
from splitlearn.segments.trainable import Trainable, Trial

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


def test_gradients_are_zeros_where_there_are_none():
    segment = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    segment[0].requires_grad_(False)
    segment(torch.ones(5, 2)).sum().backward()
    gradients = training.gradients_of(segment)
    assert [gradient.shape for gradient in gradients] == [(1, 3), (1,)]  # what is frozen has none
    assert torch.equal(gradients[0], segment[1].weight.grad) and gradients[1].tolist() == [5]
    segment[1].weight.grad = None
    assert training.gradients_of(segment)[0].tolist() == [[0, 0, 0]]


def test_nbytes_of_nested():
    tree = {"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.bfloat16), "word")], "b": {"c": torch.tensor(1)}, "d": 5}
    assert training.nbytes_of(tree) == 12 + 4 + 8
    assert training.nbytes_of([None, {}, 1.5]) == 0


# Batches that are not finite


def add_gradients(segment: nn.Module, scale: float = 1.0) -> None:
    nn.functional.cross_entropy(segment(scale * torch.randn(6, 4)), torch.arange(6) % 3).backward()


def test_a_kept_trial_is_what_backward_alone_does_and_an_undone_one_is_nothing():
    plain, tried = network(), network()
    torch.manual_seed(1)
    for _ in range(3):
        add_gradients(plain)
    torch.manual_seed(1)
    for _ in range(3):
        before = torch.get_rng_state()
        for scale, word in ((3e38, "undo"), (1.0, "keep")):
            torch.set_rng_state(before)
            trial = Trial(tried)
            add_gradients(tried, scale)
            if word == "undo":
                with pytest.raises(NonFiniteError):
                    trial.keep()
            getattr(trial, word)()
    assert all(map(torch.equal, training.gradients_of(plain), training.gradients_of(tried)))
    assert all(map(torch.equal, plain.buffers(), tried.buffers()))
