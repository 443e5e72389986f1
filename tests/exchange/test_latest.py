"""What is held of samples: both ends alike, no errors that add up, nothing from whom it does not come."""

import copy
import itertools

import pytest
import torch
from simulation import compose
from test_exchanges import Pair, batches

from splitlearn import checks
from splitlearn.compressors import REGISTRY, Payload
from splitlearn.errors import PayloadError, PeerError, UserError
from splitlearn.exchange import latest
from splitlearn.exchange.channel import relative_error
from splitlearn.exchange.exchange import converse
from splitlearn.exchange.latest import Latest
from splitlearn.kernels.keeping import KINDS

pytestmark = pytest.mark.usefixtures("one_thread")
UQ = ["compressor=uq", "compressor.bits=0.8"]


def pair_of(*overrides: str) -> Pair:
    pair = Pair(*(overrides if any(one.startswith("compressor=") for one in overrides) else (*UQ, *overrides)))
    for codecs in pair.codecs:
        codecs.begin(100, None)
    return pair


def sent(pair: Pair, x: torch.Tensor, samples: list[int], place: int = 0, change=None):
    """What arrives of `x`, how it was sent, and the client's passage; `change` is made to the wire on its way."""
    client, server = pair.passages(place, measures_error=True)
    client.samples = torch.tensor(samples)
    end = client["smashed"].send(x.requires_grad_())
    wire = end.wire if change is None else change(end.wire)
    received = server["smashed"].receive(wire, len(samples))
    return received, end, client


def assert_both_hold_the_same(pair: Pair) -> None:
    one, other = (codecs.latest["smashed"].entries for codecs in pair.codecs)
    assert one.keys() == other.keys() and one
    for number in one:
        assert one[number][0] == other[number][0] and torch.equal(one[number][1], other[number][1])


def map_of(pair: Pair, noise, seed: int = 0, number: int = 4) -> torch.Tensor:
    return noise(number, *pair.codecs[0].channels["smashed"].shape, seed=seed, relu=True)


INEXACT = sorted(name for name, cls in REGISTRY.items() if not cls.is_exact and not cls.is_linked)


@pytest.mark.parametrize("name", INEXACT)
def test_with_every_compressor_both_ends_hold_the_same_and_nothing_adds_up(name, noise):
    pair = pair_of(f"compressor={name}", "delta=fp32")
    drift = noise(6, *pair.codecs[0].channels["smashed"].shape, seed=9) * 0.02
    first = map_of(pair, noise, number=6)
    errors = []
    for place, samples in enumerate([[5, 0, 3], [1, 2, 4], [0, 1, 2], [3, 4, 5], [4, 0, 2], [1, 3, 5]]):
        x = (first + place * drift)[samples].clone()
        received, _, client = sent(pair, x, samples, place)
        assert_both_hold_the_same(pair)
        errors.append(relative_error(received.tensor, x))
        assert client.take_errors()["smashed"] == errors[-1]
    assert max(errors[2:]) <= 1.3 * max(errors[:2])  # though that of c3sl is larger than the map
    assert errors[4] < 0.95 * errors[0] or errors[0] < 0.05 or name in ("c3sl", "splitfc")


