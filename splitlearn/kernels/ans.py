"""An entropy coder for small symbols: interleaved rANS, with a table of frequencies for each class of rows.

How it works: a state is an integer of 32 bits; a symbol of frequency f out of 2^12 takes log2(2^12/f) bits of it, and
what overflows goes out as 16-bit words. Four states take turns, so that the processor works on four symbols at a time.
The encoder goes backwards and the decoder forwards. All of it is integer arithmetic: the bytes are the same on every
machine.

A payload is whole if the decoder ends with every word used and every state where the encoder began; anything else is
refused, and no byte is read or written out of place, whatever the words are.

Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; F. Giesen, "Interleaved entropy coders",
arXiv:1402.3392.
"""

from __future__ import annotations

import numpy as np

from splitlearn.kernels.jit import compiled

BITS = 12
TOTAL = 1 << BITS  # of the frequencies of a table
LANES = 4
LOW = 1 << 16  # a state is at least this, and below 2^32
HEAD = 2 * LANES  # words of the states at the end of encoding


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Tables of frequencies that add up to 2^12, and are at least 1 for every symbol that occurs.

    Args:
        counts: (K, S) int64, how often each symbol occurs in each class; S at most 2^12.

    Returns:
        (K, S) uint16; all 0 for a class in which nothing occurs.
    """
    return _frequencies(np.ascontiguousarray(counts, np.int64))


def histogram(symbols: np.ndarray, classes: np.ndarray, num_tables: int, num_symbols: int) -> np.ndarray:
    """(K, S) int64: how often each symbol occurs in each class. `symbols` and `classes` as for `encode`."""
    return _histogram(symbols, classes, num_tables, num_symbols)


def encode(symbols: np.ndarray, classes: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """
    Args:
        symbols: (R, M) uint8, C-contiguous; each has a frequency in the table of its row's class.
        classes: (R,) uint8, the class of each row.
        tables: (K, S) uint16, as `frequencies` gives them.

    Returns:
        (n,) uint16 words.
    """
    return _encode(symbols, classes, tables, _starts(tables))


def decode(words: np.ndarray, shape: tuple[int, int], classes: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """
    Args:
        words: what `encode` gave, or any.
        shape: (R, M) of the symbols.
        classes, tables: as for `encode`; each class that a row has must add up to 2^12.

    Returns:
        (R, M) uint8.

    Raises:
        ValueError: the words are not those of so many symbols with these tables.
    """
    symbols = np.empty(shape, np.uint8)
    if not _decode(words, symbols, classes, tables, _starts(tables), _slots(tables)):
        raise ValueError("its coded symbols are not whole")
    return symbols


def _starts(tables: np.ndarray) -> np.ndarray:
    starts = np.zeros(tables.shape, np.uint32)
    np.cumsum(tables[:, :-1], axis=1, out=starts[:, 1:], dtype=np.uint32)
    return starts


@compiled
def _frequencies(counts):
    num_tables, num_symbols = counts.shape
    tables = np.zeros((num_tables, num_symbols), np.uint16)
    for k in range(num_tables):
        total = counts[k].sum()
        if total == 0:
            continue
        given = 0
        for s in range(num_symbols):
            if counts[k, s]:
                tables[k, s] = max(1, counts[k, s] * TOTAL // total)
                given += tables[k, s]
        while given != TOTAL:  # to and from the most frequent, whom it costs least
            largest = np.argmax(tables[k])
            if given < TOTAL:
                tables[k, largest] += TOTAL - given
                given = TOTAL
            else:
                less = min(given - TOTAL, max(1, tables[k, largest] // 8))
                tables[k, largest] -= less
                given -= less
    return tables


@compiled
def _histogram(symbols, classes, num_tables, num_symbols):
    counts = np.zeros((num_tables, num_symbols), np.int64)
    for r in range(symbols.shape[0]):
        own = counts[classes[r]]
        for m in range(symbols.shape[1]):
            own[symbols[r, m]] += 1
    return counts


@compiled
def _encode(symbols, classes, tables, starts):
    rows, columns = symbols.shape
    words = np.empty(rows * columns + HEAD, np.uint16)  # a symbol overflows by one word at most
    at = words.size
    states = np.full(LANES, LOW, np.uint64)
    lane = (rows * columns) % LANES
    for r in range(rows - 1, -1, -1):
        own_tables, own_starts = tables[classes[r]], starts[classes[r]]
        own_symbols = symbols[r]
        for m in range(columns - 1, -1, -1):
            lane = (lane - 1) % LANES
            symbol = own_symbols[m]
            frequency, state = np.uint64(own_tables[symbol]), states[lane]
            if state >= frequency << np.uint64(32 - BITS):
                at -= 1
                words[at] = np.uint16(state & np.uint64(0xFFFF))
                state >>= np.uint64(16)
            whole = np.uint64(np.uint32(state) // np.uint32(frequency))
            states[lane] = (whole << np.uint64(BITS)) + (state - whole * frequency) + own_starts[symbol]
    for lane in range(LANES - 1, -1, -1):
        at -= 2
        words[at] = np.uint16(states[lane] & np.uint64(0xFFFF))
        words[at + 1] = np.uint16(states[lane] >> np.uint64(16))
    return words[at:].copy()


@compiled
def _slots(tables):
    """Which symbol each of a table's 2^12 slots is of."""
    slots = np.zeros((tables.shape[0], TOTAL), np.uint8)
    for k in range(tables.shape[0]):
        at = 0
        for s in range(tables.shape[1]):
            for _ in range(tables[k, s]):
                if at < TOTAL:
                    slots[k, at] = s
                    at += 1
    return slots


@compiled
def _decode(words, symbols, classes, tables, starts, slots):
    if words.size < HEAD:
        return False
    states = np.empty(LANES, np.uint64)
    for lane in range(LANES):
        states[lane] = np.uint64(words[2 * lane]) | np.uint64(words[2 * lane + 1]) << np.uint64(16)
        if states[lane] < LOW:
            return False
    at, lane = HEAD, 0
    for r in range(symbols.shape[0]):
        own_tables, own_starts, own_slots = tables[classes[r]], starts[classes[r]], slots[classes[r]]
        own_symbols = symbols[r]
        for m in range(symbols.shape[1]):
            state = states[lane]
            slot = state & np.uint64(TOTAL - 1)
            symbol = own_slots[slot]
            own_symbols[m] = symbol
            state = np.uint64(own_tables[symbol]) * (state >> np.uint64(BITS)) + slot - own_starts[symbol]
            if state < LOW:
                if at == words.size:
                    return False
                state = state << np.uint64(16) | np.uint64(words[at])
                at += 1
            states[lane] = state
            lane = (lane + 1) % LANES
    whole = at == words.size
    for lane in range(LANES):
        whole &= states[lane] == LOW
    return whole
