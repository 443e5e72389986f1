"""Integers of 8 bits with a scale for every block of values (INT8)."""

from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_choice, check_lengths, check_range, register
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack_spans
from splitlearn.kernels.blocks import empty, scratch, spans
from splitlearn.kernels.scopes import per_value
from splitlearn.kernels.sections import view_as

TOP = 127
SCALES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@register("int8")
class BlockwiseInt8(Compressor):
    """Rounds every value to one of 255 even levels between minus and plus the largest magnitude of its block.

    A block is `block` values that follow one another in memory, whatever the shape; the last one may be shorter. An
    error is at most half a step, 1/254 of the block's largest magnitude (1/252 with bf16 scales).

    Sections: the largest magnitude of each block; codes from -127 to 127, int8.

    Args:
        block: values that share a scale, 64 to 4096.
        scale: of what precision the scales are: "fp32" or "bf16". Those of a float64 tensor are float64.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, Sect. 2.1, whose block is 2048;
        the linear data type of its ablation, not the dynamic one.
    """

    codec: ClassVar[int] = 10
    block: int = 2048
    scale: str = "fp32"

    def __post_init__(self):
        super().__post_init__()
        check_range("block", self.block, 64, 4096)
        check_choice("scale", self.scale, tuple(SCALES))

    def _scale_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if dtype == torch.float64 else SCALES[self.scale]

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        x = x.view(-1)
        whole = x.numel() - x.numel() % self.block
        parts = [part for part in (x[:whole].view(-1, self.block), x[whole:].view(1, -1)) if part.numel()]
        magnitudes = torch.cat([torch.maximum(-part.amin(1), part.amax(1)) for part in parts])
        dtype = self._scale_dtype(x.dtype)
        # The largest number may be rounded up beyond what bf16 has.
        scales = magnitudes.to(dtype).clamp_(max=torch.finfo(dtype).max)
        codes = pack_spans(self._codes(x, scales), x.numel(), 8, x.device)
        return [scales, codes], (self.block & 255, self.block >> 8, list(SCALES).index(self.scale))

    def _codes(self, x: Tensor, scales: Tensor) -> Iterator[Tensor]:
        scales = scales.to(torch.promote_types(scales.dtype, torch.float32))
        scales = torch.where(scales > 0, scales, 1)
        shares = scratch(x.numel(), scales.dtype, x.device)
        for span in spans(x.numel(), x.device):
            here = shares[: span.stop - span.start].copy_(x[span])
            here.div_(per_value(scales, self.block, span)).mul_(TOP).round_().clamp_(-TOP, TOP)
            yield here.to(torch.int8).view(torch.uint8)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        sent_block = payload.params[0] | payload.params[1] << 8
        if sent_block != self.block or payload.params[2] != list(SCALES).index(self.scale):
            raise PayloadError(
                f"has blocks of {sent_block} values and scales of kind {payload.params[2]}; this compressor has"
                f" block={self.block}, scale={self.scale}"
            )
        dtype = self._scale_dtype(payload.dtype)
        check_lengths(sections, self._num_blocks(payload.numel) * dtype.itemsize, payload.numel)
        scales = view_as(sections[0], dtype)
        scales = scales.to(torch.promote_types(dtype, torch.float32))
        top = torch.tensor(TOP, dtype=scales.dtype, device=scales.device)  # CUDA would multiply by 1/number
        limit = torch.finfo(payload.dtype).max
        out = empty(payload.numel, payload.dtype, scales.device)
        shares = scratch(payload.numel, scales.dtype, scales.device)
        for span in spans(payload.numel, scales.device):
            here = shares[: span.stop - span.start].copy_(sections[1][span].view(torch.int8)).div_(top)
            out[span] = here.mul_(per_value(scales, self.block, span)).clamp_(-limit, limit)
        return out

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        scale_bits = 64 if value_bits == 64 else 8 * SCALES[self.scale].itemsize
        return 8 * prod(shape) + scale_bits * self._num_blocks(prod(shape))