def test_of_a_map_that_stays_the_error_vanishes(noise):
    pair = pair_of("delta=fp32")
    x, errors = map_of(pair, noise), []
    for place in range(8):
        received, *_ = sent(pair, x.clone(), [7, 8, 9, 10], place)
        errors.append(relative_error(received.tensor, x))
    assert errors[0] > 0.3 and errors[-1] < 0.02
    assert all(later < 0.8 * before for before, later in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_map_crosses_as_without_delta_but_for_its_numbers(kind, noise):
    pair, plain = pair_of(f"delta={kind}"), pair_of()
    x = map_of(pair, noise)
    received, end, _ = sent(pair, x.clone(), [3, 1, 2, 0])
    expected, alone, _ = sent(plain, x.clone(), [3, 1, 2, 0])
    assert torch.equal(received.tensor, expected.tensor)
    assert len(end.wire) == len(alone.wire) + 8 + 4 + 4 * 2 + 1  # a section's length, a checksum, numbers, and bits
    for codecs in pair.codecs:
        assert codecs.latest["smashed"].nbytes == 4 * latest.sample_nbytes(codecs.channels["smashed"], None)


def test_the_bytes_that_are_booked_are_those_of_the_wire(noise):
    pair = pair_of("delta=bf16")
    client, server = pair.passages(0)
    client.samples = torch.tensor([1, 2, 3])
    wire = client["smashed"].send(map_of(pair, noise, number=3)).wire
    server["smashed"].receive(wire, 3)
    assert [one.num_bytes for end in (client, server) for one in end.transfers] == [len(wire)] * 2


def test_a_sample_that_is_there_twice_is_held_as_it_came_last(noise):
    pair = pair_of("delta=fp32")
    received, *_ = sent(pair, map_of(pair, noise), [5, 1, 5, 2])
    assert_both_hold_the_same(pair)
    times, kept = pair.codecs[1].latest["smashed"].entries[5]
    assert times == 2 and torch.equal(kept.reshape(-1).view(torch.float32), received.tensor[2].reshape(-1))


def with_section(make):
    """A change of a wire: another section of samples, made of what was sent."""

    def change(wire: torch.Tensor) -> torch.Tensor:
        payload, section = Payload.parse(wire).parted()
        return payload.joined(make(section.clone())).tensor

    return change


def numbers(*values: int):
    new = torch.tensor(values, dtype=torch.uint16).view(torch.uint8)
    return with_section(lambda section: torch.cat([section[:4], new, section[-1:]]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (numbers(0, 1, 2, 100), "is of sample 100, where the client has 100"),
        (numbers(0, 1, 2), "does not say which 4 samples it is of"),
        (numbers(0, 1, 2, 9), "is a change of other maps than this end holds"),
        (with_section(lambda section: section[:3]), "does not say which"),
        (with_section(lambda section: torch.cat([section[:4] ^ 1, section[4:]])), "is a change of other maps"),
        (lambda wire: Payload.parse(wire).parted()[0].joined(torch.zeros(0)).tensor, "does not say which"),
    ],
)
def test_malformed_numbers_are_refused_and_nothing_is_held_of_them(change, expected, noise):
    pair = pair_of("delta=bf16")
    sent(pair, map_of(pair, noise), [0, 1, 2, 3])
    before = pair.codecs[1].latest["smashed"].entries
    with pytest.raises(PeerError, match=f"^client 0 sent a payload that {expected}"):
        sent(pair, map_of(pair, noise, seed=1), [0, 1, 2, 3], 1, change)
    assert pair.codecs[1].latest["smashed"].entries is before


def test_any_bytes_in_the_place_of_the_section_are_refused_or_numbers():
    one, generator = Latest("bf16"), torch.Generator().manual_seed(0)
    one.num_samples = 70_000
    x = torch.ones(3, 5)
    plain = REGISTRY["uq"](bits=2).encode(x)
    refused = 0
    for length in [*range(20)] * 20:
        section = torch.randint(256, (length,), generator=generator, dtype=torch.uint8)
        try:
            _, samples, is_change = one.parted(plain.joined(section), 3)
            assert is_change.dtype == torch.bool and len(samples) == len(is_change) == 3 and int(samples.max()) < 70_000
        except PayloadError:
            refused += 1
    assert refused > 350


def test_an_end_without_it_refuses_what_one_with_it_sends(noise):
    pair, plain = pair_of("delta=bf16"), pair_of()
    wire = sent(pair, map_of(pair, noise), [0, 1, 2, 3])[1].wire
    with pytest.raises(PeerError):
        plain.passages(0)[1]["smashed"].receive(wire, 4)
    wire = plain.passages(0)[0]["smashed"].send(map_of(pair, noise)).wire
    with pytest.raises(PeerError):
        pair.passages(0)[1]["smashed"].receive(wire, 4)


def test_what_was_not_sent_is_undone_and_new_weights_change_nothing(noise):
    pair = pair_of("delta=bf16", "compressor=klt")
    client = pair.codecs[0]
    sent(pair, map_of(pair, noise), [0, 1, 2, 3])
    mark, before = client.mark(), client.latest["smashed"].entries
    passage = pair.passages(1)[0]
    passage.samples = torch.tensor([0, 1, 2, 3])
    passage["smashed"].send(map_of(pair, noise, seed=1))
    assert client.latest["smashed"].entries is not before
    client.go_back(mark)
    for codecs in pair.codecs:
        codecs.load({})
    assert client.latest["smashed"].entries is before
    sent(pair, map_of(pair, noise, seed=2), [0, 1, 2, 3], 2)
    assert_both_hold_the_same(pair)


def test_what_came_stays_where_its_batch_is_left_out(noise):
    pair = pair_of("delta=bf16")
    mark = pair.codecs[1].mark()
    sent(pair, map_of(pair, noise), [0, 1, 2, 3])
    pair.codecs[1].go_back(mark)  # as where the loss is not finite: the client knows nothing of it
    assert_both_hold_the_same(pair)


def test_test_samples_are_coded_as_they_are(noise):
    pair, plain = pair_of("delta=bf16"), pair_of()
    sent(pair, map_of(pair, noise), [0, 1, 2, 3])
    x = map_of(pair, noise, seed=1)
    wires = [one.passages(1, in_evaluation=True)[0]["smashed"].send(x).wire for one in (pair, plain)]
    assert torch.equal(*wires)


@pytest.mark.parametrize("backward", ["straight_through", "auto", "tangent", "gain", "gated"])
def test_a_gradient_goes_by_the_map_and_not_by_its_change(backward, noise):
    pair = pair_of("delta=fp32", "compressor=sp", "compressor.ratio=0.9", f"backward={backward}")
    x = map_of(pair, noise) + 0.1
    for place in range(12):  # of which each brings another tenth of the values
        sent(pair, x.clone(), [0, 1, 2, 3], place)
    leaf = x.clone().requires_grad_()
    received, end, _ = sent(pair, leaf, [0, 1, 2, 3], 12)
    assert (received.tensor - x).abs().max() < 1e-5
    gradient = noise(*x.shape, seed=3)
    received.tensor.backward(gradient)
    end.backward(received.gradient_wire)
    if backward == "tangent":  # of a gradient that came as it is, all
        assert torch.equal(leaf.grad, gradient)
    assert (leaf.grad - gradient).norm() < 1e-3 * gradient.norm()


def test_ragged_samples_are_held_by_their_own_rows(noise):
    one = Latest("bf16")
    one.num_samples = 10
    lengths, samples = torch.tensor([3, 1, 2]), torch.tensor([4, 9, 0])
    x = noise(6, 1, 5)
    assert torch.equal(one.of(samples, x.shape, lengths), torch.zeros(6, 1, 5))
    one.keep(samples, x, lengths)
    assert [len(one.entries[number][1]) for number in (4, 9, 0)] == [3, 1, 2]
    found = one.of(torch.tensor([0, 4]), torch.Size((5, 1, 5)), torch.tensor([2, 3]))
    assert torch.equal(found, torch.cat([x[4:], x[:3]]).bfloat16().float())
    other = one.of(torch.tensor([0]), torch.Size((3, 1, 5)), torch.tensor([3]))  # whose text is another one now
    assert torch.equal(other, torch.zeros(3, 1, 5))


def test_a_state_is_whole_and_one_with_a_flaw_is_not(noise):
    one, other = Latest("uint8"), Latest("uint8")
    one.keep(torch.tensor([4, 1]), noise(2, 3, 4, 4))
    one.keep(torch.tensor([4, 7]), noise(2, 3, 4, 4, seed=1))
    state = one.state()
    assert latest.flaw(state) is None and latest.flaw({}) is None and Latest("bf16").state() == {}
    other.load(copy.deepcopy(state))
    assert other.entries.keys() == one.entries.keys()
    for number, (times, kept) in one.entries.items():
        assert other.entries[number][0] == times and torch.equal(other.entries[number][1], kept)
    for name, value in [
        ("numbers", [1, 2, 3]),
        ("times", state["times"].float()),
        ("rows", state["rows"] + 1),
        ("rows", -state["rows"]),
        ("numbers", state["numbers"][:2]),
        ("maps", state["maps"].float()),
        ("maps", state["maps"].reshape(-1)),
        ("maps", state["maps"].to("meta")),
    ]:
        assert latest.flaw({**state, name: value}), (name, value)
    assert latest.flaw({"maps": state["maps"]}) and latest.flaw([]) and latest.flaw(None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["compressor=none"], "^delta=bf16 saves nothing with compressor=none"),
        (["data=cifar10"], "^delta=bf16 does not go with data.augment=crop_flip, .*: set data.augment=none"),
        (["exchange=send_once", "epochs=20"], "^delta=bf16 does not go with exchange=send_once, whose server trains"),
        (["exchange=update_by_loss"], "^delta=bf16 does not go with exchange=update_by_loss, .*: set delta=null"),
        (["delta=int4"], "^delta=int4 is unknown: choose one of null, fp32, bf16, uint8"),
        (["delta_gb=0"], "^delta_gb=0 must be a number above 0"),
    ],
)
def test_what_it_does_not_go_with_is_one_sentence(overrides, expected):
    with pytest.raises(UserError, match=expected):
        checks.check(compose("delta=bf16", "compressor=ms", *overrides))


def test_it_is_of_smashed_data_alone():
    pair = Pair("exchange=u_shaped", "delta=bf16", "compressor=ms", "compressor@features=ms", "compressor@downlink=ms")
    for codecs in pair.codecs:
        codecs.begin(100, None)
        assert codecs.latest.keys() == {"smashed"}
    passages = pair.passages(0)
    passages[0].samples = torch.arange(8)
    client, server = pair.halves(passages, *batches(1)[0])
    converse(client, server)
    assert_both_hold_the_same(pair)
