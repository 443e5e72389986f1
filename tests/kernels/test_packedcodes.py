"""Packed codes through the entropy coder: what comes out, what it takes, and frames that lie."""

import struct
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn.errors import PayloadError
from splitlearn.kernels import packedcodes, zstd
from splitlearn.kernels.bits import pack, packed_nbytes

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SHAPES = [(1000,), (33, 31), (16, 65), (5, 21, 16), (4, 6, 7, 8), (3, 4, 5, 6, 7), (1, 1, 300)]


def drawn(shape: tuple[int, ...], bits: int, seed: int = 0, spread: float = 0.3) -> torch.Tensor:
    """Codes around one that is the most frequent, of a spread that differs from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    middle = int(torch.randint(1 << bits, (1,), generator=generator))
    spreads = torch.rand(shape[1] if len(shape) > 1 else 1, generator=generator).view(-1, *[1] * (len(shape) - 2))
    codes = middle + (torch.randn(shape, generator=generator) * spreads * spread * (1 << bits)).round()
    return codes.clamp(0, (1 << bits) - 1).to(torch.uint8)


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    bits=st.integers(1, 8),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.02, 0.1, 0.3, 2.0]),
)
def test_what_comes_back_is_what_was_packed(shape, bits, seed, spread):
    packed = pack(drawn(shape, bits, seed, spread).view(-1), bits)
    frame = packedcodes.compress(packed, bits, shape)
    if frame is not None:
        assert frame.numel() < packed.numel() and frame[0] == packedcodes.KIND
        assert torch.equal(packedcodes.decompress(frame, packed.numel()), packed)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("joint", [True, False])
def test_frames_are_made_for_every_width_and_both_joins(bits, joint):
    shape = (64, 16, 16, 16) if joint else (64, 64, 16)  # the channels of the second lie side by side
    codes = drawn(shape if joint else (64, 16, 64), bits)
    codes = codes if joint else codes.transpose(1, 2).contiguous()
    packed = pack(codes.view(-1), bits)
    frame = packedcodes.compress(packed, bits, shape)
    assert torch.equal(packedcodes.decompress(frame, packed.numel()), packed)
    counts = torch.stack([(codes == code).sum() for code in range(1 << bits)]).double()
    shares = counts[counts > 0] / counts.sum()
    assert 8 * frame.numel() < 1.01 * float(-(shares * shares.log2()).sum()) * codes.numel() + 2000


def test_channels_of_other_spread_have_tables_of_their_own():
    codes = torch.zeros(32, 64, 16, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    codes[..., 3] = torch.randint(16, (32, 64), generator=generator)  # one channel is noise, all else nothing
    packed = pack(codes.view(-1), 4)
    frame = packedcodes.compress(packed, 4, codes.shape)
    assert frame.numel() < 32 * 64 * 4 / 8 + 100 < zstd.compress(packed).numel()


def test_noise_is_left_alone_and_so_is_what_is_short():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(16, (4096,), generator=generator, dtype=torch.uint8)
    assert packedcodes.compress(pack(noise, 4), 4, (4096,)) is None
    assert packedcodes.compress(pack(torch.zeros(200, dtype=torch.uint8), 4), 4, (200,)) is None


def test_a_byte_stands_for_so_many_codes_and_no_more():
    few = torch.zeros(1 << 20, dtype=torch.uint8)
    assert packedcodes.compress(pack(few, 1), 1, few.shape) is None
    frame = packedcodes.compress(pack(few[: 1 << 15], 1), 1, (1 << 15,))
    assert frame.numel() * packedcodes.MOST_A_BYTE >= 1 << 15
    lying = bytearray(frame.numpy())
    struct.pack_into("<I", lying, 4, 1 << 31)
    with pytest.raises(PayloadError, match="more than its shape or its bytes allow"):
        packedcodes.decompress(torch.frombuffer(lying, dtype=torch.uint8), 1 << 40)


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    bits=st.integers(1, 8),
    at=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    cut=st.integers(0, 30),
)
def test_other_bytes_are_refused_or_decode_to_what_they_state(shape, bits, at, byte, cut):
    packed = pack(drawn(shape, bits, spread=0.05).view(-1), bits)
    frame = packedcodes.compress(packed, bits, shape)
    if frame is None:
        return
    changed = frame[: frame.numel() - cut].clone()
    changed[at % (packedcodes.HEAD.size if at % 2 else changed.numel())] = byte
    try:
        found = packedcodes.decompress(changed, packed.numel())
    except PayloadError:
        return
    _, width, _, _, num_codes, *_ = packedcodes.HEAD.unpack_from(changed.numpy())
    assert found.numel() == packed_nbytes(num_codes, width) <= packed.numel() and found.dtype == torch.uint8


def test_more_than_the_limit_is_refused():
    codes = drawn((64, 65), 3)
    frame = packedcodes.compress(pack(codes.view(-1), 3), 3, codes.shape)
    assert packedcodes.decompress(frame, packed_nbytes(prod(codes.shape), 3)).numel()
    with pytest.raises(PayloadError, match="more than its shape"):
        packedcodes.decompress(frame, packed_nbytes(prod(codes.shape), 3) - 1)
