"""Small signed integers as sections of a payload: those of like spread share a table, and rANS codes them.

How it works: an integer is a symbol, 0, 1, -1, 2, -2, … as 0, 1, 2, 3, 4, …; one beyond ±127 is `ESCAPE`, and what it
stands for is the caller's business. Symbols are an array of rows, bands, samples and places, such as the channels of a
map and the images of its batch. How large the integers of a cell (a row's part in a band of a sample) are on average,
in levels of √2, is the sum of three small numbers, one for the row, one for the band and one for the sample, which are
sent: four bits each. Rows of zeros alone are not coded. The cells of a level share a table: that of a Laplace
distribution, which both ends know, or where it pays one that is sent, of some ten bytes.

All that both ends compute is integers, so that the bytes are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans, laplace, tables
from splitlearn.kernels.jit import compiled
from splitlearn.kernels.laplace import NUM_LEVELS, ZERO_LEVEL

NUM_SYMBOLS = 256
ESCAPE = NUM_SYMBOLS - 1
LARGEST = ESCAPE // 2  # magnitude that has a symbol
MIDDLE = 8  # what the number of a band or a sample is 0 at
KNOWN = laplace.tables(NUM_SYMBOLS - 1)

Shape = tuple[int, int, int, int]  # rows, bands, samples, places


@dataclass(frozen=True)
class Coded:
    """
    Attributes:
        words: uint16, of rANS.
        levels: uint8: a number that those of all rows count from, and then two of rows, bands and samples a byte.
        tables: uint8, of the levels that occur.
    """

    words: np.ndarray
    levels: np.ndarray
    tables: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.levels.nbytes + self.tables.nbytes


def levels_nbytes(shape: Shape) -> int:
    return 1 + (sum(shape[:3]) + 1) // 2


def fixed_bits(shape: Shape) -> int:
    """What `encode` takes whatever the symbols are."""
    return 8 * levels_nbytes(shape) + 16 * ans.HEAD


@dataclass(frozen=True)
class Counted:
    """What there is to know of symbols before they are coded.

    Attributes:
        shape: of the symbols.
        found: levels of rows, bands and samples.
        cells: (cells, places) uint8: of the rows that are coded.
        levels: (cells,) uint8.
        counts: (levels, symbols) int64: how often each occurs in the cells of each level.
    """

    shape: Shape
    found: Levels
    cells: np.ndarray
    levels: np.ndarray
    counts: np.ndarray

    @property
    def cost_bits(self) -> float:
        """What `encode` takes, nearly."""
        bits = 0.0
        for k in self.counts.any(axis=1).nonzero()[0]:
            seen = self.counts[k][self.counts[k] > 0]
            own = float((seen * np.log2(seen.sum() / seen)).sum()) + 9 * len(seen)
            bits += 8 + min(own, _bits(self.counts[k], KNOWN[k]))
        return bits + fixed_bits(self.shape)

    @property
    def num_escaped(self) -> int:
        return int(self.counts[:, ESCAPE].sum())

    @property
    def num_used(self) -> int:
        """Rows up to the last that is coded; at least one."""
        used = self.found.rows.nonzero()[0]
        return int(used[-1]) + 1 if len(used) else 1

    def trimmed(self) -> Counted:
        """The same without the rows behind the last that is coded."""
        number = self.num_used
        found = replace(self.found, rows=self.found.rows[:number])
        return replace(self, shape=(number, *self.shape[1:]), found=found)


def counted(symbols: np.ndarray) -> Counted:
    """`symbols`: uint8, C-contiguous, of a `Shape`."""
    found = _levels(symbols)
    used, levels = found.rows > 0, found.of_cells()
    cells = (symbols if used.all() else symbols[used]).reshape(len(levels), symbols.shape[3])
    return Counted(symbols.shape, found, cells, levels, ans.histogram(cells, levels, NUM_LEVELS, NUM_SYMBOLS))


def encode(symbols: Counted) -> Coded:
    chosen, written = _tables(symbols.counts)
    words = ans.encode(symbols.cells, symbols.levels, chosen)
    return Coded(words, symbols.found.packed(), np.frombuffer(written, np.uint8))


def decode(coded: Coded, shape: Shape) -> np.ndarray:
    """
    Returns:
        uint8, of the shape.

    Raises:
        PayloadError: it is not what `encode` gave for so many symbols.
    """
    found = Levels.unpacked(coded.levels, shape)
    levels, used = found.of_cells(), found.rows > 0
    found_tables = tables.read(coded.tables, np.unique(levels), KNOWN)
    try:
        cells = ans.decode(coded.words, (len(levels), shape[3]), levels, found_tables)
    except ValueError as error:
        raise PayloadError(str(error)) from None
    cells = cells.reshape(-1, *shape[1:])
    if used.all():
        return cells
    symbols = np.zeros(shape, np.uint8)
    symbols[used] = cells
    return symbols


# Levels


@dataclass(frozen=True)
class Levels:
    """
    Attributes:
        base: what those of the rows count from.
        rows: (R,) uint8: 0 is not coded.
        bands: (F,) uint8.
        samples: (S,) uint8.
    """

    base: int
    rows: np.ndarray
    bands: np.ndarray
    samples: np.ndarray

    def of_cells(self) -> np.ndarray:
        """(cells,) uint8: the level of each cell of the rows that are coded."""
        rows, bands, samples = (one.astype(np.int16) for one in (self.rows[self.rows > 0], self.bands, self.samples))
        total = rows[:, None, None] + bands[:, None] + samples + (self.base - 2 * MIDDLE)
        return total.clip(0, NUM_LEVELS - 1).astype(np.uint8).reshape(-1)

    def packed(self) -> np.ndarray:
        return np.append(np.uint8(self.base), tables.nibbles(np.concatenate([self.rows, self.bands, self.samples])))

    @staticmethod
    def unpacked(packed: np.ndarray, shape: Shape) -> Levels:
        if len(packed) != levels_nbytes(shape) or packed[0] >= NUM_LEVELS:
            raise PayloadError("has levels that do not fit its shape")
        rows, bands, samples, rest = np.split(tables.numbers(packed[1:]), np.cumsum(shape[:3]))
        if rest.any():
            raise PayloadError("has levels beyond its last sample")
        return Levels(int(packed[0]), rows, bands, samples)


def _levels(symbols: np.ndarray) -> Levels:
    """Rows, bands and samples are taken to be independent of each other: a mean over each, as a share of the whole."""
    num_rows, num_bands, num_samples, num_places = symbols.shape
    of_rows, of_bands, of_samples = _sums(symbols)
    used = of_rows > 0
    if not used.any():
        middle = (np.full(number, MIDDLE, np.uint8) for number in (num_bands, num_samples))
        return Levels(0, np.zeros(num_rows, np.uint8), *middle)
    num_used = int(used.sum())
    of_rows = of_rows[used] / (num_bands * num_samples) / num_places
    of_bands = of_bands / (num_used * num_samples) / num_places
    of_samples = of_samples / (num_used * num_bands) / num_places
    levels = _level(of_rows) + ZERO_LEVEL
    base = int((levels.max() - 15).clip(0, NUM_LEVELS - 1))
    rows = np.zeros(len(used), np.uint8)
    rows[used] = (levels - base).clip(1, 15)
    others = ((_level(one / of_rows.mean()) + MIDDLE).clip(0, 15).astype(np.uint8) for one in (of_bands, of_samples))
    return Levels(base, rows, *others)


def _level(magnitudes: np.ndarray) -> np.ndarray:
    return np.rint(2 * np.log2(np.maximum(magnitudes, 1e-9))).astype(np.int64)


@compiled
def _sums(symbols):
    """The sums of the magnitudes of each row, each band and each sample."""
    num_rows, num_bands, num_samples, _ = symbols.shape
    of_rows, of_bands = np.zeros(num_rows, np.int64), np.zeros(num_bands, np.int64)
    of_samples = np.zeros(num_samples, np.int64)
    for r in range(num_rows):
        for f in range(num_bands):
            whole = 0
            for s in range(num_samples):
                total = 0
                for symbol in symbols[r, f, s]:
                    total += (np.int64(symbol) + 1) >> 1
                of_samples[s] += total
                whole += total
            of_rows[r] += whole
            of_bands[f] += whole
    return of_rows, of_bands, of_samples


# Tables


def _tables(counts: np.ndarray) -> tuple[np.ndarray, bytes]:
    """The tables for symbols that occur so often, and what is sent of them: level by level, what costs less."""
    own, chosen, written = ans.frequencies(counts), np.zeros(counts.shape, np.uint16), bytearray()
    for k in counts.any(axis=1).nonzero()[0]:
        sent = tables.written(own[k])
        is_known = _bits(counts[k], KNOWN[k]) <= _bits(counts[k], own[k]) + 8 * (len(sent) - 1)
        chosen[k] = KNOWN[k] if is_known else own[k]
        written += b"\0" if is_known else sent
    return chosen, bytes(written)


def _bits(counts: np.ndarray, table: np.ndarray) -> float:
    """What so many symbols take with a table; infinity where it has not got one of them."""
    seen = counts > 0
    if (table[seen] == 0).any():
        return np.inf
    return float((counts[seen] * (ans.BITS - np.log2(table[seen]))).sum())
