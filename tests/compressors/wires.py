"""The wire format once more, from its description, to make payloads that the package would not."""

import struct
import zlib

import torch

# Where the fields of the header are: (offset, size). The dimensions and the sections' lengths follow the last one.
FIELDS = {
    "magic": (0, 4),
    "version": (4, 1),
    "codec": (5, 1),
    "dtype": (6, 1),
    "num_dims": (7, 1),
    "num_sections": (8, 1),
    "shrunk": (9, 1),
    "params": (10, 6),
    "checksum": (16, 4),
}
PREFIX_NBYTES = 20
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # by their number on the wire
CHECKSUM, CHECKSUM_END = FIELDS["checksum"][0], sum(FIELDS["checksum"])


def header_nbytes(num_dims: int, num_sections: int) -> int:
    length = PREFIX_NBYTES + 4 * num_dims + 8 * num_sections
    return length + -length % 8


def checksum(wire: bytes | bytearray) -> int:
    return zlib.crc32(wire[CHECKSUM_END:], zlib.crc32(wire[:CHECKSUM]))


def has_right_checksum(wire: bytes | bytearray) -> bool:
    return len(wire) >= PREFIX_NBYTES and struct.unpack_from("<I", wire, CHECKSUM) == (checksum(wire),)


def with_checksum(wire: bytes | bytearray) -> torch.Tensor:
    return to_tensor(mended(wire))


def mended(wire: bytes | bytearray) -> bytearray:
    """`wire` with the right checksum."""
    wire = bytearray(wire)
    wire[CHECKSUM:CHECKSUM_END] = struct.pack("<I", checksum(wire))
    return wire


def stated(wire: bytes | bytearray) -> tuple[torch.Size, torch.dtype]:
    """The shape and dtype that a header states."""
    num_dims = wire[FIELDS["num_dims"][0]]
    shape = torch.Size(struct.unpack_from(f"<{num_dims}I", wire, PREFIX_NBYTES))
    return shape, DTYPES[wire[FIELDS["dtype"][0]]]


def to_tensor(wire: bytes | bytearray) -> torch.Tensor:
    return torch.frombuffer(bytearray(wire), dtype=torch.uint8) if wire else torch.empty(0, dtype=torch.uint8)


def to_bytes(wire: torch.Tensor) -> bytearray:
    return bytearray(wire.numpy().tobytes())
