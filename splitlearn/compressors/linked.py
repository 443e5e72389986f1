"""The gradient of a map in the map's own basis (LINKED): for the way back of klt."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import register
from splitlearn.compressors.payload import Payload
from splitlearn.compressors.trace import Trace
from splitlearn.compressors.uniform import EntropyCodedQuantizer, check_padding, padded, target_of
from splitlearn.errors import PayloadError
from splitlearn.kernels import stepping
from splitlearn.kernels.unit import rescaled, scaled

LINKED = 2  # beside what uq has


@register("linked")
class Linked(EntropyCodedQuantizer):
    """Sends the gradient of the components of a map that arrived, each in steps as fine as it will be used.

    A component of which nothing arrived gets no gradient, and costs nothing. Which these are, and how much of the
    others arrived, both ends know from the map's payload, so that no basis crosses back. The gradient of a map that
    crossed as it is goes as by uq.

    Sections: those of kernels/stepping.py, of the weighted components; zeros where the payload would stand for more
    than 1,024 elements a byte.

    Args:
        bits: an element of the gradient, at most; None where `error` is given.
        error: of the components, weighted as they arrived, at most. None where `bits` is given.
    """

    codec: ClassVar[int] = 9
    is_linked: ClassVar[bool] = True
    takes_transform: ClassVar[bool] = False
    bits: float | None = 0.65
    error: float | None = None

    def linked_to(self, trace: Trace | None) -> Linked:
        linked = copy.copy(self)
        linked.trace = trace
        return linked

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        if self.trace is None:
            return super().to_sections(x)
        values, scale = scaled(self.trace.project(x) * self.trace.weights.to(x.device))
        target = target_of(self.bits, self.error, values, x.numel())
        packed = stepping.coded_within(values, target, scale)
        return padded(packed.sections, x.numel()), (LINKED, *packed.params)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        if payload.params[0] != LINKED:
            return super().from_sections(sections, payload)
        trace = self.trace
        if trace is None or trace.shape != payload.shape:
            raise PayloadError("is linked to a map that this end has not got")
        sections, apart = check_padding(sections, stepping.NUM_SECTIONS, payload.numel)
        if apart:
            raise PayloadError("has sections that do not fit its shape")
        values, _, scale = stepping.unpack(
            sections, payload.params[1:3], trace.components_shape, torch.float32, scaled=False
        )
        factors = torch.where(trace.weights > 0, 1 / trace.weights, 0)
        if trace.gains is not None:
            factors = factors * trace.gains
        components = (values * factors).to(sections[0].device)
        return rescaled(trace.restore(components), scale, payload.dtype)
