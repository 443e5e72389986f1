"""The bytes of a tensor, and back: what a section of a payload is to a codec."""

import torch
from torch import Tensor

from splitlearn.errors import PayloadError

MOST_A_BYTE = 1 << 10  # elements that a byte of a payload may stand for, so that what is decoded has a bound


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor: uint8, 1-D, sharing its memory."""
    return tensor.reshape(-1).view(torch.uint8)


def view_as(section: Tensor, dtype: torch.dtype) -> Tensor:
    """The items of a section. It is copied where its place in the payload is not aligned for `dtype`.

    Raises:
        PayloadError: its length is no multiple of the item's size.
    """
    if section.numel() % dtype.itemsize:
        raise PayloadError(f"has a section of {section.numel()} bytes, which is no whole number of {dtype}")
    if section.storage_offset() % dtype.itemsize:
        section = section.clone()
    return section.view(dtype)


def total_nbytes(sections: list[Tensor]) -> int:
    """Bytes that the sections take on the wire."""
    return sum(section.numel() * section.itemsize for section in sections)


def padding_nbytes(numel: int, nbytes: int) -> int:
    """Zeros that a payload of so many bytes needs, so that what is decoded has a bound."""
    return max(0, -(-numel // MOST_A_BYTE) - nbytes)
