"""The wire format: one payload is one uint8 tensor, a header and then the codec's sections.

How it works: everything is little-endian. The header is

    offset  size  field
         0     4  magic, b"SPLT"
         4     1  version of this format, 1
         5     1  codec, one number a compressor class
         6     1  dtype of the tensor that was encoded (see DTYPES)
         7     1  number of dimensions, n
         8     1  number of sections, s, one of them perhaps not the codec's (see `joined`)
         9     1  which sections were shrunk, a bit each from the lowest
        10     6  six parameters of the codec, a byte each
        16     4  CRC-32 of all the other bytes
        20   4 n  the dimensions, none of them 0
         +   8 s  the length of each section in bytes
         +     0  to 7 zero bytes, so that the sections start at a multiple of 8

and the sections follow one another without gaps. A codec puts sections of wide items first, so that each can be read in
place. `Payload.nbytes` is the length of it all: what is sent, and what is reported as traffic.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.blocks import empty
from splitlearn.kernels.sections import as_bytes

MAGIC = b"SPLT"
VERSION = 1
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FIXED = struct.Struct("<4sBBBBBB6s")  # up to the checksum
CHECKSUM = struct.Struct("<I")
PREFIX_NBYTES = FIXED.size + CHECKSUM.size
NUM_PARAMS = 6
MAX_DIMS = 8
MAX_SECTIONS = 8  # of a codec


@dataclass(frozen=True)
class Payload:
    """An encoded tensor.

    Attributes:
        tensor: the wire, uint8, 1-D, on the CPU.
        codec: number of the compressor class that made it.
        dtype: dtype of the tensor that was encoded.
        shape: shape of the tensor that was encoded.
        shrunk: which sections the lossless stage shrank (kernels/lossless.py), a bit each.
        params: the codec's six parameters, 0 to 255 each.
        sections: the codec's sections as they were sent, views of `tensor`.
    """

    tensor: Tensor
    codec: int
    dtype: torch.dtype
    shape: torch.Size
    shrunk: int
    params: tuple[int, ...]
    sections: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Length on the wire in bytes, header included."""
        return self.tensor.numel()

    @property
    def numel(self) -> int:
        """Number of elements of the tensor that was encoded."""
        return self.shape.numel()

    @staticmethod
    def pack(
        codec: int, like: Tensor, sections: list[Tensor], params: tuple[int, ...] = (), shrunk: int = 0
    ) -> Payload:
        """Puts `sections` (contiguous tensors, on any one device) behind a header that describes `like`."""
        sections = [as_bytes(section) for section in sections]
        head = bytearray(
            FIXED.pack(
                MAGIC,
                VERSION,
                codec,
                DTYPES.index(like.dtype),
                like.dim(),
                len(sections),
                shrunk,
                bytes(params).ljust(NUM_PARAMS, b"\0"),
            )
        )
        head += bytes(CHECKSUM.size)
        head += struct.pack(f"<{like.dim()}I", *like.shape)
        head += struct.pack(f"<{len(sections)}Q", *(section.numel() for section in sections))
        head += bytes(-len(head) % 8)
        wire = empty(len(head) + sum(section.numel() for section in sections), torch.uint8, torch.device("cpu"))
        start = 0
        for part in (torch.frombuffer(head, dtype=torch.uint8), *sections):
            wire[start : start + part.numel()].copy_(part)  # from any device
            start += part.numel()
        CHECKSUM.pack_into(memoryview(wire.numpy()), FIXED.size, _checksum(wire))
        return Payload.parse(wire, verify=False)

    @staticmethod
    def parse(wire: Tensor, verify: bool = True) -> Payload:
        """Reads a payload from the bytes that were received.

        Args:
            wire: uint8, 1-D, contiguous, on the CPU.
            verify: compare the checksum.

        Raises:
            PayloadError: these bytes are not a payload.
        """
        if wire.dtype != torch.uint8 or wire.dim() != 1 or wire.device.type != "cpu" or not wire.is_contiguous():
            raise PayloadError("a payload is a contiguous 1-D uint8 tensor on the CPU")
        if wire.numel() < PREFIX_NBYTES:
            raise PayloadError(f"{wire.numel()} bytes are too few for a header")
        buffer = memoryview(wire.numpy())
        magic, version, codec, dtype, num_dims, num_sections, shrunk, params = FIXED.unpack_from(buffer)
        if magic != MAGIC:
            raise PayloadError(f"starts with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise PayloadError(f"has version {version} of the format; this program reads version {VERSION}")
        if dtype >= len(DTYPES):
            raise PayloadError(f"has unknown dtype number {dtype}")
        if num_dims > MAX_DIMS or num_sections > MAX_SECTIONS + 1:
            raise PayloadError(f"has {num_dims} dimensions and {num_sections} sections; 8 and 9 are the most")
        start = PREFIX_NBYTES + 4 * num_dims + 8 * num_sections
        start += -start % 8
        if wire.numel() < start:
            raise PayloadError("ends within its header")
        if verify and CHECKSUM.unpack_from(buffer, FIXED.size)[0] != _checksum(wire):
            raise PayloadError("has a wrong checksum")
        shape = struct.unpack_from(f"<{num_dims}I", buffer, PREFIX_NBYTES)
        lengths = struct.unpack_from(f"<{num_sections}Q", buffer, PREFIX_NBYTES + 4 * num_dims)
        if start + sum(lengths) != wire.numel():
            raise PayloadError(f"has sections of {sum(lengths)} bytes in all but {wire.numel() - start} are there")
        if not 0 < prod(shape) < 1 << 62:
            raise PayloadError(f"has the impossible shape {shape}")
        sections = []
        for length in lengths:
            sections.append(wire[start : start + length])
            start += length
        return Payload(wire, codec, DTYPES[dtype], torch.Size(shape), shrunk, tuple(params), tuple(sections))

    def joined(self, section: Tensor) -> Payload:
        """This payload with one more section on the wire, which is not the codec's: `sections` are as before."""
        like = torch.empty(self.shape, dtype=self.dtype, device="meta")
        packed = Payload.pack(self.codec, like, [*self.sections, section], self.params, self.shrunk)
        return packed.parted()[0]

    def parted(self) -> tuple[Payload, Tensor]:
        """Inverse of `joined`, of what was received: the payload with the codec's sections, and the other one.

        Raises:
            PayloadError: there is none.
        """
        if not self.sections:
            raise PayloadError("has no section of its own for what it is of")
        return replace(self, sections=self.sections[:-1]), self.sections[-1]


def _checksum(wire: Tensor) -> int:
    buffer = memoryview(wire.numpy())
    return zlib.crc32(buffer[PREFIX_NBYTES:], zlib.crc32(buffer[: FIXED.size]))
