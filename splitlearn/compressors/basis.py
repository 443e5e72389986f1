"""The basis that both ends of a channel hold: its sender fits it, and payloads bring the vectors that are new.

What an end knows is a state of plain values: what a checkpoint keeps, and a client begins with. A sender's has all that
the next basis is fitted from; a receiver's is the part of it that arrived, so that it may be given the sender's. A
state is never changed in place: it is replaced, and who keeps one can go back to it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from splitlearn.compressors import moments
from splitlearn.compressors.checking import is_as_sent
from splitlearn.errors import PayloadError
from splitlearn.kernels import bases
from splitlearn.kernels.channels import matrix_shape

NONE, OWN, KEPT = 1, 2, 3  # what a payload goes by: no basis, one of its own, or the one that both ends keep
# Number and checksum of the basis, vectors used, and the first that is brought: without a basis, bits 16 to 31 of used
HEAD = struct.Struct("<IIHH")
MAX_CHANNELS = 2048
MOST_OF_LIFE = 0.5  # of the bits of all payloads that use a basis, that it may take
CHEAP = 0.01  # of the bits of a payload, that a basis of its own may take
State = dict[str, Any]
"""
number (int): of the basis, from 1.
sent (int): vectors of it that the receiver has.
integers (int8, (K, C)): the vectors (see bases.to_integers); all C of a sender's, those that arrived of a receiver's.
And of a sender alone:
moments (float32, (C, C)): of its maps of late.
step (int): maps so far.
debt (float): bits of vectors that the payloads to come make up for.
gradients (float32, (C, C)): moments of these maps' gradients of late, if it looks at them and one has come.
"""

SENDER = {"moments", "step", "debt"}


@dataclass(frozen=True)
class Plan:
    """The basis that a map is to be coded in.

    Attributes:
        kind: NONE, OWN or KEPT.
        most: components that it may have.
        number: of a KEPT basis.
        sent: vectors that the receiver has.
        integers: (K, C) int8, at least `most`.
        basis: (K, C) float32, at least `most`, orthonormal.
    """

    kind: int
    most: int
    number: int = 0
    sent: int = 0
    integers: Tensor | None = None
    basis: Tensor | None = None

    def vectors(self, start: int, stop: int) -> Tensor:
        """(n, C) int8; none where there is no basis."""
        return torch.empty(0, 0, dtype=torch.int8) if self.integers is None else self.integers[start:stop]


def kind_for(shape: tuple[int, ...], bits: float, refresh: int, basis_bits: int) -> int:
    """What maps of this shape go by, at so many bits an element: a matter of how large they are beside a basis."""
    num_channels, _ = matrix_shape(shape)
    of_map, of_basis = bits * prod(shape), basis_bits * num_channels**2
    if not 2 <= num_channels <= MAX_CHANNELS or of_basis > of_map * refresh:
        return NONE
    return OWN if of_basis <= CHEAP * of_map else KEPT


class SharedBasis:
    """One end's.

    Args:
        refresh: maps after which its sender fits a new one; the first ones are after 1, 4 and 16.
        bits: of a number of a vector.
        weighted: share of the maps' gradients in the moments that a basis is fitted to; 0 for the maps alone.

    Attributes:
        state: None before the first map.
    """

    keeps_state = True

    def __init__(self, refresh: int, bits: int, weighted: float = 0.0):
        self.refresh, self.bits, self.weighted = refresh, bits, weighted
        self.state: State | None = None
        self._made: tuple[Tensor | None, dict[int, Tensor]] = None, {}  # see _orthonormal

    def state_dict(self) -> State:
        return self.state or {}

    def load_state_dict(self, state: State) -> None:
        self.state = state or None

    def flaw_of(self, state: Any, shape: tuple[int, ...]) -> str | None:
        return flaw(state, matrix_shape(shape)[0], self.bits) if state else None

    # The sender's

    def plan(self, kind: int, matrix: Tensor, map_bits: float) -> Plan:
        """What a map, (C, M) float32, goes by that is to take about so many bits; the state moves on with it.

        A basis that is to be kept is not begun on where maps are small and it would soon be replaced.
        """
        if kind == KEPT:
            self.state = moments.learned(self.state, matrix, self.refresh, self.bits, self.weighted)
            integers = self.state["integers"]
            if self.state["sent"] or integers.numel() * self.bits <= MOST_OF_LIFE * map_bits * self.life():
                basis = self._orthonormal(integers, len(integers))
                return Plan(kind, len(integers), self.state["number"], self.state["sent"], integers, basis)
        if kind == OWN:
            integers = bases.to_integers(bases.eigenvectors(moments.of(matrix)), self.bits)
            return Plan(kind, len(matrix), integers=integers, basis=bases.orthonormal(integers))
        return Plan(NONE, len(matrix))

    def cost_bits(self, plan: Plan, num_used: int) -> float:
        """What a payload that uses so many vectors pays for them: those of a kept basis over `refresh` payloads."""
        brought = float(plan.vectors(plan.sent, num_used).numel() * self.bits)
        return (self.state["debt"] + brought) / self.refresh if plan.kind == KEPT else brought

    def life(self) -> int:
        """Payloads that use what this one brings, itself among them: those until a basis is fitted anew."""
        return moments.next_fit(self.state["step"], self.refresh) - self.state["step"]

    def section(self, plan: Plan, num_used: int) -> Tensor:
        """Head and new vectors, uint8, of a payload that uses so many."""
        known = plan.vectors(0, max(plan.sent, num_used))
        head = HEAD.pack(plan.number, checksum(known), num_used & 0xFFFF, plan.sent | num_used >> 16)
        brought = bases.pack_integers(plan.vectors(plan.sent, num_used), self.bits)
        return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), brought])

    def was_sent(self, plan: Plan, num_used: int) -> None:
        """A payload with this section goes out."""
        if plan.kind == KEPT:
            brought = float(plan.vectors(plan.sent, num_used).numel() * self.bits)
            debt = self.state["debt"] * (1 - 1 / self.refresh) + brought
            self.state = {**self.state, "sent": max(plan.sent, num_used), "debt": debt}

    def learn(self, gradient: Tensor) -> None:
        """The gradient of a map that was sent has come back, before any gain."""
        if self.state and "moments" in self.state:
            self.state = moments.with_gradient(self.state, gradient)

    # The receiver's

    def received(self, kind: int, section: Tensor, num_channels: int, bits: int) -> Plan:
        """What a payload goes by, from its section of a basis. `kept` has to follow, once the payload is decoded.

        Raises:
            PayloadError: it is none, or this end has not got the vectors that it goes by.
        """
        section = section.cpu()
        if kind not in (NONE, OWN, KEPT) or section.numel() < HEAD.size or not 4 <= bits <= 8:
            raise PayloadError("has sections that do not fit its shape")
        number, expected, num_used, first = HEAD.unpack(bytes(section[: HEAD.size].numpy()))
        if kind == NONE:
            num_used, first = num_used | first << 16, 0
        if not 1 <= num_used <= num_channels:
            raise PayloadError(f"has {num_used} components of {num_channels} channels")
        integers = bases.unpack_integers(section[HEAD.size :], num_channels, bits)
        if integers is None or (kind == NONE and (len(integers) or number)):
            raise PayloadError("brings no whole vectors of a basis that it goes by")
        if first + len(integers) > num_channels:
            raise PayloadError(f"goes by {first + len(integers)} vectors of a basis of {num_channels} channels")
        if kind == NONE:
            return Plan(kind, num_used)
        whole, count = integers, len(integers)  # the vectors are the first of these
        if kind == KEPT and (first or not count):
            whole = self._known(number, first, adds=count > 0, like=integers)
            whole, count = (torch.cat([whole[:first], integers]), first + count) if count else (whole, first)
        integers = whole if count == len(whole) else whole[:count]
        if checksum(integers) != expected:
            raise PayloadError(f"goes by another basis {number} than this end has")
        if count < num_used:
            raise PayloadError(f"has {num_used} components in a basis of {count} vectors")
        return Plan(kind, num_used, number, count, integers, self._orthonormal(whole, count)[:num_used])

    def kept(self, plan: Plan) -> None:
        """Keeps the basis of a payload that was decoded; who has all of it, as a sender that goes on here, has more."""
        if plan.kind != KEPT:
            return
        if not (self.state and self.state["number"] == plan.number and self.state["sent"] >= plan.sent):
            self.state = {"number": plan.number, "sent": plan.sent, "integers": plan.integers}

    def _known(self, number: int, first: int, adds: bool, like: Tensor) -> Tensor:
        """What this end has of basis `number`: the first vectors, which were brought before, and maybe more."""
        has = self.state or {"number": 0, "sent": 0, "integers": like}
        if has["integers"].shape[1] != like.shape[1]:
            raise PayloadError(f"goes by a basis of {like.shape[1]} channels, where this end has another")
        if has["number"] != number or has["sent"] < first or (not adds and has["sent"] != first):
            raise PayloadError(
                f"goes by {first} vectors of basis {number}, where this end has {has['sent']} of basis {has['number']}"
            )
        return has["integers"]

    def _orthonormal(self, integers: Tensor, number: int) -> Tensor:
        """The first vectors, as they are applied; made once for each number of them, until there are other integers."""
        if self._made[0] is not integers:
            self._made = integers, {}
        made = self._made[1]
        if number not in made:
            made[number] = bases.orthonormal(integers[:number])
        return made[number]


def checksum(integers: Tensor) -> int:
    return zlib.crc32(integers.contiguous().numpy())


def flaw(state: Any, num_channels: int, bits: int) -> str | None:
    """What is wrong with what somebody sent as a state, with so many bits a number; None where nothing is."""
    if not isinstance(state, dict) or not {"number", "sent", "integers"} <= state.keys():
        return "it is no basis"
    rest = {name: value for name, value in state.items() if name not in ("number", "sent", "integers")}
    if rest and rest.keys() - {"gradients"} != SENDER:
        return f"beside its basis it has {', '.join(map(str, rest))}"
    numbers = [state["number"], state["sent"], *(state[name] for name in ("step",) if rest)]
    if not all(type(value) is int and 0 <= value < 1 << 31 for value in numbers):  # which goes on, in 32 bits
        return "its basis has no number"
    integers = state["integers"]
    if not _is_plain(integers, torch.int8) or integers.dim() != 2:
        return "its basis is no int8 matrix"
    rows = num_channels if rest else state["sent"]
    if tuple(integers.shape) != (rows, num_channels) or state["sent"] > num_channels:
        return f"its basis is of shape {tuple(integers.shape)}, where there are {num_channels} channels"
    if rest:
        if (integers.short().abs() >= 1 << (bits - 1)).any():
            return f"its basis is of numbers of more than {bits} bits"
        for one in (state["moments"], state.get("gradients", state["moments"])):
            if not _is_plain(one, torch.float32) or one.shape != (num_channels, num_channels):
                return "its moments are no float32 matrix of the channels"
            if not one.isfinite().all():
                return "its moments are not finite"
        if type(state["debt"]) is not float or not 0 <= state["debt"] < 1e15:
            return "its debt is not finite"
    return None


def _is_plain(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and is_as_sent(value) and value.dtype == dtype
