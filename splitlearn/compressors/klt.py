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

import copy
import struct
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from splitlearn.compressors import basis as shared
from splitlearn.compressors.base import Compressor, check_range, register
from splitlearn.compressors.payload import Payload
from splitlearn.compressors.plan import KEPT, NONE, OWN, Plan, some_samples, traced
from splitlearn.compressors.trace import Trace, components_shape, project, unproject, weights_of
from splitlearn.compressors.uniform import (
    RAW,
    SMALL,
    as_it_is,
    check_padding,
    check_target,
    padded,
    rescaled,
    scaled,
    target_of,
)
from splitlearn.errors import PayloadError
from splitlearn.kernels import bases, stepping, steps
from splitlearn.kernels.channels import by_channel, from_channels, matrix_shape

HEAD = struct.Struct("<IIHH")  # of the basis: number, checksum, components of the payload, first vector that it brings
MAX_CHANNELS = 2048
CHEAP = 0.01  # of the bits of a payload, that a basis of its own may take
SYMBOL_BITS = 3  # of what the vector of a component costs in a payload, for each symbol that it has to have there
RATE = 0.65  # bits an element, where an error is the target


@register("klt")
class KarhunenLoeve(Compressor):
    """Codes a map's channels in their own basis, at a rate or an error that is met.

    Any shape of two dimensions and more: over C of (B, C, …) and of (B, T, C). The gradient of what was sent may come
    back in the same basis (`compressor@downlink=linked`), and is weighed by what of each component arrived
    (`backward=gain`). A map of more than 2,048 channels, or too small for a basis, is coded without one, as by uq.

    Sections: those of kernels/stepping.py; number, checksum, components and first vector (12 bytes); vectors of the
    basis; zeros where the payload would stand for more than 1,024 elements a byte. Parameters: kind; two shifts; block
    of places; whether no element is negative; basis_bits.

    Args:
        bits: an element, bases included: those are paid for over the `refresh` payloads that follow them. None where
            `error` is given.
        error: ‖decoded - x‖₂ / ‖x‖₂, at most. None where `bits` is given.
        block: side of the blocks of places that are transformed, 1, 2, 4 or 8; the largest up to it that H and W are
            multiples of. 1 for none.
        refresh: payloads after which a basis is fitted anew; the first ones are after 1, 4 and 16.
        basis_bits: of a number of a vector, 4 to 8.

    Attributes:
        state: of the sender, or of the receiver (see basis.py); None before the first map.
        trace: of the map that was coded last.
    """

    codec: ClassVar[int] = 8
    meets_target: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True
    has_basis: ClassVar[bool] = True
    bits: float | None = 0.65
    error: float | None = None
    block: int = 4
    refresh: int = 50
    basis_bits: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_target(self.bits, self.error, least_error=0.02)
        if self.block not in (1, 2, 4, 8):
            raise ValueError(f"block={self.block} is no side of a block: choose 1, 2, 4 or 8")
        check_range("refresh", self.refresh, 1, 100_000)
        check_range("basis_bits", self.basis_bits, 4, 8)
        self.state: shared.State | None = None
        self.trace: Trace | None = None
        self._is_frozen = False
        self._made: tuple[Any, int, Tensor] | None = None  # of which integers, how many, and what they are

    def for_evaluation(self) -> KarhunenLoeve:
        """One that goes by the basis that there is now, and leaves the state as it is."""
        frozen = copy.copy(self)
        frozen._is_frozen = True
        return frozen

    def state_dict(self) -> dict[str, Any]:
        return self.state or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state or None

    def flaw_of(self, state: Any, shape: tuple[int, ...]) -> str | None:
        return shared.flaw(state, matrix_shape(shape)[0]) if state else None

    def basis_nbytes(self, payload: Payload) -> int:
        return 0 if payload.params[0] == RAW else payload.sections[6].numel()

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return (self.bits if self.bits is not None else value_bits) * prod(shape)

    def kind_for(self, shape: tuple[int, ...]) -> int:
        """Which basis a map of this shape goes by."""
        num_channels, _ = matrix_shape(shape)
        bits, basis = (self.bits or RATE) * prod(shape), self.basis_bits * num_channels**2
        if not 2 <= num_channels <= MAX_CHANNELS or basis > bits * self.refresh:
            return NONE
        return OWN if basis <= CHEAP * bits else KEPT

    # Encoding

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        self.trace = None
        if x.numel() < SMALL:
            return [x.reshape(-1)], (RAW,)
        matrix, scale = scaled(by_channel(x))
        plan = self._plan(x.shape, matrix)
        values, packed = self._code(x.shape, matrix, scale, plan)
        number = len(packed.symbols)
        brought = plan.vectors(plan.sent, number)
        head = HEAD.pack(plan.number, shared.checksum(plan.vectors(0, max(plan.sent, number))), number, plan.sent)
        head = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        sections = [*packed.sections, head, bases.pack_integers(brought, self.basis_bits)]
        if stepping.total_nbytes(sections) >= x.numel() * x.itemsize:
            return [x.reshape(-1)], (RAW,)
        if plan.kind == KEPT and not self._is_frozen:
            debt = self.state["debt"] * (1 - 1 / self.refresh) + self._bits_of(len(brought), x.shape)
            self.state = {**self.state, "sent": max(plan.sent, number), "debt": debt}
        self.trace = traced(x.shape, plan.basis, plan.block, packed, values)
        is_positive = bool(matrix.amin() >= 0)
        return padded(sections, x.numel()), (plan.kind, *packed.params, plan.block, is_positive, self.basis_bits)

    def _plan(self, shape: torch.Size, matrix: Tensor) -> Plan:
        """Which basis this map goes by; the state moves on with it."""
        kind, block = self.kind_for(shape), bases.largest_block(shape, self.block)
        if kind == NONE:
            return Plan(kind, block, len(matrix))
        if kind == KEPT and not self._is_frozen:
            self.state = shared.learned(self.state, matrix, self.refresh, self.basis_bits)
        if kind == KEPT and self.state and (self.state["sent"] or not self._is_frozen):
            sent, integers = self.state["sent"], self.state["integers"]
            most = sent if self._is_frozen else len(integers)
            basis = self._orthonormal(integers, most)
            return Plan(kind, block, most, self.state["number"], sent, integers, basis)
        moments = bases.second_moments(matrix, max(shared.COLUMNS, 16 * len(matrix)))
        integers = bases.to_integers(bases.eigenvectors(moments), self.basis_bits)
        return Plan(OWN, block, len(matrix), integers=integers, basis=bases.orthonormal(integers))

    def _code(self, shape: torch.Size, matrix: Tensor, scale: float, plan: Plan) -> tuple[Tensor, stepping.Packed]:
        """The components of a map, and their sections: as many as its target leaves."""
        part, part_shape = some_samples(shape, matrix)
        few = project(part, part_shape, plan.basis, plan.most, plan.block)
        target = self._target(shape, matrix, plan, 0)
        step = stepping.find_step(few, target.of_part(few.numel() / matrix.numel()))
        least = self._bits_of(plan.kind != NONE, shape) / (self.refresh if plan.kind == KEPT else 1) / SYMBOL_BITS
        number = plan.num_worthwhile(steps.quantize(few, step), least * few.numel() / matrix.numel())
        while True:
            values = project(matrix, shape, plan.basis, number, plan.block)
            target = self._target(shape, matrix, plan, number)
            if self.error is not None:
                missing = matrix.double().square().sum() - values.double().square().sum()
                target = replace(target, squared_error=target.squared_error - max(0.0, float(missing)))
                if target.squared_error <= 0 and number < plan.most:
                    number = min(plan.most, number + 1 + number // 16)
                    continue
            step = stepping.find_step(values, target, step)
            return values, stepping.pack_within(values, target, step, scale, values, trims=True)

    def _target(self, shape: torch.Size, matrix: Tensor, plan: Plan, number: int) -> stepping.Target:
        """What is left for the components' values, beside so many vectors of the basis."""
        target = target_of(self.bits, self.error, matrix, 32)
        if self.bits is None:
            return target
        brought, spent = self._bits_of(max(0, number - plan.sent), shape), 8.0 * HEAD.size
        if plan.kind == KEPT and not self._is_frozen:
            spent += min((self.state["debt"] + brought) / self.refresh, target.bits / 2)
        elif self.kind_for(shape) == OWN:
            spent += brought
        return replace(target, bits=target.bits - spent)

    def _bits_of(self, num_vectors: int, shape: torch.Size) -> float:
        return float(num_vectors * matrix_shape(shape)[0] * self.basis_bits)

    def _orthonormal(self, integers: Tensor, number: int) -> Tensor:
        """The first vectors of a basis, as they are applied; kept until others are asked for."""
        if self._made is None or self._made[0] is not integers or self._made[1] != number:
            self._made = integers, number, bases.orthonormal(integers[:number])
        return self._made[2]

    # Decoding

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        self.trace = None
        kind, near, far, block, is_positive, basis_bits = payload.params
        if kind == RAW:
            return as_it_is(sections, payload)
        fits = len(sections) == 8 and sections[5].numel() == HEAD.size and is_positive in (0, 1)
        if not fits or kind not in (NONE, OWN, KEPT) or block != bases.largest_block(payload.shape, block):
            raise PayloadError("has sections that do not fit its shape")
        check_padding(sections, payload.numel)
        num_channels = matrix_shape(payload.shape)[0]
        number, checksum, num_components, first = HEAD.unpack(bytes(sections[5].cpu().numpy()))
        if not 1 <= num_components <= num_channels or not 4 <= basis_bits <= 8:
            raise PayloadError(f"has {num_components} components of {num_channels} channels")
        brought = bases.unpack_integers(sections[6].cpu(), num_channels, basis_bits)
        if brought is None:
            raise PayloadError("brings no whole vectors of a basis")
        basis = None
        if kind != NONE:
            state = self.state if kind == KEPT else None
            integers = shared.received(state, number, checksum, first, brought)
            if len(integers) < num_components:
                raise PayloadError(f"has {num_components} components in a basis of {len(integers)} vectors")
            basis = self._orthonormal(integers, len(integers))[:num_components]
        elif len(brought) or number or first:
            raise PayloadError("brings a basis that it does not go by")
        shape = components_shape(payload.shape, num_components, block)
        values, symbols, scale = stepping.unpack(sections[:5], (near, far), shape, torch.float32, scaled=False)
        rows = unproject(values.to(sections[0].device), payload.shape, basis, block)
        if is_positive:
            rows.clamp_(min=0)
        if kind == KEPT and not self._is_frozen:
            self.state = shared.kept(self.state, number, integers)
        self.trace = Trace(payload.shape, basis, block, weights_of(symbols))
        return from_channels(rescaled(rows, scale, payload.dtype), payload.shape)
