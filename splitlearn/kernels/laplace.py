"""Frequencies of whole steps of a Laplace distribution, by how large they are on average: integers, and the same on
every machine.

How it works: with a dead zone of .6 steps on either side, a value is at least one step with a probability of p = t^.6,
and each further step with one of t, where t = exp(-step / scale). The mean magnitude is p / (1 - t). For each level of
it, a power of √2, p and t are constants, in parts of 2^16; t is at least 1/8, as the values that are mostly 0 are of
several scales. The rest is products of integers.
"""

from __future__ import annotations

import numpy as np

from splitlearn.kernels import ans

ZERO_LEVEL = 18  # whose mean magnitude is 1
BEGIN_AND_GO_ON = (  # p and t of each level
    (112, 8192),
    (158, 8192),
    (224, 8192),
    (317, 8192),
    (448, 8192),
    (634, 8192),
    (896, 8192),
    (1267, 8192),
    (1792, 8192),
    (2534, 8192),
    (3584, 8192),
    (5069, 8192),
    (7168, 8192),
    (10137, 8192),
    (14336, 8192),
    (19973, 9045),
    (25827, 13882),
    (32179, 20028),
    (38514, 27022),
    (44345, 34179),
    (49358, 40857),
    (53439, 46642),
    (56632, 51378),
    (59056, 55096),
    (60859, 57929),
    (62181, 60040),
    (63139, 61590),
    (63829, 62715),
    (64322, 63526),
    (64675, 64107),
    (64925, 64522),
    (65103, 64817),
)
NUM_LEVELS = len(BEGIN_AND_GO_ON)
SCALE = 1 << 40


def tables(num_symbols: int) -> np.ndarray:
    """(levels, num_symbols + 1) uint16 that add up to 2^12: of 0, 1, -1, 2, -2, … steps, and 0 for what is beyond."""
    counts = np.zeros((NUM_LEVELS, num_symbols + 1), np.int64)
    for level, (begin, go_on) in enumerate(BEGIN_AND_GO_ON):
        at_least, counts[level, 0] = SCALE * begin >> 16, SCALE - (SCALE * begin >> 16)
        for symbol in range(1, num_symbols - 1, 2):
            beyond = at_least * go_on >> 16
            share = (at_least - beyond) // 2
            if share * 2 * ans.TOTAL < SCALE:  # less than half of the least frequency
                break
            counts[level, symbol : symbol + 2], at_least = share, beyond
    return ans.frequencies(counts)
