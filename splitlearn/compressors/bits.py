"""Codes of 1 to 8 bits, packed without gaps.

How it works: eight codes are eight bytes are one 64-bit word. Folding a word three times, each time closing the gaps
between neighbours (bytes to pairs, pairs to fours, fours to one run), brings its 8·b code bits together in its low b
bytes; unfolding goes the other way. Every step is one vectorised integer operation over an eighth as many words as
there are codes, for any width and on any device. Code i takes bits i·b to i·b+b-1 of the little-endian bit stream.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_nbytes(num_codes: int, bits: int) -> int:
    """Bytes that `num_codes` codes of `bits` bits take."""
    return (num_codes * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes to the bit.

    Args:
        codes: (n,) uint8, each below 2^bits.
        bits: width of a code, 1 to 8.

    Returns:
        (⌈n·bits/8⌉,) uint8.
    """
    if bits == 8:
        return codes
    num_codes = codes.numel()
    words = pad(codes, (0, -num_codes % 8)).view(torch.int64)
    for width in (bits, 2 * bits, 4 * bits):
        # Lanes of 8·width/bits bits hold `width` code bits at their low end: bring two neighbours' together.
        lane = 8 * width // bits
        words = (words & _lanes(0, width, 2 * lane)) | ((words >> (lane - width)) & _lanes(width, width, 2 * lane))
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)[: packed_nbytes(num_codes, bits)]


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Inverse of `pack`: (num_codes,) uint8 from (⌈num_codes·bits/8⌉,) uint8."""
    if bits == 8:
        return packed[:num_codes]
    packed = pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = pad(packed, (0, 8 - bits)).view(torch.int64).view(-1)
    for width in (4 * bits, 2 * bits, bits):
        lane = 8 * width // bits
        words = (words & _lanes(0, width, 2 * lane)) | ((words << (lane - width)) & _lanes(lane, width, 2 * lane))
    return words.view(torch.uint8)[:num_codes]


def _lanes(start: int, width: int, lane: int) -> int:
    """A 64-bit mask with bits start to start+width-1 of every lane of `lane` bits set, as a signed integer."""
    mask = sum(((1 << width) - 1) << shift for shift in range(start, 64, lane))
    return mask - (1 << 64) if mask >> 63 else mask
