"""Tables of frequencies as bytes, and the small numbers that say which table is whose."""

from __future__ import annotations

import numpy as np

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans

WIDE = 0x80  # of a frequency that takes two bytes


def written(table: np.ndarray) -> bytes:
    """The last symbol, and the frequencies up to it, in one byte or two. The last is not 0: that is a known table."""
    last = max(1, int(table.nonzero()[0][-1]))
    found = bytearray([last])
    for frequency in table[: last + 1].tolist():
        found += bytes([frequency]) if frequency < WIDE else bytes([WIDE | frequency >> 8, frequency & 0xFF])
    return bytes(found)


def read(section: np.ndarray, which: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tables one after the other, (K, S) uint16: those with the numbers `which`, in that order, and no others.

    Args:
        section: uint8.
        which: numbers below K.
        known: (K, S) uint16, what a table is that is a 0 alone; one that does not add up may not be.

    Raises:
        PayloadError: these are not the tables, or they do not add up to 2^12.
    """
    tables, values = np.zeros(known.shape, np.uint16), iter(section.tolist())
    try:
        for k in which:
            last = next(values)
            if last == 0:
                tables[k] = known[k]
                continue
            for symbol in range(last + 1):
                first = next(values)
                tables[k, symbol] = first if first < WIDE else (first & ~WIDE) << 8 | next(values)
    except StopIteration:
        raise PayloadError("has tables that end too early") from None
    if next(values, None) is not None or any(int(tables[k].sum()) != ans.TOTAL for k in which):
        raise PayloadError("has tables that do not add up")
    return tables


def nibbles(numbers: np.ndarray) -> np.ndarray:
    """Numbers below 16, (n,) uint8, two a byte: the first in the low half, and 0 where the last has no second."""
    numbers = np.append(numbers, np.uint8(0)) if len(numbers) % 2 else numbers
    return numbers[0::2] | numbers[1::2] << 4


def numbers(nibbles: np.ndarray) -> np.ndarray:
    """Inverse of `nibbles`: (2n,) uint8."""
    return np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(-1)
