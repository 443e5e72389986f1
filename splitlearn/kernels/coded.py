"""Small signed integers as sections of a payload: rows of like spread share a table, and rANS codes them.

How it works: an integer is a symbol, 0, 1, -1, 2, -2, … as 0, 1, 2, 3, 4, …; one beyond ±127 is `ESCAPE`, and what it
stands for is the caller's business. A row, such as a channel, is of one of 16 classes by the mean magnitude of its
integers, in steps of √2; rows of zeros alone are of class 0 and are not coded. What adapts to the data is the table of
each class, which is sent: some ten bytes a class, and no model has to fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans
from splitlearn.kernels.jit import compiled

NUM_CLASSES = 16
NUM_SYMBOLS = 256
ESCAPE = NUM_SYMBOLS - 1
LARGEST = ESCAPE // 2  # magnitude that has a symbol
WIDE = 0x80  # of a frequency that takes two bytes


@dataclass(frozen=True)
class Coded:
    """
    Attributes:
        words: uint16, of rANS.
        classes: uint8, two rows a byte.
        tables: uint8, of the classes that occur.
    """

    words: np.ndarray
    classes: np.ndarray
    tables: np.ndarray


def classes_nbytes(num_rows: int) -> int:
    return (num_rows + 1) // 2


def encode(symbols: np.ndarray, classes: np.ndarray | None = None) -> Coded:
    """
    Args:
        symbols: (R, M) uint8, C-contiguous.
        classes: (R,) uint8, below 16, of the rows; 0 only for rows of zeros. By the mean magnitude if not given.
    """
    if classes is None:
        classes = _classes(symbols)
    tables = ans.frequencies(ans.histogram(symbols, classes, NUM_CLASSES, NUM_SYMBOLS))
    rows = classes > 0
    words = ans.encode(symbols if rows.all() else symbols[rows], classes[rows], tables)
    nibbles = np.append(classes, np.uint8(0)) if len(classes) % 2 else classes
    return Coded(words, nibbles[0::2] | nibbles[1::2] << 4, np.frombuffer(_written(tables), np.uint8))


def decode(coded: Coded, shape: tuple[int, int]) -> np.ndarray:
    """
    Returns:
        (R, M) uint8.

    Raises:
        PayloadError: it is not what `encode` gave for so many symbols.
    """
    num_rows, num_columns = shape
    classes = np.stack([coded.classes & 15, coded.classes >> 4], axis=1).reshape(-1)[:num_rows]
    tables = _read(coded.tables, sorted(set(classes.tolist()) - {0}))
    rows = classes > 0
    try:
        found = ans.decode(coded.words, (int(rows.sum()), num_columns), classes[rows], tables)
    except ValueError as error:
        raise PayloadError(str(error)) from None
    if rows.all():
        return found
    symbols = np.zeros(shape, np.uint8)
    symbols[rows] = found
    return symbols


def cost_bits(symbols: np.ndarray) -> float:
    """What `encode` takes for symbols, nearly: the ideal length with these classes, and the tables."""
    counts = ans.histogram(symbols, _classes(symbols), NUM_CLASSES, NUM_SYMBOLS)[1:]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(counts > 0, counts / np.maximum(totals, 1), 1)
    ideal = float(-(counts * np.log2(shares)).sum())
    return ideal + 9.0 * np.count_nonzero(counts) + 8 * classes_nbytes(len(symbols)) + 16 * ans.HEAD


def _classes(symbols: np.ndarray) -> np.ndarray:
    sums = _sums(symbols)
    with np.errstate(divide="ignore"):
        levels = np.floor(2 * np.log2(sums / symbols.shape[1])) + 12
    return np.where(sums > 0, np.clip(levels, 1, NUM_CLASSES - 1), 0).astype(np.uint8)


@compiled
def _sums(symbols):
    """The sum of the magnitudes in each row."""
    sums = np.zeros(symbols.shape[0], np.int64)
    for r in range(symbols.shape[0]):
        total = 0
        for symbol in symbols[r]:
            total += (np.int64(symbol) + 1) >> 1
        sums[r] = total
    return sums


def _written(tables: np.ndarray) -> bytes:
    """For each class that occurs: its last symbol, and the frequencies up to it, in one byte or two."""
    written = bytearray()
    for table in tables[1:]:
        if table.any():
            last = int(table.nonzero()[0][-1])
            written.append(last)
            for frequency in table[: last + 1].tolist():
                written += bytes([frequency]) if frequency < WIDE else bytes([WIDE | frequency >> 8, frequency & 0xFF])
    return bytes(written)


def _read(written: np.ndarray, classes: list[int]) -> np.ndarray:
    """The tables of these classes, and of no others."""
    tables, values = np.zeros((NUM_CLASSES, NUM_SYMBOLS), np.uint16), iter(written.tolist())
    try:
        for k in classes:
            for symbol in range(next(values) + 1):
                first = next(values)
                tables[k, symbol] = first if first < WIDE else (first & ~WIDE) << 8 | next(values)
    except StopIteration:
        raise PayloadError("has tables that end too early") from None
    if next(values, None) is not None or any(int(tables[k].sum()) != ans.TOTAL for k in classes):
        raise PayloadError("has tables that do not add up")
    return tables
