"""Uniform quantisation with a dead zone and an entropy coder (UQ)."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_range, register
from splitlearn.compressors.fallback import as_it_is
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels import outliers, stepping
from splitlearn.kernels.channels import by_channel, cells_shape, from_channels, scaled_by_channel
from splitlearn.kernels.sections import padding_nbytes, total_nbytes
from splitlearn.kernels.stepping import Target

SMALL = 128  # values that are not worth a table
RAW, CODED = 0, 1


@register("uq")
class EntropyCodedQuantizer(Compressor):
    """Rounds every value to a multiple of a step, most to zero at low rates, and codes those in what they need.

    The step is what gives the target: `bits` an element or a relative `error`. No state, any shape, both directions. A
    channel (dimension 1; the last of three) and a sample code with others of like spread (see kernels/coded.py). A
    tensor that this would not make smaller is sent as it is, as is one of fewer than 128 values.

    Sections: those of kernels/stepping.py; zeros where the payload would stand for more than 1,024 elements a byte;
    where (B, T, C) has rows that are larger than the others by far, these (see kernels/outliers.py).

    Args:
        bits: an element, of all sections; a payload takes at most that, and at least .97 of it where the tensor has so
            much to say. A tensor so small that half of it would not be for its values takes more, by up to what goes
            beside these: 33 bytes, and half a byte a channel and sample. None where `error` is given.
        error: ‖decoded - x‖₂ / ‖x‖₂, at most, without the rows that go apart. None where `bits` is given.

    Source: Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE Transactions
        on Information Theory, 1996, for the dead zone; the step is chosen anew for each tensor.
    """

    codec: ClassVar[int] = 7
    meets_target: ClassVar[bool] = True
    bits: float | None = 1.5
    error: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_target(self.bits, self.error)

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        if x.numel() < SMALL:
            return [x.reshape(-1)], (RAW,)
        rest, apart = outliers.parted(x, self.bits)
        values, scale = scaled_by_channel(rest)
        values = values.view(cells_shape(x.shape))
        target = target_of(self.bits, self.error, values, x.numel(), 8 * x.itemsize).less(apart)
        packed = stepping.coded_within(values, target, scale, lambda: by_channel(rest))
        if packed.nbytes + total_nbytes(apart) >= x.numel() * x.itemsize:
            return [x.reshape(-1)], (RAW,)
        return padded(packed.sections, x.numel()) + apart, (CODED, *packed.params)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        if payload.params[0] == RAW:
            return as_it_is(sections, payload)
        sections, apart = check_padding(sections, stepping.NUM_SECTIONS, payload.numel)
        if payload.params[0] != CODED:
            raise PayloadError("has sections that do not fit its shape")
        shape = cells_shape(payload.shape)
        values, _, _ = stepping.unpack(sections, payload.params[1:3], shape, payload.dtype, scaled=True)
        out = from_channels(values.view(shape[0], -1).to(sections[0].device), payload.shape).contiguous()
        return outliers.joined(out, apart, payload.shape)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return (self.bits if self.bits is not None else value_bits) * prod(shape)


def check_target(bits: float | None, error: float | None, least_error: float = 0.002) -> None:
    """Raises ValueError unless one of the two is given, and in its range."""
    if (bits is None) == (error is None):
        raise ValueError(f"bits={bits} and error={error}: give one of the two, and null for the other")
    if bits is not None:
        check_range("bits", bits, 0.05, 6)
    else:
        check_range("error", error, least_error, 0.95)


def target_of(bits: float | None, error: float | None, values: Tensor, numel: int, whole_bits: int = 32) -> Target:
    """For all of the values, whose target is bits for each of `numel` elements, or a relative error."""
    if bits is not None:
        return Target(bits * numel, whole_bits=whole_bits)
    return Target(None, (error * float(values.norm())) ** 2, whole_bits)


def padded(sections: list[Tensor], numel: int) -> list[Tensor]:
    """The sections, and one of zeros where their bytes are too few for so many elements."""
    return [*sections, torch.zeros(padding_nbytes(numel, total_nbytes(sections)), dtype=torch.uint8)]


def check_padding(sections: list[Tensor], number: int, numel: int) -> tuple[list[Tensor], list[Tensor]]:
    """The first `number` sections, which `padded` has added one to, and those behind it.

    Raises:
        PayloadError: it did not.
    """
    if not number < len(sections) <= number + 2:
        raise PayloadError("has sections that do not fit its shape")
    if sections[number].numel() != padding_nbytes(numel, total_nbytes(sections[:number])):
        raise PayloadError("stands for more elements than its bytes allow")
    return sections[:number], sections[number + 1 :]
