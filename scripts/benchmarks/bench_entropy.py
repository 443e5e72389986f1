"""Entropy coders side by side, on whole steps of maps at several rates: bytes against the ideal, and time.

    python scripts/benchmarks/bench_entropy.py
    pip install constriction && python scripts/benchmarks/bench_entropy.py     with that one too

"ideal" is the length that an adaptive model of each level would take: the entropy of its own symbols and half a
logarithm of their number for each that occurs. All else is counted in real bytes, tables included, and decoded to the
same symbols. One thread; the median of several rounds, in which the coders take turns.
"""

import argparse
import os
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import zstandard
from common import markdown, start

from splitlearn.kernels import coded, steps

CHANNELS, PLACES = 64, 32 * 32 * 64  # of a map of 64 images
RATES = 0.3, 0.65, 1.5, 3.0  # bits an element, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--places", type=int, default=PLACES, help="values of each of 64 channels")
    arguments = parser.parse_args()
    coders = {"rANS, numba": rans, "zstd -1": lambda s, c: zstd(s, 1), "zstd -9": lambda s, c: zstd(s, 9)}
    try:
        import constriction  # noqa: F401

        coders["constriction, ANS"] = constriction_ans
    except ImportError:
        pass
    rows = []
    for rate in RATES:
        symbols = symbols_at(rate, arguments.places)
        counted = coded.counted(symbols)
        ideal = ideal_bits(counted.counts)
        found = {name: [] for name in coders}
        for _ in range(arguments.rounds + 1):  # the first one compiles
            for name, coder in coders.items():
                found[name].append(coder(symbols, counted.levels))
        for name, rounds in found.items():
            nbytes = rounds[0][0]
            encode, decode = (1e9 / symbols.size * median(one[at] for one in rounds[1:]) for at in (1, 2))
            row = [f"{ideal / symbols.size:.3f}", name, f"{8 * nbytes / symbols.size:.3f}", f"{8 * nbytes / ideal:.3f}"]
            rows.append([*row, f"{encode:.1f}", f"{decode:.1f}", f"{encode + decode:.1f}"])
    header = ["ideal bits", "coder", "bits", "bits / ideal", "encode, ms a million", "decode", "both"]
    print(markdown(header, rows))


def symbols_at(rate: float, places: int) -> np.ndarray:
    """Whole steps of a map after a ReLU, whose channels differ, with a step that takes about so many bits."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 3, CHANNELS).unsqueeze(1)
    values = torch.randn(CHANNELS, places, generator=generator).relu().mul_(spread).view(CHANNELS, 1, 1, places)
    low, high = 0.01, 100.0
    for _ in range(20):
        step = (low * high) ** 0.5
        bits = coded.counted(steps.quantize(values, step)).cost_bits / values.numel()
        low, high = (step, high) if bits > rate else (low, step)
    symbols = steps.quantize(values, high)
    return symbols[symbols.any(axis=(1, 2, 3))]


def ideal_bits(counts: np.ndarray) -> float:
    total = 0.0
    for row in counts[counts.any(axis=1)]:
        seen = row[row > 0]
        total += float((seen * np.log2(seen.sum() / seen)).sum()) + 0.5 * len(seen) * np.log2(seen.sum())
    return total


def rans(symbols: np.ndarray, levels: np.ndarray) -> tuple[int, float, float]:
    """Bytes, and seconds to encode and to decode."""
    start = time.perf_counter()
    found = coded.encode(coded.counted(symbols))
    between = time.perf_counter()
    assert np.array_equal(coded.decode(found, symbols.shape), symbols)
    end = time.perf_counter()
    return found.nbytes, between - start, end - between


def zstd(symbols: np.ndarray, level: int) -> tuple[int, float, float]:
    start = time.perf_counter()
    frame = zstandard.ZstdCompressor(level=level).compress(symbols)
    between = time.perf_counter()
    assert zstandard.ZstdDecompressor().decompress(frame) == symbols.tobytes()
    return len(frame), between - start, time.perf_counter() - between


def constriction_ans(symbols: np.ndarray, levels: np.ndarray) -> tuple[int, float, float]:
    import constriction

    symbols = symbols.reshape(len(levels), -1)

    def models():
        for k in sorted(set(levels.tolist())):
            counts = np.bincount(symbols[levels == k].reshape(-1), minlength=256).astype(np.float64)
            last = int(counts.nonzero()[0][-1]) + 1
            shares = np.maximum(counts[: max(last, 2)], 1e-9)
            yield k, constriction.stream.model.Categorical(shares / shares.sum(), perfect=False)

    start = time.perf_counter()
    coder, tables = constriction.stream.stack.AnsCoder(), dict(models())
    for k, model in reversed(tables.items()):
        coder.encode_reverse(symbols[levels == k].reshape(-1).astype(np.int32), model)
    words = coder.get_compressed()
    between = time.perf_counter()
    coder, whole = constriction.stream.stack.AnsCoder(words), np.zeros_like(symbols)
    for k, model in tables.items():
        rows = levels == k
        whole[rows] = coder.decode(model, int(rows.sum()) * symbols.shape[1]).reshape(-1, symbols.shape[1])
    assert np.array_equal(whole, symbols)
    tables_nbytes = sum(2 * np.count_nonzero(np.bincount(symbols[levels == k].reshape(-1))) for k in tables)
    return words.nbytes + tables_nbytes, between - start, time.perf_counter() - between


if __name__ == "__main__":
    start(main)
