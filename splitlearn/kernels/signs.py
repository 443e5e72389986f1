"""Sign bits beside the codes of magnitudes: one for each element, or one for each whose code is not 0.

The second says as much where the code 0 stands for zero, and takes less.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack, pack_spans, packed_nbytes, unpack
from splitlearn.kernels.blocks import at_least, places, scratch, spans
from splitlearn.kernels.threshold import ranked

UNSIGNED, EACH, NONZERO = range(3)  # their numbers in a payload
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of a float's size, whose top bit is its sign


def pack_with_signs(codes: Iterator[Tensor], bits: int, x: Tensor, kind: int) -> list[Tensor]:
    """Sections of signs, if there are any, and of codes.

    Args:
        codes: of `x`, span by span.
        bits: width of a code.
        x: 1-D.
        kind: UNSIGNED, EACH or NONZERO.
    """
    if kind != NONZERO:
        signs = [pack_spans(_negative(x), x.numel(), 1, x.device)] if kind == EACH else []
        return [*signs, pack_spans(codes, x.numel(), bits, x.device)]
    found: list[Tensor] = []
    packed = pack_spans(_noted(codes, x, found), x.numel(), bits, x.device)
    return [pack(torch.cat(found), 1), packed]


def _negative(x: Tensor) -> Iterator[Tensor]:
    """Span by span: 1 where a value is below 0, else 0."""
    mask = scratch(x.numel(), torch.bool, x.device)
    for span in spans(x.numel(), x.device):
        yield at_least(ranked(x[span], False), 0, out=mask).logical_not_().view(torch.uint8)


def _noted(codes: Iterator[Tensor], x: Tensor, found: list[Tensor]) -> Iterator[Tensor]:
    """The codes, passed on; the signs of values whose code is not 0 go to `found`."""
    for span, here in zip(spans(x.numel(), x.device), codes, strict=True):
        found.append((x[span].index_select(0, places(here != 0)) < 0).view(torch.uint8))
        yield here


class SignReader:
    """Puts signs on decoded magnitudes, span by span."""

    def __init__(self, section: Tensor, kind: int):
        self._section, self._kind, self._taken = section, kind, 0
        if kind == NONZERO:
            self._negative = unpack(section, 1, 8 * section.numel())

    def put(self, out: Tensor, span: slice, codes: Tensor) -> None:
        """`out`: the magnitudes of this span, whose sign bits are flipped in place."""
        words, shift = out.view(WORDS[out.element_size()]), 8 * out.element_size() - 1
        if self._kind == EACH:
            packed = self._section[span.start // 8 : packed_nbytes(span.stop, 1)]
            words.bitwise_xor_(unpack(packed, 1, out.numel()).to(words.dtype) << shift)
            return
        where = places(codes != 0)
        negative = self._negative[self._taken : self._taken + where.numel()]
        if negative.numel() < where.numel():
            raise PayloadError("has fewer signs than codes that are not 0")
        self._taken += where.numel()
        words.index_copy_(0, where, words.index_select(0, where) ^ (negative.to(words.dtype) << shift))

    def check_all_taken(self) -> None:
        """Raises PayloadError if there are more signs than codes for them."""
        if self._kind == NONZERO and self._section.numel() != packed_nbytes(self._taken, 1):
            raise PayloadError("has more signs than codes that are not 0")
