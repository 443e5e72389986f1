"""Codes of 1 to 8 bits, packed without gaps.

How it works: eight codes are eight bytes are one 64-bit word. Folding a word three times, each time closing the gaps
between neighbours (bytes to pairs, pairs to fours, fours to one run), brings its 8·b code bits together in its low b
bytes; unfolding goes the other way. Every step is one vectorised integer operation over an eighth as many words as
there are codes, for any width and on any device. Code i takes bits i·b to i·b+b-1 of the little-endian bit stream.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from splitlearn.compressors.blocks import blocks

# The type that holds a word's low b bytes, where there is one: converting to it is far faster than slicing bytes.
LOW_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


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
    words = _whole(codes, 8).view(torch.int64)
    packed = codes.new_empty(words.numel(), bits)
    for _, span in blocks(1, words.numel(), codes.device):
        _put_low_bytes(_fold(words[span], bits), packed[span])
    return packed.view(-1)[: packed_nbytes(codes.numel(), bits)]


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Inverse of `pack`: (num_codes,) uint8 from (⌈num_codes·bits/8⌉,) uint8."""
    if bits == 8:
        return packed[:num_codes]
    packed = _whole(packed, bits).view(-1, bits)
    words = torch.empty(packed.shape[0], dtype=torch.int64, device=packed.device)
    for _, span in blocks(1, words.numel(), packed.device):
        words[span] = _unfold(_low_bytes(packed[span]), bits)
    return words.view(torch.uint8)[:num_codes]


def _fold(words: Tensor, bits: int) -> Tensor:
    for width in (bits, 2 * bits, 4 * bits):
        # Lanes of 8·width/bits bits hold `width` code bits at their low end: bring two neighbours' together.
        lane = 8 * width // bits
        high = (words >> (lane - width)).bitwise_and_(_lanes(width, width, 2 * lane))
        words = (words & _lanes(0, width, 2 * lane)).bitwise_or_(high)
    return words


def _unfold(words: Tensor, bits: int) -> Tensor:
    for width in (4 * bits, 2 * bits, bits):
        lane = 8 * width // bits
        high = (words << (lane - width)).bitwise_and_(_lanes(lane, width, 2 * lane))
        words = (words & _lanes(0, width, 2 * lane)).bitwise_or_(high)
    return words


def _lanes(start: int, width: int, lane: int) -> int:
    """A 64-bit mask with bits start to start+width-1 of every lane of `lane` bits set, as a signed integer."""
    mask = sum(((1 << width) - 1) << shift for shift in range(start, 64, lane))
    return mask - (1 << 64) if mask >> 63 else mask


def _put_low_bytes(words: Tensor, packed: Tensor) -> None:
    """Writes the low b bytes of `words` (n,) into `packed` (n, b)."""
    bits = packed.shape[1]
    if bits in LOW_BYTES:
        packed.view(LOW_BYTES[bits]).view(-1).copy_(words)
    else:
        packed.copy_(words.view(torch.uint8).view(-1, 8)[:, :bits])


def _low_bytes(packed: Tensor) -> Tensor:
    """Words (n,) with low b bytes from `packed` (n, b). Their other bytes mean nothing."""
    bits = packed.shape[1]
    if bits in LOW_BYTES and packed.storage_offset() % bits == 0:
        return packed.view(LOW_BYTES[bits]).view(-1).to(torch.int64)
    return pad(packed, (0, 8 - bits)).view(torch.int64).view(-1)


def _whole(items: Tensor, size: int) -> Tensor:
    """`items`, with zeros added to make their number a multiple of `size`."""
    return pad(items, (0, -items.numel() % size)) if items.numel() % size else items
