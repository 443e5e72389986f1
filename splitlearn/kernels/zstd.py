"""zstd for sections that it makes smaller."""

import torch
import zstandard
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import as_bytes

LEVEL = 1  # higher levels take several times as long for a few percent; negative ones do nothing for packed codes
TRIAL_NBYTES = 1 << 14
WORTH = 0.97  # of the size, at most, for the receiver's work to be worth it


def compress(section: Tensor) -> Tensor | None:
    """The zstd frame of a contiguous tensor's bytes, uint8, on the CPU; None where it does not pay.

    A large section is tried on a part of it first, so that incompressible ones cost next to nothing.
    """
    buffer = memoryview(as_bytes(section).cpu().numpy())
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    if len(buffer) > 4 * TRIAL_NBYTES:
        middle = len(buffer) // 2
        trial = buffer[middle : middle + TRIAL_NBYTES]
        if len(compressor.compress(trial)) > WORTH * TRIAL_NBYTES:
            return None
    frame = compressor.compress(buffer)
    if len(frame) > WORTH * len(buffer):
        return None
    return torch.frombuffer(bytearray(frame), dtype=torch.uint8)


def decompress(frame: Tensor, limit: int) -> Tensor:
    """The bytes of a zstd frame, uint8.

    Raises:
        PayloadError: this is no zstd frame, or one of more than `limit` bytes.
    """
    buffer = memoryview(frame.numpy())
    try:
        size = zstandard.frame_content_size(buffer)
        if not 0 <= size <= limit:
            raise PayloadError(f"has a zstd frame of {size} bytes where at most {limit} are possible")
        data = zstandard.ZstdDecompressor().decompress(buffer, max_output_size=size)
    except zstandard.ZstdError as error:
        raise PayloadError(f"has a section that is no zstd frame ({error})") from None
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else frame.new_empty(0)
