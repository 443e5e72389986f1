"""Rows of numbers as they are kept in memory: float32, bfloat16, or 8-bit codes between each row's extremes."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("fp32", "bf16", "uint8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OF_RANGE = 2  # bfloat16 before the codes of a row: its least value, and the step
LARGEST = 255


def row_nbytes(width: int, kind: str) -> int:
    """Bytes that a row of so many numbers takes."""
    return width + OF_RANGE * 2 if kind == "uint8" else width * DTYPES[kind].itemsize


def pack(x: Tensor, kind: str) -> Tensor:
    """(R, bytes) uint8 of (R, W) floating point. Bytes that are all zero are those of zeros."""
    if kind != "uint8":
        return x.to(DTYPES[kind]).contiguous().view(torch.uint8)
    x = x.float()
    least = x.amin(1, keepdim=True).bfloat16()
    step = ((x.amax(1, keepdim=True) - least) / LARGEST).bfloat16()
    codes = ((x - least) / step).round().clamp(0, LARGEST).nan_to_num(0).to(torch.uint8)
    return torch.cat([torch.cat([least, step], 1).view(torch.uint8), codes], 1)


def unpack(packed: Tensor, width: int, kind: str) -> Tensor:
    """(R, W) float32 of what was packed; of any bytes, though it may not be finite then."""
    if kind != "uint8":
        return packed.contiguous().view(DTYPES[kind]).float()
    least, step = packed[:, : OF_RANGE * 2].contiguous().view(torch.bfloat16).float().split(1, 1)
    return least + step * packed[:, OF_RANGE * 2 :].float()
