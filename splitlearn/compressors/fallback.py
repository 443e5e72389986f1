"""A base for codecs of batches of some size: what they would not make smaller is sent as it is."""

from math import prod

from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import view_as

AS_IT_IS, CODED = 0, 1


class WithFallback(Compressor):
    """Codes a tensor, or sends it as it is. Which one follows from shape and dtype, so that both ends know.

    A subclass has `coded_nbytes`, `to_coded` and `from_coded`. The first parameter byte is whether it was coded.
    """

    def coded_nbytes(self, shape: tuple[int, ...], itemsize: int) -> int | None:
        """Bytes of all sections, at most, for values of `itemsize` bytes; None for a shape that is not coded."""
        raise NotImplementedError

    def to_coded(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        """Sections and up to five parameter bytes, as of `to_sections`."""
        raise NotImplementedError

    def from_coded(self, sections: list[Tensor], payload: Payload, params: tuple[int, ...]) -> Tensor:
        """As `from_sections`."""
        raise NotImplementedError

    def is_coded(self, shape: tuple[int, ...], itemsize: int) -> bool:
        nbytes = self.coded_nbytes(shape, itemsize)
        return nbytes is not None and nbytes < itemsize * prod(shape)

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        if not self.is_coded(x.shape, x.itemsize):
            return [x], (AS_IT_IS,)
        sections, params = self.to_coded(x)
        return sections, (CODED, *params)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        kind, *params = payload.params
        if kind != self.is_coded(payload.shape, payload.dtype.itemsize):
            raise PayloadError("is coded where its shape asks for the values as they are, or the other way round")
        if kind == CODED:
            return self.from_coded(sections, payload, tuple(params))
        return as_it_is(sections, payload)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        itemsize = value_bits // 8
        return 8 * (self.coded_nbytes(shape, itemsize) if self.is_coded(shape, itemsize) else itemsize * prod(shape))


def as_it_is(sections: list[Tensor], payload: Payload) -> Tensor:
    """The values of a tensor whose one section they are.

    Raises:
        PayloadError: it is of another length.
    """
    check_lengths(sections, payload.numel * payload.dtype.itemsize)
    return view_as(sections[0], payload.dtype).clone()
