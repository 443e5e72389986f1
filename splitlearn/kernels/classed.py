"""Symbols of a byte as sections of a frame: rows of a class share a table, which is sent, and rANS codes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans, tables

NUM_CLASSES = 16
NUM_SYMBOLS = 256
NONE = np.zeros((NUM_CLASSES, NUM_SYMBOLS), np.uint16)  # no table is known


@dataclass(frozen=True)
class Classed:
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


def encode(symbols: np.ndarray, classes: np.ndarray) -> Classed:
    """
    Args:
        symbols: (R, M) uint8, C-contiguous.
        classes: (R,) uint8, below 16, of the rows; 0 only for rows of zeros, which are not coded.
    """
    found = ans.frequencies(ans.histogram(symbols, classes, NUM_CLASSES, NUM_SYMBOLS))
    rows = classes > 0
    words = ans.encode(symbols if rows.all() else symbols[rows], classes[rows], found)
    written = b"".join(tables.written(table) for table in found[1:] if table.any())
    return Classed(words, tables.nibbles(classes), np.frombuffer(written, np.uint8))


def decode(classed: Classed, shape: tuple[int, int]) -> np.ndarray:
    """
    Returns:
        (R, M) uint8.

    Raises:
        PayloadError: it is not what `encode` gave for so many symbols.
    """
    num_rows, num_columns = shape
    classes = tables.numbers(classed.classes)[:num_rows]
    rows = classes > 0
    found = tables.read(classed.tables, np.unique(classes[rows]), NONE)
    try:
        coded = ans.decode(classed.words, (int(rows.sum()), num_columns), classes[rows], found)
    except ValueError as error:
        raise PayloadError(str(error)) from None
    if rows.all():
        return coded
    symbols = np.zeros(shape, np.uint8)
    symbols[rows] = coded
    return symbols
