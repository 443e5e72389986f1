import struct

import pytest
import torch
from mutations import assembled
from wires import PREFIX_NBYTES, header_nbytes, to_bytes, with_checksum

from splitlearn.compressors import REGISTRY, MaskSparsifier, Payload, TopKSparsifier
from splitlearn.errors import PayloadError

X = torch.tensor([[0.5, 0.0, 1.5], [3.0, 0.25, 2.0]])


def test_the_wire_is_as_described():
    payload = Payload.pack(
        77, X.half(), [torch.tensor([1.0, 2.0]), torch.tensor([9, 8, 7], dtype=torch.uint8)], (1, 2, 3)
    )
    wire = to_bytes(payload.tensor)
    start = header_nbytes(2, 2)
    assert struct.unpack_from("<4sBBBBBB6B", wire) == (b"SPLT", 1, 77, 1, 2, 2, 0, 1, 2, 3, 0, 0, 0)
    assert struct.unpack_from("<2I2Q", wire, 20) == (2, 3, 8, 3)
    assert wire[start:] == struct.pack("<2f3B", 1.0, 2.0, 9, 8, 7)
    assert torch.equal(with_checksum(wire), payload.tensor)
    assert payload.nbytes == len(wire) == start + 11


def test_parse_gives_back_what_was_packed():
    sections = [torch.arange(5, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8), torch.ones(3, dtype=torch.uint8)]
    packed = Payload.pack(5, X, sections, (4, 5))
    found = Payload.parse(packed.tensor)
    assert (found.codec, found.dtype, found.shape, found.params) == (5, torch.float32, X.shape, (4, 5, 0, 0, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(found.sections, sections, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (1, 1, 1, 1, 1, 1, 2, 3)])
def test_any_shape_of_up_to_eight_dimensions(shape):
    assert Payload.parse(Payload.pack(0, torch.zeros(shape), [torch.zeros(4)]).tensor).shape == shape


@pytest.fixture
def wire() -> bytearray:
    return to_bytes(MaskSparsifier(ratio=0.5).encode(X).tensor)


def test_every_truncation_is_refused(wire):
    for length in range(len(wire)):
        with pytest.raises(PayloadError):
            Payload.parse(torch.frombuffer(wire, dtype=torch.uint8)[:length])


def test_every_flipped_bit_is_refused(wire):
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            Payload.parse(torch.frombuffer(flipped, dtype=torch.uint8))


@pytest.mark.parametrize("position", range(40))
def test_a_header_that_lies_with_a_right_checksum_is_refused_or_decodes(wire, position):
    compressor = MaskSparsifier(ratio=0.5)
    for value in (0, 1, 2, 9, 127, 255):
        wire[position] = value
        try:
            decoded = compressor.decode(Payload.parse(with_checksum(wire)))
        except PayloadError:
            continue
        assert decoded.numel() == 6


def test_other_bytes_are_refused_with_a_reason(wire):
    for change, reason in ((0, "starts with"), (4, "version"), (6, "dtype"), (7, "dimensions")):
        changed = bytearray(wire)
        changed[change] ^= 0x40
        with pytest.raises(PayloadError, match=reason):
            Payload.parse(with_checksum(changed))
    with pytest.raises(PayloadError, match="uint8"):
        Payload.parse(torch.zeros(100))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 1 << 31, 1 << 31)])
@pytest.mark.parametrize("name", REGISTRY)
def test_a_shape_without_elements_is_refused(name, shape):
    wire = assembled(to_bytes(REGISTRY[name]().encode(X).tensor)[:PREFIX_NBYTES], shape, [0, 0], b"")
    wire[7:9] = len(shape), 2
    with pytest.raises(PayloadError, match="impossible shape"):
        Payload.parse(with_checksum(wire))


def test_a_payload_of_another_codec_is_refused():
    with pytest.raises(PayloadError, match="codec"):
        TopKSparsifier().decode(MaskSparsifier().encode(X))
