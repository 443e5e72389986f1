"""The transform codec: its targets, its basis as state at both ends, and the gradient that comes back in it."""

import numpy as np
import pytest
import torch
from torch import Tensor

import splitlearn
from splitlearn.compressors import Payload
from splitlearn.compressors import klt as module
from splitlearn.compressors.basis import HEAD, KEPT, NONE, OWN, SharedBasis, checksum, flaw
from splitlearn.compressors.klt import KarhunenLoeve
from splitlearn.compressors.linked import Linked
from splitlearn.compressors.uniform import RAW, EntropyCodedQuantizer
from splitlearn.errors import PayloadError
from splitlearn.exchange.wayback import BACKWARD
from splitlearn.kernels import bases

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same whatever ran before it."""
    GENERATOR.manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def correlated(*shape: int, rank: int = 6) -> Tensor:
    """A map whose channels are mixtures of a few sources, the same ones for each map, and a little noise."""
    axis = 2 if len(shape) == 3 else 1
    others = [size for place, size in enumerate(shape) if place != axis]
    mixing = torch.randn(shape[axis], rank, generator=torch.Generator().manual_seed(1))
    rows = mixing @ (noise(rank, int(np.prod(others))) * torch.logspace(0, -1, rank)[:, None])
    return (rows + 0.05 * noise(*rows.shape)).view(shape[axis], *others).movedim(0, axis).contiguous()


def smooth(*shape: int) -> Tensor:
    return torch.nn.functional.interpolate(correlated(*shape[:2], *(size // 4 for size in shape[2:])), scale_factor=4)


MAPS = {
    "image": lambda: correlated(32, 24, 8, 8).relu(),
    "smooth": lambda: smooth(16, 24, 16, 16),
    "tokens": lambda: correlated(8, 48, 64),
    "features": lambda: correlated(64, 96),
    "half": lambda: correlated(32, 24, 8, 8).half(),
    "bfloat16": lambda: correlated(8, 48, 64).bfloat16(),
    "double": lambda: correlated(32, 24, 8, 8).double() * 1e200,
    "tiny": lambda: correlated(32, 24, 8, 8) * 1e-30,
    "odd places": lambda: correlated(16, 24, 7, 5),
    "volume": lambda: correlated(8, 16, 4, 4, 4),
}


def error_of(found: Tensor, x: Tensor) -> float:
    scale = x.double().abs().max()
    return float((found.double() / scale - x.double() / scale).norm() / (x.double() / scale).norm())


def bits_of(payload: Payload) -> float:
    return 8 * sum(section.numel() for section in payload.sections) / payload.numel


def sent(codec: KarhunenLoeve, x: Tensor) -> Payload:
    return Payload.parse(codec.encode(x).tensor)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bits", [0.3, 0.65, 2.0])
def test_a_rate_is_met_over_a_run_and_never_exceeded_in_a_payload_but_by_its_basis(name, bits):
    sender, receiver, found, without = KarhunenLoeve(bits, refresh=8), KarhunenLoeve(bits, refresh=8), [], []
    for _ in range(40):
        x = MAPS[name]()
        payload = sent(sender, x)
        assert receiver.decode(payload).dtype == x.dtype
        found.append(bits_of(payload))
        without.append(bits_of(payload) - 8 * sender.basis_nbytes(payload) / x.numel())
    assert max(without) <= bits
    if max(without) > 0.5 * bits:  # a map that is nearly nothing but its sources takes no more
        debt = (
            sender.state_dict()["debt"] / x.numel() if sender.state_dict() else 0
        )  # what the next payloads make up for
        assert sum(found) <= 1.02 * (bits * len(found) + debt)
        assert sum(found[16:40]) / 24 == pytest.approx(bits, rel=0.07)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("error", [0.1, 0.4])
def test_an_error_is_met_and_never_exceeded(name, error):
    sender, receiver = KarhunenLoeve(None, error), KarhunenLoeve(None, error)
    for _ in range(6):
        x = MAPS[name]()
        assert error_of(receiver.decode(sent(sender, x)), x) <= 1.005 * error


def test_a_basis_takes_fewer_bits_than_none_for_the_same_error():
    klt, uq, x = KarhunenLoeve(None, 0.2), EntropyCodedQuantizer(None, 0.2), MAPS["image"]
    for _ in range(5):
        payload = sent(klt, x())
    assert bits_of(payload) < 0.7 * bits_of(uq.encode(x()))


def test_blocks_of_places_pay_where_a_map_is_smooth():
    x = MAPS["smooth"]()
    errors = [
        error_of(KarhunenLoeve(0.3, block=block).decode(sent(KarhunenLoeve(0.3, block=block), x)), x)
        for block in (1, 4)
    ]
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [((2, 3, 8, 12), 8, 4), ((2, 3, 8, 8), 8, 8), ((2, 3, 6, 6), 4, 2), ((2, 3, 5, 4), 4, 1), ((2, 3, 8), 4, 1)],
)
def test_the_block_is_the_largest_that_the_places_are_whole_ones_of(shape, most, expected):
    assert bases.largest_block(shape, most) == expected


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_transform_of_blocks_is_orthonormal_and_inverted(n):
    rows = noise(5, 3 * 16 * 8)
    found = bases.to_bands(rows, (3, 16, 8), n)
    assert found.shape == (5, n * n, 3, 128 // n**2)
    torch.testing.assert_close(found.norm(), rows.norm())
    torch.testing.assert_close(bases.from_bands(found, (3, 16, 8), n), rows)
    flat = bases.to_bands(torch.ones(1, 16 * 8), (1, 16, 8), n)
    assert flat[0, 0].abs().min() > 0.99 * n and flat[0, 1:].abs().max() < 1e-5


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_vectors_arrive_as_they_were_sent_and_are_orthonormal_whatever_they_are(bits):
    moments = bases.second_moments(correlated(1, 20, 30, 30).reshape(20, -1), 900)
    integers = bases.to_integers(bases.eigenvectors(moments), bits)
    packed = bases.pack_integers(integers, bits)
    assert packed.numel() == -(-20 * 20 * bits // 8)
    assert torch.equal(bases.unpack_integers(packed, 20, bits), integers)
    basis = bases.orthonormal(integers)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(20))
    torch.testing.assert_close(bases.orthonormal(integers[:7]), basis[:7])
    assert bases.orthonormal(torch.zeros(4, 20, dtype=torch.int8)).isfinite().all()


def test_a_rotated_basis_comes_near_the_eigenvectors():
    """From many channels on, a few steps from the basis before do."""
    rows = correlated(1, 300, 40, 40).reshape(300, -1)
    moments = bases.second_moments(rows, 1600)
    near = bases.eigenvectors(moments + 1e-4 * torch.diag(torch.rand(300, generator=GENERATOR)))
    rotated, exact = bases.eigenvectors(moments, near), bases.eigenvectors(moments)
    energy = [(one[:6] @ rows).square().sum() for one in (rotated, exact)]
    assert energy[0] > 0.999 * energy[1]
    torch.testing.assert_close(rotated @ rotated.t(), torch.eye(300), atol=1e-4, rtol=0)


# The basis as state


def test_payloads_between_two_bases_go_by_the_last_and_bring_what_is_new_alone():
    sender, receiver = KarhunenLoeve(0.65), KarhunenLoeve(0.65)
    brought, numbers = [], []
    for _ in range(12):
        payload = sent(sender, MAPS["image"]())
        assert payload.params[0] == KEPT
        receiver.decode(payload)
        brought.append(sender.basis_nbytes(payload))
        numbers.append(sender.state_dict()["number"])
        assert (
            receiver.state_dict()["number"] == numbers[-1]
            and receiver.state_dict()["sent"] == sender.state_dict()["sent"]
        )
        assert torch.equal(
            receiver.state_dict()["integers"], sender.state_dict()["integers"][: sender.state_dict()["sent"]]
        )
    assert numbers == [1, 1, 1] + 9 * [2]
    assert brought[0] > 0 and brought[3] > 0 and sum(brought) < 1.5 * (brought[0] + brought[3])


def test_a_wrong_or_missing_basis_is_refused_and_never_decoded():
    sender, receiver, late = (KarhunenLoeve(0.65) for _ in range(3))
    first, second, *_, third = [sent(sender, MAPS["image"]()) for _ in range(4)]
    with pytest.raises(PayloadError, match="of basis 1, where this end has 0 of basis 0"):
        receiver.decode(second)
    receiver.decode(first)
    receiver.decode(second)
    receiver.decode(third)  # a new one
    with pytest.raises(PayloadError, match=r"of basis 1, where this end has \d+ of basis 2"):
        receiver.decode(second)
    other = KarhunenLoeve(0.65)
    other.encode(MAPS["smooth"]())
    late.load_state_dict(other.state_dict())  # of the same number, from another map
    with pytest.raises(PayloadError, match="goes by"):
        late.decode(second)
    narrow = KarhunenLoeve(0.65)
    narrow.decode(sent(KarhunenLoeve(0.65), correlated(32, 12, 8, 8)))
    with pytest.raises(PayloadError, match="of 24 channels, where this end has another"):
        narrow.decode(second)


@pytest.mark.parametrize("kind", [OWN, KEPT])
@pytest.mark.parametrize(("number", "first"), [(25, 0), (5000, 0), (5, 20), (0, 25)])
def test_more_vectors_than_channels_are_refused(kind, number, first):
    receiver = SharedBasis(50, 5)
    integers = torch.ones(number, 24, dtype=torch.int8)
    head = torch.frombuffer(bytearray(HEAD.pack(1, checksum(integers), 1, first)), dtype=torch.uint8)
    with pytest.raises(PayloadError, match=f"{number + first} vectors of a basis of 24 channels"):
        receiver.received(kind, torch.cat([head, bases.pack_integers(integers, 5)]), 24, 5)


def test_what_is_refused_changes_nothing():
    sender, receiver = KarhunenLoeve(0.65), KarhunenLoeve(0.65)
    receiver.decode(sent(sender, MAPS["image"]()))
    before = receiver.state_dict()
    payload = sent(KarhunenLoeve(0.65), MAPS["image"]())  # which brings a basis
    wire = payload.tensor.clone()
    wire[payload.tensor.numel() - payload.sections[5].numel() + 4] ^= 1  # the basis' checksum
    with pytest.raises(PayloadError):
        receiver.decode(Payload.parse(wire, verify=False))
    assert receiver.state_dict() is before


@pytest.mark.parametrize("refresh", [3, 50])
def test_a_state_says_all_that_the_next_payload_depends_on(refresh):
    maps = [MAPS["image"]() for _ in range(9)]
    whole = KarhunenLoeve(0.65, refresh=refresh)
    expected = [sent(whole, x).tensor for x in maps]
    for start in range(1, 9):
        part, other = KarhunenLoeve(0.65, refresh=refresh), KarhunenLoeve(0.65, refresh=refresh)
        for x in maps[:start]:
            part.encode(x)
        other.load_state_dict(part.state_dict())
        receiver = KarhunenLoeve(0.65)
        receiver.load_state_dict(part.state_dict())  # the receiver goes on from the sender's
        for x, wire in zip(maps[start:], expected[start:], strict=True):
            payload = sent(other, x)
            assert torch.equal(payload.tensor, wire)
            receiver.decode(payload)


def test_an_earlier_state_is_left_as_it_was():
    codec = KarhunenLoeve(0.65, refresh=2)
    codec.encode(MAPS["image"]())
    state = codec.state_dict()
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    for _ in range(5):
        codec.encode(MAPS["image"]())
    for name, value in kept.items():
        assert torch.equal(state[name], value) if isinstance(value, Tensor) else state[name] == value


def test_evaluation_has_a_basis_of_its_own():
    sender, receiver = KarhunenLoeve(0.65, refresh=7), KarhunenLoeve(0.65, refresh=7)
    receiver.decode(sent(sender, MAPS["image"]()))
    before = sender.state_dict(), receiver.state_dict()
    one, other = sender.for_evaluation(), receiver.for_evaluation()
    assert one == sender and one.state_dict() == {}
    for number in (1, 1, 1, 2):
        payload = sent(one, MAPS["image"]())
        assert payload.params[0] == KEPT and one.state_dict()["number"] == number
        other.decode(payload)
    assert (sender.state_dict(), receiver.state_dict()) == before


def test_which_basis_a_map_has_is_a_matter_of_its_size():
    codec = KarhunenLoeve(0.65)
    assert codec.kind_for((64, 64, 4, 4)) == KEPT
    assert codec.kind_for((64, 16, 64, 64)) == OWN
    assert codec.kind_for((4, 4096)) == codec.kind_for((9999,)) == codec.kind_for((500, 1, 3, 3)) == NONE
    x = correlated(2, 3, 160, 160)
    assert sent(codec, x).params[0] == OWN and codec.state_dict() == {}
    assert error_of(KarhunenLoeve(0.65).decode(sent(codec, x)), x) < 0.6
    assert sent(codec, noise(9999)).params[0] == NONE
    assert sent(codec, noise(3, 4)).params[0] == RAW


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"number": -1}, "no number"),
        ({"number": 2**32 - 1}, "no number"),  # after which the next one has no room in a payload
        ({"sent": 25}, "of shape"),
        ({"sent": 1.5}, "no number"),
        ({"integers": torch.zeros(24, 24)}, "no int8"),
        ({"integers": torch.zeros(24, 24, dtype=torch.int8).to_sparse()}, "no int8"),
        ({"integers": torch.full((24, 24), -16, dtype=torch.int8)}, "of more than 5 bits"),
        ({"integers": torch.full((24, 24), -128, dtype=torch.int8)}, "of more than 5 bits"),
        ({"moments": torch.zeros(24, 24).to_sparse()}, "no float32 matrix"),
        ({"moments": torch.zeros(24, 24, requires_grad=True)}, "no float32 matrix"),
        ({"integers": torch.zeros(24, 23, dtype=torch.int8)}, "of shape"),
        ({"moments": torch.zeros(24, 23)}, "no float32 matrix"),
        ({"moments": torch.full((24, 24), torch.nan)}, "not finite"),
        ({"debt": -1.0}, "not finite"),
        ({"more": 1}, "beside its basis"),
        ({"gradients": torch.zeros(24, 23)}, "no float32 matrix"),
        ({"gradients": torch.full((24, 24), torch.inf)}, "not finite"),
    ],
)
def test_what_is_no_state_is_found(changes, why):
    sender, receiver = KarhunenLoeve(0.65), KarhunenLoeve(0.65)
    receiver.decode(sent(sender, MAPS["image"]()))
    for codec in (sender, receiver):
        assert codec.flaw_of(codec.state_dict(), (1, 24, 8, 8)) is None
    assert why in sender.flaw_of({**sender.state_dict(), **changes}, (1, 24, 8, 8))
    assert flaw([], 24, 5) == "it is no basis" == flaw({"number": 1}, 24, 5)
    more = {"number": 1, "sent": 25, "integers": torch.zeros(25, 24, dtype=torch.int8)}  # than there are channels
    assert "of shape" in flaw(more, 24, 5)
    assert KarhunenLoeve().flaw_of({}, (1, 24, 8, 8)) is None


# The way back


def through(
    x: Tensor, weights: Tensor, downlink, backward: str, codec: KarhunenLoeve | None = None
) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    decoded = splitlearn.compress(x, codec or KarhunenLoeve(0.65), downlink, backward)
    (decoded * weights).sum().backward()
    return decoded.detach(), x.grad


def test_a_linked_gradient_is_in_the_span_of_what_arrived_and_costs_no_basis():
    x, gradient = MAPS["image"](), correlated(32, 24, 8, 8)
    codec = KarhunenLoeve(0.65, block=1)
    _, found = through(x, gradient, Linked(2.0), "straight_through", codec)
    basis = codec.trace.basis
    rows = found.transpose(0, 1).reshape(24, -1)
    torch.testing.assert_close(basis.t() @ (basis @ rows), rows, atol=1e-4, rtol=1e-4)
    projected = (basis.t() @ (basis @ gradient.transpose(0, 1).reshape(24, -1))).view(24, 32, 8, 8).transpose(0, 1)
    assert error_of(found, projected) < 0.3
    assert error_of(through(x, gradient, Linked(5.0), "straight_through")[1], projected) < 0.08


def test_the_gain_is_the_regression_of_what_arrived_on_what_was_sent():
    sender, receiver, x = KarhunenLoeve(0.3), KarhunenLoeve(0.3), correlated(32, 24, 8, 8)  # signed: nothing is clamped
    decoded = receiver.decode(sent(sender, x))
    components, arrived = sender.trace.project(x), sender.trace.project(decoded)
    expected = (components * arrived).sum((2, 3)) / components.square().sum((2, 3))
    torch.testing.assert_close(sender.trace.gains[..., 0, 0], expected.clamp(0, 1), atol=1e-3, rtol=0)
    assert torch.equal(sender.trace.weights, receiver.trace.weights)
    torch.testing.assert_close(sender.trace.weights, sender.trace.gains, atol=0.25, rtol=0)  # what both ends can know


def test_gain_weighs_each_component_and_straight_through_none():
    x, gradient = MAPS["image"](), noise(32, 24, 8, 8)
    codec = KarhunenLoeve(0.3)
    _, plain = through(x, gradient, None, "straight_through")
    assert torch.equal(plain, gradient)
    _, found = through(x, gradient, None, "gain", codec)
    again = KarhunenLoeve(0.3)
    again.encode(x)
    torch.testing.assert_close(found, again.trace.gained(gradient))
    assert float(found.norm()) < float(gradient.norm())


def test_auto_is_gain_for_a_basis_and_straight_through_for_none():
    x, gradient = MAPS["image"](), noise(32, 24, 8, 8)
    assert torch.equal(through(x, gradient, None, "auto")[1], through(x, gradient, None, "gain")[1])
    assert not torch.equal(through(x, gradient, None, "auto")[1], gradient)
    assert torch.equal(through(x, gradient, None, "auto", EntropyCodedQuantizer(0.65))[1], gradient)


def test_gain_of_a_codec_without_a_basis_is_that_of_its_channels():
    x, gradient = MAPS["image"](), noise(32, 24, 8, 8)
    decoded, found = through(x, gradient, None, "gain", EntropyCodedQuantizer(0.65))
    gains = ((x * decoded).sum((0, 2, 3)) / x.square().sum((0, 2, 3))).clamp(0, 1)
    torch.testing.assert_close(found, gradient * gains.view(-1, 1, 1))


def weighted(share: float, **options) -> KarhunenLoeve:
    return KarhunenLoeve(0.65, refresh=4, weighted=share, **options)


def errors_of_the_way_back(share: float, downlink) -> tuple[float, float]:
    """Of the last map and its gradient, which is large where the maps are small, of the same draws for each share."""
    GENERATOR.manual_seed(0)
    codec, directions = weighted(share), noise(3, 24)
    for _ in range(9):
        x = MAPS["image"]()
        gradient = torch.einsum("kc,bkhw->bchw", directions, noise(32, 3, 8, 8))
        decoded, found = through(x, gradient, downlink, "auto", codec)
    return error_of(decoded, x), error_of(found, gradient)


@pytest.mark.parametrize(("downlink", "at_most"), [(None, 0.85), (Linked(0.65), 0.9)], ids=["none", "linked"])
def test_a_basis_that_knows_of_gradients_lets_more_of_them_through(downlink, at_most):
    plain, knowing = errors_of_the_way_back(0.0, downlink), errors_of_the_way_back(0.5, downlink)
    assert knowing[1] < at_most * plain[1]
    assert plain[0] < knowing[0] < 2 * plain[0]  # what the map pays for it


def test_what_is_known_of_gradients_is_state():
    """Going on from it gives the same payloads, going back forgets what came since, and a receiver takes it over."""
    maps, gradients = [MAPS["image"]() for _ in range(9)], [noise(32, 24, 8, 8) for _ in range(9)]
    whole, states, expected = weighted(0.5), [], []
    for x, gradient in zip(maps, gradients, strict=True):
        states.append(whole.state_dict())
        expected.append(sent(whole, x).tensor)
        whole.learn(gradient)
    assert "gradients" not in weighted(0.5).state_dict() and "gradients" in states[1]
    assert whole.flaw_of(whole.state_dict(), (1, 24, 8, 8)) is None
    for start in (1, 3, 5, 8):
        receiver = weighted(0.5)
        receiver.load_state_dict(states[start])
        for other in (weighted(0.5), whole):
            other.load_state_dict(states[start])
            for x, gradient, wire in zip(maps[start:], gradients[start:], expected[start:], strict=True):
                payload = sent(other, x)
                other.learn(gradient)
                assert torch.equal(payload.tensor, wire)
        receiver.decode(Payload.parse(expected[start]))
    unknowing = weighted(0.5)
    same = [torch.equal(sent(unknowing, x).tensor, wire) for x, wire in zip(maps, expected, strict=True)]
    assert same[:3] == 3 * [True] and not any(same[3:])


def test_a_gradient_that_says_nothing_changes_nothing():
    codec = weighted(0.5)
    codec.learn(noise(32, 24, 8, 8))  # of no map
    assert codec.state_dict() == {}
    sent(codec, MAPS["image"]())
    before = codec.state_dict()
    for gradient in (torch.zeros(32, 24, 8, 8), torch.full((32, 24, 8, 8), torch.nan), noise(32, 12, 8, 8)):
        codec.learn(gradient)
        assert codec.state_dict() is before
    codec.learn(1e-30 * noise(32, 24, 8, 8))
    assert codec.state_dict()["gradients"].trace() == pytest.approx(1)


def test_components_that_did_not_arrive_get_no_gradient():
    x, gradient = MAPS["image"](), noise(32, 24, 8, 8)
    for downlink in (None, Linked(1.0)):
        codec = KarhunenLoeve(0.2, block=1)
        _, found = through(x, gradient, downlink, "gain", codec)
        trace = codec.trace
        missing = torch.linalg.svd(trace.basis).Vh[len(trace.basis) :]
        assert len(missing) > 4
        assert (missing @ found.transpose(0, 1).reshape(24, -1)).norm() < 1e-3 * found.norm()


@pytest.mark.parametrize("backward", BACKWARD)
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("name", ["image", "tokens", "features"])
def test_send_and_receive_are_compress_with_a_wire_between(backward, name, share):
    uplinks, downlinks = [weighted(share) for _ in range(3)], [Linked(0.65) for _ in range(3)]
    for _ in range(5):
        x = MAPS[name]()
        weights = noise(*x.shape)
        decoded, expected = through(x, weights, downlinks[0], backward, uplinks[0])
        leaf = x.clone().requires_grad_()
        ahead = splitlearn.send(leaf, uplinks[1], downlinks[1], backward)
        received = splitlearn.receive(ahead.wire, uplinks[2], downlinks[2])
        assert torch.equal(received.tensor, decoded)
        (received.tensor * weights).sum().backward()
        ahead.backward(received.gradient_wire)
        assert torch.equal(leaf.grad, expected)


def test_a_linked_payload_without_its_map_is_refused():
    codec = KarhunenLoeve(0.65)
    x = MAPS["image"]()
    codec.decode(sent(codec, x))
    payload = Linked().linked_to(codec.trace).encode(noise(*x.shape))
    with pytest.raises(PayloadError, match="linked to a map that this end has not got"):
        Linked().decode(payload)
    fewer = KarhunenLoeve(0.1)
    fewer.decode(sent(fewer, x))
    assert len(fewer.trace.weights) < len(codec.trace.weights)
    with pytest.raises(PayloadError):
        Linked().linked_to(fewer.trace).decode(payload)


def test_linked_needs_a_basis():
    with pytest.raises(ValueError, match="uplink=uq has none: choose uplink=klt"):
        splitlearn.compress(noise(4, 8).requires_grad_(), EntropyCodedQuantizer(), Linked())


def test_within_autocast_it_codes_in_full_precision():
    x = MAPS["image"]()
    expected = KarhunenLoeve(0.65).encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = KarhunenLoeve(0.65).encode(x)
        decoded = KarhunenLoeve(0.65).decode(found)
    assert torch.equal(found.tensor, expected.tensor)
    assert torch.equal(decoded, KarhunenLoeve(0.65).decode(expected))


@pytest.mark.parametrize("downlink", [None, EntropyCodedQuantizer(0.65)], ids=["none", "uq"])
def test_within_autocast_gradients_come_back_in_full_precision(downlink):
    x, gradient = MAPS["image"](), noise(32, 24, 8, 8)
    expected = through(x, gradient, downlink, "auto", codec := weighted(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        found = through(x, gradient, downlink, "auto", other := weighted(0.5))
    assert all(torch.equal(one, same) for one, same in zip(found, expected, strict=True))
    assert torch.equal(codec.state_dict()["gradients"], other.state_dict()["gradients"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"bits": None}, "give one of the two"),
        ({"bits": 1.0, "error": 0.1}, "give one of the two"),
        ({"bits": None, "error": 0.01}, "out of range"),
        ({"block": 3}, "block=3"),
        ({"refresh": 0}, "refresh=0"),
        ({"basis_bits": 9}, "basis_bits=9"),
        ({"weighted": 1.5}, "weighted=1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        KarhunenLoeve(**options)


def test_a_vector_is_sent_where_it_is_worth_its_bits(monkeypatch):
    """Components of which a symbol comes now and then are left out."""
    found = []
    for symbol_bits in (module.SYMBOL_BITS, 1e9):
        monkeypatch.setattr(module, "SYMBOL_BITS", symbol_bits)
        codec, x = KarhunenLoeve(0.65, refresh=100), correlated(16, 96, 2, 2) + 0.2 * noise(16, 96, 2, 2)
        for _ in range(16):
            sent(codec, x)
        found.append(codec.state_dict()["sent"])
    assert 0 < found[0] < found[1]


def test_no_basis_is_begun_on_that_would_soon_be_replaced():
    """It would take most of the bits of the few payloads that it is for; the map is coded without one until then."""
    codec, receiver, kinds = KarhunenLoeve(0.65, refresh=100), KarhunenLoeve(0.65, refresh=100), []
    for _ in range(20):
        x = correlated(16, 96, 2, 2) + 0.2 * noise(16, 96, 2, 2)
        payload = codec.encode(x)
        assert 0 < error_of(receiver.decode(payload), x) < 0.75
        kinds.append(payload.params[0])
    assert kinds == 15 * [NONE] + 5 * [KEPT]


def test_eigenvectors_that_float32_does_not_find_are_found_in_float64(monkeypatch):
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    moments, eigh = bases.second_moments(rows, 64), torch.linalg.eigh
    expected = bases.eigenvectors(moments)

    def failing(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    found = bases.eigenvectors(moments)
    assert found.dtype == torch.float32
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(8))


@pytest.mark.parametrize("transformed", [False, True])
def test_there_may_be_more_channels_than_sixteen_bits_tell(transformed):
    codec = EntropyCodedQuantizer(bits=3, transform="klt") if transformed else KarhunenLoeve(bits=3)
    x = noise(8, 66_000)
    payload = codec.encode(x)
    assert payload.nbytes < 1.1 * 3 * x.numel() / 8
    assert (codec.decode(payload) - x).norm() < 0.3 * x.norm()
