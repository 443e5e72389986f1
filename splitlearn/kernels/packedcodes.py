"""Packed codes of 1 to 8 bits through the entropy coder: the same codes in fewer bytes.

How it works: several narrow codes that are neighbours make one symbol, up to a byte of them, so that a symbol knows
what its codes have in common, and there are fewer to code. The symbols lie in rows: runs of the tensor, such as a
channel of a sample, or all of a channel. A row is of a class by how far its codes are from the most frequent one, each
class has a table (see classed.py), and neighbouring classes become one where that saves more of tables than it costs.
Of several ways to join and to lay out, the one that takes the least is taken; all are counted, only one is coded.

A frame is 20 bytes (kind, width of a code, codes a symbol, most frequent code; then, 32 bits each, the number of codes,
of rows, symbols of a row that follow one another, and words), the words, the rows' classes, and the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans, classed, tables
from splitlearn.kernels.bits import pack, packed_nbytes, unpack
from splitlearn.kernels.channels import channel_axis
from splitlearn.kernels.jit import compiled
from splitlearn.kernels.sections import MOST_A_BYTE

KIND = 1  # the first byte of a frame, which no zstd frame begins with
HEAD = struct.Struct("<BBBBIIII")
MOST_SINGLE = 1 << 20  # codes that are also tried one a symbol
FEWEST = 1 << 8  # codes that are worth a head and a table
TOTAL, WIDE = ans.TOTAL, tables.WIDE
CODED_CLASSES = classed.NUM_CLASSES - 1  # without that of rows of nothing else than the most frequent code


def compress(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor | None:
    """The frame of packed codes, uint8, on the CPU; None where it would not be smaller.

    Args:
        packed: (⌈n·bits/8⌉,) uint8, as bits.py packs n codes, n being the product of the shape.
        bits: width of a code.
        shape: of the tensor that they are of, in whose order they come. It only helps: any shape will do.
    """
    num_codes = prod(shape)
    if num_codes < FEWEST or num_codes >= 1 << 32:
        return None
    packed, most = packed.cpu(), 8 // bits
    mode = _most_frequent(_symbols(packed, bits, most, num_codes), bits, most)
    best, least = None, 8.0 * (packed.numel() - HEAD.size)
    for joined in {most, 1} if num_codes <= MOST_SINGLE else {most}:
        symbols = _symbols(packed, bits, joined, num_codes) ^ _repeated(mode, bits, joined)
        distances = _distances(bits, joined, mode)
        for num_rows, run in _layouts(shape, joined):
            rows = _rows(symbols, num_rows, run)
            classes, cost = _classes(rows, distances)
            if cost < least:
                best, least = (joined, num_rows, run, rows, classes), cost
    if best is None:
        return None
    joined, num_rows, run, rows, classes = best
    found = classed.encode(rows, classes)
    head = HEAD.pack(KIND, bits, joined, mode, num_codes, num_rows, run, found.words.size)
    frame = b"".join([head, found.words.tobytes(), found.classes.tobytes(), found.tables.tobytes()])
    if len(frame) >= packed.numel() or num_codes > MOST_A_BYTE * len(frame):
        return None
    return torch.frombuffer(bytearray(frame), dtype=torch.uint8)


def decompress(frame: Tensor, limit: int) -> Tensor:
    """The packed codes of a frame, uint8.

    Raises:
        PayloadError: this is no such frame, or one of more than `limit` bytes.
    """
    if frame.numel() < HEAD.size:
        raise PayloadError("has coded codes that end within their head")
    buffer = frame.numpy()
    kind, bits, joined, mode, num_codes, num_rows, run, num_words = HEAD.unpack_from(buffer)
    if kind != KIND or not 1 <= bits <= 8 or not 1 <= joined <= 8 // bits or mode >> bits or not num_codes:
        raise PayloadError("has coded codes of an unknown kind")
    if packed_nbytes(num_codes, bits) > limit or num_codes > MOST_A_BYTE * frame.numel():
        raise PayloadError(f"has {num_codes} coded codes, which is more than its shape or its bytes allow")
    num_symbols = -(-num_codes // joined)
    words_end = HEAD.size + 2 * num_words
    classes_end = words_end + classed.classes_nbytes(num_rows)
    if not num_rows or not run or num_symbols % (num_rows * run) or classes_end > frame.numel():
        raise PayloadError("has coded codes that do not fit their rows")
    words = buffer[HEAD.size : words_end].copy().view(np.uint16)
    parts = classed.Classed(words, buffer[words_end:classes_end], buffer[classes_end:])
    rows = classed.decode(parts, (num_rows, num_symbols // num_rows))
    symbols = rows.reshape(num_rows, -1, run).swapaxes(0, 1).reshape(-1) ^ _repeated(mode, bits, joined)
    if bits * joined == 8:
        return torch.from_numpy(symbols)
    return pack(torch.from_numpy(_parted(symbols, bits, joined)[:num_codes]), bits)


def _layouts(shape: tuple[int, ...], joined: int) -> Iterator[tuple[int, int]]:
    """Number of rows, and how many of a row's symbols follow one another, for each way to lay out."""
    yield 1, -(-prod(shape) // joined)
    runs = {prod(shape[i:]) for i in range(1, len(shape))}
    for run in sorted(runs - {1, prod(shape)}, reverse=True):
        if run % joined == 0:
            yield prod(shape) // run, run // joined
    if len(shape) > 1:
        axis = channel_axis(shape)
        run = prod(shape[axis + 1 :])
        if run % joined == 0 and shape[axis] > 1 and prod(shape[:axis]) > 1:
            yield shape[axis], run // joined


def _rows(symbols: np.ndarray, num_rows: int, run: int) -> np.ndarray:
    """(rows, symbols of each), contiguous."""
    return np.ascontiguousarray(symbols.reshape(-1, num_rows, run).swapaxes(0, 1)).reshape(num_rows, -1)


def _symbols(packed: Tensor, bits: int, joined: int, num_codes: int) -> np.ndarray:
    """Symbols of `joined` codes each; zeros make the last one whole."""
    if bits * joined == 8:
        return packed.numpy()
    codes = unpack(packed, bits, num_codes).numpy()
    if joined == 1:
        return codes
    codes = np.pad(codes, (0, -len(codes) % joined)).reshape(-1, joined)
    symbols = codes[:, 0].copy()
    for i in range(1, joined):
        symbols |= codes[:, i] << np.uint8(i * bits)
    return symbols


def _parted(symbols: np.ndarray, bits: int, joined: int) -> np.ndarray:
    """Their codes."""
    shifts, mask = (np.arange(joined) * bits).astype(np.uint8), np.uint8((1 << bits) - 1)
    return (symbols[:, None] >> shifts & mask).reshape(-1)


def _repeated(code: int, bits: int, joined: int) -> np.uint8:
    return np.uint8(sum(code << (i * bits) for i in range(joined)))


def _most_frequent(symbols: np.ndarray, bits: int, joined: int) -> int:
    """The code that occurs most often."""
    one = np.zeros(1, np.uint8)
    counts = ans.histogram(symbols.reshape(1, -1), one, 1, classed.NUM_SYMBOLS)[0, : 1 << bits * joined]
    codes = _parted(np.arange(len(counts), dtype=np.uint8), bits, joined)
    return int(np.bincount(codes, counts.repeat(joined), 1 << bits).argmax())


def _distances(bits: int, joined: int, mode: int) -> np.ndarray:
    """(256,) float64: for each symbol, how far its codes are from the most frequent one, at most 1."""
    codes = _parted(np.arange(1 << bits * joined, dtype=np.uint8), bits, joined).reshape(-1, joined) ^ np.uint8(mode)
    distances = np.abs(codes.astype(np.int64) - mode).mean(axis=1) / ((1 << bits) - 1)
    return np.pad(distances, (0, classed.NUM_SYMBOLS - len(distances)))


def _classes(rows: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Classes of the rows, (R,) uint8, of which 0 is that of rows of zeros, and what coding them takes, in bits."""
    shares = _means(rows, distances)
    some = shares > 0
    classes = np.zeros(len(rows), np.uint8)
    if some.any():
        levels = np.log(shares[some] / np.maximum(1 - shares[some], 1e-9))
        low, span = levels.min(), np.ptp(levels) or 1.0
        classes[some] = 1 + np.minimum((levels - low) / span * CODED_CLASSES, CODED_CLASSES - 1).astype(np.uint8)
    counts = ans.histogram(rows, classes, classed.NUM_CLASSES, classed.NUM_SYMBOLS)
    numbers, cost = _merge(counts)
    return numbers[classes], cost + 8 * classed.classes_nbytes(len(rows)) + 16 * ans.HEAD


@compiled
def _cost(counts):
    """Bits of the symbols of a class, and of its table."""
    total, last, wide, bits = counts.sum(), 0, 0, 0.0
    for s in range(counts.size):
        if counts[s]:
            bits -= counts[s] * np.log2(counts[s] / total)
            last = s
            wide += counts[s] * TOTAL >= WIDE * total
    return bits + 8 * (last + 2 + wide)


@compiled
def _merge(counts):
    """Which class each class of `counts` becomes, numbered anew from 1, and the cost of all; neighbours become one as
    long as that costs less."""
    size = counts.shape[0]
    numbers, firsts, costs = np.zeros(size, np.uint8), np.zeros(size, np.int64), np.zeros(size)
    found, merged = 0, counts.copy()
    for k in range(1, size):
        if counts[k].sum():
            merged[found], firsts[found], costs[found] = counts[k], k, _cost(counts[k])
            found += 1
    together = np.zeros(size)
    for i in range(found - 1):
        together[i] = _cost(merged[i] + merged[i + 1])
    while found > 1:
        best, most = 0, -1.0
        for i in range(found - 1):
            saved = costs[i] + costs[i + 1] - together[i]
            if saved > most:
                best, most = i, saved
        if most <= 0:
            break
        merged[best] += merged[best + 1]
        costs[best] = together[best]
        for i in range(best + 1, found - 1):
            merged[i], firsts[i], costs[i], together[i] = merged[i + 1], firsts[i + 1], costs[i + 1], together[i + 1]
        found -= 1
        for i in (best - 1, best):
            if 0 <= i < found - 1:
                together[i] = _cost(merged[i] + merged[i + 1])
    for i in range(found):
        end = firsts[i + 1] if i + 1 < found else size
        for k in range(firsts[i], end):
            numbers[k] = i + 1
    return numbers, costs[:found].sum()


@compiled
def _means(rows, distances):
    """The mean distance in each row."""
    means = np.empty(rows.shape[0])
    for r in range(rows.shape[0]):
        total = 0.0
        for symbol in rows[r]:
            total += distances[symbol]
        means[r] = total / rows.shape[1]
    return means
