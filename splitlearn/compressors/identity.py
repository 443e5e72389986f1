"""No compression: the values as they are."""

from math import prod
from typing import ClassVar

from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, register
from splitlearn.compressors.payload import Payload
from splitlearn.kernels.sections import view_as


@register("none")
class Identity(Compressor):
    """Sends every value at full precision."""

    codec: ClassVar[int] = 0

    def sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        return [x], ()

    def restore(self, sections: list[Tensor], payload: Payload) -> Tensor:
        check_lengths(sections, payload.numel * payload.dtype.itemsize)
        return view_as(sections[0], payload.dtype)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return value_bits * prod(shape)
