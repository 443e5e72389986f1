"""Codes of 1 to 8 bits, packed without gaps.

How it works: eight codes are eight bytes are one 64-bit word. Folding a word three times, each time closing the gaps
between neighbours (bytes to pairs, pairs to fours, fours to one run), brings its 8·b code bits together in its low b
bytes; unfolding goes the other way. Every step is one vectorised integer operation over an eighth as many words as
there are codes, for any width and on any device. Code i takes bits i·b to i·b+b-1 of the little-endian bit stream.

Widths of 1, 2 and 4 bits take a shorter way, as 8/b of their codes fill a byte: multiplying a word of 8/b bytes by a
sum of powers of two adds up shifted copies of it, of which every code is at its place in the top byte of one.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from splitlearn.kernels.blocks import empty, spans

GATHERED = {1: torch.int64, 2: torch.int32, 4: torch.int16}  # the words whose codes fill one byte


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
    return pack_spans((codes[span] for span in spans(codes.numel(), codes.device)), codes.numel(), bits, codes.device)


def pack_spans(codes: Iterable[Tensor], num_codes: int, bits: int, device: torch.device) -> Tensor:
    """`pack` for codes, (n,) uint8, that are made span by span (see `spans`)."""
    packed = empty(packed_nbytes(num_codes, bits), torch.uint8, device)
    start = 0
    for span in codes:
        part = span if bits == 8 else _pack_words(_whole(span, 8), bits)
        stop = min(start + part.numel(), packed.numel())
        packed[start:stop] = part[: stop - start]
        start = stop
    return packed


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Inverse of `pack`: (num_codes,) uint8 from (⌈num_codes·bits/8⌉,) uint8."""
    codes = empty(num_codes, torch.uint8, packed.device)
    for span, part in unpack_spans(packed, bits, num_codes):
        codes[span] = part
    return codes


def unpack_spans(packed: Tensor, bits: int, num_codes: int) -> Iterator[tuple[slice, Tensor]]:
    """`unpack` span by span: spans of the codes, and their codes."""
    for span in spans(num_codes, packed.device):
        part = packed[span.start * bits // 8 : packed_nbytes(span.stop, bits)]
        if bits < 8:
            part = _unpack_words(_whole(part, bits), bits)
        yield span, part[: span.stop - span.start]


def _pack_words(codes: Tensor, bits: int) -> Tensor:
    """The packed bytes, as uint8 or as the low bytes of wider integers."""
    if bits in GATHERED:
        words = codes.view(GATHERED[bits])
        top = 8 * words.itemsize - 8
        places = sum(1 << (top - (8 - bits) * i) for i in range(8 // bits))  # takes code i from bit 8·i to top + bits·i
        return (words * places).bitwise_right_shift_(top)
    words = codes.view(torch.int64)
    for width in (bits, 2 * bits, 4 * bits):
        # Lanes of 8·width/bits bits hold `width` code bits at their low end: bring two neighbours' together.
        lane = 8 * width // bits
        high = (words >> (lane - width)).bitwise_and_(_lanes(width, width, 2 * lane))
        words = (words & _lanes(0, width, 2 * lane)).bitwise_or_(high)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)


def _unpack_words(packed: Tensor, bits: int) -> Tensor:
    if bits in GATHERED:
        words, width = packed.to(GATHERED[bits]), 4
        while width >= bits:
            # A lane's halves lie side by side in its low bits; in a shifted copy the upper one is at its place.
            lane = 8 * width // bits
            words = (words | (words << (lane - width))).bitwise_and_(_lanes(0, width, lane, 8 * words.itemsize))
            width //= 2
        return words.view(torch.uint8)
    words = pad(packed.view(-1, bits), (0, 8 - bits)).view(torch.int64).view(-1)
    for width in (4 * bits, 2 * bits, bits):
        lane = 8 * width // bits
        high = (words << (lane - width)).bitwise_and_(_lanes(lane, width, 2 * lane))
        words = (words & _lanes(0, width, 2 * lane)).bitwise_or_(high)
    return words.view(torch.uint8)


def _lanes(start: int, width: int, lane: int, length: int = 64) -> int:
    """A signed integer of `length` bits with bits start to start+width-1 set in every lane of `lane` bits."""
    mask = sum(((1 << width) - 1) << shift for shift in range(start, length, lane))
    return mask - (1 << length) if mask >> (length - 1) else mask


def _whole(items: Tensor, size: int) -> Tensor:
    """`items`, with zeros added to make their number a multiple of `size`, where they can be viewed as words."""
    if items.numel() % size:
        return pad(items, (0, -items.numel() % size))
    return items.clone() if items.storage_offset() % size else items
