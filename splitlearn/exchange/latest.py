"""What a client's server holds of each training sample's map, known at both ends: only the change of it is sent.

    sender      map ─ − ─► change ─ encode ═══ payload, numbers ═══► decode ─ + ─► map      receiver
                     held ┘           └─ decode ─ + ─► held             held ┘ └─► held

A client sends with each payload which samples it is of, by their numbers among its own, and of which of them it is the
change: of one that is new, or whose change is larger than its map, the map crosses as it is. So a codec never has more
to code than without, whatever it does to it. The change is against what the receiver holds, not against what the sender
had: what a codec left out is part of the next change, and errors do not add up. Both ends round alike what they keep.

Both keep it while the client is there, whatever weights it goes on with. The server's is what a checkpoint has, and
what a client begins with that comes or comes back. Test samples are coded as they are.

Source: Wang et al. 2022, "Fine-tuning language models over slow networks using activation quantization with
guarantees" (AQ-SGD), arXiv:2206.01299; Valdeira et al. 2024, "Communication-efficient vertical federated learning via
compressed error feedback" (EF-VFL), arXiv:2406.14420.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch
from torch import Tensor

from splitlearn.compressors import Payload
from splitlearn.compressors.checking import is_as_sent
from splitlearn.errors import PayloadError
from splitlearn.exchange.channel import Channel
from splitlearn.kernels import bits, keeping
from splitlearn.kernels.sections import view_as

HEAD = struct.Struct("<I")  # checksum of how often the samples were sent before; numbers follow, and a bit of each
NARROW = 1 << 16  # up to so many samples, a number takes two bytes
MOST = 1 << 40
OF_SAMPLES = "numbers", "times", "rows"  # in a state, int64, in the order of the maps
Entry = tuple[int, Tensor]  # how often a sample was sent, and its map, (rows, bytes of a row) uint8


class Latest:
    """One end's, of one client. What it holds is replaced and never changed in place.

    Args:
        kind: how it is kept, one of `keeping.KINDS`.

    Attributes:
        num_samples: that the client has; their numbers are below that.
        entries: by the number of a sample.
    """

    def __init__(self, kind: str):
        self.kind, self.num_samples = kind, 0
        self.entries: dict[int, Entry] = {}

    @property
    def nbytes(self) -> int:
        """Memory that the maps take."""
        return sum(kept.numel() for _, kept in self.entries.values())

    def of(self, samples: Tensor, shape: torch.Size, lengths: Tensor | None = None) -> Tensor:
        """
        Args:
            samples: (B,) numbers.
            shape: of their map, (B, …), or of ragged ones (N, 1, …).
            lengths: (B,) of ragged ones, whose sum is N.

        Returns:
            What is held of them, float32, of this shape, on the CPU; zeros where that is nothing.
        """
        sizes, width = rows_of(shape, lengths)
        row_nbytes = keeping.row_nbytes(width, self.kind)
        kept = []
        for number, size in zip(samples.tolist(), sizes, strict=True):
            _, found = self.entries.get(number, (0, None))
            fits = found is not None and found.shape == (size, row_nbytes)  # else the sample is another one now
            kept.append(found if fits else torch.zeros(size, row_nbytes, dtype=torch.uint8))
        return keeping.unpack(torch.cat(kept), width, self.kind).view(shape)

    def below(self, samples: Tensor, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the change of a map is against, like `x` but float32, and of which samples it is one, (B,) bool."""
        found = self.of(samples, x.shape, lengths).to(x.device)
        owner = owners(x.shape, lengths).to(x.device)
        parts = (x.detach().float().flatten(1), (x.detach() - found).float().flatten(1))
        of_map, of_change = (
            torch.zeros(len(samples), device=x.device).index_add_(0, owner, part.square().sum(1)) for part in parts
        )
        is_change = of_change < of_map
        return found * like_rows(is_change[owner], x), is_change.cpu()

    def keep(self, samples: Tensor, x: Tensor, lengths: Tensor | None = None) -> None:
        """These samples' map is now `x`; of one that is there twice the last. Arguments as of `of`."""
        sizes, width = rows_of(x.shape, lengths)
        packed = keeping.pack(x.detach().reshape(-1, width), self.kind).cpu()
        new = {}
        for number, kept in zip(samples.tolist(), packed.split(sizes), strict=True):
            times, _ = new.get(number) or self.entries.get(number) or (0, None)
            new[number] = times + 1, kept.clone()  # else it would keep the whole batch in memory
        self.entries = {**self.entries, **new}

    def added(self, samples: Tensor, is_change: Tensor, coded: Tensor, lengths: Tensor | None = None) -> Tensor:
        """These samples' map, which is kept, where `coded` came. Arguments as of `keep`, and what `below` gives."""
        found = self.of(samples, coded.shape, lengths)
        found *= like_rows(is_change[owners(coded.shape, lengths)], coded)
        x = (found.to(coded.device) + coded).to(coded.dtype)
        self.keep(samples, x, lengths)
        return x

    # On the wire

    def section(self, samples: Tensor, is_change: Tensor) -> Tensor:
        """What says in a payload which samples it is of, uint8: before they are kept."""
        head = torch.frombuffer(bytearray(HEAD.pack(self._times(samples))), dtype=torch.uint8)
        return torch.cat([head, samples.to(self._dtype).view(torch.uint8), bits.pack(is_change.byte(), 1)])

    def parted(self, payload: Payload, num_samples: int) -> tuple[Payload, Tensor, Tensor]:
        """A payload that came, for its codec, its samples' numbers, (B,) int64, and of which it is a change, (B,) bool.

        A number may be there twice: where samples_per_epoch takes up the next order, a batch has the end of one and the
        beginning of another.

        Raises:
            PayloadError: it does not say which samples it is of, or they are not held here as they are there.
        """
        payload, section = payload.parted()
        end = HEAD.size + num_samples * self._dtype.itemsize
        if section.numel() != end + bits.packed_nbytes(num_samples, 1):
            raise PayloadError(f"does not say which {num_samples} samples it is of")
        samples = view_as(section[HEAD.size : end], self._dtype).long()
        if int(samples.max()) >= self.num_samples:
            raise PayloadError(f"is of sample {int(samples.max())}, where the client has {self.num_samples}")
        if HEAD.unpack(bytes(section[: HEAD.size].numpy()))[0] != self._times(samples):
            raise PayloadError("is a change of other maps than this end holds of its samples")
        return payload, samples, bits.unpack(section[end:], 1, num_samples).bool()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint16 if self.num_samples <= NARROW else torch.uint32

    def _times(self, samples: Tensor) -> int:
        """Checksum of how often each was sent."""
        times = [self.entries[number][0] if number in self.entries else 0 for number in samples.tolist()]
        return zlib.crc32(struct.pack(f"<{len(times)}Q", *times))

    # To a checkpoint, and to a client that comes

    def state(self) -> dict[str, Tensor]:
        """All that is held: of each sample its number, how often it was sent, its rows, and its map in "maps"."""
        if not self.entries:
            return {}
        times, kept = zip(*self.entries.values(), strict=True)
        of_samples = list(self.entries), times, list(map(len, kept))
        return {**dict(zip(OF_SAMPLES, map(torch.tensor, of_samples), strict=True)), "maps": torch.cat(kept)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state that has no flaw."""
        self.entries = {}
        if state:
            numbers, times, rows = (state[name].tolist() for name in OF_SAMPLES)
            parts = state["maps"].split(rows)
            self.entries = {
                number: (count, part.clone()) for number, count, part in zip(numbers, times, parts, strict=True)
            }


def rows_of(shape: torch.Size, lengths: Tensor | None) -> tuple[list[int], int]:
    """How many rows each sample of a map has, and how many values a row: a channel, a token, or all of it."""
    if lengths is not None:
        return lengths.tolist(), shape[1:].numel()
    rows = shape[1] if len(shape) > 2 else 1
    return [rows] * shape[0], shape[1:].numel() // rows


def owners(shape: torch.Size, lengths: Tensor | None) -> Tensor:
    """Which sample of the batch each element of the first dimension is of, int64 on the CPU."""
    order = torch.arange(shape[0] if lengths is None else len(lengths))
    return order if lengths is None else order.repeat_interleave(lengths.cpu())


def like_rows(values: Tensor, x: Tensor) -> Tensor:
    """One value for each element of the first dimension of `x`, as it is multiplied with."""
    return values.view(-1, *[1] * (x.dim() - 1))


def sample_nbytes(channel: Channel, longest: int | None) -> int:
    """Bytes that are held of a sample at most, of so many positions where they differ in it."""
    sizes, width = rows_of(torch.Size((1, *channel.shape)), torch.tensor([longest]) if channel.is_ragged else None)
    return sizes[0] * keeping.row_nbytes(width, channel.delta)


def flaw(state: Any) -> str | None:
    """What is wrong with what somebody sent as a state; None where nothing is."""
    if state == {}:
        return None
    if not isinstance(state, dict) or state.keys() != {*OF_SAMPLES, "maps"}:
        return "it does not hold numbers and maps of samples"
    if not all(isinstance(one, Tensor) and is_as_sent(one) for one in state.values()):
        return "it is not of plain tensors"
    of_samples, maps = [state[name] for name in OF_SAMPLES], state["maps"]
    if any(one.dtype != torch.int64 or one.shape != of_samples[0].shape or one.dim() != 1 for one in of_samples):
        return "its numbers, times and rows are not those of as many samples"
    if not all(len(one) and 0 <= int(one.min()) <= int(one.max()) < MOST for one in of_samples):
        return "its numbers are out of range"
    if maps.dtype != torch.uint8 or maps.dim() != 2 or int(state["rows"].sum()) != len(maps):
        return "its maps are not of so many rows"
    return None
