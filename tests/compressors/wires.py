"""The wire format once more, from its description, to make payloads that the package would not."""

import struct
import zlib

import torch


def header_nbytes(num_dims: int, num_sections: int) -> int:
    length = 20 + 4 * num_dims + 8 * num_sections
    return length + -length % 8


def with_checksum(wire: bytes | bytearray) -> torch.Tensor:
    wire = bytearray(wire)
    wire[16:20] = struct.pack("<I", zlib.crc32(wire[:16] + wire[20:]))
    return torch.frombuffer(wire, dtype=torch.uint8)


def to_bytes(wire: torch.Tensor) -> bytearray:
    return bytearray(wire.numpy().tobytes())
