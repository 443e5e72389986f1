"""Values as whole steps: a uniform quantiser with a dead zone, in one pass.

How it works: |v|/step + .4, rounded down, so that what is below .6 steps is 0, as most is at low rates. What decodes to
k steps decodes to the mean of the values there: one shift for ±1 and one for all beyond. The sums that give these means
also give the error, so that a step is tried without decoding. A symbol is 0, 1, -1, 2, -2, … steps as 0, 1, 2, 3, 4, ….
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitlearn.kernels.blocks import empty
from splitlearn.kernels.coded import ESCAPE, LARGEST, NUM_SYMBOLS
from splitlearn.kernels.jit import compiled

OFFSET = np.float32(0.4)
BLOCK = 1 << 12
SHIFTS = 256  # of a step, that a shift is a whole number of


@dataclass(frozen=True)
class Shifts:
    """
    Attributes:
        near, far: how far beyond ±1, and beyond what is more, the mean value lies, in 1/256 of a step, -128 to 127.
        squared_error: of all values but those beyond ±127 steps, which a symbol does not tell.
    """

    near: int
    far: int
    squared_error: float


def quantize(values: Tensor, step: float) -> np.ndarray:
    """Symbols, uint8 on the CPU, of values, float32, of any shape, contiguous, on any device."""
    inverse = np.float32(1 / step)
    if values.device.type != "cpu":
        steps = values.abs() * float(inverse)
        whole = (steps + float(OFFSET)).floor_()
        symbols = (2 * whole.clamp(max=LARGEST) - ((values > 0) & (whole > 0)).to(whole.dtype)).to(torch.uint8)
        return symbols.masked_fill_(whole > LARGEST, ESCAPE).cpu().numpy()
    symbols = np.empty(values.shape, np.uint8)
    _quantize(values.numpy().reshape(-1), inverse, symbols.reshape(-1))
    return symbols


def shifts(values: Tensor, step: float) -> Shifts:
    """Where the values lie between whole steps, and what rounding them costs. `values` as for `quantize`."""
    inverse = np.float32(1 / step)
    if values.device.type == "cpu":
        moments = _moments(values.numpy().reshape(-1), inverse)
    else:
        steps = values.abs() * float(inverse)
        whole, moments = (steps + float(OFFSET)).floor_(), []
        beyond = (steps - whole).double()
        for chosen in (whole == 0, whole == 1, (whole > 1) & (whole <= LARGEST)):
            found = beyond[chosen]
            moments += [float(chosen.sum()), float(found.sum()), float(found.square().sum())]
    found, error = [], moments[2]
    for number, first, second in (moments[3:6], moments[6:9]):
        found.append(min(max(round(SHIFTS * first / number), -128), 127) if number else 0)
        error += second - 2 * found[-1] / SHIFTS * first + number * (found[-1] / SHIFTS) ** 2
    return Shifts(*found, max(0.0, error) / float(inverse) ** 2)


def levels(step: float, near: int, far: int) -> Tensor:
    """(256,) float64: the value that each symbol stands for; 0 for ESCAPE."""
    symbol = torch.arange(NUM_SYMBOLS, dtype=torch.float64)
    magnitude = ((symbol + 1) / 2).floor()
    shift = torch.where(magnitude == 1, near / SHIFTS, far / SHIFTS)
    size = (magnitude + shift) / float(np.float32(1 / step)) * (magnitude > 0)
    found = torch.where(symbol % 2 == 1, size, -size)
    found[ESCAPE] = 0
    return found


def restore(symbols: np.ndarray, values: Tensor) -> Tensor:
    """What symbols, uint8, of any shape, stand for by `values`, (256,): of their dtype, on the CPU."""
    if values.dtype not in (torch.float32, torch.float64):  # numpy and numba know no bfloat16
        return restore(symbols, values.float()).to(values.dtype)
    out = empty(symbols.size, values.dtype, torch.device("cpu")).view(symbols.shape)
    _restore(symbols.reshape(-1), values.numpy(), out.numpy().reshape(-1))
    return out


def num_beyond(symbols: np.ndarray) -> np.ndarray:
    """(R, F) int64: how many of the symbols of each row and band, uint8 (R, F, S, m), are not 0 steps."""
    return _num_beyond(symbols.reshape(symbols.shape[0] * symbols.shape[1], -1)).reshape(symbols.shape[:2])


def gains(values: Tensor, symbols: np.ndarray, table: Tensor) -> Tensor:
    """E[v v̂] / E[v²], from 0 to 1, of each row and band of values (R, F, S, m), v̂ being what their symbols stand for.

    Args:
        values: float32, contiguous, on any device.
        symbols: uint8, of the same shape.
        table: (256,) float32.

    Returns:
        (R, F, 1, 1) float32 on the CPU.
    """
    if values.device.type != "cpu":
        found = restore(symbols, table).to(values.device)
        products, squares = ((one * values).sum((2, 3)) for one in (found, values))
    else:
        num_rows, num_bands = symbols.shape[:2]
        rows = values.numpy().reshape(num_rows * num_bands, -1), symbols.reshape(num_rows * num_bands, -1)
        products, squares = torch.from_numpy(_products(*rows, table.numpy())).view(2, num_rows, num_bands)
    return (products / squares.clamp_min(1e-30)).clamp_(0, 1).float().cpu()[:, :, None, None]


@compiled
def _num_beyond(symbols):
    found = np.zeros(symbols.shape[0], np.int64)
    for r in range(symbols.shape[0]):
        number = 0
        for symbol in symbols[r]:
            number += symbol != 0
        found[r] = number
    return found


@compiled(fastmath={"reassoc", "nsz"})
def _products(values, symbols, table):
    """Σ v v̂ and Σ v² of each row."""
    found = np.zeros((2, values.shape[0]))
    for r in range(values.shape[0]):
        for start in range(0, values.shape[1], BLOCK):
            block, of_block = values[r, start : start + BLOCK], symbols[r, start : start + BLOCK]
            product = square = np.float32(0)
            for i in range(block.size):
                product += block[i] * table[of_block[i]]
                square += block[i] * block[i]
            found[0, r] += product
            found[1, r] += square
    return found


@compiled
def _restore(symbols, values, out):
    for i in range(symbols.size):
        out[i] = values[symbols[i]]


@compiled
def _quantize(values, inverse, symbols):
    largest, escape = np.float32(LARGEST), np.int32(ESCAPE)
    for i in range(values.size):
        value = values[i]
        whole = np.floor(abs(value) * inverse + OFFSET)
        beyond = whole > largest
        symbol = 2 * np.int32(min(whole, largest)) - np.int32((value > 0) & (whole > 0))
        symbols[i] = np.uint8(escape if beyond else symbol)


@compiled(fastmath={"reassoc", "nsz"})
def _moments(values, inverse):
    """n, Σs and Σs² of what is 0, ±1 and more steps, s being the part beyond the whole ones."""
    n1 = n2 = 0
    b1 = b2 = e0 = e1 = e2 = 0.0
    zero, unit, largest = np.float32(0), np.float32(1), np.float32(LARGEST)
    for start in range(0, values.size, BLOCK):  # in single precision within a block, where the sums are short
        s1 = s2 = c1 = c2 = q0 = q1 = q2 = zero
        block = values[start : start + BLOCK]
        for i in range(block.size):
            steps = abs(block[i]) * inverse
            whole = np.floor(steps + OFFSET)
            beyond = steps - whole
            one = unit if whole == unit else zero
            more = unit if (whole > unit) & (whole <= largest) else zero
            none = unit if whole == zero else zero
            square = beyond * beyond
            c1 += one
            c2 += more
            s1 += one * beyond
            s2 += more * beyond
            q0 += none * square
            q1 += one * square
            q2 += more * square
        n1, n2, b1, b2 = n1 + int(c1), n2 + int(c2), b1 + s1, b2 + s2
        e0, e1, e2 = e0 + q0, e1 + q1, e2 + q2
    return float(values.size - n1 - n2), 0.0, e0, float(n1), b1, e1, float(n2), b2, e2
