"""A transform codec: the channels of a map in their own basis, uniform steps, and an entropy coder (KLT).

How it works: the channels of a map are strongly correlated. In the basis of the eigenvectors of their second moments
(kernels/bases.py) a few components hold most of the energy, and a block of places is a few frequencies; steps of one
size leave the least error for the bits, and an entropy coder takes next to nothing for what is all zero (coded.py).

    x (B, C, H, W) ─ channels ─► basis ─► DCT of blocks ─► steps ─► rANS ═══► and back

Where a map is large beside its basis, each payload has a basis of its own. Else the basis is state: the sender fits one
to its maps of late every `refresh` steps, numbers it, and a payload brings those of its vectors that it is the first to
use. What a payload needs that this end has not got is refused, by its number and its checksum.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_range, register
from splitlearn.compressors.basis import HEAD, KEPT, OWN, Plan, SharedBasis, kind_for
from splitlearn.compressors.components import num_worthwhile, some_samples, traced
from splitlearn.compressors.fallback import as_it_is
from splitlearn.compressors.payload import Payload
from splitlearn.compressors.trace import Trace, components_shape, project, unproject, weights_of
from splitlearn.compressors.uniform import RAW, SMALL, check_padding, check_target, padded, target_of
from splitlearn.errors import PayloadError
from splitlearn.kernels import bases, outliers, stepping
from splitlearn.kernels.channels import from_channels, matrix_shape, scaled_by_channel
from splitlearn.kernels.sections import total_nbytes
from splitlearn.kernels.unit import rescaled

SYMBOL_BITS = 3  # of what the vector of a component costs in a payload, for each symbol that it has to have there
RATE = 0.65  # bits an element, where an error is the target


@register("klt")
class KarhunenLoeve(Compressor):
    """Codes a map's channels in their own basis, at a rate or an error that is met.

    Any shape of two dimensions and more: over C of (B, C, …) and of (B, T, C). The gradient of what was sent may come
    back in the same basis (`compressor@downlink=linked`), and is weighed by what of each component arrived
    (`backward=gain`). A map of more than 2,048 channels, or too small for a basis, is coded without one, as by uq.

    Sections: those of kernels/stepping.py; number, checksum, components and first vector (12 bytes), and vectors of the
    basis; zeros where the payload would stand for more than 1,024 elements a byte; where (B, T, C) has rows that are
    larger than the others by far, these (see kernels/outliers.py). Parameters: kind; two shifts; block of places;
    whether no element is negative; basis_bits.

    Args:
        bits: an element, bases included: those are paid for over the `refresh` payloads that follow them. A small map
            takes more, as by uq. None where `error` is given.
        error: ‖decoded - x‖₂ / ‖x‖₂, at most. None where `bits` is given.
        block: side of the blocks of places that are transformed, 1, 2, 4 or 8; the largest up to it that H and W are
            multiples of. 1 for none.
        refresh: payloads after which a basis is fitted anew; the first ones are after 1, 4 and 16.
        basis_bits: of a number of a vector, 4 to 8.
        weighted: share of the gradients that came back in what a basis is fitted to, 0 to 1. The more, the better the
            components that arrive hold the gradient, at some cost to the map; .3 is a good one, and 0 the map alone.

    Attributes:
        trace: of the map that was coded last.
    """

    codec: ClassVar[int] = 8
    meets_target: ClassVar[bool] = True
    takes_transform: ClassVar[bool] = False
    has_basis: ClassVar[bool] = True
    bits: float | None = 0.65
    error: float | None = None
    block: int = 4
    refresh: int = 50
    basis_bits: int = 5
    weighted: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_target(self.bits, self.error, least_error=0.02)
        if self.block not in (1, 2, 4, 8):
            raise ValueError(f"block={self.block} is no side of a block: choose 1, 2, 4 or 8")
        check_range("refresh", self.refresh, 1, 100_000)
        check_range("basis_bits", self.basis_bits, 4, 8)
        check_range("weighted", self.weighted, 0, 1)
        self.trace: Trace | None = None
        self.keeper = self._basis = SharedBasis(self.refresh, self.basis_bits, self.weighted)

    def basis_nbytes(self, payload: Payload) -> int:
        return 0 if payload.params[0] == RAW else payload.sections[stepping.NUM_SECTIONS].numel() - HEAD.size

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return (self.bits if self.bits is not None else value_bits) * prod(shape)

    def kind_for(self, shape: tuple[int, ...]) -> int:
        """Which basis a map of this shape goes by; one that is to know of gradients is kept."""
        kind = kind_for(shape, self.bits or RATE, self.refresh, self.basis_bits)
        return KEPT if kind == OWN and self.learns else kind

    @property
    def learns(self) -> bool:
        return self.weighted > 0

    def learn(self, gradient: Tensor) -> None:
        self._basis.learn(gradient)

    # Encoding

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        self.trace = None
        if x.numel() < SMALL:
            return [x.reshape(-1)], (RAW,)
        rest, apart = outliers.parted(x, self.bits)
        matrix, scale = scaled_by_channel(rest)
        plan = self._basis.plan(self.kind_for(x.shape), matrix, (self.bits or RATE) * x.numel())
        block = bases.largest_block(x.shape, self.block)
        values, packed = self._code(x.shape, matrix, scale, plan, block, apart)
        number = len(packed.symbols)
        sections = padded([*packed.sections, self._basis.section(plan, number)], x.numel()) + apart
        if total_nbytes(sections) >= x.numel() * x.itemsize:
            return [x.reshape(-1)], (RAW,)
        self._basis.was_sent(plan, number)
        self.trace = traced(x.shape, plan.basis, block, packed, values)
        is_positive = bool(matrix.amin() >= 0)
        return sections, (plan.kind, *packed.params, block, is_positive, self.basis_bits)

    def _code(self, shape: torch.Size, matrix: Tensor, scale: float, plan: Plan, block: int, apart: list[Tensor]):
        """The components of a map, as many as its target leaves beside other sections, and these packed."""
        part, part_shape = some_samples(shape, matrix)
        few = project(part, part_shape, plan.basis, plan.most, block)
        most = components_shape(shape, plan.most, block)
        target = self._target(matrix, plan, 0).less(apart).beside(most, HEAD.size)
        tried = stepping.find_step(few, target.of_part(few.numel() / matrix.numel()))
        share = few.numel() / matrix.numel() / (self._basis.life() if plan.kind == KEPT else 1)
        number = num_worthwhile(plan, tried.symbols, share * self._bits_of_vector(plan) / SYMBOL_BITS)
        while True:
            values = project(matrix, shape, plan.basis, number, block)
            target = self._target(matrix, plan, number).less(apart).beside(values.shape, HEAD.size)
            if self.error is not None:
                missing = matrix.double().square().sum() - values.double().square().sum()
                target = replace(target, squared_error=target.squared_error - max(0.0, float(missing)))
                if target.squared_error <= 0 and number < plan.most:
                    number = min(plan.most, number + 1 + number // 16)
                    continue
            tried = stepping.find_step(values, target, tried.step)
            return values, stepping.pack_within(tried, target, scale, trims=True)

    def _target(self, matrix: Tensor, plan: Plan, number: int) -> stepping.Target:
        """What is left for the values of so many components, beside the basis; half of it in any case."""
        target = target_of(self.bits, self.error, matrix, matrix.numel())
        if self.bits is None:
            return target
        spent = min(self._basis.cost_bits(plan, number), target.bits / 2)
        return replace(target, bits=target.bits - spent)

    def _bits_of_vector(self, plan: Plan) -> int:
        return plan.vectors(0, 1).numel() * self.basis_bits

    # Decoding

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        self.trace = None
        kind, near, far, block, is_positive, basis_bits = payload.params
        if kind == RAW:
            return as_it_is(sections, payload)
        (*coded, of_basis), apart = check_padding(sections, stepping.NUM_SECTIONS + 1, payload.numel)
        if is_positive not in (0, 1) or block != bases.largest_block(payload.shape, block):
            raise PayloadError("has sections that do not fit its shape")
        plan = self._basis.received(kind, of_basis, matrix_shape(payload.shape)[0], basis_bits)
        shape = components_shape(payload.shape, plan.most, block)
        values, symbols, scale = stepping.unpack(coded, (near, far), shape, torch.float32, scaled=False)
        rows = unproject(values.to(sections[0].device), payload.shape, plan.basis, block)
        x = rescaled(from_channels(rows, payload.shape), scale, payload.dtype, 0 if is_positive else -inf)
        x = outliers.joined(x, apart, payload.shape)
        self._basis.kept(plan)
        self.trace = Trace(payload.shape, plan.basis, block, weights_of(symbols))
        return x
