"""The lossless stage: sections of a payload in fewer bytes, where that pays.

How it works: "zstd" tries every section with zstd. "ans" does so too, and where a section holds codes it also tries the
entropy coder, and takes what is smaller. A receiver needs neither: a section that was shrunk says by its first bytes
what it is, as a zstd frame begins with a number that no other does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splitlearn.kernels import packedcodes, zstd

STAGES = ("none", "zstd", "ans")


def shrink(section: Tensor, stage: str, bits: int, shape: tuple[int, ...]) -> Tensor | None:
    """A section's bytes shrunk, uint8, on the CPU; None where that does not pay.

    Args:
        section: contiguous.
        stage: one of STAGES.
        bits: width of the codes that it holds, one for each element of a tensor of this shape; 0 if it holds others.
    """
    if stage == "none":
        return None
    found = [zstd.compress(section)]
    if stage == "ans" and bits:
        found.append(packedcodes.compress(section, bits, shape))
    return min((one for one in found if one is not None), key=torch.Tensor.numel, default=None)


def restore(frame: Tensor, limit: int) -> Tensor:
    """The bytes of a section that was shrunk, uint8.

    Raises:
        PayloadError: nothing that `shrink` makes, or more than `limit` bytes.
    """
    if frame.numel() and frame[0] == packedcodes.KIND:
        return packedcodes.decompress(frame, limit)
    return zstd.decompress(frame, limit)
