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
INVERSE_BITS = 32 + BITS


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
    return _encode(symbols, classes, tables, _starts(tables), _inverses(tables))


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
    if not _decode(words, symbols, classes, _slots(tables)):
        raise ValueError("its coded symbols are not whole")
    return symbols


def _starts(tables: np.ndarray) -> np.ndarray:
    starts = np.zeros(tables.shape, np.uint64)
    np.cumsum(tables[:, :-1], axis=1, out=starts[:, 1:], dtype=np.uint64)
    return starts


def _inverses(tables: np.ndarray) -> np.ndarray:
    """2^44 / f, rounded up: a state below 2^20 f times this, over 2^44, is the state // f, and does not reach 2^64."""
    return (-(-(1 << INVERSE_BITS) // np.maximum(tables, 1).astype(np.int64))).astype(np.uint64)


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
    columns = symbols.shape[1]
    counts = np.zeros((num_tables, 4, num_symbols), np.int64)
    for r in range(symbols.shape[0]):
        own = symbols[r]
        # Four counters take turns: most symbols are the same, and one would wait for its own last sum.
        first, second, third, fourth = counts[classes[r]]
        for m in range(0, columns - 3, 4):
            first[own[m]] += 1
            second[own[m + 1]] += 1
            third[own[m + 2]] += 1
            fourth[own[m + 3]] += 1
        for m in range(columns - columns % 4, columns):
            first[own[m]] += 1
    return counts.sum(axis=1)


@compiled
def _encode(symbols, classes, tables, starts, inverses):
    rows, columns = symbols.shape
    words = np.empty(rows * columns + HEAD, np.uint16)  # a symbol overflows by one word at most
    at = words.size
    first = second = third = fourth = np.uint64(LOW)  # of the last symbol, the one before, …
    for r in range(rows - 1, -1, -1):
        own_tables, own_starts, own_inverses = tables[classes[r]], starts[classes[r]], inverses[classes[r]]
        own_symbols = symbols[r]
        for m in range(columns - 1, -1, -1):
            symbol, state = own_symbols[m], fourth
            frequency = np.uint64(own_tables[symbol])
            if state >= frequency << np.uint64(32 - BITS):
                at -= 1
                words[at] = np.uint16(state)
                state >>= np.uint64(16)
            whole = state * own_inverses[symbol] >> np.uint64(INVERSE_BITS)  # state // frequency
            fourth, third, second = third, second, first
            first = state + whole * (np.uint64(TOTAL) - frequency) + own_starts[symbol]
    for state in (fourth, third, second, first):
        at -= 2
        words[at] = np.uint16(state & np.uint64(0xFFFF))
        words[at + 1] = np.uint16(state >> np.uint64(16))
    return words[at:].copy()


@compiled
def _slots(tables):
    """Of each of a table's 2^12 slots its symbol, 2^8 times its frequency less 1, and 2^20 times its place in it."""
    slots = np.zeros((tables.shape[0], TOTAL), np.uint32)
    for k in range(tables.shape[0]):
        at = 0
        for s in range(tables.shape[1]):
            for place in range(tables[k, s]):
                if at < TOTAL:
                    slots[k, at] = s | (tables[k, s] - 1) << 8 | place << 20
                    at += 1
    return slots


@compiled
def _decode(words, symbols, classes, slots):
    if words.size < HEAD:
        return False
    states = np.empty(LANES, np.uint64)
    for lane in range(LANES):
        states[lane] = np.uint64(words[2 * lane]) | np.uint64(words[2 * lane + 1]) << np.uint64(16)
        if states[lane] < LOW:
            return False
    first, second, third, fourth = states
    at, low = HEAD, np.uint64(LOW)
    for r in range(symbols.shape[0]):
        own_slots, own_symbols = slots[classes[r]], symbols[r]
        for m in range(own_symbols.size):
            slot = np.uint64(own_slots[first & np.uint64(TOTAL - 1)])
            own_symbols[m] = np.uint8(slot & np.uint64(0xFF))
            frequency = (slot >> np.uint64(8) & np.uint64(TOTAL - 1)) + np.uint64(1)
            state = frequency * (first >> np.uint64(BITS)) + (slot >> np.uint64(20))
            if state < low:
                if at == words.size:
                    return False
                state = state << np.uint64(16) | np.uint64(words[at])
                at += 1
            first, second, third, fourth = second, third, fourth, state
    return at == words.size and first == low and second == low and third == low and fourth == low
