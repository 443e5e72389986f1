"""The basis that both ends of a channel hold, as plain values: what a checkpoint keeps, and a client begins with.

A sender's state has all that the next basis is fitted from; a receiver's is the part of it that arrived, so that it may
be given the sender's. A state is never changed in place: a codec replaces it, and who keeps one can go back to it.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels import bases

State = dict[str, Any]
"""
number (int): of the basis, from 1.
sent (int): vectors of it that the receiver has.
integers (int8, (K, C)): the vectors (see bases.to_integers); all C of a sender's, those that arrived of a receiver's.
And of a sender alone:
moments (float32, (C, C)): of its maps of late.
step (int): maps so far.
debt (float): bits of vectors that the payloads to come make up for.
"""

SENDER = {"moments": torch.float32, "step": int, "debt": float}
KEEP = 0.9, 0.99  # of the moments, from one map to the next; the more, the fewer columns a map has
COLUMNS = 4096  # that moments are taken of, or 16 for each channel


def learned(state: State | None, matrix: Tensor, refresh: int, bits: int) -> State:
    """The sender's state after another map, (C, M) float32: with a new basis where it is time for one."""
    num_channels, num_columns = matrix.shape
    found = bases.second_moments(matrix, max(COLUMNS, 16 * num_channels))
    if state is None or len(state["moments"]) != num_channels:
        step, moments, before = 1, found, None
        state = {"number": 0, "debt": 0.0}
    else:
        step, before = state["step"] + 1, state["integers"]
        keep = min(max(KEEP[0], 1 - num_columns / (16 * num_channels)), KEEP[1], (step - 1) / step)
        moments = keep * state["moments"] + (1 - keep) * found
    state = {**state, "step": step, "moments": moments}
    if step % refresh == 0 or step in (1, 4, 16):
        vectors = bases.eigenvectors(moments, None if before is None else bases.orthonormal(before))
        state |= {"number": state["number"] + 1, "sent": 0, "integers": bases.to_integers(vectors, bits)}
    return state


def checksum(integers: Tensor) -> int:
    return zlib.crc32(integers.contiguous().numpy())


def received(state: State | None, number: int, expected: int, first: int, brought: Tensor) -> Tensor:
    """The vectors that a payload goes by: the first ones, that this end has, and those that it brings.

    Raises:
        PayloadError: this end has not got them, or others.
    """
    integers = brought
    if first or (state and not len(brought)):
        has = state or {"number": 0, "sent": 0, "integers": brought}
        if has["integers"].shape[1] != brought.shape[1]:
            raise PayloadError(f"goes by a basis of {brought.shape[1]} channels, where this end has another")
        if has["number"] != number or has["sent"] < first or (not len(brought) and has["sent"] != first):
            raise PayloadError(
                f"goes by {first} vectors of basis {number}, where this end has {has['sent']} of basis {has['number']}"
            )
        integers = torch.cat([has["integers"][:first], brought])
    if checksum(integers) != expected:
        raise PayloadError(f"goes by another basis {number} than this end has")
    return integers


def kept(state: State | None, number: int, integers: Tensor) -> State:
    """The receiver's state with a basis that came; a sender's, which decodes what it sent, has it already."""
    if state and state["number"] == number and state["sent"] >= len(integers):
        return state
    return {"number": number, "sent": len(integers), "integers": integers}


def flaw(state: Any, num_channels: int) -> str | None:
    """What is wrong with what somebody sent as a state; None where nothing is."""
    if not isinstance(state, dict) or not {"number", "sent", "integers"} <= state.keys():
        return "it is no basis"
    rest = {name: value for name, value in state.items() if name not in ("number", "sent", "integers")}
    if rest and rest.keys() != SENDER.keys():
        return f"beside its basis it has {', '.join(map(str, rest))}"
    numbers = [state["number"], state["sent"], *(state[name] for name in ("step",) if rest)]
    if not all(type(value) is int and 0 <= value < 1 << 32 for value in numbers):
        return "its basis has no number"
    integers = state["integers"]
    if not isinstance(integers, Tensor) or integers.dtype != torch.int8 or integers.dim() != 2:
        return "its basis is no int8 matrix"
    rows = num_channels if rest else state["sent"]
    if tuple(integers.shape) != (rows, num_channels) or state["sent"] > rows or integers.device.type != "cpu":
        return f"its basis is of shape {tuple(integers.shape)}, where there are {num_channels} channels"
    if rest:
        moments = state["moments"]
        if not isinstance(moments, Tensor) or (moments.dtype, tuple(moments.shape)) != (
            torch.float32,
            (num_channels, num_channels),
        ):
            return "its moments are no float32 matrix of the channels"
        if not moments.isfinite().all() or type(state["debt"]) is not float or not 0 <= state["debt"] < 1e15:
            return "its moments are not finite"
    return None
