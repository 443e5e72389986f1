"""No compression: the values as they are."""

from math import prod
from typing import ClassVar

from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, register
from splitlearn.compressors.payload import Payload
from splitlearn.kernels.sections import view_as

ALIGNMENT = 64  # bytes, as torch allocates


@register("none")
class Identity(Compressor):
    """Sends every value at full precision."""

    takes_transform: ClassVar[bool] = False
    codec: ClassVar[int] = 0
    is_exact: ClassVar[bool] = True

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        return [x], ()

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        check_lengths(sections, payload.numel * payload.dtype.itemsize)
        values = view_as(sections[0], payload.dtype)
        # Where memory is not aligned, kernels sum in another order: numbers would depend on where the payload lies.
        return values if values.data_ptr() % ALIGNMENT == 0 else values.clone()

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return value_bits * prod(shape)
