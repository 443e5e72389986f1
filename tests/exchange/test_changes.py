"""What a change of the average leaves out comes later, and what is no change of this network's is refused."""

import pytest
import torch
from simulation import compose

from splitlearn import checks
from splitlearn.errors import PeerError, UserError
from splitlearn.exchange.changes import Changes, changes_of

NAMES = ["conv.weight", "norm.weight", "norm.bias"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Of a convolution and a norm, whose changes differ in size by far."""
    return {
        "conv.weight": torch.randn(16, 8, 3, 3) * scale,
        "norm.weight": 1 + 1e-4 * torch.randn(16) * scale,
        "norm.bias": 10 * torch.randn(16) * scale,
        "norm.running_var": 0.01 + torch.rand(16) * scale,
        "norm.num_batches_tracked": torch.tensor(7),
    }


def changes(*options: str) -> Changes:
    return changes_of(compose("compressor@weights=uq", *options))


@pytest.mark.parametrize("codec", ["uq", "qu", "ms", "sp", "rt", "int8", "nq", "mf"])
def test_both_ends_go_on_from_one_average_and_nothing_is_lost(codec):
    """What has arrived in all is what was to arrive, but for what the last payload has left out."""
    sender, receiver = (changes_of(compose(f"compressor@weights={codec}")) for _ in range(2))
    average, missing = weights(0.0), 0
    for number in range(6):
        wanted = {name: value + torch.randn(value.shape).to(value.dtype) for name, value in average.items()}
        sent, here, sender.left_out = sender.encode(wanted, average, NAMES, "client 0", number)
        there = receiver.decode(sent, average, NAMES, "client 0")
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
        missing += flat(wanted) - flat(there)
        average = there
    assert torch.allclose(missing, sender.left_out, atol=1e-4) and missing.any()


def test_a_change_that_is_repeated_arrives_in_full_though_each_payload_leaves_much_out():
    average, wanted, times = weights(0.0), weights(), 40
    sender = changes("weights.bits=1")
    arrived = [sender_step(sender, wanted, average, number) for number in range(times)]
    wanted = flat(wanted) - flat(average)
    first, mean = arrived[0], sum(arrived) / times
    sizes = [average[name].numel() for name in NAMES]
    for part, of_first, of_mean in zip(*(values.split(sizes) for values in (wanted, first, mean)), strict=True):
        assert (of_mean - part).norm() < 0.1 * part.norm() and (of_first - part).norm() > 0.2 * part.norm()


def sender_step(sender: Changes, wanted: dict, average: dict, number: int) -> torch.Tensor:
    """What arrives of a change."""
    _, arrived, sender.left_out = sender.encode(wanted, average, NAMES, "client 0", number)
    return flat(arrived) - flat(average)


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in NAMES])


def test_small_changes_are_as_exact_as_large_ones():
    average, wanted = weights(0.0), weights()
    _, arrived, _ = changes("weights.bits=4").encode(wanted, average, NAMES, "client 0", 1)
    for name in NAMES:
        change = wanted[name] - average[name]
        assert (arrived[name] - wanted[name]).norm() < 0.2 * change.norm(), name


def test_what_has_not_changed_stays_to_the_bit_and_buffers_go_as_they_are():
    average = weights()
    wanted = average | {"norm.num_batches_tracked": torch.tensor(9), "norm.running_var": torch.rand(16)}
    sent, arrived, left_out = changes().encode(wanted, average, NAMES, "client 0", 1)
    assert all(torch.equal(arrived[name], wanted[name]) for name in wanted) and not left_out.any()
    assert all(torch.equal(value, wanted[name]) for name, value in changes().decode(sent, average, NAMES, "it").items())


def test_bytes_are_those_of_the_codec():
    average, wanted = {"weight": torch.zeros(100_000)}, {"weight": torch.randn(100_000)}
    (payload, scales, buffers), *_ = changes("weights.bits=3").encode(wanted, average, ["weight"], "client 0", 1)
    assert payload.nbytes == pytest.approx(3 * 100_000 / 8, rel=0.03) and scales.nbytes == 4 and not buffers


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda wire, scales, rest: (wire, scales), "does not have a payload, scales and buffers"),
        (lambda wire, scales, rest: (wire.float(), scales, rest), "no 1-D uint8 tensor"),
        (lambda wire, scales, rest: (None, scales, rest), "no 1-D uint8 tensor"),
        (lambda wire, scales, rest: (wire, scales[1:], rest), "scales are no finite number for each parameter"),
        (lambda wire, scales, rest: (wire, scales / 0, rest), "scales are no finite number for each parameter"),
        (lambda wire, scales, rest: (wire, scales.double(), rest), "scales are no finite number for each parameter"),
        (lambda wire, scales, rest: (wire, scales, {}), "buffers are not those of the client segment"),
        (lambda wire, scales, rest: (wire, scales, dict.fromkeys(rest, torch.ones(2))), "other shapes or dtypes"),
        (lambda wire, scales, rest: (wire[:-1], scales, rest), "weights in a payload that"),
        (lambda wire, scales, rest: (torch.zeros(0, dtype=torch.uint8), scales, rest), "weights in a payload that"),
    ],
)
def test_what_is_no_change_is_one_sentence(change, why):
    average = weights(0.0)
    sent, *_ = changes().encode(weights(), average, NAMES, "client 0", 1)
    with pytest.raises(PeerError, match=rf"^client 1 sent .*{why}"):
        changes().decode(change(*sent), average, NAMES, "client 1")


def test_changes_of_a_smaller_network_are_refused():
    average = weights(0.0)
    smaller = {name: value[:8] if name == "conv.weight" else value for name, value in average.items()}
    sent, *_ = changes().encode({**smaller, "conv.weight": torch.randn(8, 8, 3, 3)}, smaller, NAMES, "client 0", 1)
    with pytest.raises(PeerError, match=r"^client 1 sent weights in a payload that is a .* is expected"):
        changes().decode(sent, average, NAMES, "client 1")


def test_weights_that_are_not_finite_are_not_sent():
    with pytest.raises(
        UserError, match=r"^the weights of client 0 after epoch 1 are not finite \(.*: training diverged"
    ):
        changes().encode(weights(float("nan")), weights(0.0), NAMES, "client 0", 1)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["compressor@weights=klt"], "compressor@weights=klt goes by what it sent before .* such as uq"),
        (["compressor@weights=uq", "weights.transform=klt"], "compressor@weights=uq goes by what it sent before"),
        (["compressor@weights=linked"], "compressor@weights=linked goes by"),
        (["compressor@weights=uq", "topology.average=never"], "use topology.average=epoch, or compressor@weights=none"),
        (["compressor@weights=uq", "topology.average=step"], "use topology.average=epoch, or compressor@weights=none"),
        (["compressor@weights=uq", "membership.sample=2", "num_clients=3"], "use membership.sample=null, or"),
        (["compressor@weights=uq", "weights.bits=9"], "weights.bits=9.* is out of range"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        checks.check(compose(*overrides))


def test_a_group_that_another_choice_brings_is_named_with_it():
    with pytest.raises(UserError, match=r"^compressor@weights is a choice with topology=parallel alone$"):
        compose("topology=sequential", "compressor@weights=uq")
    with pytest.raises(UserError, match=r"^compressor@features is a choice with exchange=u_shaped alone$"):
        compose("compressor@features=ms")
